/** The rules that table metadata must keep. Every metadata that is read or made passes here. */
import { invalid } from "./json.ts";
import type { PartitionField, PartitionSpec, Schema, SortOrder, TableMetadata } from "./model.ts";
import { allPlaces, highestFieldId, placeById, validateSchema } from "./schema.ts";
import { canTransform, printTransform } from "./transforms.ts";
import { isPrimitive, minFormatVersion, printType } from "./types.ts";

/** Throws `lake_metadata_invalid` naming the first broken rule. */
export function validateMetadata(metadata: TableMetadata): void {
  checkSchemas(metadata);
  checkSpecs(metadata);
  checkSnapshots(metadata);
  checkRefs(metadata);
  if (metadata.tableUuid === "") invalid("the table has no uuid");
  if (!metadata.sortOrders.some((o) => o.orderId === metadata.defaultSortOrderId)) {
    invalid(`the default sort order ${metadata.defaultSortOrderId} is not in the table`);
  }
}

function checkSchemas(metadata: TableMetadata): void {
  const ids = new Set<number>();
  for (const schema of metadata.schemas) {
    if (ids.has(schema.schemaId)) invalid(`the schema id ${schema.schemaId} stands twice`);
    ids.add(schema.schemaId);
    validateSchema(schema);
    checkSchemaVersion(schema, metadata.formatVersion);
    if (highestFieldId(schema) > metadata.lastColumnId) {
      invalid(`schema ${schema.schemaId} uses a field id beyond last-column-id ${metadata.lastColumnId}`);
    }
  }
  if (!ids.has(metadata.currentSchemaId)) invalid(`the current schema ${metadata.currentSchemaId} is not in the table`);
}

/** Types and defaults that only a later format version has. */
export function checkSchemaVersion(schema: Schema, formatVersion: number): void {
  for (const { field, path } of allPlaces(schema)) {
    if (minFormatVersion(field.type) > formatVersion) {
      invalid(`the column ${path} has the type ${printType(field.type)}, which format version ${formatVersion} lacks`);
    }
    if (formatVersion < 3 && field.initialDefault !== undefined && field.initialDefault !== null) {
      invalid(`the column ${path} has an initial default, which format version ${formatVersion} lacks`);
    }
  }
}

function checkSpecs(metadata: TableMetadata): void {
  const ids = new Set<number>();
  for (const spec of metadata.partitionSpecs) {
    if (ids.has(spec.specId)) invalid(`the partition spec id ${spec.specId} stands twice`);
    ids.add(spec.specId);
    for (const field of spec.fields) {
      if (field.fieldId > metadata.lastPartitionId) {
        invalid(`the partition field ${field.name} has an id beyond last-partition-id ${metadata.lastPartitionId}`);
      }
    }
  }
  if (!ids.has(metadata.defaultSpecId)) invalid(`the default spec ${metadata.defaultSpecId} is not in the table`);
}

function checkSnapshots(metadata: TableMetadata): void {
  const ids = new Set<bigint>();
  for (const snapshot of metadata.snapshots) {
    if (ids.has(snapshot.snapshotId)) invalid(`the snapshot id ${snapshot.snapshotId} stands twice`);
    ids.add(snapshot.snapshotId);
    if (snapshot.sequenceNumber > metadata.lastSequenceNumber) {
      invalid(`snapshot ${snapshot.snapshotId} has a sequence number beyond last-sequence-number`);
    }
    if ((snapshot.firstRowId ?? 0n) + (snapshot.addedRows ?? 0n) > metadata.nextRowId && metadata.formatVersion >= 3) {
      invalid(`snapshot ${snapshot.snapshotId} took row ids beyond next-row-id`);
    }
  }
  const { currentSnapshotId } = metadata;
  if (currentSnapshotId !== undefined && !ids.has(currentSnapshotId)) {
    invalid(`the current snapshot ${currentSnapshotId} is not in the table`);
  }
}

function checkRefs(metadata: TableMetadata): void {
  const ids = new Set(metadata.snapshots.map((s) => s.snapshotId));
  for (const [name, ref] of Object.entries(metadata.refs)) {
    if (!ids.has(ref.snapshotId))
      invalid(`the ${ref.type} ${name} names the snapshot ${ref.snapshotId}, which is gone`);
  }
  const main = Object.hasOwn(metadata.refs, "main") ? metadata.refs["main"] : undefined;
  if (main?.snapshotId !== metadata.currentSnapshotId) invalid("the branch main is not the current snapshot");
  if (main && main.type !== "branch") invalid("main is not a branch");
}

/** Checks a new spec against the schema that it partitions. */
export function checkSpec(spec: PartitionSpec, schema: Schema): void {
  const names = new Set<string>();
  for (const field of spec.fields) {
    if (names.has(field.name)) invalid(`the partition field ${field.name} stands twice`);
    names.add(field.name);
    checkPartitionField(field, schema);
  }
}

function checkPartitionField(field: PartitionField, schema: Schema): void {
  if (field.name === "") invalid("a partition field has no name");
  if (field.transform.kind === "void") return;
  const source = placeById(schema, field.sourceId);
  if (!source) invalid(`the partition field ${field.name} has the unknown source ${field.sourceId}`);
  const { type } = source.field;
  if (
    !isPrimitive(type) ||
    source.repeated ||
    field.transform.kind === "unknown" ||
    !canTransform(field.transform, type)
  ) {
    invalid(`${printTransform(field.transform)} cannot partition by ${source.path} of type ${printType(type)}`);
  }
  const clash = schema.fields.find((f) => f.name === field.name);
  if (clash && !(field.transform.kind === "identity" && clash.id === field.sourceId)) {
    invalid(`the partition field ${field.name} has the name of another column`);
  }
}

/** Checks a new sort order against the schema. */
export function checkSortOrder(order: SortOrder, schema: Schema): void {
  for (const field of order.fields) {
    const type = placeById(schema, field.sourceId)?.field.type;
    if (!type || !isPrimitive(type) || !canTransform(field.transform, type)) {
      invalid(`the sort order has the unusable source ${field.sourceId}`);
    }
  }
}
