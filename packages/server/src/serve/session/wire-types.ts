/** Columns and parameters between the kinds of batches and Postgres's types. */
import type { ColumnKind, ColumnSpec } from "@spillway/base/columns";
import { NATIVE_TYPES, OID_OF_KIND, typmodOfDecimal } from "@spillway/base/pg-types";
import { duckLiteral, duckType, type EngineParam } from "../../engine/engine.ts";
import type { WireColumn, WireParam } from "./session.ts";

export function wireColumn(spec: ColumnSpec): WireColumn {
  const { name, kind, decimal } = spec;
  return {
    name,
    kind,
    ...(decimal ? { decimal } : {}),
    nullable: true,
    typeOid: OID_OF_KIND[kind],
    typmod: typmodOfDecimal(decimal),
  };
}

/** The kind in which a parameter of a Postgres type is held; text for all others. */
export function kindOfOid(oid: number): ColumnKind {
  return (
    NATIVE_TYPES.find((t) => t.oid === oid)?.kind ??
    (oid === 17 ? "bytes" : oid === 1700 ? "decimal" : oid === 2950 ? "uuid" : "text")
  );
}

export function parameterColumn(index: number, oid: number): WireColumn {
  return { name: `$${index + 1}`, kind: kindOfOid(oid), nullable: true, typeOid: oid === 0 ? 25 : oid, typmod: -1 };
}

/** A parameter between processes: Postgres's text form, or bytes. */
export type SentParam =
  | { readonly oid: number; readonly text: string | null }
  | { readonly oid: number; readonly base64: string };

export function sendParam(value: WireParam, oid: number): SentParam {
  if (value === null) return { oid, text: null };
  if (value instanceof Uint8Array) return { oid, base64: Buffer.from(value).toString("base64") };
  return { oid, text: String(value) };
}

const BOUND = new Set<ColumnKind>(["bool", "int16", "int32", "int64", "float64", "text", "bytes"]);

/** Whether the value can be bound as it is; else its text is cast in the statement. */
export function isBindable({ oid }: SentParam): boolean {
  return BOUND.has(kindOfOid(oid));
}

/** For binding in DuckDB, or for Postgres as an untyped constant. */
export function engineParam(param: SentParam): EngineParam {
  if ("base64" in param) return Buffer.from(param.base64, "base64");
  const { oid, text } = param;
  if (text === null) return null;
  const kind = kindOfOid(oid);
  if (kind === "bool") return /^(t|true|y|yes|on|1)$/i.test(text);
  if ((kind === "int16" || kind === "int32" || kind === "int64") && /^\s*[-+]?\d+\s*$/.test(text)) return BigInt(text);
  if (kind === "float64" && !Number.isInteger(Number(text))) return Number(text);
  if (kind === "bytes" && text.startsWith("\\x")) return Buffer.from(text.slice(2), "hex");
  return text;
}

const SHORT_DECIMAL = /^[-+]?\d{0,29}(?:\.\d{0,9})?$/;

/** The DuckDB type that a parameter is described as. */
export function duckParameterType(oid: number): string {
  const kind = kindOfOid(oid);
  return kind === "decimal" ? "DECIMAL(38, 9)" : duckType({ kind });
}

/** As a constant of DuckDB's SQL. */
export function duckConstant(param: SentParam): string {
  const kind = kindOfOid(param.oid);
  const value = engineParam(param);
  if (value === null) return `NULL::${duckParameterType(param.oid)}`;
  if (typeof value === "bigint") return `(${value})`;
  if (typeof value === "boolean") return String(value);
  if (value instanceof Uint8Array) return `from_hex('${Buffer.from(value).toString("hex")}')`;
  const text = duckLiteral(String(value));
  if (kind === "text") return text;
  // Of the type that it was described as, unless that would round it.
  if (kind === "decimal")
    return SHORT_DECIMAL.test(String(value)) ? `${text}::${duckParameterType(param.oid)}` : `(${text}::DOUBLE)`;
  return `${text}::${duckType({ kind })}`;
}
