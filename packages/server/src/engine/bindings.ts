/** DuckDB's native bindings: the only door to them, so that one place knows how they are loaded. */
import duckdb from "@duckdb/node-bindings";

export default duckdb;
export type { Appender, Connection, Database, DataChunk, LogicalType, Result, Vector } from "@duckdb/node-bindings";

/** Rows in a DuckDB vector, and so in every chunk. */
export const VECTOR_ROWS = 2048;
