/**
 * Dates and times from their text under DateStyle ISO, and the shift between the two epochs.
 * Source: https://www.postgresql.org/docs/current/datatype-datetime.html
 */

/** Days from 1970-01-01 to 2000-01-01, Postgres's epoch. */
export const EPOCH_DAYS = 10_957;
/** The same in µs, as the lanes of a 64-bit number. */
export const EPOCH_US = EPOCH_DAYS * 86_400_000_000;
export const EPOCH_US_LOW = EPOCH_US % 4294967296;
export const EPOCH_US_HIGH = Math.floor(EPOCH_US / 4294967296);

const DAY_US = 86_400_000_000;

/** Where the last parse stopped. */
let cursor = 0;

/** Days from 1970-01-01 to a date of the proleptic Gregorian calendar; year 0 is 1 BC. */
export function daysFromCivil(year: number, month: number, day: number): number {
  const y = month <= 2 ? year - 1 : year;
  const era = Math.floor(y / 400);
  const yearOfEra = y - era * 400;
  const dayOfYear = Math.floor((153 * (month + (month > 2 ? -3 : 9)) + 2) / 5) + day - 1;
  const dayOfEra = yearOfEra * 365 + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100) + dayOfYear;
  return era * 146_097 + dayOfEra - 719_468;
}

function digits(buffer: Buffer, end: number): number {
  let value = 0;
  const from = cursor;
  while (cursor < end) {
    const byte = buffer[cursor] ?? 0;
    if (byte < 48 || byte > 57) break;
    value = value * 10 + byte - 48;
    cursor++;
  }
  return cursor === from ? Number.NaN : value;
}

function expectByte(buffer: Buffer, end: number, byte: number): boolean {
  if (cursor >= end || buffer[cursor] !== byte) return false;
  cursor++;
  return true;
}

function isBc(buffer: Buffer, end: number): boolean {
  return buffer[end - 1] === 67 && buffer[end - 2] === 66;
}

function datePart(buffer: Buffer, end: number, bc: boolean): number {
  const year = digits(buffer, end);
  if (!expectByte(buffer, end, 45)) return Number.NaN;
  const month = digits(buffer, end);
  if (!expectByte(buffer, end, 45)) return Number.NaN;
  const day = digits(buffer, end);
  return daysFromCivil(bc ? 1 - year : year, month, day);
}

function timePart(buffer: Buffer, end: number): number {
  const hours = digits(buffer, end);
  if (!expectByte(buffer, end, 58)) return Number.NaN;
  const minutes = digits(buffer, end);
  if (!expectByte(buffer, end, 58)) return Number.NaN;
  const seconds = digits(buffer, end);
  let micros = 0;
  if (cursor < end && buffer[cursor] === 46) {
    const from = ++cursor;
    micros = digits(buffer, end);
    for (let have = cursor - from; have < 6; have++) micros *= 10;
  }
  return ((hours * 60 + minutes) * 60 + seconds) * 1e6 + micros;
}

function zonePart(buffer: Buffer, end: number): number {
  const sign = buffer[cursor];
  if (cursor >= end || (sign !== 43 && sign !== 45)) return 0;
  cursor++;
  let seconds = digits(buffer, end) * 3600;
  if (cursor < end && buffer[cursor] === 58) {
    cursor++;
    seconds += digits(buffer, end) * 60;
  }
  if (cursor < end && buffer[cursor] === 58) {
    cursor++;
    seconds += digits(buffer, end);
  }
  return sign === 45 ? -seconds * 1e6 : seconds * 1e6;
}

/** Infinity, -Infinity, days since 1970-01-01, or NaN when it is no date. */
export function parseDate(buffer: Buffer, start: number, end: number): number {
  if (buffer[start] === 105) return Number.POSITIVE_INFINITY;
  if (buffer[start] === 45) return Number.NEGATIVE_INFINITY;
  cursor = start;
  const bc = isBc(buffer, end);
  const days = datePart(buffer, end, bc);
  return cursor === (bc ? end - 3 : end) ? days : Number.NaN;
}

/** µs since midnight, up to and including 24:00:00, or NaN. */
export function parseTime(buffer: Buffer, start: number, end: number): number {
  cursor = start;
  const value = timePart(buffer, end);
  return cursor === end ? value : Number.NaN;
}

/**
 * A timestamp as whole days and µs, together `days * 86 400 000 000 + micros` since 1970 UTC: a sum that a double
 * does not always hold. Infinite days for the infinities, NaN for what is no timestamp.
 */
export const parsed = { days: 0, micros: 0 };

export function parseTimestamp(buffer: Buffer, start: number, end: number): void {
  parsed.micros = 0;
  if (buffer[start] === 105 || buffer[start] === 45) {
    parsed.days = buffer[start] === 45 ? Number.NEGATIVE_INFINITY : Number.POSITIVE_INFINITY;
    return;
  }
  cursor = start;
  const bc = isBc(buffer, end);
  parsed.days = datePart(buffer, end, bc);
  const space = expectByte(buffer, end, 32);
  const micros = timePart(buffer, end) - zonePart(buffer, end);
  if (!space || cursor !== (bc ? end - 3 : end)) parsed.days = Number.NaN;
  const carry = Math.floor(micros / DAY_US);
  parsed.days += carry;
  parsed.micros = micros - carry * DAY_US;
}
