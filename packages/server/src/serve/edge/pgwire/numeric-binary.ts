/**
 * numeric's binary form: digits in base 10 000. Source: `numeric_send` and `numeric_recv`, src/backend/utils/adt/numeric.c:
 * int16 count, int16 weight of the first digit, uint16 sign (0, 0x4000, 0xc000 NaN, 0xd000 and 0xf000 infinities), uint16 scale.
 */
import { SpillwayError } from "@spillway/base/errors";
import type { OutBuffer } from "./out-buffer.ts";

const SPECIAL: readonly (readonly [string, number])[] = [
  ["NaN", 0xc000],
  ["Infinity", 0xd000],
  ["-Infinity", 0xf000],
];

/** Writes length and value of a numeric in its text form. */
export function writeNumeric(out: OutBuffer, text: string): void {
  const special = SPECIAL.find(([name]) => name === text)?.[1];
  if (special !== undefined) {
    out.int32(8).int16(0).int16(0);
    // The scale of an infinity is what its header's bits happen to say.
    out.int16((special << 16) >> 16).int16(special === 0xc000 ? 0 : 32);
    return;
  }
  const { negative, digits, weight, scale } = groupsOf(text);
  out
    .int32(8 + 2 * digits.length)
    .int16(digits.length)
    .int16(weight);
  out.int16(negative ? 0x4000 : 0).int16(scale);
  for (const digit of digits) out.int16(digit);
}

interface Groups {
  readonly negative: boolean;
  readonly digits: readonly number[];
  readonly weight: number;
  readonly scale: number;
}

function groupsOf(text: string): Groups {
  const match = /^(-?)(\d+)(?:\.(\d+))?$/.exec(text);
  if (!match) throw new SpillwayError("pg_type_mismatch", "a value of a numeric column is no number");
  const [, sign = "", whole = "", fraction = ""] = match;
  const left = whole.replace(/^0+/, "");
  const head = left.padStart(Math.ceil(left.length / 4) * 4, "0");
  const tail = fraction.padEnd(Math.ceil(fraction.length / 4) * 4, "0");
  const all = (head + tail).match(/\d{4}/g)?.map(Number) ?? [];
  let weight = head.length / 4 - 1;
  let from = 0;
  while (from < all.length && all[from] === 0) {
    from += 1;
    weight -= 1;
  }
  let to = all.length;
  while (to > from && all[to - 1] === 0) to -= 1;
  const digits = all.slice(from, to);
  return { negative: sign === "-", digits, weight: digits.length === 0 ? 0 : weight, scale: fraction.length };
}

/** The text of a binary numeric. Throws `pg_protocol_error` (22P03) for bytes that are none. */
export function readNumeric(bytes: Buffer): string {
  if (bytes.length < 8) throw badNumeric();
  const count = bytes.readUInt16BE(0);
  const weight = bytes.readInt16BE(2);
  const sign = bytes.readUInt16BE(4);
  const scale = bytes.readUInt16BE(6) & 0x3fff;
  const special = SPECIAL.find(([, code]) => code === sign)?.[0];
  if (special !== undefined) return special;
  if (bytes.length !== 8 + 2 * count || (sign !== 0 && sign !== 0x4000)) throw badNumeric();
  const groups = Array.from({ length: count }, (_, i) => bytes.readUInt16BE(8 + 2 * i));
  if (groups.some((group) => group > 9999)) throw badNumeric();
  const at = (position: number): string => String(groups[weight - position] ?? 0).padStart(4, "0");
  let whole = "";
  for (let position = weight; position >= 0; position--) whole += at(position);
  let fraction = "";
  for (let position = -1; fraction.length < scale; position--) fraction += at(position);
  const text = (whole.replace(/^0+(?=\d)/, "") || "0") + (scale > 0 ? `.${fraction.slice(0, scale)}` : "");
  return sign === 0x4000 ? `-${text}` : text;
}

function badNumeric(): SpillwayError {
  return new SpillwayError("pg_protocol_error", "invalid binary numeric", { details: { sqlstate: "22P03" } });
}
