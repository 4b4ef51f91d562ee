/** Partition specs and sort orders: JSON, the types of partition tuples, path names. */
import { invalid, JsonReader, type JsonObject, type JsonValue } from "./json.ts";
import type {
  PartitionField,
  PartitionSpec,
  PartitionTuple,
  PrimitiveType,
  Schema,
  SortField,
  SortOrder,
  TableMetadata,
} from "./model.ts";
import { fieldById } from "./schema.ts";
import { parseTransform, partitionPathSegment, printPartitionValue, printTransform, resultType } from "./transforms.ts";
import { isPrimitive } from "./types.ts";

export const UNPARTITIONED: PartitionSpec = { specId: 0, fields: [] };
export const UNSORTED: SortOrder = { orderId: 0, fields: [] };
/** Partition field ids begin here; `last-partition-id` of a table without any is one less. */
export const FIRST_PARTITION_ID = 1000;

export function specToJson(spec: PartitionSpec): JsonObject {
  return { "spec-id": spec.specId, fields: partitionFieldsToJson(spec.fields) };
}

export function partitionFieldsToJson(fields: readonly PartitionField[]): JsonValue[] {
  return fields.map((f) => ({
    "source-id": f.sourceId,
    "field-id": f.fieldId,
    name: f.name,
    transform: printTransform(f.transform),
  }));
}

/** Field ids may be missing (v1 metadata, and specs that a client proposes): then -1. */
export function specFromJson(json: unknown): PartitionSpec {
  const reader = new JsonReader(json, "partition-spec");
  return { specId: reader.intOr("spec-id") ?? 0, fields: reader.list("fields").map(partitionFieldFromJson) };
}

function partitionFieldFromJson(json: JsonValue): PartitionField {
  const reader = new JsonReader(json, "partition-field");
  const transform = reader.text("transform");
  const sources = reader.has("source-ids") ? reader.ints("source-ids") : [reader.int("source-id")];
  return {
    fieldId: reader.intOr("field-id") ?? -1,
    sourceId: sources[0] ?? invalid("a partition field without a source"),
    name: reader.text("name"),
    transform: sources.length > 1 ? { kind: "unknown", text: transform } : parseTransform(transform),
  };
}

export function sortOrderToJson(order: SortOrder): JsonObject {
  return {
    "order-id": order.orderId,
    fields: order.fields.map((f) => ({
      transform: printTransform(f.transform),
      "source-id": f.sourceId,
      direction: f.direction,
      "null-order": f.nullOrder,
    })),
  };
}

export function sortOrderFromJson(json: unknown): SortOrder {
  const reader = new JsonReader(json, "sort-order");
  return { orderId: reader.int("order-id"), fields: reader.list("fields").map(sortFieldFromJson) };
}

function sortFieldFromJson(json: JsonValue): SortField {
  const reader = new JsonReader(json, "sort-field");
  const direction = reader.text("direction");
  const nullOrder = reader.text("null-order");
  if (direction !== "asc" && direction !== "desc") invalid(`the sort direction ${direction} is unknown`);
  if (nullOrder !== "nulls-first" && nullOrder !== "nulls-last") invalid(`the null order ${nullOrder} is unknown`);
  const sources = reader.has("source-ids") ? reader.ints("source-ids") : [reader.int("source-id")];
  return {
    sourceId: sources[0] ?? invalid("a sort field without a source"),
    transform: parseTransform(reader.text("transform")),
    direction,
    nullOrder,
  };
}

/**
 * The types of a spec's partition values. A source that the current schema no longer has is looked
 * up in the older schemas; one that none has can only be null.
 */
export function partitionTypes(
  spec: PartitionSpec,
  schemas: readonly Schema[],
  currentSchemaId: number,
): readonly PrimitiveType[] {
  const current = schemas.filter((s) => s.schemaId === currentSchemaId);
  const others = schemas.filter((s) => s.schemaId !== currentSchemaId).toSorted((a, b) => b.schemaId - a.schemaId);
  return spec.fields.map((field) => {
    for (const schema of [...current, ...others]) {
      const type = fieldById(schema, field.sourceId)?.type;
      if (type && isPrimitive(type)) return resultType(field.transform, type);
    }
    return { kind: "int" };
  });
}

export function specById(metadata: TableMetadata, specId: number): PartitionSpec {
  const spec = metadata.partitionSpecs.find((s) => s.specId === specId);
  return spec ?? invalid(`the table has no partition spec ${specId}`);
}

export function partitionTypesOf(metadata: TableMetadata, specId: number): readonly PrimitiveType[] {
  return partitionTypes(specById(metadata, specId), metadata.schemas, metadata.currentSchemaId);
}

/** `a=1/day=2017-11-16`, percent-encoded; empty for an unpartitioned spec. */
export function partitionPath(metadata: TableMetadata, specId: number, tuple: PartitionTuple): string {
  const spec = specById(metadata, specId);
  const schema = metadata.schemas.find((s) => s.schemaId === metadata.currentSchemaId);
  return spec.fields
    .map((field, i) => {
      const source = (schema && fieldById(schema, field.sourceId)?.type) ?? { kind: "string" };
      const printed = printPartitionValue(field.transform, source as PrimitiveType, tuple[i] ?? null);
      return partitionPathSegment(field.name, printed);
    })
    .join("/");
}
