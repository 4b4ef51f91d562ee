/** Table metadata: making a new table, finding things in it, and its files. */
import { gunzipSync } from "node:zlib";
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { assignIds } from "./evolve.ts";
import { checkSortOrder, checkSpec, validateMetadata } from "./metadata-check.ts";
import { MAIN_BRANCH, parseMetadata, printMetadata } from "./metadata-json.ts";
import type { FormatVersion, PartitionSpec, Schema, Snapshot, SnapshotRef, SortOrder, TableMetadata } from "./model.ts";
import { FIRST_PARTITION_ID, UNPARTITIONED, UNSORTED } from "./partition.ts";
import { highestFieldId } from "./schema.ts";
import type { ObjectStore } from "./store/store.ts";

export { MAIN_BRANCH, metadataFromJson, metadataToJson, parseMetadata, printMetadata } from "./metadata-json.ts";

/** A table without a snapshot. */
export interface NewTable {
  readonly tableUuid: string;
  /** Full location of the table's directory. */
  readonly location: string;
  /** Its field ids are kept: give them by `freshIds` where they mean nothing yet. */
  readonly schema: Schema;
  /** Field ids of the spec below 1000 are assigned. */
  readonly spec?: PartitionSpec;
  readonly sortOrder?: SortOrder;
  readonly properties?: Readonly<Record<string, string>>;
  readonly formatVersion?: FormatVersion;
  readonly nowMs: number;
}

/** The metadata of a new table. The default format version is 3. */
export function createTableMetadata(table: NewTable): TableMetadata {
  const schema: Schema = { ...table.schema, schemaId: 0 };
  const spec = numberedSpec(table.spec ?? UNPARTITIONED);
  const sortOrder = table.sortOrder ?? UNSORTED;
  checkSpec(spec, schema);
  checkSortOrder(sortOrder, schema);
  const orderId = sortOrder.fields.length === 0 ? 0 : 1;
  const metadata: TableMetadata = {
    formatVersion: table.formatVersion ?? 3,
    tableUuid: table.tableUuid,
    location: table.location.replace(/\/+$/, ""),
    lastSequenceNumber: 0n,
    lastUpdatedMs: table.nowMs,
    lastColumnId: highestFieldId(schema),
    schemas: [schema],
    currentSchemaId: 0,
    partitionSpecs: [spec],
    defaultSpecId: 0,
    lastPartitionId: spec.fields.reduce((last, f) => Math.max(last, f.fieldId), FIRST_PARTITION_ID - 1),
    sortOrders: [{ ...sortOrder, orderId }],
    defaultSortOrderId: orderId,
    properties: { ...table.properties },
    snapshots: [],
    snapshotLog: [],
    metadataLog: [],
    refs: {},
    statistics: [],
    partitionStatistics: [],
    nextRowId: 0n,
  };
  validateMetadata(metadata);
  return metadata;
}

function numberedSpec(spec: PartitionSpec): PartitionSpec {
  return { specId: 0, fields: spec.fields.map((f, i) => withId(f, FIRST_PARTITION_ID + i)) };
}

function withId<T extends { fieldId: number }>(field: T, id: number): T {
  return { ...field, fieldId: id };
}

/** A schema with ids 1, 2, 3 … in the spec's order: a level first, then what is inside. */
export function freshIds(schema: Schema): Schema {
  const { type } = assignIds({ kind: "struct", fields: schema.fields }, 0);
  const identifiers = new Set(schema.identifierFieldIds);
  const fields = type.kind === "struct" ? type.fields : [];
  const identifierFieldIds = schema.fields.flatMap((f, i) => (identifiers.has(f.id) ? [fields[i]?.id ?? 0] : []));
  return { schemaId: schema.schemaId, fields, ...(identifierFieldIds.length > 0 ? { identifierFieldIds } : {}) };
}

export function currentSchema(metadata: TableMetadata): Schema {
  return schemaById(metadata, metadata.currentSchemaId);
}

export function schemaById(metadata: TableMetadata, schemaId: number): Schema {
  return must(
    metadata.schemas.find((s) => s.schemaId === schemaId),
    `schema ${schemaId}`,
  );
}

export function defaultSpec(metadata: TableMetadata): PartitionSpec {
  return must(
    metadata.partitionSpecs.find((s) => s.specId === metadata.defaultSpecId),
    "the default partition spec",
  );
}

export function currentSnapshot(metadata: TableMetadata): Snapshot | undefined {
  return metadata.currentSnapshotId === undefined ? undefined : snapshotById(metadata, metadata.currentSnapshotId);
}

export function snapshotById(metadata: TableMetadata, snapshotId: bigint): Snapshot | undefined {
  return metadata.snapshots.find((s) => s.snapshotId === snapshotId);
}

export function refByName(metadata: TableMetadata, name: string): SnapshotRef | undefined {
  return Object.hasOwn(metadata.refs, name) ? metadata.refs[name] : undefined;
}

/** The snapshot that a branch or tag names; undefined if there is none, or no such ref. */
export function snapshotOfRef(metadata: TableMetadata, name = MAIN_BRANCH): Snapshot | undefined {
  const ref = refByName(metadata, name);
  return ref && snapshotById(metadata, ref.snapshotId);
}

/** The snapshot that was current on main at the time; undefined before the first, or if it has expired. */
export function snapshotAsOf(metadata: TableMetadata, timestampMs: number): Snapshot | undefined {
  const entry = metadata.snapshotLog.findLast((e) => e.timestampMs <= timestampMs);
  return entry && snapshotById(metadata, entry.snapshotId);
}

/** The snapshot and its ancestors, newest first, as far as the table still has them. */
export function* ancestorsOf(metadata: TableMetadata, snapshotId: bigint): Iterable<Snapshot> {
  const byId = new Map(metadata.snapshots.map((s) => [s.snapshotId, s]));
  let snapshot = byId.get(snapshotId);
  while (snapshot) {
    yield snapshot;
    // An id is taken at most once, so that metadata with a circle of parents cannot hold us.
    byId.delete(snapshot.snapshotId);
    snapshot = snapshot.parentSnapshotId === undefined ? undefined : byId.get(snapshot.parentSnapshotId);
  }
}

/** `00012-<uuid>.metadata.json`. */
export function metadataFileName(version: number, uuid: string): string {
  return `${version.toString().padStart(5, "0")}-${uuid}.metadata.json`;
}

/** The version in a metadata file's name, or null if the name has none. */
export function metadataVersionOf(path: string): number | null {
  const match = /(?:^|\/)(?:v(\d+)|(\d+)-[^/]*)\.(?:gz\.)?metadata\.json(?:\.gz)?$/.exec(path);
  return match ? Number(match[1] ?? match[2]) : null;
}

/** Where a table's metadata, manifests and manifest lists lie. */
export function metadataDirectory(metadata: TableMetadata): string {
  return (metadata.properties["write.metadata.path"] ?? `${metadata.location}/metadata`).replace(/\/+$/, "");
}

/** Writes a metadata file under a new name and gives its location. */
export async function writeMetadata(
  store: ObjectStore,
  metadata: TableMetadata,
  file: { readonly version: number; readonly uuid: string },
  onFile: (path: string) => Promise<void> | void = () => undefined,
): Promise<string> {
  const path = `${metadataDirectory(metadata)}/${metadataFileName(file.version, file.uuid)}`;
  await onFile(path);
  await store.put(path, Buffer.from(printMetadata(metadata), "utf8"));
  return path;
}

/** Reads a metadata file, plain or gzipped. */
export async function readMetadata(store: ObjectStore, path: string): Promise<TableMetadata> {
  const bytes = await store.get(path);
  try {
    const plain = bytes[0] === 0x1f && bytes[1] === 0x8b ? gunzipSync(bytes) : bytes;
    return parseMetadata(Buffer.from(plain).toString("utf8"));
  } catch (cause) {
    if (cause instanceof SpillwayError) throw cause;
    throw new SpillwayError("lake_metadata_invalid", `the metadata file ${path} does not unpack`, { cause });
  }
}
