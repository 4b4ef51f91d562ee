/** A working copy of table metadata with one method for each update. Used by `applyUpdates` only. */
import { SpillwayError } from "@spillway/base/errors";
import { checkSchemaVersion, checkSortOrder, checkSpec } from "./metadata-check.ts";
import { MAIN_BRANCH } from "./metadata-json.ts";
import type {
  FormatVersion,
  PartitionField,
  PartitionSpec,
  PartitionStatisticsFile,
  Schema,
  Snapshot,
  SnapshotRef,
  SortOrder,
  StatisticsFile,
  TableMetadata,
} from "./model.ts";
import { FIRST_PARTITION_ID } from "./partition.ts";
import { highestFieldId, sameSchema } from "./schema.ts";
import { printTransform } from "./transforms.ts";

const LAST_ADDED = -1;
const DEFAULT_PREVIOUS_VERSIONS = 100;

type Draft = { -readonly [K in keyof TableMetadata]: TableMetadata[K] };

function refuse(message: string): never {
  throw new SpillwayError("lake_update_invalid", message);
}

export class MetadataBuilder {
  readonly #base: TableMetadata;
  readonly #draft: Draft;
  #lastSchemaId: number | undefined;
  #lastSpecId: number | undefined;
  #lastOrderId: number | undefined;

  constructor(base: TableMetadata) {
    this.#base = base;
    this.#draft = { ...base };
  }

  assignUuid(uuid: string): void {
    if (this.#draft.tableUuid !== uuid) refuse("the uuid of a table cannot change");
  }

  upgradeFormatVersion(version: FormatVersion): void {
    if (version < this.#draft.formatVersion) refuse(`format version ${version} would be a downgrade`);
    this.#draft.formatVersion = version;
  }

  addSchema(schema: Schema, lastColumnId?: number): void {
    const draft = this.#draft;
    checkSchemaVersion(schema, draft.formatVersion);
    if (lastColumnId !== undefined && lastColumnId < highestFieldId(schema)) {
      refuse(`last-column-id ${lastColumnId} is below the schema's highest field id`);
    }
    draft.lastColumnId = Math.max(draft.lastColumnId, lastColumnId ?? 0, highestFieldId(schema));
    const same = draft.schemas.find((s) => sameSchema(s, schema));
    const schemaId = same?.schemaId ?? Math.max(...draft.schemas.map((s) => s.schemaId)) + 1;
    if (!same) draft.schemas = [...draft.schemas, { ...schema, schemaId }];
    this.#lastSchemaId = schemaId;
  }

  setCurrentSchema(id: number): void {
    const schemaId = pick(id, this.#lastSchemaId, "schema");
    if (!this.#draft.schemas.some((s) => s.schemaId === schemaId)) refuse(`the table has no schema ${schemaId}`);
    this.#draft.currentSchemaId = schemaId;
  }

  removeSchemas(ids: readonly number[]): void {
    if (ids.includes(this.#draft.currentSchemaId)) refuse("the current schema cannot be removed");
    this.#draft.schemas = this.#draft.schemas.filter((s) => !ids.includes(s.schemaId));
  }

  addSpec(spec: PartitionSpec): void {
    const draft = this.#draft;
    checkSpec(spec, this.#currentSchema());
    const same = draft.partitionSpecs.find((s) => sameSpec(s, spec));
    const specId = same?.specId ?? Math.max(...draft.partitionSpecs.map((s) => s.specId)) + 1;
    if (!same) {
      const fields = spec.fields.map((field) => this.#numbered(field));
      draft.partitionSpecs = [...draft.partitionSpecs, { specId, fields }];
    }
    this.#lastSpecId = specId;
  }

  /** A field of an older spec with the same source and transform keeps its id (spec, partition evolution). */
  #numbered(field: PartitionField): PartitionField {
    const draft = this.#draft;
    const equal = draft.partitionSpecs.flatMap((s) => s.fields).find((f) => sameField(f, field));
    if (equal) return { ...field, fieldId: equal.fieldId };
    const fieldId = Math.max(draft.lastPartitionId + 1, field.fieldId, FIRST_PARTITION_ID);
    draft.lastPartitionId = fieldId;
    return { ...field, fieldId };
  }

  setDefaultSpec(id: number): void {
    const specId = pick(id, this.#lastSpecId, "partition spec");
    const spec = this.#draft.partitionSpecs.find((s) => s.specId === specId);
    if (!spec) refuse(`the table has no partition spec ${specId}`);
    checkSpec(spec, this.#currentSchema());
    this.#draft.defaultSpecId = specId;
  }

  removeSpecs(ids: readonly number[]): void {
    if (ids.includes(this.#draft.defaultSpecId)) refuse("the default partition spec cannot be removed");
    this.#draft.partitionSpecs = this.#draft.partitionSpecs.filter((s) => !ids.includes(s.specId));
  }

  addSortOrder(order: SortOrder): void {
    const draft = this.#draft;
    checkSortOrder(order, this.#currentSchema());
    const key = JSON.stringify(order.fields);
    const same = draft.sortOrders.find((o) => JSON.stringify(o.fields) === key);
    const next = order.fields.length === 0 ? 0 : Math.max(0, ...draft.sortOrders.map((o) => o.orderId)) + 1;
    const orderId = same?.orderId ?? next;
    if (!same) draft.sortOrders = [...draft.sortOrders, { ...order, orderId }];
    this.#lastOrderId = orderId;
  }

  setDefaultSortOrder(id: number): void {
    const orderId = pick(id, this.#lastOrderId, "sort order");
    if (!this.#draft.sortOrders.some((o) => o.orderId === orderId)) refuse(`the table has no sort order ${orderId}`);
    this.#draft.defaultSortOrderId = orderId;
  }

  addSnapshot(snapshot: Snapshot): void {
    const draft = this.#draft;
    if (draft.snapshots.some((s) => s.snapshotId === snapshot.snapshotId)) {
      refuse(`the table has the snapshot ${snapshot.snapshotId} already`);
    }
    if (snapshot.sequenceNumber <= draft.lastSequenceNumber) {
      stale(`sequence number ${snapshot.sequenceNumber} is not beyond ${draft.lastSequenceNumber}`);
    }
    if (draft.formatVersion >= 3) this.#takeRowIds(snapshot);
    draft.lastSequenceNumber = snapshot.sequenceNumber;
    draft.snapshots = [...draft.snapshots, snapshot];
  }

  #takeRowIds(snapshot: Snapshot): void {
    const { firstRowId, addedRows } = snapshot;
    if (firstRowId === undefined || addedRows === undefined) refuse("a snapshot of format version 3 needs its row ids");
    if (firstRowId < this.#draft.nextRowId) {
      stale(`first row id ${firstRowId} is behind next-row-id ${this.#draft.nextRowId}`);
    }
    if (addedRows < 0n) refuse("added-rows is negative");
    this.#draft.nextRowId = firstRowId + addedRows;
  }

  setRef(name: string, ref: SnapshotRef): void {
    const draft = this.#draft;
    if (!draft.snapshots.some((s) => s.snapshotId === ref.snapshotId)) {
      refuse(`the table has no snapshot ${ref.snapshotId}`);
    }
    if (name === MAIN_BRANCH) {
      if (ref.type !== "branch") refuse("main is a branch");
      draft.currentSnapshotId = ref.snapshotId;
    }
    draft.refs = { ...draft.refs, [name]: ref };
  }

  removeRef(name: string): void {
    const draft = this.#draft;
    draft.refs = Object.fromEntries(Object.entries(draft.refs).filter(([key]) => key !== name));
    if (name === MAIN_BRANCH) delete draft.currentSnapshotId;
  }

  /** Refs other than main that name a removed snapshot go with it; main's snapshot cannot go. */
  removeSnapshots(ids: readonly bigint[]): void {
    const draft = this.#draft;
    const gone = new Set(ids);
    if (draft.currentSnapshotId !== undefined && gone.has(draft.currentSnapshotId)) {
      refuse(`the current snapshot ${draft.currentSnapshotId} cannot be removed`);
    }
    draft.snapshots = draft.snapshots.filter((s) => !gone.has(s.snapshotId));
    draft.refs = Object.fromEntries(Object.entries(draft.refs).filter(([, ref]) => !gone.has(ref.snapshotId)));
    draft.statistics = draft.statistics.filter((s) => !gone.has(s.snapshotId));
    draft.partitionStatistics = draft.partitionStatistics.filter((s) => !gone.has(s.snapshotId));
  }

  setLocation(location: string): void {
    this.#draft.location = location.replace(/\/+$/, "");
  }

  setProperties(updates: Readonly<Record<string, string>>): void {
    this.#draft.properties = { ...this.#draft.properties, ...updates };
  }

  removeProperties(removals: readonly string[]): void {
    const kept = Object.entries(this.#draft.properties).filter(([key]) => !removals.includes(key));
    this.#draft.properties = Object.fromEntries(kept);
  }

  setStatistics(file: StatisticsFile): void {
    this.#needSnapshot(file.snapshotId);
    this.removeStatistics(file.snapshotId);
    this.#draft.statistics = [...this.#draft.statistics, file];
  }

  removeStatistics(snapshotId: bigint): void {
    this.#draft.statistics = this.#draft.statistics.filter((s) => s.snapshotId !== snapshotId);
  }

  setPartitionStatistics(file: PartitionStatisticsFile): void {
    this.#needSnapshot(file.snapshotId);
    this.removePartitionStatistics(file.snapshotId);
    this.#draft.partitionStatistics = [...this.#draft.partitionStatistics, file];
  }

  removePartitionStatistics(snapshotId: bigint): void {
    this.#draft.partitionStatistics = this.#draft.partitionStatistics.filter((s) => s.snapshotId !== snapshotId);
  }

  #needSnapshot(snapshotId: bigint): void {
    if (!this.#draft.snapshots.some((s) => s.snapshotId === snapshotId))
      refuse(`the table has no snapshot ${snapshotId}`);
  }

  #currentSchema(): Schema {
    const draft = this.#draft;
    return draft.schemas.find((s) => s.schemaId === draft.currentSchemaId) ?? refuse("the table has no current schema");
  }

  build(nowMs: number, previousMetadataLocation: string | undefined): TableMetadata {
    const draft = this.#draft;
    // Clocks of two writers differ; a table's time does not go back.
    draft.lastUpdatedMs = Math.max(nowMs, this.#base.lastUpdatedMs);
    draft.snapshotLog = this.#snapshotLog();
    if (previousMetadataLocation !== undefined) draft.metadataLog = this.#metadataLog(previousMetadataLocation);
    return draft;
  }

  /** Removing a snapshot cuts the log after its last mention: time travel must not fall into a gap. */
  #snapshotLog(): TableMetadata["snapshotLog"] {
    const draft = this.#draft;
    const kept = new Set(draft.snapshots.map((s) => s.snapshotId));
    const lastGone = draft.snapshotLog.findLastIndex((e) => !kept.has(e.snapshotId));
    const log = draft.snapshotLog.slice(lastGone + 1);
    const { currentSnapshotId } = draft;
    if (currentSnapshotId === undefined || currentSnapshotId === this.#base.currentSnapshotId) return log;
    const added = draft.snapshots.find((s) => s.snapshotId === currentSnapshotId);
    const isNew = !this.#base.snapshots.some((s) => s.snapshotId === currentSnapshotId);
    const timestampMs = isNew && added ? added.timestampMs : draft.lastUpdatedMs;
    return [...log, { snapshotId: currentSnapshotId, timestampMs }];
  }

  #metadataLog(previous: string): TableMetadata["metadataLog"] {
    const limit = Number(this.#draft.properties["write.metadata.previous-versions-max"] ?? DEFAULT_PREVIOUS_VERSIONS);
    const keep = Number.isInteger(limit) && limit >= 1 ? limit : DEFAULT_PREVIOUS_VERSIONS;
    const entry = { metadataFile: previous, timestampMs: this.#base.lastUpdatedMs };
    return [...this.#draft.metadataLog, entry].slice(-keep);
  }
}

function stale(reason: string): never {
  throw new SpillwayError("lake_commit_conflict", `the snapshot was staged on an older state: ${reason}`);
}

function pick(id: number, lastAdded: number | undefined, what: string): number {
  if (id !== LAST_ADDED) return id;
  return lastAdded ?? refuse(`this commit added no ${what}`);
}

function sameField(a: PartitionField, b: PartitionField): boolean {
  return a.sourceId === b.sourceId && printTransform(a.transform) === printTransform(b.transform) && a.name === b.name;
}

function sameSpec(a: PartitionSpec, b: PartitionSpec): boolean {
  return a.fields.length === b.fields.length && a.fields.every((f, i) => b.fields[i] && sameField(f, b.fields[i]));
}
