/**
 * The plain data of Apache Iceberg, format versions 2 and 3 (https://iceberg.apache.org/spec/).
 * Values only: no behaviour, nothing mutable. Every 64-bit number is a bigint, except times in
 * milliseconds and file positions inside one Parquet footer, which a double holds exactly.
 */

/** Types without parameters. The `_ns` types exist in format version 3 only. */
export type SimpleKind =
  | "boolean"
  | "int"
  | "long"
  | "float"
  | "double"
  | "date"
  | "time"
  | "timestamp"
  | "timestamptz"
  | "timestamp_ns"
  | "timestamptz_ns"
  | "string"
  | "uuid"
  | "binary";

export interface SimpleType {
  readonly kind: SimpleKind;
}

export interface DecimalType {
  readonly kind: "decimal";
  /** 1 to 38. */
  readonly precision: number;
  readonly scale: number;
}

export interface FixedType {
  readonly kind: "fixed";
  /** Bytes. */
  readonly length: number;
}

export interface StructType {
  readonly kind: "struct";
  readonly fields: readonly NestedField[];
}

export interface ListType {
  readonly kind: "list";
  readonly elementId: number;
  readonly elementRequired: boolean;
  readonly element: IcebergType;
}

export interface MapType {
  readonly kind: "map";
  readonly keyId: number;
  readonly key: IcebergType;
  readonly valueId: number;
  readonly valueRequired: boolean;
  readonly value: IcebergType;
}

export type PrimitiveType = SimpleType | DecimalType | FixedType;
export type NestedType = StructType | ListType | MapType;
export type IcebergType = PrimitiveType | NestedType;

/**
 * One single value, by type: boolean: boolean; int and date (days): number; long, time (µs),
 * timestamps (µs, or ns for `_ns`): bigint; float and double: number; decimal: the unscaled
 * bigint; string: string; uuid (16 bytes, big endian), fixed and binary: Uint8Array.
 */
export type PrimitiveValue = boolean | number | bigint | string | Uint8Array;

/** A default of a nested type: list, map as pairs, or struct keyed by field id. */
export type DefaultValue =
  | PrimitiveValue
  | null
  | readonly DefaultValue[]
  | ReadonlyMap<number, DefaultValue>
  | MapDefault;

/** The default value of a map column: its entries in order. */
export interface MapDefault {
  readonly entries: readonly (readonly [DefaultValue, DefaultValue])[];
}

export interface NestedField {
  readonly id: number;
  readonly name: string;
  readonly required: boolean;
  readonly type: IcebergType;
  readonly doc?: string | undefined;
  /** v3: what rows written before the column existed read as. */
  readonly initialDefault?: DefaultValue | undefined;
  /** v3: what a writer that does not supply the column writes. */
  readonly writeDefault?: DefaultValue | undefined;
}

export interface Schema {
  readonly schemaId: number;
  readonly fields: readonly NestedField[];
  readonly identifierFieldIds?: readonly number[] | undefined;
}

export type Transform =
  | { readonly kind: "identity" | "year" | "month" | "day" | "hour" | "void" }
  | { readonly kind: "bucket"; readonly buckets: number }
  | { readonly kind: "truncate"; readonly width: number }
  | { readonly kind: "unknown"; readonly text: string };

export interface PartitionField {
  readonly fieldId: number;
  readonly sourceId: number;
  readonly name: string;
  readonly transform: Transform;
}

export interface PartitionSpec {
  readonly specId: number;
  readonly fields: readonly PartitionField[];
}

export interface SortField {
  readonly sourceId: number;
  readonly transform: Transform;
  readonly direction: "asc" | "desc";
  readonly nullOrder: "nulls-first" | "nulls-last";
}

export interface SortOrder {
  readonly orderId: number;
  readonly fields: readonly SortField[];
}

export type SnapshotOperation = "append" | "replace" | "overwrite" | "delete";

/** The summary of a snapshot: `operation`, counters and free properties; every value is text. */
export type SnapshotSummary = Readonly<Record<string, string>>;

export interface Snapshot {
  readonly snapshotId: bigint;
  readonly parentSnapshotId?: bigint | undefined;
  readonly sequenceNumber: bigint;
  readonly timestampMs: number;
  /** Full location of the manifest list. */
  readonly manifestList: string;
  readonly operation: SnapshotOperation;
  /** Without `operation`. */
  readonly summary: SnapshotSummary;
  readonly schemaId?: number | undefined;
  /** v3: the first row id given to this snapshot's new data files. */
  readonly firstRowId?: bigint | undefined;
  /** v3: how many row ids this snapshot took. */
  readonly addedRows?: bigint | undefined;
}

export interface SnapshotRef {
  readonly snapshotId: bigint;
  readonly type: "branch" | "tag";
  readonly minSnapshotsToKeep?: number | undefined;
  readonly maxSnapshotAgeMs?: number | undefined;
  readonly maxRefAgeMs?: number | undefined;
}

export interface SnapshotLogEntry {
  readonly snapshotId: bigint;
  readonly timestampMs: number;
}

export interface MetadataLogEntry {
  readonly metadataFile: string;
  readonly timestampMs: number;
}

export interface BlobMetadata {
  readonly type: string;
  readonly snapshotId: bigint;
  readonly sequenceNumber: bigint;
  readonly fields: readonly number[];
  readonly properties?: Readonly<Record<string, string>> | undefined;
}

export interface StatisticsFile {
  readonly snapshotId: bigint;
  readonly statisticsPath: string;
  readonly fileSizeInBytes: bigint;
  readonly fileFooterSizeInBytes: bigint;
  readonly blobMetadata: readonly BlobMetadata[];
}

export interface PartitionStatisticsFile {
  readonly snapshotId: bigint;
  readonly statisticsPath: string;
  readonly fileSizeInBytes: bigint;
}

export type FormatVersion = 2 | 3;

export interface TableMetadata {
  readonly formatVersion: FormatVersion;
  readonly tableUuid: string;
  /** Full location without a trailing slash, e.g. `file:///lake/db/t` or `s3://bucket/db/t`. */
  readonly location: string;
  readonly lastSequenceNumber: bigint;
  readonly lastUpdatedMs: number;
  readonly lastColumnId: number;
  readonly schemas: readonly Schema[];
  readonly currentSchemaId: number;
  readonly partitionSpecs: readonly PartitionSpec[];
  readonly defaultSpecId: number;
  readonly lastPartitionId: number;
  readonly sortOrders: readonly SortOrder[];
  readonly defaultSortOrderId: number;
  readonly properties: Readonly<Record<string, string>>;
  readonly currentSnapshotId?: bigint | undefined;
  readonly snapshots: readonly Snapshot[];
  readonly snapshotLog: readonly SnapshotLogEntry[];
  readonly metadataLog: readonly MetadataLogEntry[];
  readonly refs: Readonly<Record<string, SnapshotRef>>;
  readonly statistics: readonly StatisticsFile[];
  readonly partitionStatistics: readonly PartitionStatisticsFile[];
  /** v3: the row id that the next new row gets. 0 in v2. */
  readonly nextRowId: bigint;
}

/** What a file holds: rows, positions of deleted rows (or a v3 deletion vector), or deleted keys. */
export type FileContent = "data" | "position-deletes" | "equality-deletes";

export type FileFormat = "parquet" | "avro" | "orc" | "puffin";

/** One value for each field of the partition spec, in the spec's order. */
export type PartitionTuple = readonly (PrimitiveValue | null)[];

/** A data or delete file as a manifest describes it. A deletion vector has format `puffin`. */
export interface DataFile {
  readonly content: FileContent;
  /** Full location. */
  readonly path: string;
  readonly format: FileFormat;
  /** The spec that the tuple belongs to. Not stored per file: it is the manifest's. */
  readonly specId: number;
  readonly partition: PartitionTuple;
  readonly recordCount: bigint;
  /** Bytes of the whole file, also for a deletion vector inside a Puffin file. */
  readonly fileSizeBytes: bigint;
  /** The maps below are by field id. */
  readonly columnSizes?: ReadonlyMap<number, bigint> | undefined;
  /** Values of a column, nulls and NaNs included. */
  readonly valueCounts?: ReadonlyMap<number, bigint> | undefined;
  readonly nullValueCounts?: ReadonlyMap<number, bigint> | undefined;
  readonly nanValueCounts?: ReadonlyMap<number, bigint> | undefined;
  /** Single-value binary serialization (appendix D); strings and binary may be truncated. */
  readonly lowerBounds?: ReadonlyMap<number, Uint8Array> | undefined;
  readonly upperBounds?: ReadonlyMap<number, Uint8Array> | undefined;
  readonly splitOffsets?: readonly bigint[] | undefined;
  readonly equalityIds?: readonly number[] | undefined;
  readonly sortOrderId?: number | undefined;
  /** v3: the row id of the first row. */
  readonly firstRowId?: bigint | undefined;
  /** The one data file that a deletion vector (always) or position delete file (may) applies to. */
  readonly referencedDataFile?: string | undefined;
  /** A deletion vector's blob inside the Puffin file: as in the Puffin footer. */
  readonly contentOffset?: bigint | undefined;
  readonly contentSizeInBytes?: bigint | undefined;
}

export type EntryStatus = "existing" | "added" | "deleted";

/** One line of a manifest, its inherited values filled in. */
export interface ManifestEntry {
  readonly status: EntryStatus;
  /** Of the snapshot that added the file, or that deleted it for status `deleted`. */
  readonly snapshotId: bigint;
  /** The data sequence number. */
  readonly sequenceNumber: bigint;
  readonly fileSequenceNumber: bigint;
  readonly dataFile: DataFile;
}

export interface FieldSummary {
  readonly containsNull: boolean;
  readonly containsNan?: boolean | undefined;
  readonly lowerBound?: Uint8Array | undefined;
  readonly upperBound?: Uint8Array | undefined;
}

/** One line of a manifest list. */
export interface ManifestFile {
  readonly path: string;
  readonly length: bigint;
  readonly partitionSpecId: number;
  readonly content: "data" | "deletes";
  readonly sequenceNumber: bigint;
  readonly minSequenceNumber: bigint;
  readonly addedSnapshotId: bigint;
  readonly addedFilesCount: number;
  readonly existingFilesCount: number;
  readonly deletedFilesCount: number;
  readonly addedRowsCount: bigint;
  readonly existingRowsCount: bigint;
  readonly deletedRowsCount: bigint;
  /** One for each field of the spec. */
  readonly partitions?: readonly FieldSummary[] | undefined;
  /** v3, data manifests: the row id from which files without one inherit. */
  readonly firstRowId?: bigint | undefined;
}
