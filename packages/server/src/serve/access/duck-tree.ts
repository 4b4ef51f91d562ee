/**
 * DuckDB's parse tree of a query against the allowlist. The tree is DuckDB's own (`json_serialize_sql`), so what is checked here is
 * what is executed. A node of a kind that is not named here is refused: a newer grammar is refused until it was looked at.
 */
import { SpillwayError } from "@spillway/base/errors";
import { type JsonObject, type JsonValue, parseJson, printJson } from "@spillway/lake/json";
import { type EngineSession } from "../../engine/engine.ts";
import { type At, functionRefused, settingRefused, statementRefused, typeRefused } from "./denials.ts";
import { FUNCTIONS, MAX_SIZE, SESSION_FUNCTIONS, SHOWABLE, SIZED, TABLE_FUNCTIONS, TYPES } from "./functions.ts";

/** A name in FROM that is no common table expression. */
export interface NamedTable {
  readonly catalog: string;
  readonly schema: string;
  readonly name: string;
  readonly position?: number;
}

/** What the session answers in place of the node. Names are in lower case. */
export type SessionValue = (name: string, setting: string | null) => string | null;

export interface CheckedQuery {
  readonly tables: readonly NamedTable[];
  /** The statement with the session's values put in; null: none were asked for. */
  readonly rewritten: JsonObject | null;
}

const QUERY_NODES = new Set(["SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"]);
const TABLE_NODES = new Set([
  "BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EXPRESSION_LIST", "EMPTY", "PIVOT", "SHOW_REF", "CROSS_PRODUCT",
]); // prettier-ignore
const CLASSES = new Set([
  "COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "BETWEEN", "CASE", "CAST", "FUNCTION", "WINDOW", "OPERATOR",
  "SUBQUERY", "STAR", "PARAMETER", "LAMBDA", "COLLATE", "POSITIONAL_REFERENCE",
]); // prettier-ignore
const MODIFIERS = new Set(["LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER", "ORDER_MODIFIER", "DISTINCT_MODIFIER"]);
const ORDERS = new Set(["ORDER_DEFAULT", "ASCENDING", "DESCENDING", "INVALID"]);
const MAX_DEPTH = 500;

/** The tree of one query. Throws `sql_syntax`, and `access_statement_refused` for anything but one query. */
export async function parseDuck(session: EngineSession, sql: string): Promise<JsonObject> {
  const [row] = await session.rows("SELECT json_serialize_sql($1::VARCHAR)", { params: [sql] });
  const tree = parseJson(String(row?.[0])) as JsonObject;
  if (tree["error"] === true) throw parseError(tree);
  const statements = tree["statements"];
  if (!Array.isArray(statements) || statements.length !== 1) {
    throw statementRefused("a text of several statements");
  }
  return tree;
}

function parseError(tree: JsonObject): SpillwayError {
  const message = text(tree["error_message"]).split("\n")[0] ?? "";
  if (text(tree["error_type"]) === "not implemented") return statementRefused(`this statement (${message})`);
  const at = Number(text(tree["position"]));
  return new SpillwayError("sql_syntax", message === "" ? "the statement cannot be parsed" : message, {
    details: {
      sqlstate: "42601",
      ...(Number.isInteger(at) && tree["position"] !== undefined ? { position: at + 1 } : {}),
    },
  });
}

/** The tree as DuckDB writes it. */
export async function printDuck(session: EngineSession, tree: JsonObject): Promise<string> {
  const [row] = await session.rows("SELECT json_deserialize_sql($1::VARCHAR::JSON)", { params: [printJson(tree)] });
  return String(row?.[0]);
}

/** Throws `access_function_refused`, `access_setting_refused`, `access_statement_refused`. Changes the tree where it answers. */
export function checkQuery(tree: JsonObject, session: SessionValue): CheckedQuery {
  const statements = tree["statements"];
  const statement = Array.isArray(statements) ? statements[0] : undefined;
  const node = isObject(statement) ? statement["node"] : undefined;
  if (!isObject(node)) throw statementRefused("this statement");
  const checker = new Checker(session);
  checker.query(node, new Set(), 0);
  return { tables: checker.tables, rewritten: checker.replaced ? tree : null };
}

/** An expression by itself, as a policy has it; `user` is what `current_user` says in it. */
export function checkExpression(node: JsonObject, user: string): void {
  const names = new Set(["current_user", "session_user"]);
  const checker = new Checker((name) => {
    if (!names.has(name)) throw functionRefused(name);
    return user;
  });
  checker.value(node, new Set(), 0);
}

class Checker {
  readonly tables: NamedTable[] = [];
  replaced = false;
  readonly #session: SessionValue;

  constructor(session: SessionValue) {
    this.#session = session;
  }

  query(node: JsonObject, hidden: ReadonlySet<string>, depth: number): void {
    const type = text(node["type"]);
    if (!QUERY_NODES.has(type)) throw statementRefused(`a query with ${type || "an unknown part"}`);
    const scope = this.#ctes(node, hidden, depth);
    const inner = type === "RECURSIVE_CTE_NODE" || type === "CTE_NODE" ? plus(scope, text(node["cte_name"])) : scope;
    for (const [key, value] of Object.entries(node)) {
      if (key === "type" || key === "cte_map") continue;
      this.value(value, inner, depth + 1);
    }
  }

  /** Each body sees the names before it; a recursive one its own. */
  #ctes(node: JsonObject, hidden: ReadonlySet<string>, depth: number): ReadonlySet<string> {
    const map = node["cte_map"];
    const entries = isObject(map) && Array.isArray(map["map"]) ? map["map"].filter(isObject) : [];
    let scope = hidden;
    for (const entry of entries) {
      this.value(entry["value"], scope, depth + 1);
      scope = plus(scope, text(entry["key"]));
    }
    return scope;
  }

  value(value: JsonValue | undefined, scope: ReadonlySet<string>, depth: number): void {
    if (depth > MAX_DEPTH) throw new SpillwayError("limit_exceeded", "the statement is nested too deeply");
    if (Array.isArray(value)) {
      for (const item of value) this.value(item, scope, depth + 1);
      return;
    }
    if (!isObject(value)) return;
    const cls = value["class"];
    const type = text(value["type"]);
    if (typeof cls === "string") this.#expression(value, cls, scope, depth);
    else if (QUERY_NODES.has(type)) this.query(value, scope, depth);
    else if (TABLE_NODES.has(type)) this.#table(value, type, scope, depth);
    else {
      const known = type === "" || MODIFIERS.has(type) || ORDERS.has(type);
      if (!known) throw statementRefused(`a query with ${type}`);
      // A type stands where a value of it does; the rest are lists, orders and the like.
      if (isObject(value["type"])) this.#type(value["type"], at(value));
      for (const [key, part] of Object.entries(value)) if (key !== "type") this.value(part, scope, depth + 1);
    }
  }

  #table(node: JsonObject, type: string, scope: ReadonlySet<string>, depth: number): void {
    if (type === "BASE_TABLE") {
      const [catalog, schema] = [text(node["catalog_name"]), text(node["schema_name"])];
      const name = text(node["table_name"]);
      const isCte = catalog === "" && schema === "" && scope.has(name.toLowerCase());
      if (!isCte) this.tables.push({ catalog, schema, name, ...at(node) });
    }
    if (type === "SHOW_REF" && (!/^(DESCRIBE|SUMMARY)$/.test(text(node["show_type"])) || !isObject(node["query"]))) {
      throw statementRefused("SHOW of the engine's own things", at(node));
    }
    if (type === "TABLE_FUNCTION") {
      const call = node["function"];
      const name = isObject(call) ? text(call["function_name"]).toLowerCase() : "";
      if (!isObject(call) || !isPlainCall(call) || !TABLE_FUNCTIONS.has(name)) {
        throw functionRefused(name === "" ? "in FROM" : name, at(node));
      }
    }
    if (type === "PIVOT") this.#pivot(node);
    for (const [key, part] of Object.entries(node)) {
      if (key === "type" || key === "sample") continue;
      this.value(part, scope, depth + 1);
    }
  }

  /** The values of a dynamic PIVOT come from an enumeration type that another statement makes. */
  #pivot(node: JsonObject): void {
    const pivots = Array.isArray(node["pivots"]) ? node["pivots"].filter(isObject) : [];
    if (pivots.some((p) => text(p["pivot_enum"]) !== ""))
      throw statementRefused("a PIVOT without its values", at(node));
  }

  #expression(node: JsonObject, cls: string, scope: ReadonlySet<string>, depth: number): void {
    if (!CLASSES.has(cls)) throw statementRefused(`an expression with ${cls}`, at(node));
    if (cls === "FUNCTION" || cls === "WINDOW") {
      if (this.#call(node)) return;
    }
    if (cls === "COLUMN_REF" && this.#sessionColumn(node)) return;
    if (cls === "CAST") this.#type(node["cast_type"], at(node));
    if (cls === "CONSTANT") {
      const value = node["value"];
      if (isObject(value)) this.#type(value["type"], at(node));
      return;
    }
    for (const [key, part] of Object.entries(node)) {
      if (key === "class" || key === "type" || key === "cast_type") continue;
      if (key === "subquery" && isObject(part)) {
        const inner = part["node"];
        if (!isObject(inner)) throw statementRefused("an unknown subquery", at(node));
        this.query(inner, scope, depth + 1);
      } else this.value(part, scope, depth + 1);
    }
  }

  /** True when the call was replaced by its value. */
  #call(node: JsonObject): boolean {
    const name = text(node["function_name"]).toLowerCase();
    if (!isPlainCall(node)) throw functionRefused(name, at(node));
    const args = Array.isArray(node["children"]) ? node["children"].filter(isObject) : [];
    if (name === "current_setting") return this.#setting(node, args);
    if (SESSION_FUNCTIONS.has(name)) {
      if (args.length > 0) throw functionRefused(name, at(node));
      this.#replace(node, this.#session(name, null));
      return true;
    }
    if (!FUNCTIONS.has(name)) throw functionRefused(name, at(node));
    const sized = SIZED.get(name);
    if (sized !== undefined) {
      const value = args[sized] && isObject(args[sized]["value"]) ? args[sized]["value"]["value"] : undefined;
      const isSmall = (typeof value === "number" || typeof value === "bigint") && value <= MAX_SIZE;
      if (!isSmall) throw functionRefused(`${name} with a size that is no constant up to ${MAX_SIZE}`, at(node));
    }
    return false;
  }

  #setting(node: JsonObject, args: readonly JsonObject[]): boolean {
    const value = args[0] && isObject(args[0]["value"]) ? args[0]["value"]["value"] : undefined;
    const name = typeof value === "string" ? value.toLowerCase() : "";
    if (!SHOWABLE.has(name)) throw settingRefused(name === "" ? "of a name that is no constant" : name, at(node));
    this.#replace(node, this.#session("current_setting", name));
    return true;
  }

  /** DuckDB takes these names for function calls where there is no such column. `user` is one too often to be taken. */
  #sessionColumn(node: JsonObject): boolean {
    const names = node["column_names"];
    if (!Array.isArray(names) || names.length !== 1) return false;
    const name = text(names[0]).toLowerCase();
    if (!SESSION_FUNCTIONS.has(name) || !name.includes("_")) return false;
    this.#replace(node, this.#session(name, null));
    return true;
  }

  #replace(node: JsonObject, value: string | null): void {
    const name = text(node["alias"]) || lastName(node);
    for (const key of Object.keys(node)) delete node[key];
    const type = { id: value === null ? "NULL" : "VARCHAR", type_info: null };
    const constant = value === null ? { type, is_null: true } : { type, is_null: false, value };
    Object.assign(node, { class: "CONSTANT", type: "VALUE_CONSTANT", alias: name, query_location: 0, value: constant });
    this.replaced = true;
  }

  #type(value: JsonValue | undefined, where: At): void {
    if (!isObject(value)) return;
    const id = text(value["id"]);
    const info = value["type_info"];
    const name = id === "UNBOUND" && isObject(info) ? text(info["name"]) : id;
    const key = name.toLowerCase().replaceAll(" ", "_").replace("_with_time_zone", "_tz");
    if (!TYPES.has(key)) throw typeRefused(name, where);
    if (!isObject(info)) return;
    for (const part of Object.values(info)) this.#innerTypes(part, where);
  }

  #innerTypes(value: JsonValue, where: At): void {
    if (Array.isArray(value)) for (const item of value) this.#innerTypes(item, where);
    else if (isObject(value)) {
      if (typeof value["id"] === "string") this.#type(value, where);
      else for (const part of Object.values(value)) this.#innerTypes(part, where);
    }
  }
}

function isPlainCall(node: JsonObject): boolean {
  const [catalog, schema] = [text(node["catalog"]), text(node["schema"])];
  return (catalog === "" || catalog === "system") && ["", "main", "pg_catalog"].includes(schema);
}

function lastName(node: JsonObject): string {
  const names = node["column_names"];
  return Array.isArray(names) ? text(names.at(-1)) : text(node["function_name"]);
}

/** DuckDB's locations count bytes; for texts of ASCII that is the character. */
function at(node: JsonObject): At {
  const location = node["query_location"];
  const sound = typeof location === "number" && location >= 0 && location < 2 ** 31;
  return sound ? { position: location + 1 } : {};
}

function plus(names: ReadonlySet<string>, name: string): ReadonlySet<string> {
  return new Set([...names, name.toLowerCase()]);
}

export function isObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function text(value: JsonValue | undefined): string {
  return typeof value === "string" ? value : "";
}
