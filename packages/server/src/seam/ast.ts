/**
 * DuckDB's own parse tree of a SELECT, as `json_serialize_sql` gives it: the one parser, so what is analyzed here is
 * what is executed. Only what the seam looks at is typed; the rest is passed through.
 */
import { SpillwayError } from "@spillway/base/errors";
import { duckLiteral, type EngineSession } from "../engine/engine.ts";
import type { TextCache } from "./text-cache.ts";
import { parseJson, printJson, type JsonObject, type JsonValue } from "@spillway/lake/json";

export type AstNode = JsonObject;

/** One parsed statement; `tree` is the whole JSON, whose nodes may be changed in place. */
export interface ParsedSelect {
  readonly tree: AstNode;
  /** The statement's query node: SELECT_NODE, SET_OPERATION_NODE, … */
  readonly node: AstNode;
}

/** Throws `sql_syntax`, or `sql_unsupported` for anything but one SELECT. */
export async function parseSelect(session: EngineSession, sql: string, cache?: TextCache): Promise<ParsedSelect> {
  const text = cache ? await cache.get(`parse\0${sql}`, () => serialize(session, sql)) : await serialize(session, sql);
  const tree = parseJson(text) as AstNode;
  const statements = tree["statements"];
  if (!Array.isArray(statements) || statements.length !== 1) {
    const count = Array.isArray(statements) ? statements.length : 0;
    throw new SpillwayError("sql_unsupported", `Expected one statement and got ${count}.`);
  }
  const node = isNode(statements[0]) ? statements[0]["node"] : undefined;
  if (!isNode(node)) throw new SpillwayError("sql_unsupported", "The statement is no query.");
  return { tree, node };
}

async function serialize(session: EngineSession, sql: string): Promise<string> {
  const [row] = await session.rows("SELECT json_serialize_sql($1::VARCHAR)", { params: [sql] });
  const text = String(row?.[0]);
  if (text.startsWith('{"error":true')) {
    const tree = parseJson(text) as AstNode;
    throw parseError(textOf(tree["error_message"]), textOf(tree["error_type"]));
  }
  return text;
}

function parseError(message: string, type: string): SpillwayError {
  const only = /only select statements/i.test(message);
  if (only) return new SpillwayError("sql_unsupported", "Only a SELECT can be run here.");
  const code = type === "not implemented" ? "sql_unsupported" : "sql_syntax";
  return new SpillwayError(code, message.split("\n")[0] ?? "The statement cannot be parsed.");
}

/** The SQL of a tree, as DuckDB writes it. */
export async function printSelect(session: EngineSession, tree: AstNode): Promise<string> {
  const [row] = await session.rows(`SELECT json_deserialize_sql(${duckLiteral(printJson(tree))}::JSON)`);
  return String(row?.[0]);
}

export function isNode(value: JsonValue | undefined): value is AstNode {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function nodesOf(value: JsonValue | undefined): AstNode[] {
  return Array.isArray(value) ? value.filter(isNode) : [];
}

export function textsOf(value: JsonValue | undefined): string[] {
  return Array.isArray(value) ? value.filter((v): v is string => typeof v === "string") : [];
}

export function textOf(value: JsonValue | undefined): string {
  return typeof value === "string" ? value : "";
}

/** Every object below a value, itself first. */
export function* walk(value: JsonValue | undefined): Generator<AstNode> {
  if (Array.isArray(value)) for (const item of value) yield* walk(item);
  else if (isNode(value)) {
    yield value;
    for (const key of Object.keys(value)) yield* walk(value[key]);
  }
}

/** A reference to a table by name, outside of common table expressions of that name. */
export interface TableRef {
  /** The BASE_TABLE node: renaming it redirects the reference. */
  readonly node: AstNode;
  readonly catalog: string;
  readonly schema: string;
  readonly name: string;
  /** The name under which the query's expressions know it. */
  readonly alias: string;
  /** The SELECT_NODE whose FROM it is in; null in other places (PIVOT and the like). */
  readonly select: AstNode | null;
}

/** The references of a query, in the order of the text. */
export function tableRefs(node: AstNode): TableRef[] {
  const found: TableRef[] = [];
  visit(node, new Set(), null, found);
  return found;
}

function visit(
  value: JsonValue | undefined,
  hidden: ReadonlySet<string>,
  select: AstNode | null,
  found: TableRef[],
): void {
  if (Array.isArray(value)) {
    for (const item of value) visit(item, hidden, select, found);
    return;
  }
  if (!isNode(value)) return;
  if (value["type"] === "BASE_TABLE") {
    const name = textOf(value["table_name"]);
    const schema = textOf(value["schema_name"]);
    if (schema === "" && hidden.has(name.toLowerCase())) return;
    const alias = textOf(value["alias"]) || name;
    found.push({ node: value, catalog: textOf(value["catalog_name"]), schema, name, alias, select });
    visit(value["at_clause"], hidden, null, found);
    return;
  }
  const scope = visitCtes(value, hidden, found);
  for (const key of Object.keys(value)) {
    if (key === "cte_map") continue;
    if (key === "from_table" && value["type"] === "SELECT_NODE") visit(value[key], scope, value, found);
    else if (key === "subquery" || key === "node") visit(value[key], scope, null, found);
    else visit(value[key], scope, value["type"] === "SELECT_NODE" ? null : select, found);
  }
}

/** Visits the bodies of a node's CTEs, each of which sees those before it, and returns what the node itself sees. */
function visitCtes(node: AstNode, hidden: ReadonlySet<string>, found: TableRef[]): ReadonlySet<string> {
  const entries = isNode(node["cte_map"]) ? nodesOf(node["cte_map"]["map"]) : [];
  if (entries.length === 0) {
    // The node of a recursive CTE sees itself.
    return node["type"] === "RECURSIVE_CTE_NODE" ? with_(hidden, textOf(node["cte_name"])) : hidden;
  }
  let scope = hidden;
  for (const entry of entries) {
    visit(entry["value"], scope, null, found);
    scope = with_(scope, textOf(entry["key"]));
  }
  return scope;
}

function with_(names: ReadonlySet<string>, name: string): ReadonlySet<string> {
  return new Set([...names, name.toLowerCase()]);
}

/** Whether the tree has a node type for which names cannot be followed: then every column may be used. */
const OPAQUE = new Set(["PIVOT", "SHOW_REF"]);

/**
 * The columns of a reference that the query may use, by a rule that can only find too many: those whose name appears
 * anywhere as a part of a column name; all where a star, a natural join or the whole row may mean them.
 */
export function usedNames(root: AstNode): (ref: TableRef, columns: readonly string[]) => readonly string[] {
  const names = new Set<string>();
  const starred = new Set<string>();
  const starSelects = new Set<AstNode>();
  let all = false;
  for (const node of walk(root)) {
    const type = textOf(node["type"]);
    if (OPAQUE.has(type) || node["ref_type"] === "NATURAL") all = true;
    for (const name of [...textsOf(node["column_names"]), ...textsOf(node["using_columns"])])
      names.add(name.toLowerCase());
    if (type === "SELECT_NODE") {
      for (const star of ownStars(node)) {
        const relation = textOf(star["relation_name"]);
        if (relation === "") starSelects.add(node);
        else starred.add(relation.toLowerCase());
      }
    }
  }
  return (ref, columns) => {
    const alias = ref.alias.toLowerCase();
    const whole = all || ref.select === null || starSelects.has(ref.select) || starred.has(alias) || names.has(alias);
    const hasOwnNames = textsOf(ref.node["column_name_alias"]).length > 0;
    return whole || hasOwnNames ? columns : columns.filter((c) => names.has(c.toLowerCase()));
  };
}

/** The stars of a SELECT itself, not those of the queries inside it. */
function* ownStars(select: AstNode): Generator<AstNode> {
  for (const key of Object.keys(select)) {
    if (key !== "from_table" && key !== "cte_map") yield* stars(select[key]);
  }
}

function* stars(value: JsonValue | undefined): Generator<AstNode> {
  if (Array.isArray(value)) for (const item of value) yield* stars(item);
  else if (isNode(value)) {
    if (value["type"] === "SELECT_NODE") return;
    if (value["class"] === "STAR") yield value;
    for (const key of Object.keys(value)) yield* stars(value[key]);
  }
}
