/** SET, USE, RESET and SHOW, from their parse trees. */
import { SpillwayError } from "@spillway/base/errors";
import type { PgNode } from "../plan/classify.ts";
import type { SessionParameters } from "./parameters.ts";

/** Throws `session_parameter`, `sql_unsupported`. */
export function applySet(parameters: SessionParameters, tree: PgNode, inTransaction: boolean): void {
  const use = tree["Use"];
  if (typeof use === "string") {
    parameters.set("search_path", quoted(use), false);
    return;
  }
  const node = (tree["VariableSetStmt"] ?? {}) as PgNode;
  const name = String(node["name"] ?? "");
  const kind = String(node["kind"]);
  const isLocal = node["is_local"] === true;
  // Outside of a transaction SET LOCAL has no effect.
  if (isLocal && !inTransaction) return;
  if (kind === "VAR_SET_MULTI") {
    for (const [option, value] of multi(node))
      parameters.set(option, value, option.startsWith("transaction_") && inTransaction);
    return;
  }
  if (name === "session_authorization" || name === "role") {
    throw new SpillwayError("sql_unsupported", "A session keeps the user that it was opened by.", {
      details: { sqlstate: "42501" },
    });
  }
  const values = ((node["args"] ?? []) as readonly PgNode[]).map(constantOf);
  if (kind === "VAR_SET_DEFAULT") parameters.set(name, null, isLocal);
  else if (name === "search_path") parameters.set(name, values.map(quoted).join(", "), isLocal);
  else parameters.set(name, values.join(", "), isLocal);
}

/** Null: RESET ALL. */
export function resetName(node: PgNode): string | null {
  return node["kind"] === "VAR_RESET_ALL" ? null : String(node["name"] ?? "");
}

export function showName(node: PgNode): string {
  return String(node["name"] ?? "").toLowerCase();
}

/** SET TRANSACTION …, SET SESSION CHARACTERISTICS AS TRANSACTION …. */
function multi(node: PgNode): (readonly [string, string])[] {
  const prefix = node["name"] === "SESSION CHARACTERISTICS" ? "default_" : "";
  return ((node["args"] ?? []) as readonly PgNode[]).flatMap((arg) => {
    const def = (arg["DefElem"] ?? {}) as PgNode;
    const name = String(def["defname"] ?? "");
    if (name === "transaction_deferrable") return [];
    const value = constantOf((def["arg"] ?? {}) as PgNode);
    return [[`${prefix}${name}`, value] as const];
  });
}

function constantOf(node: PgNode): string {
  const cast = node["TypeCast"] as PgNode | undefined;
  if (cast) return constantOf((cast["arg"] ?? {}) as PgNode);
  const constant = (node["A_Const"] ?? node) as PgNode;
  const part = (key: string, field: string): unknown => (constant[key] as PgNode | undefined)?.[field];
  const text = part("sval", "sval") ?? part("fval", "fval") ?? part("String", "sval");
  if (typeof text === "string") return text;
  if ("boolval" in constant) return part("boolval", "boolval") === true ? "on" : "off";
  // The parser leaves out zeros.
  return String(part("ival", "ival") ?? part("Integer", "ival") ?? 0);
}

function quoted(name: string): string {
  return /^[a-z_][a-z0-9_]*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`;
}
