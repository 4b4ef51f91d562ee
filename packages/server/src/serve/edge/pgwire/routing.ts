/**
 * Which way a statement goes, decided from its tree and from what the source looks like to this user: to the source as it is, over the
 * login of the mapped role; to the system catalogs, filtered; or to the session, which knows tiers and policies. Nothing runs here.
 *
 * To the source goes only what touches plain objects of Postgres that the user is granted without any policy. A statement of a kind
 * that is not listed, a function that runs text, a server file or program, or another role is refused.
 */
import type { RelationFacts, SourceView } from "./ports.ts";
import type { FunctionRef, ParsedStatement, References, RelationRef } from "./sql-tree.ts";
import { pgError } from "./wire-errors.ts";

export type Way = "session" | "mapped" | "catalog";

export interface RouteInput {
  readonly statement: Pick<ParsedStatement, "type" | "body" | "offset">;
  readonly references: References;
  readonly view: SourceView;
  /** Schemas in which unqualified names are looked up, in order. */
  readonly searchPath: readonly string[];
  /** For positions of errors: bytes before the statement's own text are counted. */
  readonly position: (location: number) => number | undefined;
}

/** Kinds that may pass to the source. */
const PASSING = new Set([
  "SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt", "TruncateStmt", "CopyStmt", "ExplainStmt", "LockStmt",
  "CreateStmt", "CreateTableAsStmt", "ViewStmt", "IndexStmt", "AlterTableStmt", "RenameStmt", "DropStmt", "CommentStmt",
  "CreateSeqStmt", "AlterSeqStmt", "CreateSchemaStmt", "CreateEnumStmt", "AlterEnumStmt", "CreateDomainStmt", "AlterDomainStmt",
  "CompositeTypeStmt", "CreateRangeStmt", "AlterObjectSchemaStmt", "CreateStatsStmt", "RefreshMatViewStmt", "VacuumStmt",
  "ReindexStmt", "ClusterStmt", "GrantStmt", "ConstraintsSetStmt", "DeclareCursorStmt", "FetchStmt", "ClosePortalStmt",
  "PrepareStmt", "ExecuteStmt", "DeallocateStmt", "NotifyStmt", "ListenStmt", "UnlistenStmt",
  "VariableSetStmt", "VariableShowStmt", "DiscardStmt", "TransactionStmt",
]); // prettier-ignore

/** Kinds that define code that runs later, out of sight: only for users whom no policy holds. */
const DEFINING = new Set(["CreateFunctionStmt", "CreateTrigStmt", "RuleStmt", "AlterFunctionStmt", "CallStmt"]);

const DENIED: Readonly<Record<string, string>> = {
  DoStmt: "DO",
  LoadStmt: "LOAD",
  AlterSystemStmt: "ALTER SYSTEM",
};

/** Functions that run SQL given as text, reach the server's files, or change who one is. */
const DENIED_FUNCTION =
  /^(query_to_xml|query_to_xmlschema|query_to_xml_and_xmlschema|cursor_to_xml|cursor_to_xmlschema|(table|schema|database)_to_xml(schema|_and_xmlschema)?|ts_stat|ts_rewrite|lo_import|lo_export|pg_read_(binary_)?file|pg_stat_file|pg_ls_.*|pg_logdir_ls|pg_file_.*|pg_execute_server_program|dblink.*|pg_reload_conf|pg_rotate_logfile|pg_terminate_backend|pg_switch_wal|pg_promote)$/;

/**
 * Throws what is refused; else says the way. `orMapped`: functions in it that Postgres does not know; when the session does not know them
 * either, the source has the words for it.
 */
export function routeOf(input: RouteInput): { readonly way: Way; readonly orMapped: boolean } {
  const unknown = input.references.functions.some((ref) => isUnknownFunction(ref, input.view));
  const way = wayOf(input);
  return way === "mapped" && unknown ? { way: "session", orMapped: true } : { way, orMapped: false };
}

function wayOf(input: RouteInput): Way {
  const { statement, references, view } = input;
  const denied = DENIED[statement.type];
  if (denied !== undefined) throw deniedError(`${denied} is not allowed here`);
  if (statement.type === "CopyStmt") checkCopy(statement.body);
  for (const ref of references.functions) checkFunction(ref);
  const tables = references.relations.map((ref) => ({ ref, found: findRelation(ref, view, input.searchPath) }));
  const isCatalog = ({ ref, found }: Named): boolean => found === null && isCatalogName(ref);
  const catalogs = tables.filter(isCatalog);
  const others = tables.filter((table) => !isCatalog(table));
  const hidden = others.find(({ found }) => found !== null && !found.visible);
  if (hidden) throw missing(hidden.ref, input);
  if (others.some(({ found }) => found !== null && (found.seam || found.restricted))) {
    if (catalogs.length > 0) {
      throw pgError("0A000", "system catalogs cannot be joined with tables across the tiers or under a policy");
    }
    return "session";
  }
  const isFree = view.relations.every((relation) => relation.visible && !relation.restricted);
  if (catalogs.length > 0 && !isFree && others.length > 0) {
    throw pgError("0A000", "system catalogs cannot be joined with tables in one statement");
  }
  if (wantsCatalog(input, catalogs.length > 0, isFree)) return "catalog";
  if (view.mappedLogin === null || isLakeOnly(statement)) return "session";
  const runsHidden = references.functions.some((ref) => isUserFunction(ref, view));
  if ((DEFINING.has(statement.type) || runsHidden) && !isFree) {
    throw deniedError("functions of the database may read what a policy hides from you");
  }
  if (!PASSING.has(statement.type) && !DEFINING.has(statement.type)) {
    throw deniedError(`statements of the kind ${statement.type.replace(/Stmt$/, "")} are not allowed here`);
  }
  for (const { ref, found } of others) if (found) checkPrivilege(ref, found, input);
  return "mapped";
}

interface Named {
  readonly ref: RelationRef;
  readonly found: RelationFacts | null;
}

/** Queries over the system catalogs by users who do not see everything, or have no login of their own. */
function wantsCatalog({ references, view, statement }: RouteInput, names: boolean, isFree: boolean): boolean {
  if (view.catalogLogin === null || statement.type !== "SelectStmt" || references.writes) return false;
  if (names) return view.mappedLogin === null || !isFree;
  if (view.mappedLogin !== null || references.relations.length > 0) return false;
  return (
    references.values.length > 0 ||
    references.types.some((type) => type.startsWith("reg")) ||
    references.functions.some(({ schema, name }) => schema === "pg_catalog" || CATALOG_ONLY.test(name))
  );
}

/** Functions that only Postgres can answer. */
const CATALOG_ONLY =
  /^(version|current_(database|schemas?)|pg_[a-z_]+|to_reg[a-z]+|format_type|has_[a-z_]+_privilege|obj_description|col_description|shobj_description|current_setting|inet_(server|client)_(addr|port)|txid_current)$/;

export function isCatalogName({ schema, name }: { readonly schema: string | null; readonly name: string }): boolean {
  if (schema !== null) return schema === "pg_catalog" || schema === "information_schema";
  return name.startsWith("pg_");
}

/** `CREATE TABLE … USING iceberg` makes a table of the lake alone. */
function isLakeOnly({ type, body }: RouteInput["statement"]): boolean {
  const into = (body["into"] as Record<string, unknown> | undefined) ?? body;
  return (type === "CreateStmt" || type === "CreateTableAsStmt") && into["accessMethod"] === "iceberg";
}

function findRelation(ref: RelationRef, view: SourceView, searchPath: readonly string[]): RelationFacts | null {
  const bySchema = indexOf(view);
  if (ref.schema !== null) return bySchema.get(keyOf(ref.schema, ref.name)) ?? null;
  for (const schema of searchPath) {
    const found = bySchema.get(keyOf(schema, ref.name));
    // A catalog's name hides a table's unless the path says otherwise.
    if (found) return found;
  }
  return null;
}

const indexes = new WeakMap<SourceView, Map<string, RelationFacts>>();

function indexOf(view: SourceView): Map<string, RelationFacts> {
  const known = indexes.get(view);
  if (known) return known;
  const made = new Map(view.relations.map((relation) => [keyOf(relation.schema, relation.name), relation]));
  indexes.set(view, made);
  return made;
}

function keyOf(schema: string, name: string): string {
  return `${schema}\0${name}`;
}

function checkCopy(body: Readonly<Record<string, unknown>>): void {
  if (body["is_program"] === true) throw deniedError("COPY to or from a program is not allowed here");
  if (typeof body["filename"] === "string") {
    throw deniedError("COPY to or from a file of the server is not allowed here; use STDIN or STDOUT");
  }
}

function checkFunction({ schema, name, args }: FunctionRef): void {
  if (DENIED_FUNCTION.test(name)) throw deniedError(`the function ${name} is not allowed here`);
  if (name !== "set_config" || (schema !== null && schema !== "pg_catalog")) return;
  const constant = (args[0]?.["A_Const"] as { sval?: { sval?: string } } | undefined)?.sval?.sval;
  if (constant === undefined || isRoleSetting(constant)) throw deniedError("set_config may not change the role");
}

export function isRoleSetting(name: string): boolean {
  return /^(role|session_authorization)$/i.test(name.trim());
}

function isUserFunction({ schema, name }: FunctionRef, view: SourceView): boolean {
  return schema !== "pg_catalog" && view.functions.get(name) === "user";
}

function isUnknownFunction({ schema, name }: FunctionRef, view: SourceView): boolean {
  return schema === null && !view.functions.has(name) && !SYNTAX_FUNCTIONS.has(name);
}

/** Names that the grammar makes and pg_proc may lack in older servers. */
const SYNTAX_FUNCTIONS = new Set([
  "coalesce",
  "greatest",
  "least",
  "nullif",
  "xmlexists",
  "overlay",
  "position",
  "normalize",
]);

const NEEDS: Readonly<Record<string, string>> = {
  InsertStmt: "insert",
  UpdateStmt: "update",
  DeleteStmt: "delete",
  MergeStmt: "update",
  TruncateStmt: "delete",
  SelectStmt: "select",
  ExplainStmt: "select",
  DeclareCursorStmt: "select",
  PrepareStmt: "select",
};

function checkPrivilege(ref: RelationRef, found: RelationFacts, input: RouteInput): void {
  const { type, body } = input.statement;
  const asTarget = type === "CopyStmt" ? (body["is_from"] === true ? "insert" : "select") : (NEEDS[type] ?? "ddl");
  const needed = ref.target ? asTarget : "select";
  if (found.privileges.has(needed)) return;
  throw pgError("42501", `permission denied for table ${found.name}`);
}

function missing(ref: RelationRef, input: RouteInput): Error {
  const shown = ref.schema === null ? ref.name : `${ref.schema}.${ref.name}`;
  const position = ref.location < 0 ? undefined : input.position(ref.location);
  return pgError("42P01", `relation "${shown}" does not exist`, position === undefined ? {} : { position });
}

function deniedError(message: string): Error {
  return pgError("42501", message, {}, "passthrough_denied");
}

/** The schemas of a `search_path` value: `"$user", public`. */
export function searchPathOf(setting: string, user: string): string[] {
  const names = setting.match(/"(?:[^"]|"")*"|[^,\s][^,]*/g) ?? [];
  return names.map((raw) => {
    const name = raw.trim();
    const bare = name.startsWith('"') ? name.slice(1, -1).replaceAll('""', '"') : name.toLowerCase();
    return bare === "$user" ? user : bare;
  });
}
