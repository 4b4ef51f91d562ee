/** Table metadata as JSON, both ways (spec, appendix C), with 64-bit exactness. */
import { SpillwayError } from "@spillway/base/errors";
import { invalid, JsonReader, parseJson, printJson, type JsonObject, type JsonValue } from "./json.ts";
import { validateMetadata } from "./metadata-check.ts";
import type {
  BlobMetadata,
  FormatVersion,
  PartitionStatisticsFile,
  Snapshot,
  SnapshotOperation,
  SnapshotRef,
  StatisticsFile,
  TableMetadata,
} from "./model.ts";
import { sortOrderFromJson, sortOrderToJson, specFromJson, specToJson } from "./partition.ts";
import { schemaFromJson, schemaToJson } from "./schema.ts";

export const MAIN_BRANCH = "main";
const OPERATIONS = new Set<string>(["append", "replace", "overwrite", "delete"]);

/** The text of a metadata file. */
export function printMetadata(metadata: TableMetadata): string {
  return printJson(metadataToJson(metadata));
}

/** Parses and validates. Throws `lake_metadata_invalid`, or `lake_format_unsupported` for version 1 or 4. */
export function parseMetadata(text: string): TableMetadata {
  let json: JsonValue;
  try {
    json = parseJson(text);
  } catch (cause) {
    throw new SpillwayError("lake_metadata_invalid", "the table metadata is not JSON", { cause });
  }
  return metadataFromJson(json);
}

export function metadataToJson(metadata: TableMetadata): JsonObject {
  const v3 = metadata.formatVersion >= 3;
  return {
    "format-version": metadata.formatVersion,
    "table-uuid": metadata.tableUuid,
    location: metadata.location,
    "last-sequence-number": metadata.lastSequenceNumber,
    "last-updated-ms": metadata.lastUpdatedMs,
    "last-column-id": metadata.lastColumnId,
    "current-schema-id": metadata.currentSchemaId,
    schemas: metadata.schemas.map(schemaToJson),
    "default-spec-id": metadata.defaultSpecId,
    "partition-specs": metadata.partitionSpecs.map(specToJson),
    "last-partition-id": metadata.lastPartitionId,
    "default-sort-order-id": metadata.defaultSortOrderId,
    "sort-orders": metadata.sortOrders.map(sortOrderToJson),
    properties: { ...metadata.properties },
    // No current snapshot: -1 in version 2, as every reader knows it; null since version 3.
    "current-snapshot-id": metadata.currentSnapshotId ?? (v3 ? null : -1),
    ...(v3 ? { "next-row-id": metadata.nextRowId } : {}),
    refs: Object.fromEntries(Object.entries(metadata.refs).map(([name, ref]) => [name, refToJson(ref)])),
    snapshots: metadata.snapshots.map(snapshotToJson),
    statistics: metadata.statistics.map(statisticsToJson),
    "partition-statistics": metadata.partitionStatistics.map(partitionStatisticsToJson),
    "snapshot-log": metadata.snapshotLog.map((e) => ({ "timestamp-ms": e.timestampMs, "snapshot-id": e.snapshotId })),
    "metadata-log": metadata.metadataLog.map((e) => ({
      "timestamp-ms": e.timestampMs,
      "metadata-file": e.metadataFile,
    })),
  };
}

export function metadataFromJson(json: unknown): TableMetadata {
  const reader = new JsonReader(json, "metadata");
  const formatVersion = versionOf(reader.int("format-version"));
  const metadata: TableMetadata = {
    formatVersion,
    tableUuid: reader.text("table-uuid"),
    location: reader.text("location").replace(/\/+$/, ""),
    lastSequenceNumber: reader.long("last-sequence-number"),
    lastUpdatedMs: reader.int("last-updated-ms"),
    lastColumnId: reader.int("last-column-id"),
    schemas: reader.list("schemas").map(schemaFromJson),
    currentSchemaId: reader.int("current-schema-id"),
    partitionSpecs: reader.list("partition-specs").map(specFromJson),
    defaultSpecId: reader.int("default-spec-id"),
    lastPartitionId: reader.int("last-partition-id"),
    sortOrders: reader.list("sort-orders").map(sortOrderFromJson),
    defaultSortOrderId: reader.int("default-sort-order-id"),
    properties: reader.texts("properties"),
    ...currentSnapshotOf(reader),
    snapshots: reader.listOr("snapshots").map(snapshotFromJson),
    snapshotLog: reader.listOr("snapshot-log").map((item) => {
      const entry = new JsonReader(item, "snapshot-log");
      return { snapshotId: entry.long("snapshot-id"), timestampMs: entry.int("timestamp-ms") };
    }),
    metadataLog: reader.listOr("metadata-log").map((item) => {
      const entry = new JsonReader(item, "metadata-log");
      return { metadataFile: entry.text("metadata-file"), timestampMs: entry.int("timestamp-ms") };
    }),
    refs: refsOf(reader),
    statistics: reader.listOr("statistics").map(statisticsFromJson),
    partitionStatistics: reader.listOr("partition-statistics").map(partitionStatisticsFromJson),
    nextRowId: formatVersion >= 3 ? reader.long("next-row-id") : 0n,
  };
  validateMetadata(metadata);
  return metadata;
}

function versionOf(version: number): FormatVersion {
  if (version === 2 || version === 3) return version;
  throw new SpillwayError("lake_format_unsupported", `format version ${version} is not supported`);
}

function currentSnapshotOf(reader: JsonReader): { currentSnapshotId?: bigint } {
  const id = reader.longOr("current-snapshot-id");
  return id === undefined || id === -1n ? {} : { currentSnapshotId: id };
}

/** Writers before branches existed have no refs: then main is the current snapshot. */
function refsOf(reader: JsonReader): Record<string, SnapshotRef> {
  const { currentSnapshotId } = currentSnapshotOf(reader);
  const json = reader.has("refs") ? reader.child("refs") : undefined;
  const refs = Object.fromEntries((json?.keys() ?? []).map((name) => [name, refFromJson(json?.raw(name))]));
  if (currentSnapshotId !== undefined && !Object.hasOwn(refs, MAIN_BRANCH)) {
    refs[MAIN_BRANCH] = { snapshotId: currentSnapshotId, type: "branch" };
  }
  return refs;
}

export function refToJson(ref: SnapshotRef): JsonObject {
  return {
    "snapshot-id": ref.snapshotId,
    type: ref.type,
    ...(ref.minSnapshotsToKeep === undefined ? {} : { "min-snapshots-to-keep": ref.minSnapshotsToKeep }),
    ...(ref.maxSnapshotAgeMs === undefined ? {} : { "max-snapshot-age-ms": ref.maxSnapshotAgeMs }),
    ...(ref.maxRefAgeMs === undefined ? {} : { "max-ref-age-ms": ref.maxRefAgeMs }),
  };
}

export function refFromJson(json: unknown): SnapshotRef {
  const reader = new JsonReader(json, "ref");
  const type = reader.text("type").toLowerCase();
  if (type !== "branch" && type !== "tag") invalid(`the ref type ${type} is unknown`);
  const minSnapshotsToKeep = reader.intOr("min-snapshots-to-keep");
  const maxSnapshotAgeMs = reader.intOr("max-snapshot-age-ms");
  const maxRefAgeMs = reader.intOr("max-ref-age-ms");
  return {
    snapshotId: reader.long("snapshot-id"),
    type,
    ...(minSnapshotsToKeep === undefined ? {} : { minSnapshotsToKeep }),
    ...(maxSnapshotAgeMs === undefined ? {} : { maxSnapshotAgeMs }),
    ...(maxRefAgeMs === undefined ? {} : { maxRefAgeMs }),
  };
}

export function snapshotToJson(snapshot: Snapshot): JsonObject {
  return {
    "sequence-number": snapshot.sequenceNumber,
    "snapshot-id": snapshot.snapshotId,
    ...(snapshot.parentSnapshotId === undefined ? {} : { "parent-snapshot-id": snapshot.parentSnapshotId }),
    "timestamp-ms": snapshot.timestampMs,
    summary: { operation: snapshot.operation, ...snapshot.summary },
    "manifest-list": snapshot.manifestList,
    ...(snapshot.schemaId === undefined ? {} : { "schema-id": snapshot.schemaId }),
    ...(snapshot.firstRowId === undefined ? {} : { "first-row-id": snapshot.firstRowId }),
    ...(snapshot.addedRows === undefined ? {} : { "added-rows": snapshot.addedRows }),
  };
}

export function snapshotFromJson(json: unknown): Snapshot {
  const reader = new JsonReader(json, "snapshot");
  const { operation = "overwrite", ...summary } = reader.texts("summary");
  if (!OPERATIONS.has(operation)) invalid(`the snapshot operation ${operation} is unknown`);
  const parentSnapshotId = reader.longOr("parent-snapshot-id");
  const schemaId = reader.intOr("schema-id");
  const firstRowId = reader.longOr("first-row-id");
  const addedRows = reader.longOr("added-rows");
  return {
    snapshotId: reader.long("snapshot-id"),
    ...(parentSnapshotId === undefined || parentSnapshotId === -1n ? {} : { parentSnapshotId }),
    sequenceNumber: reader.longOr("sequence-number") ?? 0n,
    timestampMs: reader.int("timestamp-ms"),
    manifestList: reader.text("manifest-list"),
    operation: operation as SnapshotOperation,
    summary,
    ...(schemaId === undefined ? {} : { schemaId }),
    ...(firstRowId === undefined ? {} : { firstRowId }),
    ...(addedRows === undefined ? {} : { addedRows }),
  };
}

export function statisticsToJson(file: StatisticsFile): JsonObject {
  return {
    "snapshot-id": file.snapshotId,
    "statistics-path": file.statisticsPath,
    "file-size-in-bytes": file.fileSizeInBytes,
    "file-footer-size-in-bytes": file.fileFooterSizeInBytes,
    "blob-metadata": file.blobMetadata.map((blob) => ({
      type: blob.type,
      "snapshot-id": blob.snapshotId,
      "sequence-number": blob.sequenceNumber,
      fields: [...blob.fields],
      ...(blob.properties === undefined ? {} : { properties: { ...blob.properties } }),
    })),
  };
}

export function statisticsFromJson(json: unknown): StatisticsFile {
  const reader = new JsonReader(json, "statistics");
  return {
    snapshotId: reader.long("snapshot-id"),
    statisticsPath: reader.text("statistics-path"),
    fileSizeInBytes: reader.long("file-size-in-bytes"),
    fileFooterSizeInBytes: reader.long("file-footer-size-in-bytes"),
    blobMetadata: reader.listOr("blob-metadata").map(blobFromJson),
  };
}

function blobFromJson(json: JsonValue): BlobMetadata {
  const reader = new JsonReader(json, "blob-metadata");
  return {
    type: reader.text("type"),
    snapshotId: reader.long("snapshot-id"),
    sequenceNumber: reader.long("sequence-number"),
    fields: reader.ints("fields"),
    ...(reader.has("properties") ? { properties: reader.texts("properties") } : {}),
  };
}

export function partitionStatisticsToJson(file: PartitionStatisticsFile): JsonObject {
  return {
    "snapshot-id": file.snapshotId,
    "statistics-path": file.statisticsPath,
    "file-size-in-bytes": file.fileSizeInBytes,
  };
}

export function partitionStatisticsFromJson(json: unknown): PartitionStatisticsFile {
  const reader = new JsonReader(json, "partition-statistics");
  return {
    snapshotId: reader.long("snapshot-id"),
    statisticsPath: reader.text("statistics-path"),
    fileSizeInBytes: reader.long("file-size-in-bytes"),
  };
}
