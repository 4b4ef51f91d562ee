/**
 * Statements of Postgres's grammar as trees, and what they name: relations, functions, casts. Positions of the parser are bytes of
 * UTF-8; those of clients are characters.
 */
import { loadModule, parseSync } from "libpg-query";
import { pgError } from "./wire-errors.ts";

export type SqlNode = Readonly<Record<string, unknown>>;

export interface ParsedStatement {
  /** Without the semicolon and the space around it. */
  readonly text: string;
  /** Where `text` begins in the whole, in characters. */
  readonly offset: number;
  /** `SelectStmt`, `CopyStmt`, … */
  readonly type: string;
  readonly body: SqlNode;
}

let ready: Promise<void> | null = null;

/** Loads the parser, once for the process. */
export function loadParser(): Promise<void> {
  ready ??= loadModule();
  return ready;
}

/** Throws 42601 with a position for what Postgres's grammar does not know. `loadParser` must have been awaited. */
export function parseStatements(sql: string): ParsedStatement[] {
  const bytes = Buffer.from(sql, "utf8");
  const ascii = bytes.length === sql.length;
  let tree: { stmts?: readonly { stmt?: SqlNode; stmt_location?: number; stmt_len?: number }[] };
  try {
    tree = parseSync(sql) as typeof tree;
  } catch (error) {
    const details = (error as { sqlDetails?: { cursorPosition?: number } }).sqlDetails;
    const at = details?.cursorPosition;
    const position = at === undefined ? {} : { position: at + 1 };
    throw pgError("42601", (error as Error).message, { ...position, detail: "" }, "sql_syntax");
  }
  return (tree.stmts ?? []).map(({ stmt = {}, stmt_location: from = 0, stmt_len: length }) => {
    const raw = bytes.toString("utf8", from, length ? from + length : bytes.length);
    const text = raw.trimStart();
    const before = ascii ? from : bytes.toString("utf8", 0, from).length;
    const [type = "", body = {}] = Object.entries(stmt)[0] ?? [];
    return { text: text.trimEnd(), offset: before + raw.length - text.length, type, body: body as SqlNode };
  });
}

export interface RelationRef {
  readonly schema: string | null;
  readonly name: string;
  /** Bytes from the start of the statement's whole text; -1: unknown. */
  readonly location: number;
  /** A name that the statement gives it. */
  readonly alias: string | null;
  /** Of the statement's own doing: the target of an INSERT, the table of a DROP, … */
  readonly target: boolean;
}

export interface FunctionRef {
  readonly schema: string | null;
  readonly name: string;
  readonly location: number;
  readonly args: readonly SqlNode[];
}

export interface References {
  readonly relations: readonly RelationRef[];
  readonly functions: readonly FunctionRef[];
  /** `current_user` and the like. */
  readonly values: readonly { readonly op: string; readonly location: number }[];
  /** Texts that are cast to regclass and its kin: `'t'::regclass`. */
  readonly named: readonly { readonly type: string; readonly text: string; readonly location: number }[];
  readonly types: readonly string[];
  /** Columns that are named: the last name of each reference, and all of its names. */
  readonly columns: readonly { readonly name: string; readonly path: readonly string[]; readonly location: number }[];
  /** System columns that are named. */
  readonly systemColumns: ReadonlySet<string>;
  readonly hasParams: boolean;
  /** A query that writes: data-modifying WITH, INTO, FOR UPDATE. */
  readonly writes: boolean;
}

const SYSTEM_COLUMNS = new Set(["tableoid", "xmin", "xmax", "cmin", "cmax", "ctid"]);

interface Found {
  relations: RelationRef[];
  functions: FunctionRef[];
  values: { op: string; location: number }[];
  named: { type: string; text: string; location: number }[];
  types: string[];
  columns: { name: string; path: readonly string[]; location: number }[];
  systemColumns: Set<string>;
  hasParams: boolean;
  writes: boolean;
  ctes: Set<string>;
}

/** All that a statement names. Names of its own WITH queries are left out unless they are qualified. */
export function referencesOf(type: string, body: SqlNode): References {
  const found: Found = {
    relations: [],
    functions: [],
    values: [],
    named: [],
    types: [],
    columns: [],
    systemColumns: new Set(),
    hasParams: false,
    writes: WRITING.has(type),
    ctes: new Set(),
  };
  visit(type, body, found, 0);
  if (type === "DropStmt" || type === "CommentStmt") namedObjects(body, found);
  return { ...found, relations: found.relations.filter((r) => r.schema !== null || !found.ctes.has(r.name)) };
}

const WRITING = new Set(["InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"]);
const MAX_DEPTH = 3000;

function visit(key: string, value: unknown, found: Found, depth: number): void {
  if (depth > MAX_DEPTH) throw pgError("54001", "stack depth limit exceeded");
  if (Array.isArray(value)) {
    for (const item of value) visit("", item, found, depth + 1);
    return;
  }
  if (typeof value !== "object" || value === null) return;
  const node = value as SqlNode;
  note(key, node, found);
  for (const [name, child] of Object.entries(node)) visit(name, child, found, depth + 1);
}

function note(key: string, node: SqlNode, found: Found): void {
  if (typeof node["relname"] === "string" && "relpersistence" in node) {
    found.relations.push(relationOf(node, key === "relation" || key === "rel" || key === "view"));
    return;
  }
  if (WRITING.has(key) || key === "intoClause" || key === "LockingClause") found.writes = true;
  switch (key) {
    case "FuncCall": {
      const names = stringsOf(node["funcname"]);
      const args = Array.isArray(node["args"]) ? (node["args"] as SqlNode[]) : [];
      const schema = names.length > 1 ? (names.at(-2) ?? null) : null;
      found.functions.push({ schema, name: names.at(-1) ?? "", location: numberOf(node["location"]), args });
      return;
    }
    case "SQLValueFunction":
      found.values.push({ op: String(node["op"]), location: numberOf(node["location"]) });
      return;
    case "CommonTableExpr":
      found.ctes.add(String(node["ctename"]));
      return;
    case "ParamRef":
      found.hasParams = true;
      return;
    case "ColumnRef": {
      const path = stringsOf(node["fields"]);
      const last = path.at(-1);
      if (last !== undefined) found.columns.push({ name: last, path, location: numberOf(node["location"]) });
      if (last !== undefined && SYSTEM_COLUMNS.has(last)) found.systemColumns.add(last);
      return;
    }
    case "TypeCast": {
      const type = stringsOf((node["typeName"] as SqlNode | undefined)?.["names"]).at(-1) ?? "";
      found.types.push(type);
      const constant = (node["arg"] as SqlNode | undefined)?.["A_Const"] as SqlNode | undefined;
      const ival = (constant?.["ival"] as SqlNode | undefined)?.["ival"];
      const text =
        (constant?.["sval"] as SqlNode | undefined)?.["sval"] ?? (ival === undefined ? undefined : String(ival));
      if (type.startsWith("reg") && typeof text === "string") {
        found.named.push({ type, text, location: numberOf(constant?.["location"]) });
      }
    }
  }
}

function relationOf(node: SqlNode, target: boolean): RelationRef {
  const alias = (node["alias"] as SqlNode | undefined)?.["aliasname"];
  return {
    schema: typeof node["schemaname"] === "string" ? node["schemaname"] : null,
    name: String(node["relname"]),
    location: numberOf(node["location"], -1),
    alias: typeof alias === "string" ? alias : null,
    target,
  };
}

const RELATION_KINDS =
  /^OBJECT_(TABLE|VIEW|MATVIEW|INDEX|SEQUENCE|FOREIGN_TABLE|COLUMN|TRIGGER|RULE|TABCONSTRAINT|POLICY)$/;

/** Names in DROP and COMMENT are bare lists of strings. */
function namedObjects(body: SqlNode, found: Found): void {
  const kind = String(body["removeType"] ?? body["objtype"] ?? "");
  if (!RELATION_KINDS.test(kind)) return;
  const lists = Array.isArray(body["objects"]) ? (body["objects"] as unknown[]) : [body["object"]];
  // The last name of a column, trigger or constraint is its own.
  const inner = /(COLUMN|TRIGGER|RULE|TABCONSTRAINT|POLICY)$/.test(kind) ? 1 : 0;
  for (const list of lists) {
    const names = stringsOf(((list as SqlNode | undefined)?.["List"] as SqlNode | undefined)?.["items"]);
    const path = inner === 0 ? names : names.slice(0, -1);
    const name = path.at(-1);
    if (name === undefined) continue;
    found.relations.push({ schema: path.at(-2) ?? null, name, location: -1, alias: null, target: true });
  }
}

/** The strings of a list of String nodes. */
export function stringsOf(list: unknown): string[] {
  if (!Array.isArray(list)) return [];
  return list.flatMap((item) => {
    const text = ((item as SqlNode)["String"] as SqlNode | undefined)?.["sval"];
    return typeof text === "string" ? [text] : [];
  });
}

/** The options of a `WITH (…)` or of COPY, names in lower case; an option without a value is true. */
export function optionsOf(list: unknown): Map<string, unknown> {
  const options = new Map<string, unknown>();
  if (!Array.isArray(list)) return options;
  for (const item of list) {
    const element = (item as SqlNode)["DefElem"] as SqlNode | undefined;
    if (element) options.set(String(element["defname"]).toLowerCase(), scalarOf(element["arg"]));
  }
  return options;
}

function scalarOf(arg: unknown): unknown {
  if (arg === undefined) return true;
  const [type = "", body = {}] = Object.entries(arg as SqlNode)[0] ?? [];
  const node = body as SqlNode;
  switch (type) {
    case "String":
      return node["sval"] ?? "";
    case "Integer":
      return node["ival"] ?? 0;
    case "Float":
      return node["fval"];
    case "Boolean":
      return node["boolval"] ?? false;
    case "List":
      return stringsOf(node["items"]);
    default:
      return type === "A_Star" ? "*" : node;
  }
}

function numberOf(value: unknown, missing = 0): number {
  return typeof value === "number" ? value : missing;
}

/** A constant's text, as SET and EXECUTE take it; null for NULL; undefined for what is no constant. */
export function constantOf(node: SqlNode): string | null | undefined {
  const cast = node["TypeCast"] as SqlNode | undefined;
  if (cast) return constantOf(cast["arg"] as SqlNode);
  const constant = node["A_Const"] as SqlNode | undefined;
  if (!constant) {
    const column = node["ColumnRef"] as SqlNode | undefined;
    return column ? stringsOf(column["fields"])[0] : undefined;
  }
  if (constant["isnull"] === true) return null;
  if ("sval" in constant) return String((constant["sval"] as SqlNode)["sval"] ?? "");
  if ("ival" in constant) return String((constant["ival"] as SqlNode)["ival"] ?? 0);
  if ("fval" in constant) return String((constant["fval"] as SqlNode)["fval"]);
  if ("boolval" in constant) return (constant["boolval"] as SqlNode)["boolval"] === true ? "true" : "false";
  return undefined;
}
