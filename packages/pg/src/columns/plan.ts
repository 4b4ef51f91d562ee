/**
 * How one column of a table travels: its kind, whether COPY must make it text on the server, and whether
 * pgoutput's binary form of it can be read. What becomes of each type is decided in `@spillway/base/pg-types`.
 */
import type { ColumnSpec } from "@spillway/base/columns";
import { planPgType, type PgTypeFacts } from "@spillway/base/pg-types";
import { quoteIdent } from "../quote.ts";
import type { ColumnBuilder } from "./builder.ts";
import {
  BoolBuilder,
  DateBuilder,
  DecimalBuilder,
  Float32Builder,
  Float64Builder,
  Int16Builder,
  Int32Builder,
  Int64Builder,
  OidBuilder,
  TimeBuilder,
  TimestampBuilder,
  UuidBuilder,
} from "./fixed.ts";
import { BytesBuilder, CharBuilder, JsonbBuilder, NumericTextBuilder, TextBuilder } from "./variable.ts";

/** The binary forms that are understood. `text` is any type whose send function sends its text. */
export type WireFormat =
  | "bool"
  | "int2"
  | "int4"
  | "int8"
  | "oid"
  | "float4"
  | "float8"
  | "date"
  | "time"
  | "timestamp"
  | "numeric"
  | "numeric-text"
  | "uuid"
  | "bytea"
  | "char"
  | "jsonb"
  | "text";

export interface PgColumnPlan {
  readonly name: string;
  readonly typeOid: number;
  readonly typmod: number;
  /** The column of the batch: its name, kind and decimal shape. */
  readonly spec: ColumnSpec;
  /** The type's own binary form, or null when it is not understood: then only its text can be read. */
  readonly wire: WireFormat | null;
  /** Whether COPY selects the value's text (`outputText`). */
  readonly asText: boolean;
}

const NATIVE_WIRE: Readonly<Record<number, WireFormat>> = {
  16: "bool",
  17: "bytea",
  18: "char",
  19: "text",
  20: "int8",
  21: "int2",
  23: "int4",
  25: "text",
  26: "oid",
  114: "text",
  700: "float4",
  701: "float8",
  1042: "text",
  1043: "text",
  1082: "date",
  1083: "time",
  1114: "timestamp",
  1184: "timestamp",
  1700: "numeric",
  2950: "uuid",
};
const JSONB_OID = 3802;
const NUMERIC_OID = 1700;

/** The plan of a column. Whether its type may be registered at all is `planPgType`'s to say; here refused is text. */
export function planColumn(name: string, facts: PgTypeFacts): PgColumnPlan {
  const fate = planPgType(facts);
  const base = baseOf(facts);
  const spec: ColumnSpec = fate.decimal ? { name, kind: fate.kind, decimal: fate.decimal } : { name, kind: fate.kind };
  const native = fate.fate === "native";
  const wire = native ? (NATIVE_WIRE[base.oid] ?? null) : textWire(base);
  // Types that are text by fate, yet whose binary form is known, are sent in it.
  return { name, typeOid: facts.oid, typmod: facts.typmod, spec, wire, asText: wire === null };
}

function baseOf(facts: PgTypeFacts): PgTypeFacts {
  return facts.typtype === "d" && facts.base ? baseOf(facts.base) : facts;
}

/** The binary form of a type that the lake holds as text. */
function textWire(base: PgTypeFacts): WireFormat | null {
  if (base.oid === JSONB_OID) return "jsonb";
  if (base.oid === NUMERIC_OID) return "numeric-text";
  return base.typtype === "e" ? "text" : null;
}

/**
 * A column's value as the text that its type's output function makes, which is what pgoutput sends. A cast to text is
 * not always that: inet's adds `/32`, and extensions may define others. `expression` is SQL.
 */
export function outputText(expression: string): string {
  // concat() makes the empty string of NULL; IS NOT NULL would be false for a composite with a NULL inside.
  return `CASE WHEN ${expression} IS DISTINCT FROM NULL THEN pg_catalog.concat(${expression}) END`;
}

/** The select list of a COPY: quoted names, as text where the plan says so, in the plan's order. */
export function selectList(columns: readonly PgColumnPlan[], alias?: string): string {
  const prefix = alias === undefined ? "" : `${quoteIdent(alias)}.`;
  return columns
    .map((column) => {
      const name = quoteIdent(column.name);
      return column.asText ? `${outputText(prefix + name)} AS ${name}` : `${prefix}${name}`;
    })
    .join(", ");
}

/** Whether pgoutput may be asked for binary: every value can then be read. */
export function canReadBinary(columns: readonly PgColumnPlan[]): boolean {
  return columns.every((column) => column.wire !== null);
}

/** An empty builder for the column. A column that COPY selects as text is text in either form. */
export function columnBuilder({ spec, wire }: PgColumnPlan): ColumnBuilder {
  switch (wire) {
    case "bool":
      return new BoolBuilder(spec);
    case "int2":
      return new Int16Builder(spec);
    case "int4":
      return new Int32Builder(spec);
    case "int8":
      return new Int64Builder(spec);
    case "oid":
      return new OidBuilder(spec);
    case "float4":
      return new Float32Builder(spec);
    case "float8":
      return new Float64Builder(spec);
    case "date":
      return new DateBuilder(spec);
    case "time":
      return new TimeBuilder(spec);
    case "timestamp":
      return new TimestampBuilder(spec);
    case "numeric":
      return new DecimalBuilder(spec);
    case "uuid":
      return new UuidBuilder(spec);
    case "bytea":
      return new BytesBuilder(spec);
    case "char":
      return new CharBuilder(spec);
    case "jsonb":
      return new JsonbBuilder(spec);
    case "numeric-text":
      return new NumericTextBuilder(spec);
    default:
      return new TextBuilder(spec);
  }
}
