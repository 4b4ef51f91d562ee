/**
 * A decoder and an encoder compiled from a schema: one closure per node, made once per file.
 *
 * Values: null, boolean, int: number; long: bigint; float, double: number; bytes, fixed: Uint8Array
 * (a view of the block); string, enum: string; array: array; map with text keys, and Iceberg's
 * logical map: Map; record: an array of its values in field order, or, read through a shape, in the
 * shape's order with undefined where the writer has no such field.
 */
import { BugError } from "@spillway/base/errors";
import { type AvroArray, type AvroField, type AvroRecord, type AvroSchema, isUnion, kindOf } from "./schema.ts";
import type { Cursor, Sink } from "./cursor.ts";
import { LazyMap } from "./lazy-map.ts";

/** The fields of a record that the reader wants, in its order: resolved by field id, else by name. */
export interface Shape {
  readonly fields: readonly ShapeField[];
}

export interface ShapeField {
  readonly id: number;
  readonly name: string;
  /** For records, and for arrays of records: what is wanted of them. */
  readonly shape?: Shape;
  /** Give the encoded bytes, unread: a view of the block, for what is decoded later or never. */
  readonly raw?: boolean;
}

export type Decode = (cursor: Cursor) => unknown;
type Skip = (cursor: Cursor) => void;
export type Encode = (sink: Sink, value: unknown) => void;

/** Compiles a decoder. Without a shape, records keep every field in the writer's order. */
export function compileDecoder(schema: AvroSchema, shape?: Shape): Decode {
  switch (kindOf(schema)) {
    case "null":
      return () => null;
    case "boolean":
      return (c) => c.byte() !== 0;
    case "int":
      return (c) => c.int();
    case "long":
      return (c) => c.long();
    case "float":
      return (c) => c.float();
    case "double":
      return (c) => c.double();
    case "bytes":
      return (c) => c.blob();
    case "string":
      return (c) => c.text();
    default:
      return compileComplex(schema, shape);
  }
}

function compileComplex(schema: AvroSchema, shape: Shape | undefined): Decode {
  if (isUnion(schema)) return decodeUnion(schema, shape);
  if (typeof schema === "string") throw new BugError(`not a complex type: ${schema}`);
  switch (schema.type) {
    case "record":
      return decodeRecord(schema, shape);
    case "array":
      return isKeyValueArray(schema) ? decodeLogicalMap(schema) : decodeArray(schema, shape);
    case "map": {
      const value = compileDecoder(schema.values, shape);
      return (c) => {
        const map = new Map<string, unknown>();
        blocks(c, (cursor) => map.set(cursor.text(), value(cursor)));
        return map;
      };
    }
    case "fixed": {
      const { size } = schema;
      return (c) => c.take(size);
    }
    case "enum": {
      const { symbols } = schema;
      return (c) => symbols[c.int()] ?? c.corrupt("an unknown enum symbol");
    }
    default:
      return compileDecoder(schema.type, shape);
  }
}

function isKeyValueArray(schema: AvroArray): boolean {
  return schema.logicalType === "map" && kindOf(schema.items) === "record";
}

function decodeUnion(schema: readonly AvroSchema[], shape: Shape | undefined): Decode {
  const branches = schema.map((branch) => compileDecoder(branch, shape));
  const [first, second] = branches;
  if (branches.length === 2 && first && second) {
    return (c) => {
      const branch = c.byte();
      if (branch === 0) return first(c);
      return branch === 2 ? second(c) : c.corrupt("an unknown union branch");
    };
  }
  return (c) => (branches[c.int()] ?? ((bad: Cursor) => bad.corrupt("an unknown union branch")))(c);
}

function decodeArray(schema: AvroArray, shape: Shape | undefined): Decode {
  const item = compileDecoder(schema.items, shape);
  return (c) => {
    const items: unknown[] = [];
    blocks(c, (cursor) => items.push(item(cursor)));
    return items;
  };
}

function decodeLogicalMap(schema: AvroArray): Decode {
  const [keyField, valueField] = (schema.items as AvroRecord).fields;
  if (!keyField || !valueField) throw new BugError("a key-value record without key and value");
  const key = compileDecoder(keyField.type);
  const value = compileDecoder(valueField.type);
  const decode = (c: Cursor): Map<unknown, unknown> => {
    const map = new Map<unknown, unknown>();
    for (let count = blockCount(c); count > 0; count = blockCount(c)) {
      for (let i = 0; i < count; i += 1) {
        const k = key(c);
        map.set(k, value(c));
      }
    }
    return map;
  };
  const skip = compileSkip(schema);
  return (c) => {
    const start = c.at;
    skip(c);
    return new LazyMap(c, start, decode);
  };
}

/** A block's item count; a negative one is followed by the block's size in bytes. */
function blockCount(c: Cursor): number {
  const count = c.int();
  if (count >= 0) return count;
  c.skipLong();
  return -count;
}

function blocks(c: Cursor, item: (cursor: Cursor) => void): void {
  for (let count = blockCount(c); count > 0; count = blockCount(c)) {
    // Items of a type without bytes (null, fixed 0) could repeat without end in a corrupt file.
    if (count > c.bytes.length * 8 + 1024) c.corrupt("an item count beyond its data");
    for (let i = 0; i < count; i += 1) item(c);
  }
}

function decodeRecord(schema: AvroRecord, shape: Shape | undefined): Decode {
  if (!shape) {
    const fields = schema.fields.map((f) => compileDecoder(f.type));
    return (c) => fields.map((field) => field(c));
  }
  // Copied for each record: much faster than making an array of that length.
  const blank: readonly unknown[] = Array.from({ length: shape.fields.length });
  const steps = schema.fields.map((field) => recordStep(field, shape));
  return (c) => {
    const values = blank.slice();
    for (const step of steps) {
      if (step.slot < 0) step.skip(c);
      else values[step.slot] = step.decode(c);
    }
    return values;
  };
}

interface RecordStep {
  readonly slot: number;
  readonly decode: Decode;
  readonly skip: Skip;
}

function recordStep(field: AvroField, shape: Shape): RecordStep {
  const id = field["field-id"];
  const slot = shape.fields.findIndex((f) => (id === undefined ? f.name === field.name : f.id === id));
  const wanted = shape.fields[slot];
  const skip = compileSkip(field.type);
  if (wanted?.raw) return { slot, decode: (c) => rawBytes(c, skip), skip };
  return { slot, decode: wanted ? compileDecoder(field.type, wanted.shape) : () => undefined, skip };
}

function rawBytes(c: Cursor, skip: Skip): Uint8Array {
  const start = c.at;
  skip(c);
  return c.bytes.subarray(start, c.at);
}

function compileSkip(schema: AvroSchema): Skip {
  switch (kindOf(schema)) {
    case "null":
      return () => undefined;
    case "boolean":
      return (c) => c.skip(1);
    case "int":
    case "long":
    case "enum":
      return (c) => c.skipLong();
    case "float":
      return (c) => c.skip(4);
    case "double":
      return (c) => c.skip(8);
    case "bytes":
    case "string":
      return (c) => c.skipBlob();
    default:
      return compileComplexSkip(schema);
  }
}

function compileComplexSkip(schema: AvroSchema): Skip {
  if (isUnion(schema)) {
    const branches = schema.map(compileSkip);
    return (c) => (branches[c.int()] ?? ((bad: Cursor) => bad.corrupt("an unknown union branch")))(c);
  }
  if (typeof schema === "string") throw new BugError(`not a complex type: ${schema}`);
  if (schema.type === "record") {
    const fields = schema.fields.map((f) => compileSkip(f.type));
    return (c) => {
      for (const field of fields) field(c);
    };
  }
  if (schema.type === "fixed") {
    const { size } = schema;
    return (c) => c.skip(size);
  }
  if (schema.type === "array") return compileArraySkip(schema.items);
  if (schema.type === "map") {
    const value = compileSkip(schema.values);
    return skipBlocks((c) => {
      c.skipBlob();
      value(c);
    });
  }
  return compileSkip(schema.type as AvroSchema);
}

/** Arrays of numbers, and the maps of column metrics (arrays of pairs), are skipped without a call per field. */
function compileArraySkip(items: AvroSchema): Skip {
  const isNumber = (schema: AvroSchema): boolean => schema === "int" || schema === "long";
  if (isNumber(items)) return skipCounted((c, count) => c.skipLongs(count));
  if (typeof items === "object" && !isUnion(items) && items.type === "record") {
    const [key, value] = items.fields;
    const isPair = items.fields.length === 2 && key !== undefined && isNumber(key.type);
    if (isPair && value !== undefined && isNumber(value.type)) return skipCounted((c, count) => c.skipLongs(count * 2));
    if (isPair && value?.type === "bytes") return skipCounted((c, count) => c.skipKeyedBlobs(count));
  }
  return skipBlocks(compileSkip(items));
}

function skipBlocks(item: Skip): Skip {
  return skipCounted((c, count) => {
    for (let i = 0; i < count; i += 1) item(c);
  });
}

function skipCounted(items: (c: Cursor, count: number) => void): Skip {
  return (c) => {
    for (let count = c.int(); count !== 0; count = c.int()) {
      if (count < 0) c.skip(c.int());
      else items(c, count);
    }
  };
}

/** Compiles an encoder: the reverse of `compileDecoder` without a shape; undefined counts as null. */
export function compileEncoder(schema: AvroSchema): Encode {
  switch (kindOf(schema)) {
    case "null":
      return () => undefined;
    case "boolean":
      return (s, v) => s.byte(v === true ? 1 : 0);
    case "int":
      return (s, v) => s.int(v as number);
    case "long":
      return (s, v) => s.long(v as bigint);
    case "float":
      return (s, v) => s.float(v as number);
    case "double":
      return (s, v) => s.double(v as number);
    case "bytes":
      return (s, v) => s.blob(v as Uint8Array);
    case "string":
      return (s, v) => s.text(v as string);
    default:
      return compileComplexEncoder(schema);
  }
}

function compileComplexEncoder(schema: AvroSchema): Encode {
  if (isUnion(schema)) return encodeUnion(schema);
  if (typeof schema === "string") throw new BugError(`not a complex type: ${schema}`);
  switch (schema.type) {
    case "record": {
      const fields = schema.fields.map((f) => compileEncoder(f.type));
      return (s, v) => {
        const values = v as readonly unknown[];
        for (let i = 0; i < fields.length; i += 1) fields[i]?.(s, values[i]);
      };
    }
    case "array":
      return isKeyValueArray(schema) ? encodeLogicalMap(schema) : encodeArray(schema);
    case "map": {
      const value = compileEncoder(schema.values);
      return (s, v) =>
        encodeBlock(s, (v as ReadonlyMap<string, unknown>).size, () => {
          for (const [key, item] of v as ReadonlyMap<string, unknown>) {
            s.text(key);
            value(s, item);
          }
        });
    }
    case "fixed":
      return (s, v) => s.raw(v as Uint8Array);
    case "enum": {
      const { symbols } = schema;
      return (s, v) => s.int(symbols.indexOf(v as string));
    }
    default:
      return compileEncoder(schema.type);
  }
}

/** Only the unions that Iceberg writes: null and one other type, in either order. */
function encodeUnion(schema: readonly AvroSchema[]): Encode {
  const nullBranch = schema.findIndex((branch) => kindOf(branch) === "null");
  const other = schema.findIndex((branch) => kindOf(branch) !== "null");
  if (schema.length !== 2 || nullBranch < 0 || other < 0) throw new BugError("only optional unions are written");
  const encode = compileEncoder(schema[other] ?? "null");
  return (s, v) => {
    if (v === null || v === undefined) return s.int(nullBranch);
    s.int(other);
    encode(s, v);
  };
}

function encodeBlock(sink: Sink, count: number, items: () => void): void {
  if (count > 0) {
    sink.int(count);
    items();
  }
  sink.int(0);
}

function encodeArray(schema: AvroArray): Encode {
  const item = compileEncoder(schema.items);
  return (s, v) =>
    encodeBlock(s, (v as readonly unknown[]).length, () => {
      for (const value of v as readonly unknown[]) item(s, value);
    });
}

function encodeLogicalMap(schema: AvroArray): Encode {
  const [keyField, valueField] = (schema.items as AvroRecord).fields;
  if (!keyField || !valueField) throw new BugError("a key-value record without key and value");
  const key = compileEncoder(keyField.type);
  const value = compileEncoder(valueField.type);
  return (s, v) =>
    encodeBlock(s, (v as ReadonlyMap<unknown, unknown>).size, () => {
      for (const [k, item] of v as ReadonlyMap<unknown, unknown>) {
        key(s, k);
        value(s, item);
      }
    });
}
