/** Proleptic Gregorian calendar on plain integers, and the ISO text of dates and times. */
import { SpillwayError } from "@spillway/base/errors";

export const MICROS_PER_DAY = 86_400_000_000n;
export const NANOS_PER_DAY = 86_400_000_000_000n;

export interface CivilDate {
  readonly year: number;
  readonly month: number;
  readonly day: number;
}

/** Division that rounds down, also below zero. */
export function floorDiv(a: bigint, b: bigint): bigint {
  const q = a / b;
  return a % b < 0n ? q - 1n : q;
}

/** The date of a number of days since 1970-01-01. */
export function civilFromDays(days: number): CivilDate {
  const z = days + 719_468;
  const era = Math.floor(z / 146_097);
  const dayOfEra = z - era * 146_097;
  const yearOfEra = Math.floor(
    (dayOfEra - Math.floor(dayOfEra / 1460) + Math.floor(dayOfEra / 36_524) - Math.floor(dayOfEra / 146_096)) / 365,
  );
  const dayOfYear = dayOfEra - (365 * yearOfEra + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100));
  const shifted = Math.floor((5 * dayOfYear + 2) / 153);
  const month = shifted < 10 ? shifted + 3 : shifted - 9;
  const year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0);
  return { year, month, day: dayOfYear - Math.floor((153 * shifted + 2) / 5) + 1 };
}

/** Days since 1970-01-01. */
export function daysFromCivil({ year, month, day }: CivilDate): number {
  const y = month <= 2 ? year - 1 : year;
  const era = Math.floor(y / 400);
  const yearOfEra = y - era * 400;
  const dayOfYear = Math.floor((153 * (month > 2 ? month - 3 : month + 9) + 2) / 5) + day - 1;
  return (
    era * 146_097 + yearOfEra * 365 + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100) + dayOfYear - 719_468
  );
}

/** `2017-11-16`; years beyond four digits carry a sign, as ISO 8601 wants. */
export function printDate(days: number): string {
  const { year, month, day } = civilFromDays(days);
  return `${printYear(year)}-${pad(month, 2)}-${pad(day, 2)}`;
}

export function printYear(year: number): string {
  if (year >= 0 && year <= 9999) return pad(year, 4);
  return `${year < 0 ? "-" : "+"}${pad(Math.abs(year), 4)}`;
}

/** `22:31:08.123456` with as many fraction digits as asked; a zero fraction is left out. */
export function printTime(ticks: bigint, digits: 6 | 9): string {
  const perSecond = digits === 6 ? 1_000_000n : 1_000_000_000n;
  const seconds = Number(ticks / perSecond);
  const fraction = ticks % perSecond;
  const hms = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60].map((n) => pad(n, 2)).join(":");
  return fraction === 0n ? hms : `${hms}.${fraction.toString().padStart(digits, "0")}`;
}

/** A timestamp in µs (6) or ns (9) as `2017-11-16T22:31:08.123456`. */
export function printTimestamp(ticks: bigint, digits: 6 | 9): string {
  const perDay = digits === 6 ? MICROS_PER_DAY : NANOS_PER_DAY;
  const days = floorDiv(ticks, perDay);
  return `${printDate(Number(days))}T${printTime(ticks - days * perDay, digits)}`;
}

export function parseDate(text: string): number {
  const m = /^([+-]?\d{4,7})-(\d\d)-(\d\d)$/.exec(text);
  if (!m) throw badText("date", text);
  const date = { year: Number(m[1]), month: Number(m[2]), day: Number(m[3]) };
  const days = daysFromCivil(date);
  const back = civilFromDays(days);
  if (back.month !== date.month || back.day !== date.day) throw badText("date", text);
  return days;
}

export function parseTime(text: string, digits: 6 | 9): bigint {
  const m = /^(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?$/.exec(text);
  if (!m || Number(m[1]) > 24 || Number(m[2]) > 59 || Number(m[3] ?? 0) > 59) throw badText("time", text);
  const fraction = (m[4] ?? "").padEnd(9, "0");
  if (digits === 6 && !fraction.endsWith("000")) throw badText("time of microsecond precision", text);
  const seconds = BigInt(Number(m[1]) * 3600 + Number(m[2]) * 60 + Number(m[3] ?? 0));
  const nanos = seconds * 1_000_000_000n + BigInt(fraction);
  return digits === 6 ? nanos / 1000n : nanos;
}

/** With `zoned`, an offset is required and taken off; without, none is allowed. */
export function parseTimestamp(text: string, digits: 6 | 9, zoned: boolean): bigint {
  const m = /^([+-]?\d{4,7}-\d\d-\d\d)[T ]([\d:.]+)(Z|[+-]\d\d:\d\d)?$/.exec(text);
  if (!m || (m[3] !== undefined) !== zoned) throw badText(zoned ? "timestamp with zone" : "timestamp", text);
  const perDay = digits === 6 ? MICROS_PER_DAY : NANOS_PER_DAY;
  const local = BigInt(parseDate(m[1] ?? "")) * perDay + parseTime(m[2] ?? "", digits);
  return local - BigInt(offsetMinutes(m[3] ?? "Z")) * (perDay / 1440n);
}

function offsetMinutes(zone: string): number {
  if (zone === "Z") return 0;
  const minutes = Number(zone.slice(1, 3)) * 60 + Number(zone.slice(4, 6));
  return zone.startsWith("-") ? -minutes : minutes;
}

function pad(n: number, width: number): string {
  return n.toString().padStart(width, "0");
}

function badText(what: string, text: string): SpillwayError {
  return new SpillwayError("lake_value_invalid", `${JSON.stringify(text)} is not a ${what}`);
}
