/**
 * Schema evolution as a pure function (spec, schema evolution). Ids are never used twice: a new
 * field, and every field inside its type, takes the next id after `lastColumnId`.
 */
import { SpillwayError } from "@spillway/base/errors";
import type {
  DefaultValue,
  FormatVersion,
  IcebergType,
  NestedField,
  PartitionSpec,
  PrimitiveType,
  Schema,
  SortOrder,
} from "./model.ts";
import { fieldById, fieldByName, MAX_FIELD_ID, placeById, validateSchema } from "./schema.ts";
import { canTransform } from "./transforms.ts";
import { isPrimitive, minFormatVersion, printType, samePrimitive } from "./types.ts";
import { valueToJson } from "./value-json.ts";

/** A column by dotted full name or by field id. */
export type ColumnName = string | number;

export type SchemaChange =
  | {
      readonly kind: "add";
      readonly name: string;
      /** Its field ids are placeholders: fresh ones are assigned. */
      readonly type: IcebergType;
      readonly required?: boolean;
      readonly doc?: string;
      /** What existing rows read as, and what writers write if they say nothing (v3). */
      readonly default?: DefaultValue;
      /** The struct to add it to; left out: the top. */
      readonly parent?: ColumnName;
    }
  | { readonly kind: "drop"; readonly column: ColumnName }
  | { readonly kind: "rename"; readonly column: ColumnName; readonly to: string }
  | { readonly kind: "widen"; readonly column: ColumnName; readonly to: PrimitiveType }
  | { readonly kind: "make-nullable"; readonly column: ColumnName }
  | { readonly kind: "set-write-default"; readonly column: ColumnName; readonly value: DefaultValue }
  | { readonly kind: "set-doc"; readonly column: ColumnName; readonly doc: string | null };

export interface EvolutionBase {
  readonly formatVersion: FormatVersion;
  readonly schema: Schema;
  readonly lastColumnId: number;
  /** Every spec of the table: a partition source cannot be dropped, nor widened so that values move. */
  readonly partitionSpecs?: readonly PartitionSpec[];
  readonly sortOrders?: readonly SortOrder[];
}

export interface Evolved {
  /** Keeps the base's schema id; adding it to the table gives it its own. */
  readonly schema: Schema;
  readonly lastColumnId: number;
}

/** Applies the changes in order. Throws `lake_schema_change_refused` at the first that cannot be. */
export function evolveSchema(base: EvolutionBase, changes: readonly SchemaChange[]): Evolved {
  let schema = base.schema;
  let lastColumnId = base.lastColumnId;
  for (const change of changes) {
    const next = applyChange({ ...base, schema, lastColumnId }, change);
    ({ schema, lastColumnId } = next);
    validateSchema(schema);
  }
  return { schema, lastColumnId };
}

function refuse(message: string): never {
  throw new SpillwayError("lake_schema_change_refused", message);
}

function applyChange(base: EvolutionBase, change: SchemaChange): Evolved {
  if (change.kind === "add") return addField(base, change);
  const field = fieldOf(base.schema, change.column);
  const edit = (to: NestedField | null): Evolved => ({
    schema: { ...base.schema, fields: editFields(base.schema.fields, field.id, to) },
    lastColumnId: base.lastColumnId,
  });
  switch (change.kind) {
    case "drop":
      return dropField(base, field, edit);
    case "rename":
      checkNewName(base.schema, placeById(base.schema, field.id)?.parentId, change.to);
      return edit({ ...field, name: change.to });
    case "widen":
      return edit(widened(base, field, change.to));
    case "make-nullable":
      if (base.schema.identifierFieldIds?.includes(field.id)) refuse(`${field.name} is an identifier of the table`);
      return edit({ ...field, required: false });
    case "set-write-default":
      checkDefault(base, field.name, field.type, field.required, change.value);
      return edit({ ...field, writeDefault: change.value ?? undefined });
    case "set-doc":
      return edit({ ...field, doc: change.doc ?? undefined });
  }
}

function fieldOf(schema: Schema, column: ColumnName): NestedField {
  const field = typeof column === "number" ? fieldById(schema, column) : fieldByName(schema, column);
  return field ?? refuse(`the table has no column ${JSON.stringify(column)}`);
}

/** Replaces (or, with null, removes) the field with the id, wherever it stands. */
function editFields(fields: readonly NestedField[], id: number, to: NestedField | null): NestedField[] {
  return fields.flatMap((field) => {
    if (field.id === id) return to === null ? [] : [to];
    const type = editType(field.type, id, to);
    return [type === field.type ? field : { ...field, type }];
  });
}

function editType(type: IcebergType, id: number, to: NestedField | null): IcebergType {
  if (type.kind === "struct") {
    const fields = editFields(type.fields, id, to);
    return fields.length === type.fields.length && fields.every((f, i) => f === type.fields[i])
      ? type
      : { ...type, fields };
  }
  if (type.kind === "list") {
    if (type.elementId !== id) return { ...type, element: editType(type.element, id, to) };
    if (to === null) return refuse("the element of a list cannot be dropped");
    return { ...type, element: to.type, elementRequired: to.required };
  }
  if (type.kind === "map") {
    if (type.keyId === id) return refuse("the key of a map cannot be changed");
    if (type.valueId !== id) {
      return { ...type, key: editType(type.key, id, to), value: editType(type.value, id, to) };
    }
    if (to === null) return refuse("the value of a map cannot be dropped");
    return { ...type, value: to.type, valueRequired: to.required };
  }
  return type;
}

function addField(base: EvolutionBase, change: SchemaChange & { kind: "add" }): Evolved {
  const parent = change.parent === undefined ? undefined : structOf(base.schema, change.parent);
  checkNewName(base.schema, parent?.id, change.name);
  if (minFormatVersion(change.type) > base.formatVersion) {
    refuse(`${printType(change.type)} needs format version ${minFormatVersion(change.type)}`);
  }
  const required = change.required ?? false;
  const value = change.default ?? null;
  checkDefault(base, change.name, change.type, required, value);
  const assigned = assignIds(change.type, base.lastColumnId + 1);
  const field: NestedField = {
    id: base.lastColumnId + 1,
    name: change.name,
    required,
    type: assigned.type,
    ...(change.doc === undefined ? {} : { doc: change.doc }),
    ...(value === null ? {} : { initialDefault: value, writeDefault: value }),
  };
  if (assigned.lastId > MAX_FIELD_ID) refuse("the table has used up its field ids");
  const fields = parent
    ? editFields(base.schema.fields, parent.id, {
        ...parent,
        type: { kind: "struct", fields: [...parent.type.fields, field] },
      })
    : [...base.schema.fields, field];
  return { schema: { ...base.schema, fields }, lastColumnId: assigned.lastId };
}

function structOf(schema: Schema, column: ColumnName): NestedField & { type: { kind: "struct" } } {
  const field = fieldOf(schema, column);
  if (field.type.kind === "struct") return field as NestedField & { type: { kind: "struct" } };
  const inner =
    field.type.kind === "list" ? field.type.elementId : field.type.kind === "map" ? field.type.valueId : null;
  return inner === null ? refuse(`the column ${field.name} is not a struct`) : structOf(schema, inner);
}

/** Gives the fields inside a type fresh ids after `lastId`. */
export function assignIds(type: IcebergType, lastId: number): { type: IcebergType; lastId: number } {
  let last = lastId;
  const next = (): number => (last += 1);
  const nested = (inner: IcebergType): IcebergType => {
    const assigned = assignIds(inner, last);
    last = assigned.lastId;
    return assigned.type;
  };
  switch (type.kind) {
    case "struct": {
      const ids = type.fields.map(next);
      const fields = type.fields.map((f, i) => ({ ...f, id: ids[i] ?? 0, type: nested(f.type) }));
      return { type: { kind: "struct", fields }, lastId: last };
    }
    case "list": {
      const elementId = next();
      return { type: { ...type, elementId, element: nested(type.element) }, lastId: last };
    }
    case "map": {
      const [keyId, valueId] = [next(), next()];
      return { type: { ...type, keyId, valueId, key: nested(type.key), value: nested(type.value) }, lastId: last };
    }
    default:
      return { type, lastId: last };
  }
}

function checkNewName(schema: Schema, parentId: number | undefined, name: string): void {
  if (name === "") refuse("a column needs a name");
  const parent = parentId === undefined ? undefined : placeById(schema, parentId);
  const path = parent ? `${parent.path}.${name}` : name;
  if (fieldByName(schema, path)) refuse(`the table has a column ${path} already`);
}

function checkDefault(
  base: EvolutionBase,
  name: string,
  type: IcebergType,
  required: boolean,
  value: DefaultValue,
): void {
  if (value === null) {
    if (required) refuse(`the required column ${name} needs a default for the rows that exist`);
    return;
  }
  if (base.formatVersion < 3) refuse(`format version 2 cannot express a default of ${name}; version 3 can`);
  if (type.kind === "struct" && !(value instanceof Map && value.size === 0)) {
    refuse(`the default of the struct ${name} can only be null or empty: its fields have their own`);
  }
  valueToJson(type, value);
}

function dropField(base: EvolutionBase, field: NestedField, edit: (to: null) => Evolved): Evolved {
  const inside = new Set(idsInside(field));
  const spec = (base.partitionSpecs ?? []).find((s) => s.fields.some((f) => inside.has(f.sourceId)));
  if (spec) refuse(`the column ${field.name} is a source of partition spec ${spec.specId}`);
  const order = (base.sortOrders ?? []).find((o) => o.fields.some((f) => inside.has(f.sourceId)));
  if (order) refuse(`the column ${field.name} is a source of sort order ${order.orderId}`);
  if (base.schema.identifierFieldIds?.some((id) => inside.has(id))) {
    refuse(`the column ${field.name} is an identifier of the table`);
  }
  return edit(null);
}

function idsInside(field: NestedField): number[] {
  const ids = [field.id];
  const type = field.type;
  if (type.kind === "struct") ids.push(...type.fields.flatMap(idsInside));
  if (type.kind === "list") ids.push(...idsInside(pseudo(type.elementId, type.element)));
  if (type.kind === "map") {
    ids.push(...idsInside(pseudo(type.keyId, type.key)), ...idsInside(pseudo(type.valueId, type.value)));
  }
  return ids;
}

function pseudo(id: number, type: IcebergType): NestedField {
  return { id, name: "", required: false, type };
}

function widened(base: EvolutionBase, field: NestedField, to: PrimitiveType): NestedField {
  const from = field.type;
  if (!isPrimitive(from) || !canWiden(from, to)) {
    refuse(`${field.name} cannot change from ${printType(from)} to ${printType(to)}`);
  }
  for (const spec of base.partitionSpecs ?? []) {
    for (const part of spec.fields.filter((f) => f.sourceId === field.id)) {
      // Only a date that becomes a timestamp gives other partition values (spec, schema evolution).
      if (from.kind === "date" || !canTransform(part.transform, to)) {
        refuse(`${field.name} is the source of the partition field ${part.name}, whose values would change`);
      }
    }
  }
  const convert = (value: DefaultValue | undefined): DefaultValue | undefined =>
    to.kind === "long" && typeof value === "number" ? BigInt(value) : value;
  return {
    ...field,
    type: to,
    ...(field.initialDefault === undefined ? {} : { initialDefault: convert(field.initialDefault) }),
    ...(field.writeDefault === undefined ? {} : { writeDefault: convert(field.writeDefault) }),
  };
}

/**
 * Whether values of `from` read as `to` without rewriting files. Date to timestamp (v3) is left out:
 * Parquet readers in the field do not do it.
 */
export function canWiden(from: PrimitiveType, to: PrimitiveType): boolean {
  if (samePrimitive(from, to)) return true;
  if (from.kind === "int") return to.kind === "long";
  if (from.kind === "float") return to.kind === "double";
  if (from.kind === "decimal" && to.kind === "decimal") {
    return to.scale === from.scale && to.precision >= from.precision;
  }
  return false;
}
