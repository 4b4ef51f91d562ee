/**
 * Commits as data: updates and requirements as the REST catalog names them, and two pure functions
 * that decide and apply. Who owns the pointer (a catalog) does the one effect around them.
 */
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { must } from "@spillway/base/assert";
import { evolveSchema, type SchemaChange } from "./evolve.ts";
import { validateMetadata } from "./metadata-check.ts";
import type {
  FormatVersion,
  PartitionSpec,
  PartitionStatisticsFile,
  Schema,
  Snapshot,
  SnapshotRef,
  SortOrder,
  StatisticsFile,
  TableMetadata,
} from "./model.ts";
import { MetadataBuilder } from "./metadata-builder.ts";

export type TableUpdate =
  | { readonly action: "assign-uuid"; readonly uuid: string }
  | { readonly action: "upgrade-format-version"; readonly formatVersion: FormatVersion }
  | { readonly action: "add-schema"; readonly schema: Schema; readonly lastColumnId?: number | undefined }
  /** -1: the schema that this commit added last. Likewise for specs and sort orders. */
  | { readonly action: "set-current-schema"; readonly schemaId: number }
  | { readonly action: "remove-schemas"; readonly schemaIds: readonly number[] }
  | { readonly action: "add-spec"; readonly spec: PartitionSpec }
  | { readonly action: "set-default-spec"; readonly specId: number }
  | { readonly action: "remove-partition-specs"; readonly specIds: readonly number[] }
  | { readonly action: "add-sort-order"; readonly sortOrder: SortOrder }
  | { readonly action: "set-default-sort-order"; readonly sortOrderId: number }
  | { readonly action: "add-snapshot"; readonly snapshot: Snapshot }
  | { readonly action: "set-snapshot-ref"; readonly refName: string; readonly ref: SnapshotRef }
  | { readonly action: "remove-snapshots"; readonly snapshotIds: readonly bigint[] }
  | { readonly action: "remove-snapshot-ref"; readonly refName: string }
  | { readonly action: "set-location"; readonly location: string }
  | { readonly action: "set-properties"; readonly updates: Readonly<Record<string, string>> }
  | { readonly action: "remove-properties"; readonly removals: readonly string[] }
  | { readonly action: "set-statistics"; readonly statistics: StatisticsFile }
  | { readonly action: "remove-statistics"; readonly snapshotId: bigint }
  | { readonly action: "set-partition-statistics"; readonly partitionStatistics: PartitionStatisticsFile }
  | { readonly action: "remove-partition-statistics"; readonly snapshotId: bigint };

export type TableRequirement =
  | { readonly type: "assert-create" }
  | { readonly type: "assert-table-uuid"; readonly uuid: string }
  /** Null: the ref must not exist. */
  | { readonly type: "assert-ref-snapshot-id"; readonly ref: string; readonly snapshotId: bigint | null }
  | { readonly type: "assert-last-assigned-field-id"; readonly lastAssignedFieldId: number }
  | { readonly type: "assert-current-schema-id"; readonly currentSchemaId: number }
  | { readonly type: "assert-last-assigned-partition-id"; readonly lastAssignedPartitionId: number }
  | { readonly type: "assert-default-spec-id"; readonly defaultSpecId: number }
  | { readonly type: "assert-default-sort-order-id"; readonly defaultSortOrderId: number };

/** How a commit ended. `unknown`: the answer was lost; read the pointer again before acting. */
export type CommitResult =
  | { readonly kind: "success"; readonly metadata: TableMetadata; readonly metadataLocation: string }
  | { readonly kind: "conflict"; readonly reason: string }
  | { readonly kind: "unknown"; readonly cause: unknown };

/** The first requirement that does not hold, as a sentence; undefined if all do. Null: no such table. */
export function failedRequirement(
  metadata: TableMetadata | null,
  requirements: readonly TableRequirement[],
): string | undefined {
  for (const requirement of requirements) {
    const reason = metadata ? unmet(metadata, requirement) : unmetWithoutTable(requirement);
    if (reason !== undefined) return `${requirement.type}: ${reason}`;
  }
  return undefined;
}

/** Throws `lake_commit_conflict` unless every requirement holds. */
export function checkRequirements(metadata: TableMetadata | null, requirements: readonly TableRequirement[]): void {
  const reason = failedRequirement(metadata, requirements);
  if (reason !== undefined) throw new SpillwayError("lake_commit_conflict", reason);
}

function unmetWithoutTable(requirement: TableRequirement): string | undefined {
  return requirement.type === "assert-create" ? undefined : "the table does not exist";
}

function unmet(metadata: TableMetadata, requirement: TableRequirement): string | undefined {
  switch (requirement.type) {
    case "assert-create":
      return "the table exists already";
    case "assert-table-uuid":
      return differs("the table's uuid", metadata.tableUuid, requirement.uuid);
    case "assert-ref-snapshot-id": {
      const ref = Object.hasOwn(metadata.refs, requirement.ref) ? metadata.refs[requirement.ref] : undefined;
      return differs(`the ref ${requirement.ref}`, ref?.snapshotId ?? null, requirement.snapshotId);
    }
    case "assert-last-assigned-field-id":
      return differs("the last field id", metadata.lastColumnId, requirement.lastAssignedFieldId);
    case "assert-current-schema-id":
      return differs("the current schema", metadata.currentSchemaId, requirement.currentSchemaId);
    case "assert-last-assigned-partition-id":
      return differs("the last partition field id", metadata.lastPartitionId, requirement.lastAssignedPartitionId);
    case "assert-default-spec-id":
      return differs("the default partition spec", metadata.defaultSpecId, requirement.defaultSpecId);
    case "assert-default-sort-order-id":
      return differs("the default sort order", metadata.defaultSortOrderId, requirement.defaultSortOrderId);
  }
}

function differs(what: string, is: unknown, expected: unknown): string | undefined {
  return is === expected ? undefined : `${what} is ${String(is)}, expected ${String(expected)}`;
}

export interface ApplyOptions {
  /** The metadata file that these updates replace: it enters the metadata log. */
  readonly previousMetadataLocation?: string | undefined;
}

/**
 * The metadata after the updates, in order; the input is not changed. Throws `lake_update_invalid`
 * for an update that makes no sense on this table, `lake_commit_conflict` for a snapshot that was
 * staged on an older state.
 */
export function applyUpdates(
  metadata: TableMetadata,
  updates: readonly TableUpdate[],
  nowMs: number,
  options: ApplyOptions = {},
): TableMetadata {
  try {
    const builder = new MetadataBuilder(metadata);
    for (const update of updates) applyUpdate(builder, update);
    const result = builder.build(nowMs, options.previousMetadataLocation);
    validateMetadata(result);
    return result;
  } catch (cause) {
    // The table was valid before: what breaks a rule now is the update.
    if (!isSpillwayError(cause, "lake_metadata_invalid")) throw cause;
    throw new SpillwayError("lake_update_invalid", cause.message, { cause });
  }
}

function applyUpdate(builder: MetadataBuilder, update: TableUpdate): void {
  switch (update.action) {
    case "assign-uuid":
      return builder.assignUuid(update.uuid);
    case "upgrade-format-version":
      return builder.upgradeFormatVersion(update.formatVersion);
    case "add-schema":
      return builder.addSchema(update.schema, update.lastColumnId);
    case "set-current-schema":
      return builder.setCurrentSchema(update.schemaId);
    case "remove-schemas":
      return builder.removeSchemas(update.schemaIds);
    case "add-spec":
      return builder.addSpec(update.spec);
    case "set-default-spec":
      return builder.setDefaultSpec(update.specId);
    case "remove-partition-specs":
      return builder.removeSpecs(update.specIds);
    case "add-sort-order":
      return builder.addSortOrder(update.sortOrder);
    case "set-default-sort-order":
      return builder.setDefaultSortOrder(update.sortOrderId);
    case "add-snapshot":
      return builder.addSnapshot(update.snapshot);
    case "set-snapshot-ref":
      return builder.setRef(update.refName, update.ref);
    case "remove-snapshots":
      return builder.removeSnapshots(update.snapshotIds);
    case "remove-snapshot-ref":
      return builder.removeRef(update.refName);
    case "set-location":
      return builder.setLocation(update.location);
    case "set-properties":
      return builder.setProperties(update.updates);
    case "remove-properties":
      return builder.removeProperties(update.removals);
    case "set-statistics":
      return builder.setStatistics(update.statistics);
    case "remove-statistics":
      return builder.removeStatistics(update.snapshotId);
    case "set-partition-statistics":
      return builder.setPartitionStatistics(update.partitionStatistics);
    case "remove-partition-statistics":
      return builder.removePartitionStatistics(update.snapshotId);
  }
}

/** The updates and requirements that make the changes to the table's current schema. */
export function stageSchemaChange(
  metadata: TableMetadata,
  changes: readonly SchemaChange[],
): { updates: readonly TableUpdate[]; requirements: readonly TableRequirement[] } {
  const schema = metadata.schemas.find((s) => s.schemaId === metadata.currentSchemaId);
  const { formatVersion, lastColumnId, partitionSpecs, sortOrders } = metadata;
  const base = { formatVersion, schema: must(schema, "the current schema"), lastColumnId, partitionSpecs, sortOrders };
  const evolved = evolveSchema(base, changes);
  return {
    updates: [
      { action: "add-schema", schema: evolved.schema, lastColumnId: evolved.lastColumnId },
      { action: "set-current-schema", schemaId: -1 },
    ],
    requirements: [
      { type: "assert-table-uuid", uuid: metadata.tableUuid },
      { type: "assert-current-schema-id", currentSchemaId: metadata.currentSchemaId },
      { type: "assert-last-assigned-field-id", lastAssignedFieldId: lastColumnId },
    ],
  };
}
