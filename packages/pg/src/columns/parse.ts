/**
 * Numbers, dates and times out of Postgres's bytes, without strings or bigints on the way: 64-bit and 128-bit
 * results are left in the limbs below, least significant first, for the caller to store.
 * Sources: src/backend/utils/adt/{numeric,datetime,timestamp}.c for the formats of the send and output functions.
 */

/** 32-bit limbs of the last result, each a number in [0, 2^32). */
export const limbs = new Uint32Array(4);

const TWO_32 = 4294967296;
const POW10 = [1, 10, 100, 1000, 10_000];

/** What a parser says instead of a value; the builder adds the column's name. */
export type ParseFault = "malformed" | "out of range" | "NaN" | "infinite" | null;

function setSmall(value: number): void {
  limbs[0] = value % TWO_32;
  limbs[1] = value / TWO_32;
  limbs[2] = 0;
  limbs[3] = 0;
}

/** limbs = limbs * factor + add, for factors up to 10 000; true when 128 bits do not hold it. */
function multiplyAdd(factor: number, add: number): boolean {
  let carry = add;
  for (let i = 0; i < 4; i++) {
    const t = (limbs[i] ?? 0) * factor + carry;
    limbs[i] = t % TWO_32;
    carry = Math.floor(t / TWO_32);
  }
  return carry !== 0;
}

/** Two's complement of all four limbs. */
export function negateLimbs(): void {
  let carry = 1;
  for (let i = 0; i < 4; i++) {
    const t = (~(limbs[i] ?? 0) >>> 0) + carry;
    limbs[i] = t % TWO_32;
    carry = t >= TWO_32 ? 1 : 0;
  }
}

function isDigit(byte: number): boolean {
  return byte >= 48 && byte <= 57;
}

/** A decimal integer, `-` or `+` allowed, into all four limbs (sign-extended). */
export function parseInteger(buffer: Buffer, start: number, end: number): ParseFault {
  const negative = buffer[start] === 45;
  let at = negative || buffer[start] === 43 ? start + 1 : start;
  if (at >= end) return "malformed";
  if (end - at <= 15) {
    let value = 0;
    for (; at < end; at++) {
      const byte = buffer[at] ?? 0;
      if (!isDigit(byte)) return "malformed";
      value = value * 10 + byte - 48;
    }
    setSmall(value);
  } else {
    limbs.fill(0);
    for (; at < end; at++) {
      const byte = buffer[at] ?? 0;
      if (!isDigit(byte)) return "malformed";
      if (multiplyAdd(10, byte - 48)) return "out of range";
    }
  }
  if (negative) negateLimbs();
  return null;
}

/** True when the four limbs are the sign extension of the lower two. */
export function fitsInt64(): boolean {
  const sign = (limbs[1] ?? 0) >>> 31 === 1 ? 0xffffffff : 0;
  return limbs[2] === sign && limbs[3] === sign;
}

/** A small integer for int2, int4 and the parts of dates; NaN when it is none. */
export function parseSmall(buffer: Buffer, start: number, end: number): number {
  const negative = buffer[start] === 45;
  let at = negative ? start + 1 : start;
  if (at >= end || end - at > 15) return Number.NaN;
  let value = 0;
  for (; at < end; at++) {
    const byte = buffer[at] ?? 0;
    if (!isDigit(byte)) return Number.NaN;
    value = value * 10 + byte - 48;
  }
  return negative ? -value : value;
}

/** The text of a numeric as its unscaled value at `scale`. More non-zero digits than that are out of range. */
export function parseDecimalText(buffer: Buffer, start: number, end: number, scale: number): ParseFault {
  const first = buffer[start];
  const negative = first === 45;
  let at = negative ? start + 1 : start;
  const next = buffer[at] ?? 0;
  if (!isDigit(next) && next !== 46) return next === 78 ? "NaN" : next === 73 ? "infinite" : "malformed";
  limbs.fill(0);
  let fraction = -1;
  // Digits are gathered in fours: one pass over the limbs for each group.
  let group = 0;
  let count = 0;
  for (; at < end; at++) {
    const byte = buffer[at] ?? 0;
    if (byte === 46 && fraction < 0) {
      fraction = 0;
      continue;
    }
    if (!isDigit(byte)) return "malformed";
    if (fraction >= scale) {
      if (byte !== 48) return "out of range";
      continue;
    }
    if (fraction >= 0) fraction++;
    group = group * 10 + byte - 48;
    if (++count === 4) {
      if (multiplyAdd(10_000, group)) return "out of range";
      group = 0;
      count = 0;
    }
  }
  for (let missing = scale - Math.max(fraction, 0); missing > 0; missing--) {
    group *= 10;
    if (++count === 4) {
      if (multiplyAdd(10_000, group)) return "out of range";
      group = 0;
      count = 0;
    }
  }
  if (count > 0 && multiplyAdd(POW10[count] ?? 1, group)) return "out of range";
  return signed(negative);
}

function signed(negative: boolean): ParseFault {
  if ((limbs[3] ?? 0) >= 0x80000000) return "out of range";
  if (negative) negateLimbs();
  return null;
}

/**
 * The binary form of a numeric as its unscaled value at `scale`.
 * Wire: digit count, weight of the first digit in base 10 000, sign, display scale, digits; each 16 bits.
 */
export function parseNumericBinary(buffer: Buffer, start: number, end: number, scale: number): ParseFault {
  const digits = (((buffer[start] ?? 0) << 8) | (buffer[start + 1] ?? 0)) >>> 0;
  if (end - start < 8 || end - start !== 8 + 2 * digits) return "malformed";
  const weight = (((buffer[start + 2] ?? 0) << 24) >> 16) | (buffer[start + 3] ?? 0);
  const sign = buffer[start + 4] ?? 0;
  if (sign >= 0xc0) return sign === 0xc0 ? "NaN" : "infinite";
  const at = start + 8;
  const fullGroups = weight + 1 + Math.trunc(scale / 4);
  const rest = scale % 4;
  if (fullGroups > 10) return digits === 0 ? signed(false) : "out of range";
  const used = fullGroups + (rest > 0 ? 1 : 0);
  for (let i = Math.max(used, 0); i < digits; i++) if (digitAt(buffer, at, i) !== 0) return "out of range";
  const tail = rest > 0 && used > 0 && used <= digits ? digitAt(buffer, at, used - 1) : 0;
  const divisor = POW10[4 - rest] ?? 1;
  if (rest > 0 && tail % divisor !== 0) return "out of range";
  if (fullGroups * 4 + rest <= 15) {
    let value = 0;
    for (let i = 0; i < fullGroups; i++) value = value * 10_000 + (i < digits ? digitAt(buffer, at, i) : 0);
    if (rest > 0) value = value * (POW10[rest] ?? 1) + tail / divisor;
    setSmall(value);
  } else {
    limbs.fill(0);
    for (let i = 0; i < fullGroups; i++) {
      if (multiplyAdd(10_000, i < digits ? digitAt(buffer, at, i) : 0)) return "out of range";
    }
    if (rest > 0 && multiplyAdd(POW10[rest] ?? 1, tail / divisor)) return "out of range";
  }
  return signed(sign === 0x40);
}

function digitAt(buffer: Buffer, at: number, index: number): number {
  return ((buffer[at + 2 * index] ?? 0) << 8) | (buffer[at + 2 * index + 1] ?? 0);
}

/** The binary form of a numeric as Postgres prints it. */
export function numericToText(buffer: Buffer, start: number, end: number): string | null {
  if (end - start < 8) return null;
  const digits = buffer.readUInt16BE(start);
  const weight = buffer.readInt16BE(start + 2);
  const sign = buffer.readUInt16BE(start + 4);
  const scale = buffer.readUInt16BE(start + 6);
  if (sign === 0xc000) return "NaN";
  if (sign === 0xd000) return "Infinity";
  if (sign === 0xf000) return "-Infinity";
  if (end - start !== 8 + 2 * digits) return null;
  const group = (position: number): number => {
    const index = weight - position;
    return index >= 0 && index < digits ? digitAt(buffer, start + 8, index) : 0;
  };
  let whole = weight < 0 ? "0" : String(group(weight));
  for (let position = weight - 1; position >= 0; position--) whole += String(group(position)).padStart(4, "0");
  let fraction = "";
  for (let position = -1; fraction.length < scale; position--) fraction += String(group(position)).padStart(4, "0");
  const text = scale > 0 ? `${whole}.${fraction.slice(0, scale)}` : whole;
  return sign === 0x4000 ? `-${text}` : text;
}
