/**
 * A WAL position: an unsigned 64-bit byte offset. Text form `X/Y`, both halves in hexadecimal.
 * Source: https://www.postgresql.org/docs/current/datatype-pg-lsn.html
 */
import { SpillwayError } from "./errors.ts";

export type Lsn = bigint;

const MAX = (1n << 64n) - 1n;

/** Parses `16/B374D848`. Throws `config_invalid` for anything else. */
export function parseLsn(text: string): Lsn {
  const match = /^([0-9A-Fa-f]{1,8})\/([0-9A-Fa-f]{1,8})$/.exec(text);
  if (!match) throw new SpillwayError("config_invalid", `not a WAL position: ${JSON.stringify(text)}`);
  return (BigInt(`0x${match[1]}`) << 32n) | BigInt(`0x${match[2]}`);
}

/** Formats as Postgres does: upper-case, without leading zeros. */
export function formatLsn(lsn: Lsn): string {
  if (lsn < 0n || lsn > MAX) throw new RangeError(`not a WAL position: ${lsn}`);
  return `${(lsn >> 32n).toString(16)}/${(lsn & 0xffffffffn).toString(16)}`.toUpperCase();
}

export function maxLsn(a: Lsn, b: Lsn): Lsn {
  return a > b ? a : b;
}

export function minLsn(a: Lsn, b: Lsn): Lsn {
  return a < b ? a : b;
}
