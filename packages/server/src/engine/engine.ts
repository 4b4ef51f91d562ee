/** The front door of the engine: DuckDB behind column batches; see docs/architecture.md. */
export { Engine, type EngineOptions } from "./instance.ts";
export { EngineSession, valueAt, type EngineParam, type EngineResult, type RunOptions } from "./session.ts";
export type { BatchAppender } from "./append.ts";
export type { ResultShape } from "./read-chunk.ts";
export { duckIdent, duckList, duckLiteral } from "./quote.ts";
export { duckType, icebergType, kindOfIceberg, specOf, storedDuckType, type LakeField } from "./types.ts";
export { DataFileWriter, writeDataFiles, type WriteOptions } from "./parquet-out.ts";
export {
  type DeleteLease,
  DeleteTables,
  emptySql,
  hasDeletes,
  hiddenSql,
  positionedSql,
  scanSql,
  type ScanField,
  type ScanFile,
  type ScanOptions,
} from "./scan-sql.ts";
export { duckDefault } from "./initial-default.ts";
export { fileChecksum, type FileChecksum, type FileChecksumRequest } from "./file-checksum.ts";
export { readDataFiles, type ReadOptions } from "./readback.ts";
export { ArrowBatcher, encodeArrowBatch } from "./arrow-encode.ts";
export { decodeArrowBatch, decodeArrowParts, ownArrowFields } from "./arrow-decode.ts";
export {
  type ArrowColumn,
  type ArrowField,
  decodeArrowSchema,
  encapsulate,
  encodeArrowSchema,
  splitMessage,
} from "./arrow-schema.ts";
