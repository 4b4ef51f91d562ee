/**
 * What partition values, and ranges of them, say about their source columns. A partition value
 * stands for an interval of source values (a day for a timestamp, a prefix for a string); so one
 * evaluator serves partitions, manifest summaries and column bounds.
 */
import { daysFromCivil, MICROS_PER_DAY, NANOS_PER_DAY } from "../calendar.ts";
import type { FieldSummary, PartitionSpec, PrimitiveType, PrimitiveValue, Schema, Transform } from "../model.ts";
import { fieldById } from "../schema.ts";
import { resultType } from "../transforms.ts";
import { isPrimitive } from "../types.ts";
import { decodeValue, truncateUpper } from "../values.ts";
import type { Facts } from "./evaluate.ts";
import { type Comparable, comparable } from "./expression.ts";

/** A partition field whose values say something of its source column. */
export interface PartitionColumn {
  /** Its place in the tuple. */
  readonly index: number;
  readonly sourceId: number;
  readonly source: PrimitiveType;
  readonly result: PrimitiveType;
  readonly transform: Transform;
}

/** The fields of a spec that can prune, by the id of their source column. */
export function partitionColumns(spec: PartitionSpec, schemas: readonly Schema[]): Map<number, PartitionColumn[]> {
  const columns = new Map<number, PartitionColumn[]>();
  spec.fields.forEach(({ sourceId, transform }, index) => {
    if (transform.kind === "void" || transform.kind === "unknown") return;
    for (const schema of schemas) {
      const source = fieldById(schema, sourceId)?.type;
      if (source === undefined || !isPrimitive(source)) continue;
      const column = { index, sourceId, source, result: resultType(transform, source), transform };
      columns.set(sourceId, [...(columns.get(sourceId) ?? []), column]);
      return;
    }
  });
  return columns;
}

/** What one partition value says of every row of the partition. */
export function factsOfValue(column: PartitionColumn, value: PrimitiveValue | null): Facts {
  if (value === null) return { mayNull: true, mayNan: false, mayValue: false };
  if (Number.isNaN(value)) return { mayNull: false, mayNan: true, mayValue: false };
  return { mayNull: false, mayNan: false, mayValue: true, ...interval(column, value, value) };
}

/** What a manifest's summary of a partition field says of every row of its files. */
export function factsOfSummary(column: PartitionColumn, summary: FieldSummary): Facts {
  const lower = decoded(column.result, summary.lowerBound);
  const upper = decoded(column.result, summary.upperBound);
  const isFloat = column.source.kind === "float" || column.source.kind === "double";
  return {
    mayNull: summary.containsNull,
    mayNan: isFloat && summary.containsNan !== false,
    // The lower bound is absent only when every value is null or NaN (spec, field_summary).
    mayValue: summary.lowerBound !== undefined,
    ...(lower === undefined || upper === undefined ? {} : interval(column, lower, upper)),
  };
}

/** A bound, or undefined when it is absent, NaN or not of its type, as some writers' are. */
export function decoded(type: PrimitiveType, bytes: Uint8Array | undefined): PrimitiveValue | undefined {
  if (bytes === undefined) return undefined;
  try {
    const value = decodeValue(type, bytes);
    return Number.isNaN(value) ? undefined : value;
  } catch {
    return undefined;
  }
}

type Interval = Pick<Facts, "lower" | "upper" | "buckets">;

/** The source values that partition values from `lower` to `upper` can stand for. */
function interval({ transform, source }: PartitionColumn, lower: PrimitiveValue, upper: PrimitiveValue): Interval {
  switch (transform.kind) {
    case "identity":
      return { lower: comparable(source, lower), upper: comparable(source, upper) };
    case "bucket":
      return { buckets: { count: transform.buckets, from: lower as number, to: upper as number } };
    case "truncate":
      return { lower: comparable(source, lower), upper: truncatedEnd(source, upper, transform.width) };
    case "year":
    case "month":
    case "day":
    case "hour":
      return timeInterval(transform.kind, source, Number(lower), Number(upper));
    default:
      return {};
  }
}

/** The greatest value that is truncated to `value`; undefined where no such bound is known. */
function truncatedEnd(source: PrimitiveType, value: PrimitiveValue, width: number): Comparable | undefined {
  if (typeof value === "number") return value + width - 1;
  if (typeof value === "bigint") return value + BigInt(width) - 1n;
  if (typeof value === "string") {
    // Shorter than the width: nothing was cut off.
    if (Array.from(value).length < width) return comparable(source, value);
    return endOf(source, truncateUpper({ kind: "string" }, `${value}x`, width));
  }
  const bytes = value as Uint8Array;
  if (bytes.length < width) return bytes;
  return endOf(source, truncateUpper({ kind: "binary" }, Uint8Array.of(...bytes, 0), width));
}

function endOf(source: PrimitiveType, value: PrimitiveValue | undefined): Comparable | undefined {
  return value === undefined ? undefined : comparable(source, value);
}

type TimeUnit = "year" | "month" | "day" | "hour";

/**
 * Early writers rounded times before 1970 towards zero, not down: their partition -1 holds what
 * belongs to -2. So at 0 and below the interval begins one unit early.
 */
function timeInterval(unit: TimeUnit, source: PrimitiveType, lower: number, upper: number): Interval {
  const from = lower <= 0 ? lower - 1 : lower;
  if (unit === "hour") {
    const perHour = perDay(source) / 24n;
    return { lower: BigInt(from) * perHour, upper: BigInt(upper + 1) * perHour - 1n };
  }
  const [start, end] = [startDay(unit, from), startDay(unit, upper + 1)];
  if (source.kind === "date") return { lower: start, upper: end - 1 };
  return { lower: BigInt(start) * perDay(source), upper: BigInt(end) * perDay(source) - 1n };
}

function startDay(unit: "year" | "month" | "day", value: number): number {
  if (unit === "day") return value;
  if (unit === "year") return daysFromCivil({ year: value + 1970, month: 1, day: 1 });
  const year = Math.floor(value / 12);
  return daysFromCivil({ year: year + 1970, month: value - year * 12 + 1, day: 1 });
}

function perDay(source: PrimitiveType): bigint {
  return source.kind === "timestamp_ns" || source.kind === "timestamptz_ns" ? NANOS_PER_DAY : MICROS_PER_DAY;
}
