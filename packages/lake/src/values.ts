/**
 * Single values: the binary form of bounds (spec, appendix D), their order, and truncated bounds.
 * `PrimitiveValue` in model.ts says which JavaScript value stands for which type.
 */
import { SpillwayError } from "@spillway/base/errors";
import { MICROS_PER_DAY, NANOS_PER_DAY } from "./calendar.ts";
import type { PrimitiveType, PrimitiveValue } from "./model.ts";
import { printPrimitiveType } from "./types.ts";

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

function fail(type: PrimitiveType, why: string): never {
  throw new SpillwayError("lake_value_invalid", `not a value of ${printPrimitiveType(type)}: ${why}`);
}

/** Throws unless the JavaScript value is one that the type can hold. */
export function checkValue(type: PrimitiveType, value: PrimitiveValue): void {
  switch (type.kind) {
    case "boolean":
      return typeof value === "boolean" ? undefined : fail(type, typeof value);
    case "int":
    case "date":
      return typeof value === "number" && (value | 0) === value ? undefined : fail(type, describe(value));
    case "float":
    case "double":
      return typeof value === "number" ? undefined : fail(type, typeof value);
    case "string":
      return typeof value === "string" ? undefined : fail(type, typeof value);
    case "decimal":
      if (typeof value !== "bigint") fail(type, typeof value);
      return abs(value) < 10n ** BigInt(type.precision) ? undefined : fail(type, "more digits than its precision");
    case "uuid":
      return checkLength(type, value, 16);
    case "fixed":
      return checkLength(type, value, type.length);
    case "binary":
      return value instanceof Uint8Array ? undefined : fail(type, typeof value);
    default:
      if (typeof value !== "bigint") fail(type, typeof value);
      return BigInt.asIntN(64, value) === value ? undefined : fail(type, "beyond 64 bits");
  }
}

function checkLength(type: PrimitiveType, value: PrimitiveValue, length: number): void {
  if (!(value instanceof Uint8Array) || value.length !== length) fail(type, `expected ${length} bytes`);
}

function describe(value: PrimitiveValue): string {
  return typeof value === "number" ? "not a 32-bit integer" : typeof value;
}

function abs(value: bigint): bigint {
  return value < 0n ? -value : value;
}

/** The single-value binary serialization. */
export function encodeValue(type: PrimitiveType, value: PrimitiveValue): Uint8Array {
  checkValue(type, value);
  switch (type.kind) {
    case "boolean":
      return new Uint8Array([value === true ? 1 : 0]);
    case "int":
    case "date":
      return withView(4, (v) => v.setInt32(0, value as number, true));
    case "float":
      return withView(4, (v) => v.setFloat32(0, value as number, true));
    case "double":
      return withView(8, (v) => v.setFloat64(0, value as number, true));
    case "string":
      return encoder.encode(value as string);
    case "decimal":
      return encodeUnscaled(value as bigint);
    case "uuid":
    case "fixed":
    case "binary":
      return value as Uint8Array;
    default:
      return withView(8, (v) => v.setBigInt64(0, value as bigint, true));
  }
}

function withView(length: number, write: (view: DataView) => void): Uint8Array {
  const bytes = new Uint8Array(length);
  write(new DataView(bytes.buffer));
  return bytes;
}

/**
 * The reverse. Bounds written before a promotion are read as the type that they were written with:
 * four bytes of a long are an int, of a double a float, of a timestamp a date (spec, schema evolution).
 */
export function decodeValue(type: PrimitiveType, bytes: Uint8Array): PrimitiveValue {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  switch (type.kind) {
    case "boolean":
      need(type, bytes, 1);
      return bytes[0] !== 0;
    case "int":
    case "date":
      need(type, bytes, 4);
      return view.getInt32(0, true);
    case "float":
      need(type, bytes, 4);
      return view.getFloat32(0, true);
    case "double":
      if (bytes.length === 4) return view.getFloat32(0, true);
      need(type, bytes, 8);
      return view.getFloat64(0, true);
    case "string":
      return decodeText(type, bytes);
    case "decimal":
      return decodeUnscaled(bytes);
    case "uuid":
      need(type, bytes, 16);
      return bytes;
    case "fixed":
      need(type, bytes, type.length);
      return bytes;
    case "binary":
      return bytes;
    default:
      if (bytes.length === 4) return fromShort(type, view.getInt32(0, true));
      need(type, bytes, 8);
      return view.getBigInt64(0, true);
  }
}

function decodeText(type: PrimitiveType, bytes: Uint8Array): string {
  try {
    return decoder.decode(bytes);
  } catch {
    return fail(type, "bytes that are not UTF-8");
  }
}

function fromShort(type: PrimitiveType, value: number): bigint {
  if (type.kind === "timestamp" || type.kind === "timestamptz") return BigInt(value) * MICROS_PER_DAY;
  if (type.kind === "timestamp_ns" || type.kind === "timestamptz_ns") return BigInt(value) * NANOS_PER_DAY;
  return BigInt(value);
}

function need(type: PrimitiveType, bytes: Uint8Array, length: number): void {
  if (bytes.length !== length) fail(type, `${bytes.length} bytes instead of ${length}`);
}

/** Two's complement, big endian, as few bytes as possible. */
export function encodeUnscaled(value: bigint): Uint8Array {
  let length = 1;
  while (BigInt.asIntN(length * 8, value) !== value) length += 1;
  return encodeUnscaledFixed(value, length);
}

/** Two's complement, big endian, in exactly `length` bytes. */
export function encodeUnscaledFixed(value: bigint, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let rest = value;
  for (let i = length - 1; i >= 0; i -= 1) {
    bytes[i] = Number(rest & 0xffn);
    rest >>= 8n;
  }
  return bytes;
}

export function decodeUnscaled(bytes: Uint8Array): bigint {
  let value = 0n;
  for (const byte of bytes) value = (value << 8n) | BigInt(byte);
  return BigInt.asIntN(bytes.length * 8, value);
}

/**
 * The order of two values of one type: negative, zero or positive. Floats: -0 before +0, NaN last
 * (spec, sorting); strings by their UTF-8 bytes; uuid, fixed and binary by unsigned bytes.
 */
export function compareValues(type: PrimitiveType, a: PrimitiveValue, b: PrimitiveValue): number {
  switch (type.kind) {
    case "float":
    case "double":
      return compareFloats(a as number, b as number);
    case "string":
      return compareUtf8(a as string, b as string);
    case "uuid":
    case "fixed":
    case "binary":
      return compareBytes(a as Uint8Array, b as Uint8Array);
    default:
      return a < b ? -1 : a > b ? 1 : 0;
  }
}

function compareFloats(a: number, b: number): number {
  if (a < b) return -1;
  if (a > b) return 1;
  if (a === b) return a === 0 ? Number(Object.is(b, -0)) - Number(Object.is(a, -0)) : 0;
  return Number(Number.isNaN(a)) - Number(Number.isNaN(b));
}

export function compareBytes(a: Uint8Array, b: Uint8Array): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i += 1) {
    const difference = (a[i] ?? 0) - (b[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return a.length - b.length;
}

/** UTF-8 order is code point order; UTF-16 order differs where surrogates meet U+E000 to U+FFFF. */
export function compareUtf8(a: string, b: string): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i += 1) {
    const x = a.charCodeAt(i);
    const y = b.charCodeAt(i);
    if (x !== y) return surrogateLast(x) - surrogateLast(y);
  }
  return a.length - b.length;
}

function surrogateLast(unit: number): number {
  return unit >= 0xe000 ? unit - 0x800 : unit >= 0xd800 ? unit + 0x2000 : unit;
}

export const BOUND_LENGTH = 16;

/** A lower bound of at most `length` code points (string) or bytes (binary): a prefix sorts first. */
export function truncateLower(type: PrimitiveType, value: PrimitiveValue, length = BOUND_LENGTH): PrimitiveValue {
  if (type.kind === "string") return codePointPrefix(value as string, length);
  if (type.kind === "binary") return (value as Uint8Array).subarray(0, length);
  return value;
}

/**
 * An upper bound of at most `length`: the prefix with its last unit incremented. Undefined where no
 * short bound exists (the prefix is all maximal units): then the file has no upper bound.
 */
export function truncateUpper(
  type: PrimitiveType,
  value: PrimitiveValue,
  length = BOUND_LENGTH,
): PrimitiveValue | undefined {
  if (type.kind === "string") {
    const prefix = codePointPrefix(value as string, length);
    return prefix === value ? value : incrementText(prefix);
  }
  if (type.kind === "binary") {
    const bytes = value as Uint8Array;
    return bytes.length <= length ? bytes : incrementBytes(bytes.subarray(0, length));
  }
  return value;
}

/** The first `length` code points. */
export function codePointPrefix(text: string, length: number): string {
  if (text.length <= length) return text;
  let end = 0;
  for (let i = 0; i < length && end < text.length; i += 1) {
    end += (text.codePointAt(end) ?? 0) > 0xffff ? 2 : 1;
  }
  return text.slice(0, end);
}

function incrementText(text: string): string | undefined {
  const points = Array.from(text, (c) => c.codePointAt(0) ?? 0);
  for (let last = points.pop(); last !== undefined; last = points.pop()) {
    if (last < 0x10ffff) {
      const next = last >= 0xd7ff && last < 0xe000 ? 0xe000 : last + 1;
      return String.fromCodePoint(...points, next);
    }
  }
  return undefined;
}

function incrementBytes(bytes: Uint8Array): Uint8Array | undefined {
  for (let end = bytes.length; end > 0; end -= 1) {
    const last = bytes[end - 1] ?? 0xff;
    if (last < 0xff) {
      const next = bytes.slice(0, end);
      next[end - 1] = last + 1;
      return next;
    }
  }
  return undefined;
}
