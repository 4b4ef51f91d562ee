/** Single values as JSON (spec, appendix C, "JSON single-value serialization"): defaults of columns. */
import { SpillwayError } from "@spillway/base/errors";
import { parseDate, parseTime, parseTimestamp, printDate, printTime, printTimestamp } from "./calendar.ts";
import type { JsonObject, JsonValue } from "./json.ts";
import type { DefaultValue, IcebergType, MapDefault, PrimitiveType, PrimitiveValue } from "./model.ts";
import { isPrimitive, printType } from "./types.ts";
import { checkValue } from "./values.ts";

function fail(type: IcebergType, what: string): never {
  throw new SpillwayError("lake_value_invalid", `${what} is not a default value of ${printType(type)}`);
}

export function valueToJson(type: IcebergType, value: DefaultValue): JsonValue {
  if (value === null) return null;
  if (isPrimitive(type)) return primitiveToJson(type, value as PrimitiveValue);
  if (type.kind === "list") {
    if (!Array.isArray(value)) fail(type, "a non-list");
    return (value as readonly DefaultValue[]).map((item) => valueToJson(type.element, item));
  }
  if (type.kind === "map") {
    const entries = (value as MapDefault).entries;
    if (!Array.isArray(entries)) fail(type, "a non-map");
    return {
      keys: entries.map(([key]) => valueToJson(type.key, key)),
      values: entries.map(([, item]) => valueToJson(type.value, item)),
    };
  }
  if (!(value instanceof Map)) fail(type, "a non-struct");
  const struct: JsonObject = {};
  for (const [id, item] of value as ReadonlyMap<number, DefaultValue>) {
    const field = type.fields.find((f) => f.id === id);
    if (!field) fail(type, `a struct with the unknown field ${id}`);
    struct[String(id)] = valueToJson(field.type, item);
  }
  return struct;
}

/** A primitive value as JSON. NaN and infinities have no JSON form: `lake_value_invalid`. */
export function primitiveToJson(type: PrimitiveType, value: PrimitiveValue): JsonValue {
  checkValue(type, value);
  switch (type.kind) {
    case "decimal":
      return printDecimal(value as bigint, type.scale);
    case "date":
      return printDate(value as number);
    case "time":
      return printTime(value as bigint, 6);
    case "timestamp":
    case "timestamptz":
      return printTimestamp(value as bigint, 6) + (type.kind === "timestamptz" ? "+00:00" : "");
    case "timestamp_ns":
    case "timestamptz_ns":
      return printTimestamp(value as bigint, 9) + (type.kind === "timestamptz_ns" ? "+00:00" : "");
    case "uuid":
      return printUuid(value as Uint8Array);
    case "fixed":
    case "binary":
      return Buffer.from(value as Uint8Array).toString("hex");
    case "float":
    case "double":
      return Number.isFinite(value as number) ? (value as number) : fail(type, String(value));
    default:
      return value as boolean | number | bigint | string;
  }
}

export function valueFromJson(type: IcebergType, json: JsonValue): DefaultValue {
  if (json === null) return null;
  if (isPrimitive(type)) return primitiveFromJson(type, json);
  if (type.kind === "list") {
    return Array.isArray(json) ? json.map((item) => valueFromJson(type.element, item)) : fail(type, "a non-list");
  }
  if (typeof json !== "object" || Array.isArray(json)) fail(type, "a non-object");
  if (type.kind === "map") {
    const { keys, values } = json;
    if (!Array.isArray(keys) || !Array.isArray(values) || keys.length !== values.length) fail(type, "an odd map");
    return {
      entries: keys.map((key, i) => [valueFromJson(type.key, key), valueFromJson(type.value, values[i] ?? null)]),
    };
  }
  const struct = new Map<number, DefaultValue>();
  for (const [id, item] of Object.entries(json)) {
    const field = type.fields.find((f) => String(f.id) === id);
    if (!field) fail(type, `a struct with the unknown field ${id}`);
    struct.set(field.id, valueFromJson(field.type, item));
  }
  return struct;
}

export function primitiveFromJson(type: PrimitiveType, json: JsonValue): PrimitiveValue {
  const value = parsePrimitive(type, json);
  checkValue(type, value);
  return value;
}

function parsePrimitive(type: PrimitiveType, json: JsonValue): PrimitiveValue {
  const text = (): string => (typeof json === "string" ? json : fail(type, JSON.stringify(String(json))));
  switch (type.kind) {
    case "boolean":
      return typeof json === "boolean" ? json : fail(type, String(json));
    case "int":
      return typeof json === "number" ? json : fail(type, String(json));
    case "float":
    case "double":
      return typeof json === "number" || typeof json === "bigint" ? Number(json) : fail(type, String(json));
    case "long":
      if (typeof json === "bigint") return json;
      return Number.isSafeInteger(json) ? BigInt(json as number) : fail(type, String(json));
    case "date":
      return parseDate(text());
    case "time":
      return parseTime(text(), 6);
    case "timestamp":
    case "timestamptz":
      return parseTimestamp(text(), 6, type.kind === "timestamptz");
    case "timestamp_ns":
    case "timestamptz_ns":
      return parseTimestamp(text(), 9, type.kind === "timestamptz_ns");
    case "decimal":
      return parseDecimal(text(), type.scale);
    case "uuid":
      return parseUuid(text());
    case "fixed":
    case "binary":
      return parseHex(type, text());
    case "string":
      return text();
  }
}

function parseHex(type: PrimitiveType, text: string): Uint8Array {
  if (!/^(?:[0-9a-fA-F]{2})*$/.test(text)) fail(type, JSON.stringify(text));
  return new Uint8Array(Buffer.from(text, "hex"));
}

/** `-14.20` from -1420n with scale 2. */
export function printDecimal(unscaled: bigint, scale: number): string {
  const digits = (unscaled < 0n ? -unscaled : unscaled).toString().padStart(scale + 1, "0");
  const sign = unscaled < 0n ? "-" : "";
  return scale === 0 ? sign + digits : `${sign}${digits.slice(0, -scale)}.${digits.slice(-scale)}`;
}

/** The unscaled value; the text must not need more fraction digits than the scale. */
export function parseDecimal(text: string, scale: number): bigint {
  const m = /^([+-]?)(\d+)(?:\.(\d+))?$/.exec(text);
  const fraction = m?.[3] ?? "";
  if (!m || /[^0]/.test(fraction.slice(scale))) {
    throw new SpillwayError("lake_value_invalid", `${JSON.stringify(text)} is not a decimal of scale ${scale}`);
  }
  const unscaled = BigInt((m[2] ?? "") + fraction.slice(0, scale).padEnd(scale, "0"));
  return m[1] === "-" ? -unscaled : unscaled;
}

export function printUuid(bytes: Uint8Array): string {
  const hex = Buffer.from(bytes).toString("hex");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

export function parseUuid(text: string): Uint8Array {
  const hex = text.replaceAll("-", "");
  if (!/^[0-9a-fA-F]{32}$/.test(hex)) {
    throw new SpillwayError("lake_value_invalid", `${JSON.stringify(text)} is not a uuid`);
  }
  return new Uint8Array(Buffer.from(hex, "hex"));
}
