/**
 * The tier key in canonical form: one bigint. Integers as they are, `date` in days since 1970-01-01, `timestamp` and
 * `timestamptz` in µs since 1970-01-01 (UTC). Infinite keys are the largest bigint and its negative.
 */
import { unreachable } from "@spillway/base/assert";
import { civilFromDays, floorDiv } from "@spillway/lake/calendar";

export type KeyKind = "int" | "timestamptz" | "timestamp" | "date";

export const KEY_INFINITY = 9223372036854775807n;
export const KEY_NEG_INFINITY = -9223372036854775807n;
/** T of a table whose lowest partition has no lower bound: nothing is below it. */
export const KEY_MIN = -9223372036854775808n;

const US_PER_DAY = 86_400_000_000n;
const MS_PER_DAY = 86_400_000;

/** Types that can be a tier key, by oid. */
export const KEY_TYPES: ReadonlyMap<number, KeyKind> = new Map([
  [21, "int"],
  [23, "int"],
  [20, "int"],
  [1082, "date"],
  [1114, "timestamp"],
  [1184, "timestamptz"],
]);

/** SQL that gives the canonical form of an expression of the key's type. The same text as spillway.key_expression. */
export function keyExpression(kind: KeyKind, sql: string): string {
  const finite =
    kind === "date" ? `(${sql} - date '1970-01-01')::bigint` : `(extract(epoch from ${sql}) * 1000000)::bigint`;
  if (kind === "int") return `(${sql})::bigint`;
  return (
    `case when isfinite(${sql}) then ${finite} ` +
    `when ${sql} > '1970-01-01' then ${KEY_INFINITY} else ${KEY_NEG_INFINITY} end`
  );
}

/**
 * A canonical key as a SQL constant of the key's type, for comparisons that an index or a partition bound can use.
 * `KEY_MIN` becomes the least value of the type.
 */
export function keyLiteral(kind: KeyKind, key: bigint): string {
  switch (kind) {
    case "int":
      return `'${key}'::bigint`;
    case "date":
      if (key >= KEY_INFINITY) return "'infinity'::date";
      return key <= KEY_NEG_INFINITY ? "'-infinity'::date" : `(date '1970-01-01' + ${key})`;
    case "timestamp":
    case "timestamptz":
      if (key >= KEY_INFINITY) return `'infinity'::${kind}`;
      if (key <= KEY_NEG_INFINITY) return `'-infinity'::${kind}`;
      return `'${keyText(kind, key)}'::${kind}`;
    default:
      return unreachable(kind);
  }
}

/** A canonical key as people read it: `2024-03-01 00:00:00+00`, `2024-03-01`, `1200`. */
export function keyText(kind: KeyKind, key: bigint): string {
  if (kind === "int") return key === KEY_MIN ? "-infinity" : String(key);
  if (key >= KEY_INFINITY) return "infinity";
  if (key <= KEY_NEG_INFINITY) return "-infinity";
  const dayNumber = kind === "date" ? key : floorDiv(key, US_PER_DAY);
  const { year, month, day } = civilFromDays(Number(dayNumber));
  const date = `${pad(year >= 1 ? year : 1 - year, 4)}-${pad(month, 2)}-${pad(day, 2)}`;
  const era = year >= 1 ? "" : " BC";
  if (kind === "date") return `${date}${era}`;
  const us = key - dayNumber * US_PER_DAY;
  const seconds = Number(us / 1_000_000n);
  const fraction = pad(Number(us % 1_000_000n), 6).replace(/0+$/, "");
  const clock = `${pad(Math.floor(seconds / 3600), 2)}:${pad(Math.floor(seconds / 60) % 60, 2)}:${pad(seconds % 60, 2)}`;
  return `${date} ${clock}${fraction && `.${fraction}`}${kind === "timestamptz" ? "+00" : ""}${era}`;
}

function pad(n: number, width: number): string {
  return String(n).padStart(width, "0");
}

/** A length of time in the units of the key: µs, or whole days for dates. Null when a date cannot hold it. */
export function durationInKeyUnits(kind: KeyKind, ms: number): bigint | null {
  if (kind === "int") return null;
  if (kind === "date") return ms % MS_PER_DAY === 0 ? BigInt(ms / MS_PER_DAY) : null;
  return BigInt(Math.round(ms * 1000));
}
