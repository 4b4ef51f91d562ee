/** Offsets of time zones, for the text of timestamptz. The rules are those of the ICU that Node carries. */
import { SpillwayError } from "@spillway/base/errors";

const MICROS = 1_000_000;

/** Gives the offset from UTC in seconds, east positive, at an instant (µs since 1970). */
export type ZoneOffset = (micros: number) => number;

const known = new Map<string, ZoneOffset>();

/**
 * By the zone's name of the IANA database, or `UTC`, or an offset such as `+02:30` (ISO: east positive). Throws `statement_refused`
 * (22023) for a name that is none.
 */
export function zoneOffset(name: string): ZoneOffset {
  const found = known.get(name);
  if (found) return found;
  const made = makeZone(name);
  if (known.size < 1000) known.set(name, made);
  return made;
}

function makeZone(name: string): ZoneOffset {
  if (/^(utc|gmt|etc\/utc|z|zulu)$/i.test(name)) return () => 0;
  const fixed = /^([+-])(\d{1,2})(?::?(\d{2}))?$/.exec(name);
  if (fixed) {
    const seconds = Number(fixed[2]) * 3600 + Number(fixed[3] ?? 0) * 60;
    return () => (fixed[1] === "-" ? -seconds : seconds);
  }
  let format: Intl.DateTimeFormat;
  try {
    format = new Intl.DateTimeFormat("en-u-ca-gregory-hc-h23", {
      timeZone: name,
      era: "short",
      year: "numeric",
      month: "2-digit",
      day: "2-digit",
      hour: "2-digit",
      minute: "2-digit",
      second: "2-digit",
    });
  } catch (error) {
    throw new SpillwayError("statement_refused", `invalid value for parameter "TimeZone": "${name}"`, {
      cause: error,
      details: { sqlstate: "22023" },
    });
  }
  // Offsets change at whole quarters of an hour only, so that one look-up serves all instants of one.
  const cache = new Map<number, number>();
  return (micros) => {
    const quarter = Math.floor(micros / (900 * MICROS));
    const cached = cache.get(quarter);
    if (cached !== undefined) return cached;
    const seconds = lookUp(format, quarter * 900);
    if (cache.size > 10_000) cache.clear();
    cache.set(quarter, seconds);
    return seconds;
  };
}

/** Rules of a zone repeat with the calendar, every 400 years. ECMAScript's dates end long before Postgres's. */
const CYCLE_SECONDS = 146_097 * 86_400;
const YEAR_9999 = 253_370_764_800;
const FIRST_SECOND = -8.64e12 + 86_400;

function lookUp(format: Intl.DateTimeFormat, seconds: number): number {
  const beyond = Math.max(0, Math.ceil((seconds - YEAR_9999) / CYCLE_SECONDS));
  const at = Math.max(FIRST_SECOND, seconds - beyond * CYCLE_SECONDS);
  const part: Record<string, string> = {};
  for (const { type, value } of format.formatToParts(new Date(at * 1000))) part[type] = value;
  const year = part["era"] === "BC" || part["era"] === "B" ? 1 - Number(part["year"]) : Number(part["year"]);
  const local = new Date(0);
  local.setUTCFullYear(year, Number(part["month"]) - 1, Number(part["day"]));
  local.setUTCHours(Number(part["hour"]), Number(part["minute"]), Number(part["second"]));
  return local.getTime() / 1000 - at;
}

/** `+02`, `-03:30`, `+00:53:28`: as Postgres writes it behind a time. */
export function offsetText(seconds: number): string {
  const size = Math.abs(seconds);
  const two = (n: number): string => String(n).padStart(2, "0");
  const hours = two(Math.floor(size / 3600));
  const [minutes, rest] = [Math.floor(size / 60) % 60, size % 60];
  const tail = rest > 0 ? `:${two(minutes)}:${two(rest)}` : minutes > 0 ? `:${two(minutes)}` : "";
  return `${seconds < 0 ? "-" : "+"}${hours}${tail}`;
}
