/**
 * The expressions of policies as SQL that can stand in a view: parsed, checked against the allowlist, the parameters put into the tree
 * as constants, and printed from the tree. No text of a user is ever pasted into another text.
 */
import { SpillwayError } from "@spillway/base/errors";
import type { JsonObject, JsonValue } from "@spillway/lake/json";
import type { EngineSession } from "../../engine/engine.ts";
import { checkExpression, isObject, parseDuck, printDuck, text } from "./duck-tree.ts";
import { AGGREGATES } from "./functions.ts";

/** Who `${user}` and the others are. */
export interface PolicyParams {
  readonly user: string;
  readonly tenant: string;
  readonly roles: readonly string[];
  readonly groups: readonly string[];
}

const AGGREGATE_NAMES = new Set(AGGREGATES);
const NAMES = ["user", "tenant", "roles", "groups"] as const;

/** Throws `access_policy_invalid`. */
export async function compilePolicy(session: EngineSession, source: string, params: PolicyParams): Promise<string> {
  const marked = markParameters(source);
  let tree: JsonObject;
  try {
    tree = await parseDuck(session, `SELECT (\n${marked}\n)`);
  } catch (error) {
    throw invalid(source, error instanceof Error ? error.message : "it cannot be parsed", error);
  }
  const expression = soleExpression(tree, source);
  requireScalar(expression, source);
  try {
    checkExpression(expression, params.user);
  } catch (error) {
    throw invalid(source, error instanceof Error ? error.message : "", error);
  }
  bind(tree, params);
  const printed = (await printDuck(session, tree)).trim().replace(/;$/, "");
  if (!printed.startsWith("SELECT ")) throw invalid(source, "it cannot be written back");
  return printed.slice("SELECT ".length);
}

/**
 * `${user}` becomes the parameter `$user`, where a value can stand: not in a string, a quoted name or a comment, in which it
 * would be a text. Dollar signs mean nothing else here.
 */
export function markParameters(source: string): string {
  let out = "";
  let i = 0;
  while (i < source.length) {
    const rest = source.slice(i);
    const quoted = /^(?:'(?:[^']|'')*'|"(?:[^"]|"")*")/.exec(rest)?.[0];
    const parameter = /^\$\{(\w+)\}/.exec(rest);
    if (quoted !== undefined) {
      if (quoted.includes("${")) throw invalid(source, "a parameter stands inside quotes");
      out += quoted;
      i += quoted.length;
    } else if (parameter) {
      const name = NAMES.find((n) => n === parameter[1]);
      if (name === undefined) throw invalid(source, `there is no parameter ${parameter[0]}`);
      out += ` $${name} `;
      i += parameter[0].length;
    } else if (/^(?:--|\/\*|\$|;|'|")/.test(rest) || /^[eE]'/.test(rest)) {
      throw invalid(source, `${JSON.stringify(rest.slice(0, 2))} cannot stand in a policy`);
    } else {
      out += source[i] ?? "";
      i += 1;
    }
  }
  return out;
}

/** The one expression of `SELECT (…)`: whatever else the text smuggled in stands somewhere else in the tree. */
function soleExpression(tree: JsonObject, source: string): JsonObject {
  const [statement] = Array.isArray(tree["statements"]) ? tree["statements"] : [];
  const node = isObject(statement) ? statement["node"] : undefined;
  const items = isObject(node) && node["type"] === "SELECT_NODE" ? node["select_list"] : undefined;
  const [only] = Array.isArray(items) && items.length === 1 ? items : [];
  if (!isObject(node) || !isObject(only)) throw invalid(source, "it is not one expression");
  const from = node["from_table"];
  const empty =
    isObject(from) &&
    from["type"] === "EMPTY" &&
    ["where_clause", "having", "qualify", "sample"].every((key) => node[key] === null || node[key] === undefined) &&
    ["modifiers", "group_expressions", "group_sets"].every((key) => isEmpty(node[key])) &&
    isEmpty(isObject(node["cte_map"]) ? node["cte_map"]["map"] : undefined);
  if (!empty) throw invalid(source, "it is not one expression");
  return only;
}

function isEmpty(value: JsonValue | undefined): boolean {
  return value === undefined || value === null || (Array.isArray(value) && value.length === 0);
}

/** A value for each row: nothing that looks at other rows or at all columns. */
function requireScalar(value: JsonValue | undefined, source: string): void {
  if (Array.isArray(value)) for (const item of value) requireScalar(item, source);
  if (!isObject(value)) return;
  const cls = text(value["class"]);
  if (["WINDOW", "STAR", "SUBQUERY", "POSITIONAL_REFERENCE"].includes(cls)) {
    throw invalid(source, `it holds a ${cls.toLowerCase().replaceAll("_", " ")}`);
  }
  if (cls === "FUNCTION" && AGGREGATE_NAMES.has(text(value["function_name"]).toLowerCase())) {
    throw invalid(source, "it holds an aggregate");
  }
  for (const part of Object.values(value)) requireScalar(part, source);
}

function bind(value: JsonValue | undefined, params: PolicyParams): void {
  if (Array.isArray(value)) for (const item of value) bind(item, params);
  if (!isObject(value)) return;
  if (value["class"] === "PARAMETER") {
    const name = NAMES.find((n) => n === text(value["identifier"])) ?? "user";
    const given = params[name];
    const made = typeof given === "string" ? constant(given) : listOf(given);
    for (const key of Object.keys(value)) delete value[key];
    Object.assign(value, made);
    return;
  }
  // The statement no longer has parameters.
  if (value["named_param_map"] !== undefined) value["named_param_map"] = [];
  for (const part of Object.values(value)) bind(part, params);
}

function constant(value: string): JsonObject {
  const type = { id: "VARCHAR", type_info: null };
  return {
    class: "CONSTANT",
    type: "VALUE_CONSTANT",
    alias: "",
    query_location: 0,
    value: { type, is_null: false, value },
  };
}

function listOf(values: readonly string[]): JsonObject {
  const call = {
    class: "FUNCTION",
    type: "FUNCTION",
    alias: "",
    query_location: 0,
    function_name: "list_value",
    schema: "main",
    catalog: "",
    children: values.map(constant),
    filter: null,
    order_bys: { type: "ORDER_MODIFIER", orders: [] },
    distinct: false,
    is_operator: false,
    export_state: false,
  };
  const child = { id: "VARCHAR", type_info: null };
  const info = { type: "LIST_TYPE_INFO", alias: "", extension_info: null, child_type: child };
  return {
    class: "CAST",
    type: "OPERATOR_CAST",
    alias: "",
    query_location: 0,
    child: call,
    cast_type: { id: "LIST", type_info: info },
    try_cast: false,
  };
}

function invalid(source: string, why: string, cause?: unknown): SpillwayError {
  return new SpillwayError("access_policy_invalid", `the policy ${JSON.stringify(source)}: ${why}`, { cause });
}
