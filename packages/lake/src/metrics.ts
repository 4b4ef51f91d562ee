/** Column metrics of a new data file, as a manifest wants them (spec, column metrics). */
import { SpillwayError } from "@spillway/base/errors";
import type { DataFile, PrimitiveType, PrimitiveValue, Schema } from "./model.ts";
import { fieldById } from "./schema.ts";
import { isPrimitive } from "./types.ts";
import { encodeValue, truncateLower, truncateUpper } from "./values.ts";

/** What is known of one column of a file. What is not known is left out. */
export interface ColumnMetrics {
  /** Bytes on disk. */
  readonly size?: bigint | undefined;
  /** Values, nulls and NaNs included. */
  readonly values?: bigint | undefined;
  readonly nulls?: bigint | undefined;
  /** Float and double only. */
  readonly nans?: bigint | undefined;
  /** The least and greatest value that is neither null nor NaN, or bounds outside them. */
  readonly min?: PrimitiveValue | undefined;
  readonly max?: PrimitiveValue | undefined;
}

export type FileMetrics = Pick<
  DataFile,
  "columnSizes" | "valueCounts" | "nullValueCounts" | "nanValueCounts" | "lowerBounds" | "upperBounds"
>;

/** The maps of a manifest entry. Bounds of strings and binary are cut to 16 code points or bytes. */
export function fileMetrics(schema: Schema, columns: ReadonlyMap<number, ColumnMetrics>): FileMetrics {
  const lowerBounds = new Map<number, Uint8Array>();
  const upperBounds = new Map<number, Uint8Array>();
  for (const [id, { min, max }] of columns) {
    if (min === undefined && max === undefined) continue;
    const type = primitiveOf(schema, id);
    const lower = min === undefined || Number.isNaN(min) ? undefined : truncateLower(type, signedZero(type, min, -0));
    const upper = max === undefined || Number.isNaN(max) ? undefined : truncateUpper(type, signedZero(type, max, 0));
    if (lower !== undefined) lowerBounds.set(id, encodeValue(type, lower));
    if (upper !== undefined) upperBounds.set(id, encodeValue(type, upper));
  }
  return {
    columnSizes: counts(columns, (c) => c.size),
    valueCounts: counts(columns, (c) => c.values),
    nullValueCounts: counts(columns, (c) => c.nulls),
    nanValueCounts: counts(columns, (c) => c.nans),
    lowerBounds,
    upperBounds,
  };
}

function primitiveOf(schema: Schema, id: number): PrimitiveType {
  const type = fieldById(schema, id)?.type;
  if (type && isPrimitive(type)) return type;
  throw new SpillwayError("lake_update_invalid", `bounds of the field ${id}, which is no primitive column`);
}

/** Engines do not tell -0 from +0, the bounds must: a zero below becomes -0, above +0. */
function signedZero(type: PrimitiveType, value: PrimitiveValue, zero: number): PrimitiveValue {
  return value === 0 && (type.kind === "float" || type.kind === "double") ? zero : value;
}

function counts(
  columns: ReadonlyMap<number, ColumnMetrics>,
  of: (metrics: ColumnMetrics) => bigint | undefined,
): Map<number, bigint> {
  const result = new Map<number, bigint>();
  for (const [id, metrics] of columns) {
    const value = of(metrics);
    if (value !== undefined) result.set(id, value);
  }
  return result;
}
