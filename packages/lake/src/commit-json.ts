/** Updates and requirements in the JSON of the REST catalog specification. */
import { SpillwayError } from "@spillway/base/errors";
import type { TableRequirement, TableUpdate } from "./commit.ts";
import { JsonReader, type JsonObject } from "./json.ts";
import {
  partitionStatisticsFromJson,
  partitionStatisticsToJson,
  refFromJson,
  refToJson,
  snapshotFromJson,
  snapshotToJson,
  statisticsFromJson,
  statisticsToJson,
} from "./metadata-json.ts";
import type { FormatVersion } from "./model.ts";
import { sortOrderFromJson, sortOrderToJson, specFromJson, specToJson } from "./partition.ts";
import { schemaFromJson, schemaToJson } from "./schema.ts";

export function updateToJson(update: TableUpdate): JsonObject {
  const { action } = update;
  switch (update.action) {
    case "assign-uuid":
      return { action, uuid: update.uuid };
    case "upgrade-format-version":
      return { action, "format-version": update.formatVersion };
    case "add-schema": {
      const last = update.lastColumnId === undefined ? {} : { "last-column-id": update.lastColumnId };
      return { action, schema: schemaToJson(update.schema), ...last };
    }
    case "set-current-schema":
      return { action, "schema-id": update.schemaId };
    case "remove-schemas":
      return { action, "schema-ids": [...update.schemaIds] };
    case "add-spec":
      return { action, spec: specToJson(update.spec) };
    case "set-default-spec":
      return { action, "spec-id": update.specId };
    case "remove-partition-specs":
      return { action, "spec-ids": [...update.specIds] };
    case "add-sort-order":
      return { action, "sort-order": sortOrderToJson(update.sortOrder) };
    case "set-default-sort-order":
      return { action, "sort-order-id": update.sortOrderId };
    case "add-snapshot":
      return { action, snapshot: snapshotToJson(update.snapshot) };
    case "set-snapshot-ref":
      return { action, "ref-name": update.refName, ...refToJson(update.ref) };
    case "remove-snapshots":
      return { action, "snapshot-ids": [...update.snapshotIds] };
    case "remove-snapshot-ref":
      return { action, "ref-name": update.refName };
    case "set-location":
      return { action, location: update.location };
    case "set-properties":
      return { action, updates: { ...update.updates } };
    case "remove-properties":
      return { action, removals: [...update.removals] };
    case "set-statistics":
      return { action, "snapshot-id": update.statistics.snapshotId, statistics: statisticsToJson(update.statistics) };
    case "set-partition-statistics":
      return { action, "partition-statistics": partitionStatisticsToJson(update.partitionStatistics) };
    case "remove-statistics":
    case "remove-partition-statistics":
      return { action, "snapshot-id": update.snapshotId };
  }
}

export function updateFromJson(json: unknown): TableUpdate {
  const reader = new JsonReader(json, "update");
  const action = reader.text("action") as TableUpdate["action"];
  switch (action) {
    case "assign-uuid":
      return { action, uuid: reader.text("uuid") };
    case "upgrade-format-version":
      return { action, formatVersion: formatVersionOf(reader.int("format-version")) };
    case "add-schema":
      return { action, schema: schemaFromJson(reader.raw("schema")), lastColumnId: reader.intOr("last-column-id") };
    case "set-current-schema":
      return { action, schemaId: reader.int("schema-id") };
    case "remove-schemas":
      return { action, schemaIds: reader.ints("schema-ids") };
    case "add-spec":
      return { action, spec: specFromJson(reader.raw("spec")) };
    case "set-default-spec":
      return { action, specId: reader.int("spec-id") };
    case "remove-partition-specs":
      return { action, specIds: reader.ints("spec-ids") };
    case "add-sort-order":
      return { action, sortOrder: sortOrderFromJson(reader.raw("sort-order")) };
    case "set-default-sort-order":
      return { action, sortOrderId: reader.int("sort-order-id") };
    case "add-snapshot":
      return { action, snapshot: snapshotFromJson(reader.raw("snapshot")) };
    case "set-snapshot-ref":
      return { action, refName: reader.text("ref-name"), ref: refFromJson(json) };
    case "remove-snapshots":
      return { action, snapshotIds: reader.longs("snapshot-ids") };
    case "remove-snapshot-ref":
      return { action, refName: reader.text("ref-name") };
    case "set-location":
      return { action, location: reader.text("location") };
    case "set-properties":
      return { action, updates: reader.texts("updates") };
    case "remove-properties":
      return { action, removals: reader.list("removals").map(String) };
    case "set-statistics":
      return { action, statistics: statisticsFromJson(reader.raw("statistics")) };
    case "set-partition-statistics":
      return { action, partitionStatistics: partitionStatisticsFromJson(reader.raw("partition-statistics")) };
    case "remove-statistics":
    case "remove-partition-statistics":
      return { action, snapshotId: reader.long("snapshot-id") };
    default:
      throw unsupported("update", action);
  }
}

function formatVersionOf(version: number): FormatVersion {
  if (version === 2 || version === 3) return version;
  throw new SpillwayError("lake_format_unsupported", `format version ${version} is not supported`);
}

function unsupported(what: string, name: never): SpillwayError {
  return new SpillwayError("lake_format_unsupported", `the ${what} ${JSON.stringify(name)} is not supported`);
}

export function requirementToJson(requirement: TableRequirement): JsonObject {
  const { type } = requirement;
  switch (requirement.type) {
    case "assert-create":
      return { type };
    case "assert-table-uuid":
      return { type, uuid: requirement.uuid };
    case "assert-ref-snapshot-id":
      return { type, ref: requirement.ref, "snapshot-id": requirement.snapshotId };
    case "assert-last-assigned-field-id":
      return { type, "last-assigned-field-id": requirement.lastAssignedFieldId };
    case "assert-current-schema-id":
      return { type, "current-schema-id": requirement.currentSchemaId };
    case "assert-last-assigned-partition-id":
      return { type, "last-assigned-partition-id": requirement.lastAssignedPartitionId };
    case "assert-default-spec-id":
      return { type, "default-spec-id": requirement.defaultSpecId };
    case "assert-default-sort-order-id":
      return { type, "default-sort-order-id": requirement.defaultSortOrderId };
  }
}

export function requirementFromJson(json: unknown): TableRequirement {
  const reader = new JsonReader(json, "requirement");
  const type = reader.text("type") as TableRequirement["type"];
  switch (type) {
    case "assert-create":
      return { type };
    case "assert-table-uuid":
      return { type, uuid: reader.text("uuid") };
    case "assert-ref-snapshot-id":
      return { type, ref: reader.text("ref"), snapshotId: reader.longOr("snapshot-id") ?? null };
    case "assert-last-assigned-field-id":
      return { type, lastAssignedFieldId: reader.int("last-assigned-field-id") };
    case "assert-current-schema-id":
      return { type, currentSchemaId: reader.int("current-schema-id") };
    case "assert-last-assigned-partition-id":
      return { type, lastAssignedPartitionId: reader.int("last-assigned-partition-id") };
    case "assert-default-spec-id":
      return { type, defaultSpecId: reader.int("default-spec-id") };
    case "assert-default-sort-order-id":
      return { type, defaultSortOrderId: reader.int("default-sort-order-id") };
    default:
      throw unsupported("requirement", type);
  }
}
