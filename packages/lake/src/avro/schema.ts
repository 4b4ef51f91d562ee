/**
 * Avro schemas as far as Iceberg's metadata files use them, with the attributes that Iceberg adds:
 * `field-id` on record fields, `element-id` on arrays, `key-id`/`value-id` on maps, and
 * `logicalType: map` on arrays of key-value records (spec, appendix A).
 */
import { SpillwayError } from "@spillway/base/errors";

export type AvroPrimitive = "null" | "boolean" | "int" | "long" | "float" | "double" | "bytes" | "string";

export interface AvroField {
  readonly name: string;
  readonly type: AvroSchema;
  readonly "field-id"?: number;
  readonly default?: unknown;
  readonly doc?: string;
  readonly "iceberg-field-name"?: string;
}

export interface AvroRecord {
  readonly type: "record";
  readonly name: string;
  readonly fields: readonly AvroField[];
}

export interface AvroArray {
  readonly type: "array";
  readonly items: AvroSchema;
  readonly "element-id"?: number;
  readonly logicalType?: string;
}

export interface AvroMap {
  readonly type: "map";
  readonly values: AvroSchema;
  readonly "key-id"?: number;
  readonly "value-id"?: number;
}

export interface AvroFixed {
  readonly type: "fixed";
  readonly name: string;
  readonly size: number;
  readonly logicalType?: string;
  readonly precision?: number;
  readonly scale?: number;
}

export interface AvroEnum {
  readonly type: "enum";
  readonly name: string;
  readonly symbols: readonly string[];
}

/** A primitive with attributes, e.g. `{"type": "int", "logicalType": "date"}`. */
export interface AvroAnnotated {
  readonly type: AvroPrimitive;
  readonly logicalType?: string;
  readonly "adjust-to-utc"?: boolean;
  readonly precision?: number;
  readonly scale?: number;
}

export type AvroUnion = readonly AvroSchema[];
export type AvroSchema =
  | AvroPrimitive
  | AvroRecord
  | AvroArray
  | AvroMap
  | AvroFixed
  | AvroEnum
  | AvroAnnotated
  | AvroUnion;

const PRIMITIVES = new Set<unknown>(["null", "boolean", "int", "long", "float", "double", "bytes", "string"]);
const MAX_DEPTH = 100;

/** Checks a parsed schema and replaces references to named types by their definitions. */
export function resolveSchema(json: unknown): AvroSchema {
  return resolve(json, new Map(), "", 0);
}

type Named = Map<string, AvroSchema>;

function resolve(json: unknown, named: Named, space: string, depth: number): AvroSchema {
  if (depth > MAX_DEPTH) bad("nesting too deep");
  if (typeof json === "string") {
    if (PRIMITIVES.has(json)) return json as AvroPrimitive;
    return named.get(json) ?? named.get(qualified(json, space)) ?? bad(`unknown type ${JSON.stringify(json)}`);
  }
  if (Array.isArray(json)) return json.map((branch) => resolve(branch, named, space, depth + 1));
  if (json === null || typeof json !== "object") return bad("a type that is neither text, list nor object");
  const node = json as Record<string, unknown>;
  switch (node["type"]) {
    case "record":
    case "error":
      return resolveRecord(node, named, space, depth);
    case "array":
      return { ...node, type: "array", items: resolve(node["items"], named, space, depth + 1) };
    case "map":
      return { ...node, type: "map", values: resolve(node["values"], named, space, depth + 1) };
    case "fixed":
      if (!Number.isInteger(node["size"]) || (node["size"] as number) < 0) bad("a fixed type without its size");
      return register(named, node, space, node as unknown as AvroFixed);
    case "enum":
      if (!Array.isArray(node["symbols"])) bad("an enum without symbols");
      return register(named, node, space, node as unknown as AvroEnum);
    default:
      return resolveAnnotated(node, named, space, depth);
  }
}

function resolveAnnotated(node: Record<string, unknown>, named: Named, space: string, depth: number): AvroSchema {
  const inner = resolve(node["type"], named, space, depth + 1);
  return typeof inner === "string" ? ({ ...node, type: inner } as AvroAnnotated) : inner;
}

function resolveRecord(node: Record<string, unknown>, named: Named, space: string, depth: number): AvroSchema {
  if (!Array.isArray(node["fields"])) bad("a record without fields");
  const fields: AvroField[] = [];
  const record: AvroRecord = { type: "record", name: String(node["name"] ?? ""), fields };
  register(named, node, space, record);
  const inner = typeof node["namespace"] === "string" ? node["namespace"] : space;
  for (const field of node["fields"] as Record<string, unknown>[]) {
    if (typeof field?.["name"] !== "string") bad("a field without a name");
    const attributes = field as unknown as AvroField;
    fields.push({ ...attributes, type: resolve(field["type"], named, inner, depth + 1) });
  }
  return record;
}

function register<T extends AvroSchema>(named: Named, node: Record<string, unknown>, space: string, schema: T): T {
  const name = String(node["name"] ?? "");
  const own = typeof node["namespace"] === "string" ? node["namespace"] : space;
  named.set(qualified(name, own), schema);
  return schema;
}

function qualified(name: string, space: string): string {
  return space === "" || name.includes(".") ? name : `${space}.${name}`;
}

function bad(what: string): never {
  throw new SpillwayError("lake_file_corrupt", `an Avro schema with ${what}`);
}

/** The kind of a schema, annotations aside. */
export function kindOf(schema: AvroSchema): AvroPrimitive | "record" | "array" | "map" | "fixed" | "enum" | "union" {
  if (typeof schema === "string") return schema;
  return isUnion(schema) ? "union" : schema.type;
}

export function isUnion(schema: AvroSchema): schema is AvroUnion {
  return Array.isArray(schema);
}

/** `["null", T]` with the default that makes the field optional. */
export function optionalField(id: number, name: string, type: AvroSchema): AvroField {
  return { name, type: ["null", type], default: null, "field-id": id };
}

export function requiredField(id: number, name: string, type: AvroSchema): AvroField {
  return { name, type, "field-id": id };
}

/** Iceberg's map with keys that are no strings: an array of `k<id>_v<id>` records. */
export function logicalMap(keyId: number, key: AvroSchema, valueId: number, value: AvroSchema): AvroArray {
  return {
    type: "array",
    logicalType: "map",
    items: {
      type: "record",
      name: `k${keyId}_v${valueId}`,
      fields: [requiredField(keyId, "key", key), requiredField(valueId, "value", value)],
    },
  };
}

/** An Avro name made of any text, as the Java library makes it: other characters become `_x<hex>`. */
export function avroName(text: string): string {
  const chars = Array.from(text, (c, i) => {
    if (/[A-Za-z_]/.test(c) || (i > 0 && /\d/.test(c))) return c;
    return /\d/.test(c) ? `_${c}` : `_x${(c.codePointAt(0) ?? 0).toString(16).toUpperCase()}`;
  });
  return chars.join("");
}
