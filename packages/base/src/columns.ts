/**
 * A column batch: rows held as columns, the one form in which rows travel between Postgres, the
 * engine, the pump and the checksums. Never an object per row.
 *
 * Validity is a byte per row (1 = present, 0 = NULL), absent when no value is NULL. Values at NULL
 * positions are unspecified. Fixed-width columns are typed arrays; variable-width ones are a byte
 * heap with `length + 1` offsets.
 */

/** The physical form of one column. */
export type ColumnKind =
  | "bool" // Uint8Array 0|1
  | "int16" // Int16Array
  | "int32" // Int32Array
  | "int64" // BigInt64Array
  | "float32" // Float32Array
  | "float64" // Float64Array
  | "date" // Int32Array: days since 1970-01-01
  | "time" // BigInt64Array: µs since midnight
  | "timestamp" // BigInt64Array: µs since 1970-01-01 00:00:00, no zone
  | "timestamptz" // BigInt64Array: µs since 1970-01-01 00:00:00 UTC
  | "decimal" // BigInt64Array pairs [low, high] of the unscaled 128-bit two's complement value
  | "uuid" // Uint8Array, 16 bytes a row, RFC 4122 order
  | "text" // heap, UTF-8
  | "bytes"; // heap

/** `infinity` and `-infinity` of date and timestamps, as DuckDB represents them. */
export const INFINITY_I64 = 9223372036854775807n;
export const NEG_INFINITY_I64 = -9223372036854775807n;
export const INFINITY_DAYS = 2147483647;
export const NEG_INFINITY_DAYS = -2147483647;

export interface DecimalShape {
  readonly precision: number;
  readonly scale: number;
}

export interface ColumnSpec {
  readonly name: string;
  readonly kind: ColumnKind;
  /** Present exactly when kind is `decimal`. */
  readonly decimal?: DecimalShape;
}

export type FixedData = Uint8Array | Int16Array | Int32Array | BigInt64Array | Float32Array | Float64Array;

export interface FixedColumn {
  readonly spec: ColumnSpec;
  readonly validity: Uint8Array | null;
  readonly data: FixedData;
}

export interface VarColumn {
  readonly spec: ColumnSpec;
  readonly validity: Uint8Array | null;
  /** `length + 1` entries; row i is heap[offsets[i], offsets[i+1]). */
  readonly offsets: Uint32Array;
  readonly heap: Uint8Array;
}

export type Column = FixedColumn | VarColumn;

export interface ColumnBatch {
  readonly length: number;
  readonly columns: readonly Column[];
}

export function isVarKind(kind: ColumnKind): kind is "text" | "bytes" {
  return kind === "text" || kind === "bytes";
}

export function isVarColumn(column: Column): column is VarColumn {
  return isVarKind(column.spec.kind);
}
