/**
 * What `COPY … (RETURN_STATS)` says of each file it wrote: a nested map, read from the raw vectors
 * because batches hold no nested types. Values are DuckDB's text.
 */
import duckdb, { type Result, type Vector } from "./bindings.ts";

export interface CopyColumnStats {
  readonly min?: string;
  readonly max?: string;
  readonly nullCount: bigint;
  readonly valueCount: bigint;
  readonly sizeBytes: bigint;
  readonly hasNan: boolean;
}

export interface CopyFileStats {
  readonly path: string;
  readonly rows: bigint;
  readonly fileSizeBytes: bigint;
  /** By column name, unquoted. */
  readonly columns: ReadonlyMap<string, CopyColumnStats>;
}

/** The columns of the result: filename, count, file_size_bytes, footer_size_bytes, column_statistics, partition_keys. */
export function readCopyStats(result: Result): CopyFileStats[] {
  const files: CopyFileStats[] = [];
  for (let c = 0; c < duckdb.result_chunk_count(result); c++) {
    const chunk = duckdb.result_get_chunk(result, c);
    const rows = duckdb.data_chunk_get_size(chunk);
    const column = (i: number): Vector => duckdb.data_chunk_get_vector(chunk, i);
    const paths = readTexts(column(0), rows);
    const counts = readBigs(column(1), rows);
    const sizes = readBigs(column(2), rows);
    const statistics = readMaps(column(4), rows, (values, count) => readMaps(values, count, readTexts));
    for (let i = 0; i < rows; i++) {
      const columns = new Map<string, CopyColumnStats>();
      for (const [key, values] of statistics[i] ?? []) columns.set(unquoted(key), statsOf(new Map(values)));
      files.push({ path: paths[i] ?? "", rows: counts[i] ?? 0n, fileSizeBytes: sizes[i] ?? 0n, columns });
    }
  }
  return files;
}

function statsOf(values: ReadonlyMap<string, string>): CopyColumnStats {
  const [min, max] = [values.get("min"), values.get("max")];
  return {
    ...(min === undefined ? {} : { min }),
    ...(max === undefined ? {} : { max }),
    nullCount: BigInt(values.get("null_count") ?? "0"),
    valueCount: BigInt(values.get("num_values") ?? "0"),
    sizeBytes: BigInt(values.get("column_size_bytes") ?? "0"),
    hasNan: values.get("has_nan") === "true",
  };
}

/** Top-level columns are quoted once: `"a""b"`. */
function unquoted(key: string): string {
  return key.slice(1, -1).replaceAll('""', '"');
}

function readBigs(vector: Vector, rows: number): BigUint64Array {
  const bytes = duckdb.vector_get_data(vector, rows * 8);
  return new BigUint64Array(bytes.buffer, bytes.byteOffset, rows);
}

function readTexts(vector: Vector, rows: number): string[] {
  const bytes = Buffer.from(duckdb.vector_get_data(vector, rows * 16));
  return Array.from({ length: rows }, (_, i) => {
    const length = bytes.readUInt32LE(i * 16);
    if (length <= 12) return bytes.toString("utf8", i * 16 + 4, i * 16 + 4 + length);
    const at = bytes.byteOffset + i * 16 + 8;
    return Buffer.from(duckdb.get_data_from_pointer(bytes.buffer as ArrayBuffer, at, length)).toString("utf8");
  });
}

/** A MAP vector is a LIST of STRUCT(key, value); a list entry is u64 offset, u64 length. */
function readMaps<V>(vector: Vector, rows: number, readValues: (v: Vector, n: number) => V[]): [string, V][][] {
  const entries = duckdb.vector_get_data(vector, rows * 16);
  const spans = new BigUint64Array(entries.buffer, entries.byteOffset, rows * 2);
  const pairs = duckdb.list_vector_get_child(vector);
  const total = duckdb.list_vector_get_size(vector);
  const keys = readTexts(duckdb.struct_vector_get_child(pairs, 0), total);
  const values = readValues(duckdb.struct_vector_get_child(pairs, 1), total);
  return Array.from({ length: rows }, (_, i) => {
    const from = Number(spans[i * 2] ?? 0n);
    const count = Number(spans[i * 2 + 1] ?? 0n);
    return Array.from({ length: count }, (_, k): [string, V] => [keys[from + k] ?? "", values[from + k] as V]);
  });
}
