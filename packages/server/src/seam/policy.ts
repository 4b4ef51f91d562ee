/**
 * What a user may see of a table: rows by predicate, columns as they are, masked or not at all (docs/internals/serving.md §4).
 * It stands inside the table's view, so no statement can be written that reads past it. What is left to
 * look after is *when* expressions run: an error of the user's own expression (a cast, a division) over a row that the policy
 * hides would tell of that row. Where a statement holds an expression that can raise, the view ends in a LIMIT that no
 * table reaches: DuckDB moves no filter below it.
 */
import type { ColumnSpec } from "@spillway/base/columns";
import { duckIdent, type EngineSession } from "../engine/engine.ts";
import { type AstNode, isNode, nodesOf, parseSelect, textOf, textsOf, walk } from "./ast.ts";
import type { ResolvedRelation, SeamColumn } from "./resolve.ts";
import type { TextCache } from "./text-cache.ts";

export interface TablePolicy {
  /** DuckDB SQL over the table's columns; null: all rows. */
  readonly rows: string | null;
  /** By column name: absent = as it is; null = does not exist for the user; text = shown instead. */
  readonly columns: ReadonlyMap<string, string | null>;
}

/** A table of a statement under its policy. */
export interface GuardedTable {
  /** As the statement sees it: without the columns that do not exist for the user. */
  readonly relation: ResolvedRelation;
  readonly policy: TablePolicy | null;
}

export function guard(relation: ResolvedRelation, policy: TablePolicy | null): GuardedTable {
  if (policy === null || (policy.rows === null && policy.columns.size === 0)) return { relation, policy: null };
  const columns = relation.columns.filter((c) => policy.columns.get(c.spec.name) !== null);
  return { relation: { ...relation, columns }, policy };
}

/** Whether a condition on the column may be evaluated on the table's own values. */
export function isMasked(policy: TablePolicy | null, column: SeamColumn): boolean {
  return policy?.columns.has(column.spec.name) ?? false;
}

/** The columns of the table that the policy's own expressions use, for a statement that uses `used`. */
export async function policyColumns(
  session: EngineSession,
  policy: TablePolicy,
  used: readonly SeamColumn[],
  all: readonly SeamColumn[],
  texts: TextCache,
): Promise<readonly SeamColumn[]> {
  const masks = used.flatMap((c) => policy.columns.get(c.spec.name) ?? []);
  const expressions = [...masks, ...(policy.rows === null ? [] : [policy.rows])];
  const names = new Set(used.map((c) => c.spec.name));
  if (expressions.length > 0) {
    const { node } = await parseSelect(session, `SELECT ${expressions.map((e) => `(${e}\n)`).join(", ")}`, texts);
    const found = new Set<string>();
    for (const part of walk(node)) for (const name of textsOf(part["column_names"])) found.add(name.toLowerCase());
    for (const c of all) if (found.has(c.spec.name.toLowerCase())) names.add(c.spec.name);
  }
  return all.filter((c) => names.has(c.spec.name));
}

/** The view's body: `body` gives the columns of the table, `shown` are those that the statement may use. */
export function policyView(policy: TablePolicy, body: string, shown: readonly ColumnSpec[], barrier: boolean): string {
  const inner = shown.map(({ name }, i) => {
    const mask = policy.columns.get(name);
    // A name of its own: a mask must not see the mask of another column under that column's name.
    return `${typeof mask === "string" ? `(${mask}\n)` : duckIdent(name)} AS ${duckIdent(`spillway shown ${i}`)}`;
  });
  const list = shown.map(({ name }, i) => `${duckIdent(`spillway shown ${i}`)} AS ${duckIdent(name)}`);
  const where = policy.rows === null ? "" : ` WHERE (${policy.rows}\n)`;
  const limit = barrier ? ` LIMIT ${BARRIER}` : "";
  return `SELECT ${list.join(", ")} FROM (SELECT ${inner.join(", ")} FROM (${body})${where}${limit})`;
}

const BARRIER = 2n ** 62n;

/** Tells policies apart, for texts that are kept. */
export function policyKey(policy: TablePolicy | null): string {
  return policy === null ? "" : JSON.stringify([policy.rows, [...policy.columns]]);
}

const SAFE_CLASSES = new Set([
  "COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "BETWEEN", "STAR", "PARAMETER", "CASE", "OPERATOR", "FUNCTION",
]); // prettier-ignore
/** Functions that raise for no value. */
const SAFE_FUNCTIONS = new Set([
  "~~", "!~~", "~~*", "!~~*", "like_escape", "not_like_escape", "ilike_escape", "prefix", "suffix", "contains", "starts_with",
  "lower", "upper", "length", "trim", "ltrim", "rtrim", "substring", "substr", "left", "right", "concat", "||", "coalesce",
  "date_part", "year", "month", "day", "date_trunc", "count_star", "count", "min", "max",
]); // prettier-ignore
const AGGREGATES = new Set(["sum", "avg", "count", "count_star", "min", "max", "stddev", "stddev_samp", "var_samp"]);
const SAFE_OPERATORS = /^(COMPARE_|CONJUNCTION_|OPERATOR_(NOT|IS_NULL|IS_NOT_NULL|COALESCE)$|CASE_EXPR$)/;

/**
 * Whether anything in the query that DuckDB could evaluate before the policy's own filter can raise. What only the outermost
 * SELECT shows, and what is inside an aggregate, is computed after every filter.
 */
export function canRaise(root: AstNode): boolean {
  return raisesNode(root, true);
}

function raisesNode(node: AstNode, outermost: boolean): boolean {
  for (const key of Object.keys(node)) {
    const value = node[key];
    if (key === "select_list" && node["type"] === "SELECT_NODE") {
      const list = nodesOf(value);
      const checked = outermost && !hasGroups(node) ? list.flatMap(subqueriesOf) : list;
      if (checked.some((e) => raises(e))) return true;
    } else if (raises(value)) return true;
  }
  return false;
}

function hasGroups(node: AstNode): boolean {
  return nodesOf(node["group_expressions"]).length > 0 || isNode(node["having"]);
}

function subqueriesOf(expression: AstNode): AstNode[] {
  return [...walk(expression)].filter((n) => n["class"] === "SUBQUERY");
}

function raises(value: unknown): boolean {
  if (Array.isArray(value)) return value.some(raises);
  if (typeof value !== "object" || value === null) return false;
  const node = value as AstNode;
  const type = textOf(node["type"]);
  if (type.endsWith("_NODE")) return raisesNode(node, false);
  const cls = textOf(node["class"]);
  if (cls === "") return Object.keys(node).some((k) => raises(node[k]));
  if (!readsRows(node)) return false;
  if (cls === "SUBQUERY") return Object.keys(node).some((k) => raises(node[k]));
  const name = textOf(node["function_name"]).toLowerCase();
  if (AGGREGATES.has(name)) return subqueriesOf(node).some(raises);
  if (!SAFE_CLASSES.has(cls)) return true;
  if (cls === "FUNCTION" && !SAFE_FUNCTIONS.has(name)) return true;
  if (cls === "OPERATOR" && !SAFE_OPERATORS.test(type) && type !== "COMPARE_IN" && type !== "COMPARE_NOT_IN")
    return true;
  return Object.keys(node).some((k) => raises(node[k]));
}

/** An expression without a column has the same value, or error, for every row. */
function readsRows(node: AstNode): boolean {
  for (const part of walk(node)) {
    const cls = part["class"];
    if (cls === "COLUMN_REF" || cls === "SUBQUERY" || cls === "STAR" || cls === "POSITIONAL_REFERENCE") return true;
  }
  return false;
}
