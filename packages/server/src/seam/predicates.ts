/**
 * Predicates of a query that both tiers can use to read less. They only ever filter early: the statement keeps its
 * WHERE, so a predicate that is not understood costs time and never rows. Understood are, joined by AND and OR:
 *
 *     column =, <>, <, <=, >, >= constant · column BETWEEN, IN, NOT IN constants · column IS [NOT] NULL
 *
 * The constant is brought to the column's type by DuckDB itself, and is used only if that loses nothing, so that the
 * comparison means what it means in the statement. Postgres is asked only what it answers exactly as DuckDB does: all of
 * it for integers, dates, times, timestamps, decimals, float8, boolean and uuid; for text and varchar =, <>, IN and NOT IN under a
 * deterministic collation, and everything else under COLLATE "C", whose order is that of the bytes. No other type is compared there.
 */
import { type ColumnKind, INFINITY_DAYS, INFINITY_I64 } from "@spillway/base/columns";
import { and, FALSE, or, TRUE, type Expr } from "@spillway/lake/scan/scan";
import type { PrimitiveValue } from "@spillway/lake/model";
import type { JsonValue } from "@spillway/lake/json";
import { quoteIdent, quoteLiteral } from "@spillway/pg/quote";
import { duckIdent, duckLiteral, duckType, type EngineParam, type EngineSession } from "../engine/engine.ts";
import { keyLiteral } from "../catalog/catalog.ts";
import { isNode, nodesOf, textOf, textsOf, type AstNode } from "./ast.ts";
import type { SeamColumn } from "./resolve.ts";

export type CompareOp = "=" | "!=" | "<" | "<=" | ">" | ">=";

export type Predicate =
  | { readonly op: CompareOp; readonly column: SeamColumn; readonly value: PrimitiveValue }
  | { readonly op: "in" | "not-in"; readonly column: SeamColumn; readonly values: readonly PrimitiveValue[] }
  | { readonly op: "is-null" | "not-null"; readonly column: SeamColumn }
  | { readonly op: "and" | "or"; readonly args: readonly Predicate[] };

/** A comparison whose constants are still SQL. */
type Draft =
  | { readonly op: CompareOp | "in" | "not-in"; readonly column: SeamColumn; readonly constants: readonly string[] }
  | { readonly op: "is-null" | "not-null"; readonly column: SeamColumn }
  | { readonly op: "and" | "or"; readonly args: readonly Draft[] };

export interface Extracted {
  /** Joined by AND. */
  readonly predicates: readonly Predicate[];
  /** Whether every conjunct of the condition was understood. */
  readonly complete: boolean;
}

const COMPARISONS: Readonly<Record<string, CompareOp>> = {
  COMPARE_EQUAL: "=",
  COMPARE_NOTEQUAL: "!=",
  COMPARE_LESSTHAN: "<",
  COMPARE_LESSTHANOREQUALTO: "<=",
  COMPARE_GREATERTHAN: ">",
  COMPARE_GREATERTHANOREQUALTO: ">=",
};
const FLIPPED: Readonly<Record<CompareOp, CompareOp>> = {
  "=": "=",
  "!=": "!=",
  "<": ">",
  "<=": ">=",
  ">": "<",
  ">=": "<=",
};
const MAX_CONSTANTS = 2000;

/** How a column name of the condition becomes a column of the table, or null when it is not (surely) one. */
export type ColumnLookup = (names: readonly string[]) => SeamColumn | null;

/** What a WHERE says of one table. */
export async function extractPredicates(
  session: EngineSession,
  where: JsonValue | undefined,
  lookup: ColumnLookup,
  params: readonly EngineParam[],
): Promise<Extracted> {
  if (!isNode(where)) return { predicates: [], complete: true };
  const conjuncts = flatten(where);
  const drafts: Draft[] = [];
  for (const conjunct of conjuncts) {
    const draft = draftOf(conjunct, lookup, params);
    if (draft) drafts.push(draft);
  }
  const predicates = await foldAll(session, drafts);
  const understood = predicates.filter((p): p is Predicate => p !== null);
  return { predicates: understood, complete: understood.length === conjuncts.length };
}

function flatten(node: AstNode): AstNode[] {
  return node["type"] === "CONJUNCTION_AND" ? nodesOf(node["children"]).flatMap(flatten) : [node];
}

function draftOf(node: AstNode, lookup: ColumnLookup, params: readonly EngineParam[]): Draft | null {
  const type = textOf(node["type"]);
  const op = COMPARISONS[type];
  if (op) return comparison(node, op, lookup, params);
  const [first, ...rest] = nodesOf(node["children"]);
  switch (type) {
    case "CONJUNCTION_AND":
    case "CONJUNCTION_OR": {
      const args = nodesOf(node["children"]).map((child) => draftOf(child, lookup, params));
      if (args.includes(null)) return null;
      return { op: type === "CONJUNCTION_AND" ? "and" : "or", args: args as Draft[] };
    }
    case "COMPARE_BETWEEN": {
      const column = columnOf(node["input"], lookup);
      const [low, high] = [constantOf(node["lower"], params), constantOf(node["upper"], params)];
      if (!column || low === null || high === null) return null;
      return {
        op: "and",
        args: [
          { op: ">=", column, constants: [low] },
          { op: "<=", column, constants: [high] },
        ],
      };
    }
    case "COMPARE_IN":
    case "COMPARE_NOT_IN": {
      const column = columnOf(first, lookup);
      const constants = rest.map((c) => constantOf(c, params));
      if (!column || constants.length === 0 || constants.length > MAX_CONSTANTS || constants.includes(null))
        return null;
      return { op: type === "COMPARE_IN" ? "in" : "not-in", column, constants: constants as string[] };
    }
    case "OPERATOR_IS_NULL":
    case "OPERATOR_IS_NOT_NULL": {
      const column = columnOf(first, lookup);
      return column ? { op: type === "OPERATOR_IS_NULL" ? "is-null" : "not-null", column } : null;
    }
    default:
      return null;
  }
}

function comparison(node: AstNode, op: CompareOp, lookup: ColumnLookup, params: readonly EngineParam[]): Draft | null {
  const left = columnOf(node["left"], lookup);
  const right = columnOf(node["right"], lookup);
  const column = left ?? right;
  const constant = constantOf(node[left ? "right" : "left"], params);
  if (!column || constant === null) return null;
  return { op: left ? op : FLIPPED[op], column, constants: [constant] };
}

function columnOf(value: JsonValue | undefined, lookup: ColumnLookup): SeamColumn | null {
  return isNode(value) && value["type"] === "COLUMN_REF" ? lookup(textsOf(value["column_names"])) : null;
}

const CASTS = new Set([
  "BOOLEAN", "SMALLINT", "INTEGER", "BIGINT", "DOUBLE", "VARCHAR", "DATE", "TIME", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "UUID",
]); // prettier-ignore

/** SQL of a constant: a literal, a parameter, or casts of one. Null for everything else. */
function constantOf(value: JsonValue | undefined, params: readonly EngineParam[]): string | null {
  if (!isNode(value)) return null;
  switch (value["type"]) {
    case "VALUE_CONSTANT":
      return literalOf(value["value"]);
    case "VALUE_PARAMETER":
      return paramLiteral(params[Number(value["identifier"]) - 1]);
    case "OPERATOR_CAST": {
      const id = isNode(value["cast_type"]) ? textOf(value["cast_type"]["id"]) : "";
      const child = constantOf(value["child"], params);
      return child === null || !CASTS.has(id) || value["try_cast"] === true ? null : `CAST(${child} AS ${id})`;
    }
    default:
      return null;
  }
}

function literalOf(value: JsonValue | undefined): string | null {
  if (!isNode(value) || value["is_null"] === true) return null;
  const type = isNode(value["type"]) ? value["type"] : {};
  const raw = value["value"];
  switch (type["id"]) {
    case "TINYINT":
    case "SMALLINT":
    case "INTEGER":
    case "BIGINT":
      return typeof raw === "number" || typeof raw === "bigint" ? `(${raw})::${textOf(type["id"])}` : null;
    case "VARCHAR":
      return typeof raw === "string" && !raw.includes("\0") ? duckLiteral(raw) : null;
    case "DECIMAL": {
      const info = isNode(type["type_info"]) ? type["type_info"] : {};
      if (typeof raw !== "number" && typeof raw !== "bigint") return null;
      return `'${decimalText(BigInt(raw), Number(info["scale"] ?? 0))}'::DECIMAL(38, ${Number(info["scale"] ?? 0)})`;
    }
    case "DOUBLE":
      return typeof raw === "number" ? `'${raw}'::DOUBLE` : null;
    default:
      return null;
  }
}

function paramLiteral(value: EngineParam | undefined): string | null {
  if (typeof value === "string" && !value.includes("\0")) return duckLiteral(value);
  if (typeof value === "boolean") return String(value);
  if (typeof value === "bigint" || (typeof value === "number" && Number.isSafeInteger(value)))
    return `(${value})::BIGINT`;
  return null;
}

function decimalText(unscaled: bigint, scale: number): string {
  const sign = unscaled < 0n ? "-" : "";
  const digits = String(unscaled < 0n ? -unscaled : unscaled).padStart(scale + 1, "0");
  return scale === 0 ? sign + digits : `${sign}${digits.slice(0, -scale)}.${digits.slice(-scale)}`;
}

/** Brings all constants to their columns' types with one statement; a draft with one that does not fit is null. */
async function foldAll(session: EngineSession, drafts: readonly Draft[]): Promise<(Predicate | null)[]> {
  const wanted: { sql: string; column: SeamColumn }[] = [];
  const collect = (draft: Draft): void => {
    if ("args" in draft) draft.args.forEach(collect);
    else if ("constants" in draft) for (const sql of draft.constants) wanted.push({ sql, column: draft.column });
  };
  drafts.forEach(collect);
  const values = await fold(session, wanted);
  let at = 0;
  const build = (draft: Draft): Predicate | null => {
    if ("args" in draft) {
      const args = draft.args.map(build);
      return args.includes(null) ? null : { op: draft.op, args: args as Predicate[] };
    }
    if (!("constants" in draft)) return draft;
    const found = draft.constants.map(() => values[at++] ?? null);
    if (found.includes(null)) return null;
    if (draft.op === "in" || draft.op === "not-in")
      return { op: draft.op, column: draft.column, values: found as PrimitiveValue[] };
    return { op: draft.op, column: draft.column, value: found[0] as PrimitiveValue };
  };
  return drafts.map(build);
}

const evaluated = new Map<string, readonly unknown[]>();
const MAX_EVALUATED = 1000;
const MAX_TEXT = 4096;
/** Texts that might mean another value at another time. */
const MOVING = /now|today|tomorrow|yesterday|current/i;

/** Casts of constants give the same values each time, in whichever session: all are in UTC. */
async function evaluate(session: EngineSession, sql: string): Promise<readonly unknown[]> {
  const known = evaluated.get(sql);
  if (known) return known;
  const row = (await session.rows(sql))[0] ?? [];
  if (sql.length > MAX_TEXT || MOVING.test(sql)) return row;
  if (evaluated.size >= MAX_EVALUATED) evaluated.clear();
  evaluated.set(sql, row);
  return row;
}

async function fold(
  session: EngineSession,
  wanted: readonly { sql: string; column: SeamColumn }[],
): Promise<(PrimitiveValue | null)[]> {
  const usable = wanted.map(({ sql, column }) => (comparable(column.spec.kind, sql) ? { sql, column } : null));
  const list = usable.flatMap((u) => {
    if (!u) return [];
    const cast = `TRY_CAST(${u.sql} AS ${duckType(u.column.spec.kind === "int16" ? { kind: "int32" } : u.column.spec)})`;
    // A literal without a type takes the column's; a typed constant must survive the cast.
    return u.sql.startsWith("'") && !u.sql.includes("'::")
      ? [`${cast}, true`]
      : [`${cast}, ${cast} IS NOT DISTINCT FROM ${u.sql}`];
  });
  if (list.length === 0) return wanted.map(() => null);
  let row: readonly unknown[];
  try {
    row = await evaluate(session, `SELECT ${list.join(", ")}`);
  } catch {
    // A constant that cannot be evaluated: the statement itself will say so.
    return wanted.map(() => null);
  }
  let at = 0;
  return usable.map((u) => {
    if (!u) return null;
    const [value, exact] = [row[at], row[at + 1]];
    at += 2;
    return exact === true && value !== null && !Number.isNaN(value) ? (value as PrimitiveValue) : null;
  });
}

/** Text is compared only with text, and only with it; float32 not at all, whose common type with others is not sure. */
function comparable(kind: ColumnKind, sql: string): boolean {
  if (kind === "float32" || kind === "bytes") return false;
  if (kind === "text") return sql.startsWith("'") && !sql.includes("'::");
  return true;
}

/** The predicates as a filter of the lake. Columns that the lake does not have are left out. */
export function toLakeExpr(predicates: readonly Predicate[], fieldIdOf: (column: SeamColumn) => number | null): Expr {
  return and(...predicates.map((p) => lakeExpr(p, fieldIdOf)));
}

function lakeExpr(predicate: Predicate, fieldIdOf: (column: SeamColumn) => number | null): Expr {
  if ("args" in predicate) {
    const args = predicate.args.map((arg) => lakeExpr(arg, fieldIdOf));
    return predicate.op === "and" ? and(...args) : or(...args);
  }
  const fieldId = fieldIdOf(predicate.column);
  if (fieldId === null) return TRUE;
  if (predicate.op === "in" && predicate.values.length === 0) return FALSE;
  if ("values" in predicate) return { op: predicate.op, fieldId, values: predicate.values };
  if ("value" in predicate) return { op: predicate.op, fieldId, value: predicate.value };
  return { op: predicate.op, fieldId };
}

/** Base types that Postgres compares as DuckDB does. */
const ORDERED = new Set([21, 23, 20, 26, 1082, 1083, 1114, 1184, 1700, 701, 16, 2950]);
const TEXTS = new Set([25, 1043]);

/**
 * The predicate as a condition in Postgres, or null when it would not mean exactly the same there. Texts are compared by their
 * bytes; with `own`, only where the column's collation says the same: deterministic ones have one equality, which an index serves.
 */
export function toPgCondition(
  predicate: Predicate,
  nameOf: (column: SeamColumn) => string = (column) => quoteIdent(column.spec.name),
  collation: "bytes" | "own" = "bytes",
): string | null {
  if ("args" in predicate) {
    const args = predicate.args.map((arg) => toPgCondition(arg, nameOf, collation));
    return args.includes(null) ? null : `(${args.join(predicate.op === "and" ? " AND " : " OR ")})`;
  }
  const { column } = predicate;
  const plain = nameOf(column);
  if (predicate.op === "is-null") return `${plain} IS NULL`;
  if (predicate.op === "not-null") return `${plain} IS NOT NULL`;
  const equality = ["=", "!=", "in", "not-in"].includes(predicate.op);
  const oid = column.table.baseOid;
  const isText = TEXTS.has(oid);
  if (!isText && (column.table.looseCollation || !ORDERED.has(oid))) return null;
  const byBytes = isText && (column.table.looseCollation || !equality);
  if (byBytes && collation === "own") return null;
  const name = byBytes ? `${plain} COLLATE "C"` : plain;
  const values = "values" in predicate ? predicate.values : "value" in predicate ? [predicate.value] : [];
  if (!values.every((v) => isInPgRange(column, v))) return null;
  if ("values" in predicate) {
    const list = predicate.values.map((v) => pgLiteral(column, v)).join(", ");
    return `${name} ${predicate.op === "in" ? "IN" : "NOT IN"} (${list})`;
  }
  if (!("value" in predicate)) return null;
  return `${name} ${predicate.op === "!=" ? "<>" : predicate.op} ${pgLiteral(column, predicate.value)}`;
}

/** Julian day 0 and the ends of Postgres's dates and timestamps: DuckDB has more of both. */
const PG_DAYS = [-2_440_588n, 2_145_031_948n] as const;
const PG_MICROS = [-210_866_803_200_000_000n, 9_223_371_331_199_999_999n] as const;

function isInPgRange(column: SeamColumn, value: PrimitiveValue): boolean {
  const { kind } = column.spec;
  if (kind !== "date" && kind !== "timestamp" && kind !== "timestamptz") return true;
  const v = BigInt(value as number | bigint);
  const infinite = kind === "date" ? BigInt(INFINITY_DAYS) : INFINITY_I64;
  const [low, high] = kind === "date" ? PG_DAYS : PG_MICROS;
  return (v >= low && v <= high) || v === infinite || v === -infinite;
}

function pgLiteral(column: SeamColumn, value: PrimitiveValue): string {
  switch (column.spec.kind) {
    case "date":
      if (Math.abs(value as number) === INFINITY_DAYS)
        return (value as number) > 0 ? "date 'infinity'" : "date '-infinity'";
      return keyLiteral("date", BigInt(value as number));
    case "timestamp":
    case "timestamptz":
      return keyLiteral(column.spec.kind, value as bigint);
    case "time":
      return `(time '00:00' + interval '${value as bigint} microseconds')`;
    case "decimal":
      return `'${decimalText(value as bigint, column.spec.decimal?.scale ?? 0)}'::numeric`;
    case "float64":
      return `'${String(value)}'::float8`;
    case "uuid":
      return `'${Buffer.from(value as Uint8Array).toString("hex")}'::uuid`;
    case "bool":
      return value === true ? "true" : "false";
    case "text":
      return `${quoteLiteral(value as string)}::text`;
    default:
      return `'${String(value)}'::bigint`;
  }
}

/** The range of a column that the predicates allow, in its own units; null where it is open. For integers and times. */
export function rangeOf(predicates: readonly Predicate[], attnum: number): { low: bigint | null; high: bigint | null } {
  let low: bigint | null = null;
  let high: bigint | null = null;
  const raise = (v: bigint): bigint => (low === null || v > low ? v : low);
  const lower = (v: bigint): bigint => (high === null || v < high ? v : high);
  for (const p of predicates) {
    if ("args" in p) {
      const inner = p.op === "and" ? rangeOf(p.args, attnum) : { low: null, high: null };
      if (inner.low !== null) low = raise(inner.low);
      if (inner.high !== null) high = lower(inner.high);
      continue;
    }
    if (p.column.attnum !== attnum) continue;
    if (p.op === "in") {
      const keys = p.values.map((v) => BigInt(v as number | bigint)).toSorted((a, b) => (a < b ? -1 : 1));
      if (keys.length > 0) [low, high] = [raise(keys[0] ?? 0n), lower(keys.at(-1) ?? 0n)];
    } else if ("value" in p) {
      const v = BigInt(p.value as number | bigint);
      if (p.op === "=") [low, high] = [raise(v), lower(v)];
      if (p.op === ">" || p.op === ">=") low = raise(p.op === ">" ? v + 1n : v);
      if (p.op === "<" || p.op === "<=") high = lower(p.op === "<" ? v - 1n : v);
    }
  }
  return { low, high };
}

/** The columns that predicates speak of. */
export function columnsOf(predicate: Predicate): readonly SeamColumn[] {
  return "args" in predicate ? predicate.args.flatMap(columnsOf) : [predicate.column];
}

/** The predicate in DuckDB's SQL: the same as it was extracted from. */
export function toDuckCondition(predicate: Predicate): string {
  if ("args" in predicate) {
    return `(${predicate.args.map(toDuckCondition).join(predicate.op === "and" ? " AND " : " OR ")})`;
  }
  const name = duckIdent(predicate.column.spec.name);
  if ("values" in predicate) {
    const list = predicate.values.map((v) => duckValue(predicate.column, v)).join(", ");
    return `${name} ${predicate.op === "in" ? "IN" : "NOT IN"} (${list})`;
  }
  if ("value" in predicate) {
    return `${name} ${predicate.op === "!=" ? "<>" : predicate.op} ${duckValue(predicate.column, predicate.value)}`;
  }
  return `${name} IS ${predicate.op === "is-null" ? "" : "NOT "}NULL`;
}

function duckValue(column: SeamColumn, value: PrimitiveValue): string {
  const { kind, decimal } = column.spec;
  switch (kind) {
    case "date":
      if (Math.abs(value as number) === INFINITY_DAYS) return `DATE '${(value as number) > 0 ? "" : "-"}infinity'`;
      return `(DATE '1970-01-01' + (${String(value)})::INTEGER)`;
    case "time":
      return `(TIME '00:00:00' + to_microseconds(${String(value)}))`;
    case "timestamp":
    case "timestamptz": {
      const v = value as bigint;
      const text = v === INFINITY_I64 ? "'infinity'" : v === -INFINITY_I64 ? "'-infinity'" : `make_timestamp(${v})`;
      return `${text}::${duckType(column.spec)}`;
    }
    case "decimal":
      return `'${decimalText(value as bigint, decimal?.scale ?? 0)}'::${duckType(column.spec)}`;
    case "uuid":
      return `'${Buffer.from(value as Uint8Array).toString("hex")}'::UUID`;
    case "text":
      return duckLiteral(value as string);
    case "bool":
      return String(value);
    default:
      return `'${String(value)}'::${duckType(kind === "int16" ? { kind: "int32" } : column.spec)}`;
  }
}
