/** Partition and sort transforms: text form, application to values, result types, path names (spec, partitioning). */
import { SpillwayError } from "@spillway/base/errors";
import { civilFromDays, floorDiv, MICROS_PER_DAY, NANOS_PER_DAY, printDate, printYear } from "./calendar.ts";
import type { PrimitiveType, PrimitiveValue, Transform } from "./model.ts";
import { murmur3 } from "./murmur3.ts";
import { printPrimitiveType } from "./types.ts";
import { codePointPrefix, encodeUnscaled } from "./values.ts";
import { primitiveToJson, printDecimal, printUuid } from "./value-json.ts";

const INT: PrimitiveType = { kind: "int" };
const DATE: PrimitiveType = { kind: "date" };

export function parseTransform(text: string): Transform {
  switch (text) {
    case "identity":
    case "year":
    case "month":
    case "day":
    case "hour":
    case "void":
      return { kind: text };
  }
  const m = /^(bucket|truncate)\[(\d+)\]$/.exec(text);
  const n = Number(m?.[2]);
  if (!m || n < 1 || n > 0x7fffffff) return { kind: "unknown", text };
  return m[1] === "bucket" ? { kind: "bucket", buckets: n } : { kind: "truncate", width: n };
}

export function printTransform(transform: Transform): string {
  switch (transform.kind) {
    case "bucket":
      return `bucket[${transform.buckets}]`;
    case "truncate":
      return `truncate[${transform.width}]`;
    case "unknown":
      return transform.text;
    default:
      return transform.kind;
  }
}

const TIMESTAMPS = new Set<string>(["timestamp", "timestamptz", "timestamp_ns", "timestamptz_ns"]);
const NOT_BUCKETABLE = new Set<string>(["boolean", "float", "double"]);

/** Whether the transform takes values of the type (spec, table of partition transforms). */
export function canTransform(transform: Transform, source: PrimitiveType): boolean {
  switch (transform.kind) {
    case "identity":
    case "void":
    case "unknown":
      return true;
    case "bucket":
      return !NOT_BUCKETABLE.has(source.kind);
    case "truncate":
      return ["int", "long", "decimal", "string", "binary"].includes(source.kind);
    case "hour":
      return TIMESTAMPS.has(source.kind);
    default:
      return source.kind === "date" || TIMESTAMPS.has(source.kind);
  }
}

/** The type of the transform's values. `day` gives a date, as every engine writes it. */
export function resultType(transform: Transform, source: PrimitiveType): PrimitiveType {
  switch (transform.kind) {
    case "identity":
    case "truncate":
    case "void":
      return source;
    case "unknown":
      return { kind: "string" };
    case "day":
      return DATE;
    default:
      return INT;
  }
}

/** The partition value of a source value; null stays null. */
export function applyTransform(
  transform: Transform,
  source: PrimitiveType,
  value: PrimitiveValue | null,
): PrimitiveValue | null {
  if (value === null || transform.kind === "void") return null;
  if (!canTransform(transform, source) || transform.kind === "unknown") {
    throw new SpillwayError(
      "lake_format_unsupported",
      `the transform ${printTransform(transform)} does not apply to ${printPrimitiveType(source)}`,
    );
  }
  switch (transform.kind) {
    case "identity":
      return value;
    case "bucket":
      return (hashValue(source, value) & 0x7fffffff) % transform.buckets;
    case "truncate":
      return truncate(transform.width, value);
    case "hour":
      return Number(floorDiv(value as bigint, perDay(source) / 24n));
    case "day":
      return days(source, value);
    case "month": {
      const { year, month } = civilFromDays(days(source, value));
      return (year - 1970) * 12 + month - 1;
    }
    case "year":
      return civilFromDays(days(source, value)).year - 1970;
  }
}

function perDay(source: PrimitiveType): bigint {
  return source.kind === "timestamp_ns" || source.kind === "timestamptz_ns" ? NANOS_PER_DAY : MICROS_PER_DAY;
}

function days(source: PrimitiveType, value: PrimitiveValue): number {
  return source.kind === "date" ? (value as number) : Number(floorDiv(value as bigint, perDay(source)));
}

function truncate(width: number, value: PrimitiveValue): PrimitiveValue {
  if (typeof value === "number") return value - (((value % width) + width) % width);
  if (typeof value === "bigint") {
    const w = BigInt(width);
    return value - (((value % w) + w) % w);
  }
  return typeof value === "string" ? codePointPrefix(value, width) : (value as Uint8Array).subarray(0, width);
}

/** The 32-bit hash of appendix B. Integers hash as longs, so that widening keeps the bucket. */
export function hashValue(source: PrimitiveType, value: PrimitiveValue): number {
  switch (source.kind) {
    case "string":
      return murmur3(new TextEncoder().encode(value as string));
    case "uuid":
    case "fixed":
    case "binary":
      return murmur3(value as Uint8Array);
    case "decimal":
      return murmur3(encodeUnscaled(value as bigint));
    case "timestamp_ns":
    case "timestamptz_ns":
      return hashLong(floorDiv(value as bigint, 1000n));
    default:
      return hashLong(BigInt(value as number | bigint));
  }
}

function hashLong(value: bigint): number {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigInt64(0, value, true);
  return murmur3(bytes);
}

/** A partition value for people and paths: `2017-11-16-22` for an hour, `null` for null. */
export function printPartitionValue(transform: Transform, source: PrimitiveType, value: PrimitiveValue | null): string {
  if (value === null) return "null";
  switch (transform.kind) {
    case "year":
      return printYear((value as number) + 1970);
    case "month": {
      const year = Math.floor((value as number) / 12) + 1970;
      return `${printYear(year)}-${pad2(((((value as number) % 12) + 12) % 12) + 1)}`;
    }
    case "day":
      return printDate(value as number);
    case "hour":
      return `${printDate(Math.floor((value as number) / 24))}-${pad2((((value as number) % 24) + 24) % 24)}`;
    default:
      return printPlain(resultType(transform, source), value);
  }
}

function printPlain(type: PrimitiveType, value: PrimitiveValue): string {
  switch (type.kind) {
    case "uuid":
      return printUuid(value as Uint8Array);
    case "fixed":
    case "binary":
      return Buffer.from(value as Uint8Array).toString("base64");
    case "decimal":
      return printDecimal(value as bigint, type.scale);
    case "float":
    case "double":
      return String(value);
    default:
      return String(primitiveToJson(type, value));
  }
}

function pad2(n: number): string {
  return n.toString().padStart(2, "0");
}

/** One level of a partition path, percent-encoded: `event_day=2017-11-16`. */
export function partitionPathSegment(name: string, printed: string): string {
  return `${encodePath(name)}=${encodePath(printed)}`;
}

function encodePath(text: string): string {
  return encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
}
