/**
 * Queries over the system catalogs, for users who do not see everything: the source's own Postgres answers them, with its own oids,
 * but each catalog stands for the rows of what the user may see. The rewritten text runs on a read-only connection of a service
 * login, so only catalogs and functions of the lists below may be in it.
 */
import { quoteIdent, quoteLiteral } from "@spillway/pg/quote";
import { guardedName, isGuarded } from "./guards.ts";
import { CATALOG_FILTERS, CATALOG_FUNCTIONS, SCHEMA_FILTERS } from "./filters.ts";

export interface CatalogReferences {
  readonly relations: readonly {
    readonly schema: string | null;
    readonly name: string;
    readonly location: number;
    readonly alias: string | null;
  }[];
  readonly functions: readonly {
    readonly schema: string | null;
    readonly name: string;
    readonly location: number;
    readonly args: readonly Readonly<Record<string, unknown>>[];
  }[];
  readonly values: readonly { readonly op: string; readonly location: number }[];
  readonly named: readonly { readonly type: string; readonly text: string; readonly location: number }[];
  readonly columns: readonly { readonly path: readonly string[]; readonly location: number }[];
  readonly systemColumns: ReadonlySet<string>;
}

export interface CatalogUser {
  readonly user: string;
  readonly database: string;
  readonly processId: number;
  /** Whether the user sees a relation of this name; schema null: in any schema. */
  visible(schema: string | null, name: string): boolean;
  visibleOid(oid: number): boolean;
  /** Whether a relation of this name exists, and the user does not see it. */
  hidden(schema: string | null, name: string): boolean;
  /** Makes the error; `location` in bytes of the whole text. */
  refuse(message: string, sqlstate: string, location: number | null): Error;
}

interface Edit {
  readonly from: number;
  readonly to: number;
  readonly text: string;
}

/** The statement's text with its catalogs replaced. `sql` is the whole that the locations count in, in bytes of UTF-8. */
export function rewriteCatalogQuery(
  sql: string,
  statement: { readonly text: string; readonly offset: number },
  references: CatalogReferences,
  user: CatalogUser,
): string {
  const bytes = Buffer.from(sql, "utf8");
  const edits: Edit[] = [];
  for (const ref of references.relations) edits.push(relationEdit(bytes, ref, references.systemColumns, user));
  for (const ref of references.functions) {
    const edit = functionEdit(bytes, ref, user);
    if (edit) edits.push(edit);
  }
  for (const value of references.values) {
    const edit = valueEdit(bytes, value, user);
    if (edit) edits.push(edit);
  }
  for (const { path, location } of references.columns) {
    // The schema is gone from the table that the column is of.
    if (path.length > 1 && (path[0] === "pg_catalog" || path[0] === "information_schema")) {
      edits.push({ from: location, to: afterDot(bytes, location), text: " " });
    }
  }
  for (const { type, text, location } of references.named) checkNamed(type, text, location, user);
  const start = Buffer.byteLength(sql.slice(0, statement.offset));
  const end = start + Buffer.byteLength(statement.text);
  return applyEdits(bytes, edits, start, end);
}

function applyEdits(bytes: Buffer, edits: readonly Edit[], start: number, end: number): string {
  // Positions of errors stay right as far as possible: nothing is put before the first edit.
  const parts: string[] = [" ".repeat(bytes.toString("utf8", 0, start).length)];
  let at = start;
  for (const edit of edits.toSorted((a, b) => a.from - b.from)) {
    if (edit.from < at || edit.to > end) continue;
    parts.push(bytes.toString("utf8", at, edit.from), edit.text);
    at = edit.to;
  }
  parts.push(bytes.toString("utf8", at, end));
  return parts.join("");
}

function relationEdit(
  bytes: Buffer,
  ref: CatalogReferences["relations"][number],
  systemColumns: ReadonlySet<string>,
  user: CatalogUser,
): Edit {
  const { schema, name, location } = ref;
  const inSchema = schema === "information_schema";
  const filter = inSchema ? SCHEMA_FILTERS.get(name) : CATALOG_FILTERS.get(name);
  if (filter === undefined || location < 0) {
    const shown = schema === null ? name : `${schema}.${name}`;
    throw user.refuse(`permission denied for relation ${shown}`, "42501", location);
  }
  const to = endOfName(bytes, location, schema === null ? 1 : 2);
  const extra = inSchema ? [] : [...systemColumns].map((column) => `${column}, `);
  const from = `${inSchema ? "information_schema" : "pg_catalog"}.${quoteIdent(name)}`;
  const where = filter === "" ? "" : ` WHERE ${filter}`;
  const alias = ref.alias === null ? ` AS ${quoteIdent(name)}` : "";
  return {
    from: location,
    to,
    text: `(SELECT ${extra.join("")}${columnsOf(name, user)} FROM ${from}${where})${alias}`,
  };
}

/** The database is called as the client calls it, whatever its name is at the source. */
function columnsOf(name: string, { database }: CatalogUser): string {
  if (name !== "pg_database") return "*";
  const changed = `pg_catalog.jsonb_build_object('datname', ${quoteLiteral(database)})`;
  return `(pg_catalog.jsonb_populate_record(pg_database, ${changed})).*`;
}

const IDENTIFIER = /^(?:"(?:[^"]|"")*"|[^\s".,;()+\-*/<>=~!@#%^&|`?:[\]']+)/;

/** The byte behind `count` names that are joined by dots. */
function endOfName(bytes: Buffer, from: number, count: number): number {
  const text = bytes.toString("utf8", from, Math.min(bytes.length, from + 1024));
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (i > 0) at += /^\s*\.\s*/.exec(text.slice(at))?.[0].length ?? 0;
    at += IDENTIFIER.exec(text.slice(at))?.[0].length ?? 0;
  }
  return from + Buffer.byteLength(text.slice(0, at));
}

function functionEdit(bytes: Buffer, ref: CatalogReferences["functions"][number], user: CatalogUser): Edit | null {
  const { schema, name, location } = ref;
  if ((schema !== null && schema !== "pg_catalog" && schema !== "information_schema") || !CATALOG_FUNCTIONS.has(name)) {
    throw user.refuse(`permission denied for function ${name}`, "42501", location);
  }
  if (TAKES_NAMES.test(name)) checkArguments(ref, user);
  if (isGuarded(name)) {
    return { from: location, to: endOfName(bytes, location, schema === null ? 1 : 2), text: guardedName(name) };
  }
  const value =
    name === "current_database"
      ? named(`${quoteLiteral(user.database)}::pg_catalog.name`, name)
      : name === "pg_backend_pid"
        ? named(String(user.processId), name)
        : null;
  if (value === null) return null;
  const after = endOfName(bytes, location, schema === null ? 1 : 2);
  const call = /^\s*\(\s*\)/.exec(bytes.toString("utf8", after, after + 64));
  return call ? { from: location, to: after + call[0].length, text: ` ${value}` } : null;
}

/** The byte behind a name and the dot that follows it. */
function afterDot(bytes: Buffer, from: number): number {
  const to = endOfName(bytes, from, 1);
  return to + (/^\s*\.\s*/.exec(bytes.toString("latin1", to, to + 64))?.[0].length ?? 0);
}

const USER_VALUES = new Set(["SVFOP_CURRENT_USER", "SVFOP_SESSION_USER", "SVFOP_USER", "SVFOP_CURRENT_ROLE"]);

/** `current_user` and its kin name the user, not the login that the query runs by. */
function valueEdit(bytes: Buffer, value: CatalogReferences["values"][number], user: CatalogUser): Edit | null {
  const text = USER_VALUES.has(value.op) ? user.user : value.op === "SVFOP_CURRENT_CATALOG" ? user.database : null;
  if (text === null) return null;
  const to = endOfName(bytes, value.location, 1);
  const name = value.op.replace("SVFOP_", "").toLowerCase();
  return { from: value.location, to, text: named(`${quoteLiteral(text)}::pg_catalog.name`, name) };
}

/** A value that names its column as the expression did that it stands for. */
function named(value: string, name: string): string {
  return ` (SELECT ${value} AS ${quoteIdent(name)})`;
}

/** Functions that take a relation by its name. */
const TAKES_NAMES =
  /^(has_.*_privilege|pg_(table|indexes|(total_)?relation)_size|pg_get_serial_sequence|pg_relation_.*|pg_partition_.*|pg_sequence_.*|pg_column_is_updatable)$/;

function checkArguments({ args, location }: CatalogReferences["functions"][number], user: CatalogUser): void {
  for (const arg of args) {
    const constant = arg["A_Const"] as { sval?: { sval?: string } } | undefined;
    const text = constant?.sval?.sval;
    if (text === undefined) continue;
    const { schema, name } = namesOf(text);
    if (user.hidden(schema, name)) throw user.refuse(`relation "${text}" does not exist`, "42P01", location);
  }
}

function namesOf(text: string): { readonly schema: string | null; readonly name: string } {
  const names = text.match(/"(?:[^"]|"")*"|[^.]+/g) ?? [];
  const plain = names.map((n) => (n.startsWith('"') ? n.slice(1, -1).replaceAll('""', '"') : n.trim().toLowerCase()));
  return { schema: plain.at(-2) ?? null, name: plain.at(-1) ?? "" };
}

/** A name that is cast to regclass must be one that the user sees: whether others exist is not told. */
function checkNamed(type: string, text: string, location: number, user: CatalogUser): void {
  if (type !== "regclass") return;
  if (/^\d+$/.test(text.trim())) {
    if (user.visibleOid(Number(text))) return;
    throw user.refuse(`relation with OID ${text} does not exist`, "42P01", location);
  }
  const { schema, name } = namesOf(text);
  const isCatalog =
    schema === "pg_catalog" || schema === "information_schema" || (schema === null && name.startsWith("pg_"));
  if (isCatalog || user.visible(schema, name)) return;
  throw user.refuse(`relation "${text}" does not exist`, "42P01", location);
}
