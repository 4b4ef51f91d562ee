/**
 * LIMIT, and ORDER BY … LIMIT, for the heap's part of a table: of the first n rows of both tiers at most n are in the heap, and they
 * are the first there. Only for a SELECT of one table whose rows it neither groups, multiplies nor filters further, whose
 * whole WHERE Postgres understands as DuckDB does, and whose order is of columns that both order alike: numbers, dates, times,
 * timestamps, booleans and uuids, NaN and infinities included; text by its bytes, which is Postgres's COLLATE "C". Pure.
 */
import type { JsonValue } from "@spillway/lake/json";
import { quoteIdent } from "@spillway/pg/quote";
import type { EngineParam } from "../engine/engine.ts";
import { type AstNode, isNode, nodesOf, type TableRef, textOf, textsOf, walk } from "./ast.ts";
import { toPgCondition } from "./predicates.ts";
import { findColumn } from "./query-shape.ts";
import type { SeamColumn } from "./resolve.ts";
import type { TableRequest } from "./table-read.ts";

/** More rows are not worth being sorted twice. */
const MOST_ROWS = 100_000;
/** Base types that both engines order alike. */
const ORDERED = new Set([16, 20, 21, 23, 26, 700, 701, 1082, 1083, 1114, 1184, 1700, 2950]);
const BY_BYTES = new Set([25, 1043]);
/** Functions that make one value of one row. Operators need no mention. */
const SCALAR = new Set([
  "abs", "ceil", "coalesce", "concat", "date_part", "date_trunc", "extract", "floor", "left", "length", "lower", "ltrim",
  "md5", "nullif", "replace", "right", "round", "rtrim", "strftime", "substr", "substring", "trim", "trunc", "upper",
]); // prettier-ignore

/** ` ORDER BY … LIMIT n` for Postgres; null when the statement is not of that shape. */
export function heapLimit(
  node: AstNode,
  ref: TableRef,
  request: TableRequest & { readonly complete: boolean },
  params: readonly EngineParam[],
): string | null {
  if (node["from_table"] !== ref.node || !isRowByRow(node, ref)) return null;
  if (!request.complete || request.predicates.some((p) => toPgCondition(p) === null)) return null;
  const modifiers = nodesOf(node["modifiers"]);
  const [limit] = modifiers.filter((m) => m["type"] === "LIMIT_MODIFIER");
  const orders = modifiers.filter((m) => m["type"] === "ORDER_MODIFIER");
  if (!limit || modifiers.length !== orders.length + 1 || orders.length > 1) return null;
  const rows = countOf(limit["limit"], params);
  const skipped = limit["offset"] === null ? 0 : countOf(limit["offset"], params);
  if (rows === null || skipped === null || rows + skipped > MOST_ROWS) return null;
  const keys = nodesOf(orders[0]?.["orders"]).map((order) => orderSql(order, node, ref, request));
  if (keys.includes(null)) return null;
  const by = keys.length === 0 ? "" : ` ORDER BY ${keys.join(", ")}`;
  return `${by} LIMIT ${rows + skipped}`;
}

/** Each row of the table makes one row of the answer, or none by the WHERE. */
function isRowByRow(node: AstNode, ref: TableRef): boolean {
  const sets = node["group_sets"];
  const isPlain =
    node["type"] === "SELECT_NODE" &&
    (isNode(node["cte_map"]) ? nodesOf(node["cte_map"]["map"]) : []).length === 0 &&
    nodesOf(node["group_expressions"]).length === 0 &&
    !(Array.isArray(sets) && sets.length > 0) &&
    !["sample", "qualify", "having"].some((name) => isNode(node[name])) &&
    node["aggregate_handling"] === "STANDARD_HANDLING" &&
    !isNode(ref.node["sample"]) &&
    textsOf(ref.node["column_name_alias"]).length === 0;
  return isPlain && [...walk(node["select_list"])].every(isScalar);
}

const VALUE_CLASSES = new Set([
  "COLUMN_REF",
  "CONSTANT",
  "PARAMETER",
  "CAST",
  "CASE",
  "COMPARISON",
  "CONJUNCTION",
  "OPERATOR",
  "BETWEEN",
]);

function isScalar(node: AstNode): boolean {
  const kind = textOf(node["class"]);
  if (kind === "") return true;
  // Columns by a pattern, or one list of many columns.
  if (kind === "STAR") return node["columns"] !== true && node["expr"] === null;
  if (kind === "FUNCTION")
    return node["is_operator"] === true || SCALAR.has(textOf(node["function_name"]).toLowerCase());
  return VALUE_CLASSES.has(kind);
}

function countOf(value: JsonValue | undefined, params: readonly EngineParam[]): number | null {
  if (!isNode(value)) return null;
  let found: unknown = null;
  if (value["type"] === "VALUE_PARAMETER") found = params[Number(value["identifier"]) - 1];
  else if (value["type"] === "VALUE_CONSTANT" && isNode(value["value"])) {
    const type = isNode(value["value"]["type"]) ? textOf(value["value"]["type"]["id"]) : "";
    if (/^(TINYINT|SMALLINT|INTEGER|BIGINT)$/.test(type)) found = value["value"]["value"];
  }
  const count = typeof found === "number" || typeof found === "bigint" ? Number(found) : Number.NaN;
  return Number.isSafeInteger(count) && count >= 0 ? count : null;
}

function orderSql(order: AstNode, node: AstNode, ref: TableRef, request: TableRequest): string | null {
  const column = columnOf(order["expression"], node, ref, request);
  if (column === null) return null;
  const name = quoteIdent(column.spec.name);
  const oid = column.table.baseOid;
  const isText = BY_BYTES.has(oid);
  if (column.plan.spec.kind === "text" ? !isText : !ORDERED.has(oid)) return null;
  const direction = textOf(order["type"]);
  const nulls = textOf(order["null_order"]).replace("_", " ");
  const [down, first] = [direction === "DESCENDING", nulls === "NULLS FIRST"];
  if (!down && direction !== "ORDER_DEFAULT" && direction !== "ASCENDING") return null;
  // Without a word, NULLs come last in either direction: the engine's default.
  if (!first && nulls !== "NULLS LAST" && nulls !== "ORDER DEFAULT") return null;
  return `${name}${isText ? ' COLLATE "C"' : ""} ${down ? "DESC" : "ASC"} NULLS ${first ? "FIRST" : "LAST"}`;
}

/** The column of the table that a key of the order is; null when it is an expression, or a name of the select list's own. */
function columnOf(key: JsonValue | undefined, node: AstNode, ref: TableRef, request: TableRequest): SeamColumn | null {
  if (!isNode(key) || key["class"] !== "COLUMN_REF") return null;
  const names = textsOf(key["column_names"]);
  const name = names.at(-1) ?? "";
  if (names.length === 2 ? names[0]?.toLowerCase() !== ref.alias.toLowerCase() : names.length !== 1) return null;
  const folded = name.toLowerCase();
  const renamed = nodesOf(node["select_list"]).some((item) => {
    const isSame = item["class"] === "COLUMN_REF" && textsOf(item["column_names"]).at(-1)?.toLowerCase() === folded;
    const isReplaced =
      item["class"] === "STAR" && JSON.stringify([item["replace_list"], item["rename_list"]]) !== "[[],[]]";
    return (textOf(item["alias"]).toLowerCase() === folded && !isSame) || isReplaced;
  });
  return renamed ? null : findColumn(request.relation, name);
}
