/** Types: their text form, equality and the questions that other modules ask of them. */
import { SpillwayError } from "@spillway/base/errors";
import type { FormatVersion, IcebergType, NestedType, PrimitiveType, SimpleKind } from "./model.ts";

const SIMPLE_KINDS: readonly SimpleKind[] = [
  "boolean",
  "int",
  "long",
  "float",
  "double",
  "date",
  "time",
  "timestamp",
  "timestamptz",
  "timestamp_ns",
  "timestamptz_ns",
  "string",
  "uuid",
  "binary",
];
const SIMPLE = new Map<string, PrimitiveType>(SIMPLE_KINDS.map((kind) => [kind, { kind }]));
export const MAX_DECIMAL_PRECISION = 38;

/** `decimal(9,2)`, `fixed[16]`, `timestamptz` … to the type. Throws `lake_format_unsupported` otherwise. */
export function parsePrimitiveType(text: string): PrimitiveType {
  const simple = SIMPLE.get(text);
  if (simple) return simple;
  const decimal = /^decimal\(\s*(\d+)\s*,\s*(\d+)\s*\)$/.exec(text);
  if (decimal) return decimalType(Number(decimal[1]), Number(decimal[2]));
  const fixed = /^fixed\[\s*(\d+)\s*\]$/.exec(text);
  if (fixed) return { kind: "fixed", length: Number(fixed[1]) };
  throw new SpillwayError("lake_format_unsupported", `the Iceberg type ${JSON.stringify(text)} is not supported`);
}

/** A checked decimal type: 1 <= precision <= 38, 0 <= scale <= precision. */
export function decimalType(precision: number, scale: number): PrimitiveType {
  if (precision < 1 || precision > MAX_DECIMAL_PRECISION || scale < 0 || scale > precision) {
    throw new SpillwayError("lake_format_unsupported", `decimal(${precision},${scale}) is outside Iceberg's range`);
  }
  return { kind: "decimal", precision, scale };
}

export function printPrimitiveType(type: PrimitiveType): string {
  switch (type.kind) {
    case "decimal":
      return `decimal(${type.precision}, ${type.scale})`;
    case "fixed":
      return `fixed[${type.length}]`;
    default:
      return type.kind;
  }
}

/** For messages: `list<long>`, `struct<a: int>`. */
export function printType(type: IcebergType): string {
  switch (type.kind) {
    case "struct":
      return `struct<${type.fields.map((f) => `${f.name}: ${printType(f.type)}`).join(", ")}>`;
    case "list":
      return `list<${printType(type.element)}>`;
    case "map":
      return `map<${printType(type.key)}, ${printType(type.value)}>`;
    default:
      return printPrimitiveType(type);
  }
}

export function isNested(type: IcebergType): type is NestedType {
  return type.kind === "struct" || type.kind === "list" || type.kind === "map";
}

export function isPrimitive(type: IcebergType): type is PrimitiveType {
  return !isNested(type);
}

export function samePrimitive(a: PrimitiveType, b: PrimitiveType): boolean {
  return printPrimitiveType(a) === printPrimitiveType(b);
}

/** Equality of types, field ids included. */
export function sameType(a: IcebergType, b: IcebergType): boolean {
  if (a.kind === "struct" && b.kind === "struct") {
    return (
      a.fields.length === b.fields.length &&
      a.fields.every((f, i) => {
        const g = b.fields[i];
        return (
          g !== undefined &&
          f.id === g.id &&
          f.name === g.name &&
          f.required === g.required &&
          f.doc === g.doc &&
          sameType(f.type, g.type)
        );
      })
    );
  }
  if (a.kind === "list" && b.kind === "list") {
    return a.elementId === b.elementId && a.elementRequired === b.elementRequired && sameType(a.element, b.element);
  }
  if (a.kind === "map" && b.kind === "map") {
    return (
      a.keyId === b.keyId &&
      a.valueId === b.valueId &&
      a.valueRequired === b.valueRequired &&
      sameType(a.key, b.key) &&
      sameType(a.value, b.value)
    );
  }
  return isPrimitive(a) && isPrimitive(b) && samePrimitive(a, b);
}

/** The first format version that has the type. */
export function minFormatVersion(type: IcebergType): FormatVersion {
  switch (type.kind) {
    case "timestamp_ns":
    case "timestamptz_ns":
      return 3;
    case "struct":
      return type.fields.some((f) => minFormatVersion(f.type) === 3) ? 3 : 2;
    case "list":
      return minFormatVersion(type.element);
    case "map":
      return minFormatVersion(type.key) === 3 ? 3 : minFormatVersion(type.value);
    default:
      return 2;
  }
}

/** Bytes that hold every unscaled value of a decimal of this precision, as Parquet and Avro want it. */
export function decimalBytes(precision: number): number {
  const largest = 10n ** BigInt(precision) - 1n;
  let bytes = 1;
  while (largest >= 1n << BigInt(bytes * 8 - 1)) bytes += 1;
  return bytes;
}
