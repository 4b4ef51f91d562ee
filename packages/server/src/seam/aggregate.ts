/**
 * Aggregates that can be computed in parts: Postgres aggregates the heap's rows, DuckDB the lake's, and the statement
 * combines the two. Shipping rows from the heap costs several times what counting them there does.
 *
 * Only for a SELECT of one table (or one joined to plain ones: `planJoined`) whose whole WHERE Postgres understands as DuckDB does, grouped by plain columns (or
 * not at all), and only count(*), count, sum, min, max and avg of plain columns, without DISTINCT, FILTER or ORDER BY. Sums
 * of integers and decimals are exact; of float8 as exact as any order of addition is.
 */
import { must } from "@spillway/base/assert";
import type { ColumnKind, ColumnSpec } from "@spillway/base/columns";
import type { JsonValue } from "@spillway/lake/json";
import type { PgColumnPlan, WireFormat } from "@spillway/pg/columns/plan";
import { quoteIdent } from "@spillway/pg/quote";
import { duckIdent } from "../engine/engine.ts";
import { type AstNode, isNode, nodesOf, type TableRef, textOf, textsOf, walk } from "./ast.ts";
import type { Partial, Shape } from "./partials.ts";
import { type Predicate, toPgCondition } from "./predicates.ts";
import type { SeamColumn } from "./resolve.ts";
import type { HeapQuery, TableRequest } from "./table-read.ts";

export interface AggregatePlan {
  readonly heapQuery: HeapQuery;
  /** What is computed of the lake's rows; see partials.ts. */
  readonly shape: Shape;
  /** Understood by both tiers, and the statement's whole condition. */
  readonly predicates: readonly Predicate[];
  /** Changes the statement's tree to combine partials. The view is under the table's name already. */
  rewrite(): void;
}

export const COUNT_STAR = "count(*)";
const SUMMABLE = new Set<ColumnKind>(["int16", "int32", "int64", "float64", "decimal"]);
const ORDERABLE = new Set<ColumnKind>([
  "int16", "int32", "int64", "float64", "decimal", "date", "time", "timestamp", "timestamptz",
]); // prettier-ignore
/** Types whose values Postgres groups exactly as DuckDB does, by base oid. */
const GROUPABLE = new Set([16, 20, 21, 23, 25, 26, 1043, 1082, 1083, 1114, 1184, 1700, 2950]);

/** Null when the statement is not of that shape. */
export function planAggregate(node: AstNode, ref: TableRef, request: TableRequest): AggregatePlan | null {
  if (node["from_table"] !== ref.node || !request.relation.lake || !isPlainSelect(node)) return null;
  if (isNode(ref.node["sample"]) || request.predicates.some((p) => toPgCondition(p) === null)) return null;
  const lookup = lookupOf(ref, request);
  const groups = groupsOf(node, lookup);
  if (groups === null) return null;
  const gathered = gather(node, lookup, ref.alias, (names) => isGroup(names, groups, lookup));
  return gathered && planOfShape({ groups, partials: gathered.partials }, request, gathered.rewrite, node);
}

function planOfShape(
  shape: Shape,
  request: TableRequest,
  rewrite: () => void,
  filtered: AstNode | null,
): AggregatePlan | null {
  // Names of the partials begin like this.
  if (shape.partials.size === 0 || shape.groups.some((g) => g.spec.name.startsWith("__"))) return null;
  return {
    heapQuery: heapQueryOf(shape),
    shape,
    predicates: request.predicates,
    rewrite: () => {
      rewrite();
      if (filtered) filtered["where_clause"] = null;
    },
  };
}

/**
 * A SELECT that joins one registered table to plain ones: its rows are aggregated before the join, by the columns that
 * anything but an aggregate uses. Inner joins only, where every row of a group meets the same rows; the statement's WHERE
 * and join conditions stay. Null when it is not of that shape.
 */
export function planJoined(
  node: AstNode,
  refs: readonly TableRef[],
  requests: readonly TableRequest[],
  fact: number,
): AggregatePlan | null {
  const [ref, request] = [must(refs[fact], "reference"), must(requests[fact], "request")];
  if (!isPlainSelect(node) || !isInnerJoin(node["from_table"], refs)) return null;
  if (refs.some((r) => r.select !== node || textsOf(r.node["column_name_alias"]).length > 0)) return null;
  if (request.predicates.some((p) => toPgCondition(p) === null)) return null;
  const lookup = lookupOf(ref, request);
  const groups: SeamColumn[] = [];
  const others = refs.map((r, i) => ({
    alias: r.alias.toLowerCase(),
    columns: must(requests[i], "request").relation.columns,
  }));
  const aliases = new Set(nodesOf(node["select_list"]).map((n) => textOf(n["alias"]).toLowerCase()));
  const outside = (names: readonly string[]): boolean => {
    const name = (names.at(-1) ?? "").toLowerCase();
    const owners = others.flatMap(({ alias, columns }, i) => {
      const named = names.length === 1 || (names.length === 2 && names[0]?.toLowerCase() === alias);
      return named && columns.some((c) => c.spec.name.toLowerCase() === name) ? [i] : [];
    });
    if (owners.length !== 1) return owners.length === 0 && names.length === 1 && aliases.has(name);
    if (owners[0] !== fact) return true;
    const column = lookup(names);
    if (!column || !isGroupable(column)) return false;
    if (!groups.includes(column)) groups.push(column);
    return true;
  };
  const gathered = gather(node, lookup, ref.alias, outside);
  const conditions = [node["where_clause"], node["from_table"], node["group_expressions"]];
  if (!gathered || !conditions.every((c) => onlyOutside(c, outside))) return null;
  return planOfShape({ groups, partials: gathered.partials }, request, gathered.rewrite, null);
}

function isPlainSelect(node: AstNode): boolean {
  const ctes = isNode(node["cte_map"]) ? nodesOf(node["cte_map"]["map"]) : [];
  const sets = node["group_sets"];
  return (
    node["type"] === "SELECT_NODE" &&
    ctes.length === 0 &&
    !isNode(node["sample"]) &&
    !isNode(node["qualify"]) &&
    node["aggregate_handling"] === "STANDARD_HANDLING" &&
    !(Array.isArray(sets) && sets.length > 1)
  );
}

/** Whether a FROM is inner joins of just these tables. */
function isInnerJoin(from: JsonValue | undefined, refs: readonly TableRef[]): boolean {
  const leaves = (value: JsonValue | undefined): number => {
    if (!isNode(value) || isNode(value["sample"])) return Number.NaN;
    if (value["type"] === "BASE_TABLE") return refs.some((r) => r.node === value) ? 1 : Number.NaN;
    const isInner =
      value["type"] === "JOIN" &&
      value["join_type"] === "INNER" &&
      (value["ref_type"] === "REGULAR" || value["ref_type"] === "CROSS") &&
      textsOf(value["using_columns"]).length === 0;
    return isInner ? leaves(value["left"]) + leaves(value["right"]) : Number.NaN;
  };
  return leaves(from) === refs.length;
}

const OPAQUE = new Set(["SUBQUERY", "STAR", "WINDOW", "LAMBDA", "PARAMETER", "COLLATE"]);

const VOLATILE = new Set(["random", "uuid", "uuidv4", "uuidv7", "gen_random_uuid", "nextval", "setseed"]);

/** Whether an expression can be computed after the aggregation; each of its columns is shown to `outside`. */
function onlyOutside(value: JsonValue | undefined, outside: (names: readonly string[]) => boolean): boolean {
  if (Array.isArray(value)) return value.every((item) => onlyOutside(item, outside));
  if (!isNode(value)) return true;
  if (value["class"] === "COLUMN_REF") return outside(textsOf(value["column_names"]));
  if (VOLATILE.has(textOf(value["function_name"]).toLowerCase())) return false;
  return !OPAQUE.has(textOf(value["class"])) && Object.keys(value).every((k) => onlyOutside(value[k], outside));
}

interface Gathered {
  readonly partials: Map<string, Partial>;
  rewrite(): void;
}

/** The aggregates of what a SELECT gives, and how they become combinations of partials; null when one cannot. */
function gather(
  node: AstNode,
  lookup: Lookup,
  alias: string,
  outside: (names: readonly string[]) => boolean,
): Gathered | null {
  const partials = new Map<string, Partial>();
  const rewrites: (() => void)[] = [];
  const collect = (value: JsonValue | undefined, replace: (by: AstNode) => void): boolean => {
    if (Array.isArray(value)) return value.every((item, i) => collect(item, (by) => (value[i] = by)));
    if (!isNode(value)) return true;
    if (value["class"] === "COLUMN_REF") return outside(textsOf(value["column_names"]));
    if (OPAQUE.has(textOf(value["class"]))) return false;
    const aggregate = aggregateOf(value, lookup);
    if (aggregate === "no") return false;
    if (aggregate === "none") return Object.keys(value).every((k) => collect(value[k], (by) => (value[k] = by)));
    for (const p of aggregate.partials) partials.set(p.name, p);
    rewrites.push(() => replace(qualified(aggregate.combine(value), alias)));
    return true;
  };
  for (const key of ["select_list", "having", "modifiers"]) {
    if (!collect(node[key], (by) => (node[key] = by))) return null;
  }
  return { partials, rewrite: () => rewrites.forEach((one) => one()) };
}

/** Partials belong to the table, whatever other columns a join has. */
function qualified(node: AstNode, alias: string): AstNode {
  for (const one of walk(node)) {
    const names = textsOf(one["column_names"]);
    if (names.length === 1) one["column_names"] = [alias, ...names];
  }
  return node;
}

type Lookup = (names: readonly string[]) => SeamColumn | null;

function lookupOf(ref: TableRef, request: TableRequest): Lookup {
  return (names) => {
    if (names.length > 2 || (names.length === 2 && names[0]?.toLowerCase() !== ref.alias.toLowerCase())) return null;
    const name = (names.at(-1) ?? "").toLowerCase();
    const found = request.relation.columns.filter((c) => c.spec.name.toLowerCase() === name);
    return found.length === 1 ? (found[0] ?? null) : null;
  };
}

/** The grouping columns; null when something else is grouped by. A number or an alias of the select list is followed. */
function groupsOf(node: AstNode, lookup: Lookup): SeamColumn[] | null {
  const list = nodesOf(node["select_list"]);
  const groups: SeamColumn[] = [];
  for (const expression of nodesOf(node["group_expressions"])) {
    let target: AstNode | undefined = expression;
    const value = isNode(expression["value"]) ? expression["value"]["value"] : undefined;
    if (expression["type"] === "VALUE_CONSTANT") target = typeof value === "number" ? list[value - 1] : undefined;
    const column = target?.["class"] === "COLUMN_REF" ? lookup(textsOf(target["column_names"])) : null;
    if (!column || !isGroupable(column)) return null;
    groups.push(column);
  }
  return groups;
}

function isGroupable(column: SeamColumn): boolean {
  return GROUPABLE.has(column.table.baseOid) && !column.table.looseCollation;
}

/** A column outside of an aggregate: one that is grouped by, or an alias in ORDER BY and HAVING. */
function isGroup(names: readonly string[], groups: readonly SeamColumn[], lookup: Lookup): boolean {
  const column = lookup(names);
  return column === null ? names.length === 1 : groups.includes(column);
}

type Aggregate = { readonly partials: readonly Partial[]; combine(node: AstNode): AstNode };

function aggregateOf(node: AstNode, lookup: Lookup): Aggregate | "none" | "no" {
  if (node["class"] !== "FUNCTION") return "none";
  const name = textOf(node["function_name"]).toLowerCase();
  if (!["count_star", "count", "sum", "min", "max", "avg", "mean"].includes(name))
    return KNOWN_SCALAR.has(name) ? "none" : "no";
  const orders = isNode(node["order_bys"]) ? nodesOf(node["order_bys"]["orders"]) : [];
  if (node["distinct"] === true || isNode(node["filter"]) || orders.length > 0 || textOf(node["schema"]) !== "")
    return "no";
  const args = nodesOf(node["children"]);
  if (name === "count_star" || (name === "count" && args.length === 0)) return counting(COUNT_STAR, "n");
  const column =
    args.length === 1 && args[0]?.["class"] === "COLUMN_REF" ? lookup(textsOf(args[0]["column_names"])) : null;
  if (!column) return "no";
  const { kind } = column.spec;
  if (name === "count") return counting(null, `n${column.attnum}`, column);
  if (name === "min" || name === "max") return ORDERABLE.has(kind) ? extreme(name, column) : "no";
  if (!SUMMABLE.has(kind)) return "no";
  return name === "sum" ? summing(column) : averaging(column);
}

/** Scalar functions and operators that may stand around aggregates: DuckDB computes them over the combined values. */
const KNOWN_SCALAR = new Set([
  "+", "-", "*", "/", "//", "%", "round", "floor", "ceil", "ceiling", "abs", "coalesce", "lower", "upper", "concat", "||", "greatest", "least",
  "date_trunc", "year", "month", "day", "strftime", "format", "sqrt", "ln", "log", "substring", "length",
]); // prettier-ignore

function counting(star: string | null, name: string, column?: SeamColumn): Aggregate {
  const pg = star ?? `count(${quoteIdent(must(column, "column").spec.name)})`;
  const duck = star ?? `count(${duckIdent(must(column, "column").spec.name)})`;
  const plan = planOf(`__${name}`, { kind: "int64" }, "int8");
  const partial: Partial = { name: `__${name}`, plan, pg, duck, difference: "count" };
  return {
    partials: [partial],
    combine: (node) => withAlias(node, cast(coalesceZero(call("sum", partial.name)), "BIGINT")),
  };
}

function extreme(name: string, column: SeamColumn): Aggregate {
  const partial: Partial = {
    name: `__${name}${column.attnum}`,
    difference: name === "min" ? "min" : "max",
    plan: {
      ...column.plan,
      name: `__${name}${column.attnum}`,
      spec: { ...column.spec, name: `__${name}${column.attnum}` },
    },
    pg: `${name}(${quoteIdent(column.spec.name)})`,
    duck: `${name}(${duckIdent(column.spec.name)})`,
  };
  return { partials: [partial], combine: (node) => withAlias(node, call(name, partial.name)) };
}

function sumPartial(column: SeamColumn): Partial {
  const name = `__sum${column.attnum}`;
  const { kind } = column.spec;
  const scale = column.spec.decimal?.scale ?? 0;
  const pgName = quoteIdent(column.spec.name);
  if (kind === "float64") {
    return {
      name,
      plan: planOf(name, { kind }, "float8"),
      pg: `sum(${pgName})`,
      duck: `sum(${duckIdent(column.spec.name)})`,
      difference: null,
    };
  }
  const spec = { kind: "decimal" as const, decimal: { precision: 38, scale } };
  const duckSum = `sum(${duckIdent(column.spec.name)})::DECIMAL(38, ${scale})`;
  // Beyond this, a sum over the deleted rows too might not fit where the answer does.
  const isRoomy = (column.spec.decimal?.precision ?? 0) <= 28;
  return {
    name,
    plan: planOf(name, spec, "numeric"),
    pg: `sum(${pgName})::numeric(38, ${scale})`,
    duck: duckSum,
    difference: isRoomy ? { sumOf: column } : null,
  };
}

function summing(column: SeamColumn): Aggregate {
  const partial = sumPartial(column);
  return { partials: [partial], combine: (node) => withAlias(node, call("sum", partial.name)) };
}

function averaging(column: SeamColumn): Aggregate {
  const sum = sumPartial(column);
  const count = must(counting(null, `n${column.attnum}`, column).partials[0], "count");
  const combine = (node: AstNode): AstNode => {
    const divide = operator("/", cast(call("sum", sum.name), "DOUBLE"), cast(call("sum", count.name), "DOUBLE"));
    return withAlias(node, divide);
  };
  return { partials: [sum, count], combine };
}

function planOf(name: string, shape: Omit<ColumnSpec, "name">, wire: WireFormat): PgColumnPlan {
  return { name, typeOid: 0, typmod: -1, spec: { name, ...shape }, wire, asText: false };
}

function heapQueryOf(shape: Shape): HeapQuery {
  const groups = shape.groups.map((g) => g.plan);
  const partials = [...shape.partials.values()];
  const names = shape.groups.map((g) => quoteIdent(g.spec.name));
  return {
    select: [...names, ...partials.map((p) => p.pg)].join(", "),
    tail: names.length === 0 ? "" : `GROUP BY ${names.join(", ")}`,
    columns: [...groups, ...partials.map((p) => p.plan)],
  };
}

function withAlias(original: AstNode, node: AstNode): AstNode {
  return { ...node, alias: textOf(original["alias"]) };
}

const PLACE = { alias: "", query_location: 0 };

function columnRef(name: string): AstNode {
  return { class: "COLUMN_REF", type: "COLUMN_REF", ...PLACE, column_names: [name] };
}

function call(name: string, column: string): AstNode {
  return functionNode(name, [columnRef(column)], false);
}

function operator(name: string, left: AstNode, right: AstNode): AstNode {
  return functionNode(name, [left, right], true);
}

function functionNode(name: string, children: AstNode[], isOperator: boolean): AstNode {
  return {
    class: "FUNCTION",
    type: "FUNCTION",
    ...PLACE,
    function_name: name,
    schema: "",
    children,
    filter: null,
    order_bys: { type: "ORDER_MODIFIER", orders: [] },
    distinct: false,
    is_operator: isOperator,
    export_state: false,
    catalog: "",
  };
}

function coalesceZero(node: AstNode): AstNode {
  const value = { type: { id: "INTEGER", type_info: null }, is_null: false, value: 0 };
  const zero = { class: "CONSTANT", type: "VALUE_CONSTANT", ...PLACE, value };
  return { class: "OPERATOR", type: "OPERATOR_COALESCE", ...PLACE, children: [node, zero] };
}

function cast(node: AstNode, type: string): AstNode {
  const castType = { id: type, type_info: null };
  return { class: "CAST", type: "OPERATOR_CAST", ...PLACE, child: node, cast_type: castType, try_cast: false };
}
