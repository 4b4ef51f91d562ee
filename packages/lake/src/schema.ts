/** Schemas: lookup by id and name, JSON both ways (spec, appendix C), name mapping. */
import { SpillwayError } from "@spillway/base/errors";
import { invalid, JsonReader, type JsonObject, type JsonValue } from "./json.ts";
import type { DefaultValue, IcebergType, ListType, MapType, NestedField, Schema, StructType } from "./model.ts";
import { parsePrimitiveType, printPrimitiveType } from "./types.ts";
import { valueFromJson, valueToJson } from "./value-json.ts";

/** Ids above this are reserved for metadata columns. */
export const MAX_FIELD_ID = 2147483447;

/** Field ids that files may hold beside the schema's (spec, reserved field ids). */
export const RESERVED_IDS = {
  rowId: 2147483540,
  lastUpdatedSequenceNumber: 2147483539,
  deleteFilePath: 2147483546,
  deletePos: 2147483545,
} as const;

/** A field with its place in the schema. List elements, map keys and values are fields too. */
export interface FieldPlace {
  readonly field: NestedField;
  /** Dotted full name: `a.b`, `list.element`, `map.key`, `map.value`. */
  readonly path: string;
  /** The id of the field around it; undefined at the top. */
  readonly parentId?: number | undefined;
  /** Inside a list or a map: cannot be a partition source or an identifier. */
  readonly repeated: boolean;
}

interface SchemaIndex {
  readonly byId: ReadonlyMap<number, FieldPlace>;
  readonly byPath: ReadonlyMap<string, FieldPlace>;
}

const indexes = new WeakMap<Schema, SchemaIndex>();

function indexOf(schema: Schema): SchemaIndex {
  const known = indexes.get(schema);
  if (known) return known;
  const byId = new Map<number, FieldPlace>();
  const byPath = new Map<string, FieldPlace>();
  for (const place of placesOf(schema.fields, undefined, "", false)) {
    if (byId.has(place.field.id)) invalid(`schema ${schema.schemaId} has the field id ${place.field.id} twice`);
    if (byPath.has(place.path)) invalid(`schema ${schema.schemaId} has the column ${place.path} twice`);
    byId.set(place.field.id, place);
    byPath.set(place.path, place);
  }
  const index = { byId, byPath };
  indexes.set(schema, index);
  return index;
}

function* placesOf(
  fields: readonly NestedField[],
  parentId: number | undefined,
  prefix: string,
  repeated: boolean,
): Iterable<FieldPlace> {
  for (const field of fields) {
    const path = prefix + field.name;
    yield { field, path, parentId, repeated };
    yield* placesOf(childrenOf(field.type), field.id, `${path}.`, repeated || field.type.kind !== "struct");
  }
}

/** The fields inside a type: a struct's fields; `element`; `key` and `value`. */
export function childrenOf(type: IcebergType): readonly NestedField[] {
  switch (type.kind) {
    case "struct":
      return type.fields;
    case "list":
      return [{ id: type.elementId, name: "element", required: type.elementRequired, type: type.element }];
    case "map":
      return [
        { id: type.keyId, name: "key", required: true, type: type.key },
        { id: type.valueId, name: "value", required: type.valueRequired, type: type.value },
      ];
    default:
      return [];
  }
}

/** Checks the schema (unique ids and names, reserved ids, identifiers). Throws `lake_metadata_invalid`. */
export function validateSchema(schema: Schema): void {
  const { byId } = indexOf(schema);
  for (const { field, path } of byId.values()) {
    if (field.id < 0 || field.id > MAX_FIELD_ID) invalid(`the column ${path} has the reserved id ${field.id}`);
    if (field.name === "") invalid(`the column with id ${field.id} has no name`);
  }
  for (const id of schema.identifierFieldIds ?? []) {
    const place = byId.get(id);
    if (!place) invalid(`the identifier field ${id} is not in schema ${schema.schemaId}`);
    const { kind } = place.field.type;
    const isKey = kind !== "struct" && kind !== "list" && kind !== "map" && kind !== "float" && kind !== "double";
    if (!isKey || !place.field.required || place.repeated) invalid(`the column ${place.path} cannot be an identifier`);
  }
}

export function fieldById(schema: Schema, id: number): NestedField | undefined {
  return indexOf(schema).byId.get(id)?.field;
}

/** By dotted full name. */
export function fieldByName(schema: Schema, path: string): NestedField | undefined {
  return indexOf(schema).byPath.get(path)?.field;
}

export function placeById(schema: Schema, id: number): FieldPlace | undefined {
  return indexOf(schema).byId.get(id);
}

/** Every field, nested ones included, in depth-first order. */
export function allPlaces(schema: Schema): Iterable<FieldPlace> {
  return indexOf(schema).byId.values();
}

export function highestFieldId(schema: Schema): number {
  let highest = 0;
  for (const id of indexOf(schema).byId.keys()) highest = Math.max(highest, id);
  return highest;
}

/** Whether two schemas say the same, their schema ids aside. */
export function sameSchema(a: Schema, b: Schema): boolean {
  const text = (s: Schema): string => JSON.stringify(schemaToJson({ ...s, schemaId: 0 }), bigintText);
  return text(a) === text(b);
}

function bigintText(_key: string, value: unknown): unknown {
  return typeof value === "bigint" ? `${value}n` : value;
}

export function schemaToJson(schema: Schema): JsonObject {
  const json: JsonObject = { type: "struct", "schema-id": schema.schemaId };
  if (schema.identifierFieldIds && schema.identifierFieldIds.length > 0) {
    json["identifier-field-ids"] = [...schema.identifierFieldIds];
  }
  json["fields"] = schema.fields.map(fieldToJson);
  return json;
}

export function typeToJson(type: IcebergType): JsonValue {
  switch (type.kind) {
    case "struct":
      return { type: "struct", fields: type.fields.map(fieldToJson) };
    case "list":
      return {
        type: "list",
        "element-id": type.elementId,
        element: typeToJson(type.element),
        "element-required": type.elementRequired,
      };
    case "map":
      return {
        type: "map",
        "key-id": type.keyId,
        key: typeToJson(type.key),
        "value-id": type.valueId,
        value: typeToJson(type.value),
        "value-required": type.valueRequired,
      };
    default:
      return printPrimitiveType(type);
  }
}

function fieldToJson(field: NestedField): JsonObject {
  const json: JsonObject = {
    id: field.id,
    name: field.name,
    required: field.required,
    type: typeToJson(field.type),
  };
  if (field.doc !== undefined) json["doc"] = field.doc;
  if (hasDefault(field.initialDefault)) json["initial-default"] = valueToJson(field.type, field.initialDefault);
  if (hasDefault(field.writeDefault)) json["write-default"] = valueToJson(field.type, field.writeDefault);
  return json;
}

function hasDefault(value: DefaultValue | undefined): value is DefaultValue {
  return value !== undefined && value !== null;
}

export function schemaFromJson(json: unknown): Schema {
  const reader = new JsonReader(json, "schema");
  const ids = reader.has("identifier-field-ids") ? reader.ints("identifier-field-ids") : [];
  const schema: Schema = {
    schemaId: reader.intOr("schema-id") ?? 0,
    fields: structFromJson(reader).fields,
    ...(ids.length > 0 ? { identifierFieldIds: ids } : {}),
  };
  validateSchema(schema);
  return schema;
}

export function typeFromJson(json: unknown): IcebergType {
  if (typeof json === "string") return parsePrimitiveType(json);
  const reader = new JsonReader(json, "type");
  const kind = reader.text("type");
  if (kind === "struct") return structFromJson(reader);
  if (kind === "list") return listFromJson(reader);
  if (kind === "map") return mapFromJson(reader);
  throw new SpillwayError("lake_format_unsupported", `the Iceberg type ${JSON.stringify(kind)} is not supported`);
}

function structFromJson(reader: JsonReader): StructType {
  return { kind: "struct", fields: reader.list("fields").map(fieldFromJson) };
}

function listFromJson(reader: JsonReader): ListType {
  return {
    kind: "list",
    elementId: reader.int("element-id"),
    elementRequired: reader.bool("element-required"),
    element: typeFromJson(reader.raw("element")),
  };
}

function mapFromJson(reader: JsonReader): MapType {
  return {
    kind: "map",
    keyId: reader.int("key-id"),
    key: typeFromJson(reader.raw("key")),
    valueId: reader.int("value-id"),
    valueRequired: reader.bool("value-required"),
    value: typeFromJson(reader.raw("value")),
  };
}

function fieldFromJson(json: JsonValue): NestedField {
  const reader = new JsonReader(json, "field");
  const type = typeFromJson(reader.raw("type"));
  return {
    id: reader.int("id"),
    name: reader.text("name"),
    required: reader.bool("required"),
    type,
    ...(reader.has("doc") ? { doc: reader.text("doc") } : {}),
    ...defaultFromJson(reader, type, "initial-default", "initialDefault"),
    ...defaultFromJson(reader, type, "write-default", "writeDefault"),
  };
}

function defaultFromJson(
  reader: JsonReader,
  type: IcebergType,
  key: string,
  name: "initialDefault" | "writeDefault",
): { [K in typeof name]?: DefaultValue } {
  return reader.has(key) ? { [name]: valueFromJson(type, reader.raw(key) ?? null) } : {};
}

/** One entry of `schema.name-mapping.default`: which names stand for a field id in files without ids. */
export interface NameMapping {
  readonly fieldId?: number | undefined;
  readonly names: readonly string[];
  readonly fields: readonly NameMapping[];
}

/** The mapping of a schema's own names. */
export function nameMappingOf(schema: Schema): NameMapping[] {
  const of = (fields: readonly NestedField[]): NameMapping[] =>
    fields.map((f) => ({ fieldId: f.id, names: [f.name], fields: of(childrenOf(f.type)) }));
  return of(schema.fields);
}

export function nameMappingToJson(mapping: readonly NameMapping[]): JsonValue {
  return mapping.map((m) => {
    const json: JsonObject = { names: [...m.names] };
    if (m.fieldId !== undefined) json["field-id"] = m.fieldId;
    if (m.fields.length > 0) json["fields"] = nameMappingToJson(m.fields);
    return json;
  });
}

export function nameMappingFromJson(json: unknown): NameMapping[] {
  if (!Array.isArray(json)) return invalid("the name mapping is not a list");
  return json.map((item) => {
    const reader = new JsonReader(item, "name mapping");
    const names = reader.list("names").map((n) => (typeof n === "string" ? n : invalid("a mapped name is not text")));
    return { fieldId: reader.intOr("field-id"), names, fields: nameMappingFromJson(reader.listOr("fields")) };
  });
}
