/** The catalog commands of Flight SQL (FlightSql.proto): exact column names and order, filters as SQL LIKE patterns, from what the session sees. */
import { Binary, Int32, Uint8, Utf8 } from "apache-arrow";
import { arrowSchemaOf } from "./schemas.ts";
import type { ServeSession } from "../../session/session.ts";
import { quoteQualified } from "@spillway/pg/quote";
import { type SmallColumn, type SmallResult, smallResult } from "./small-results.ts";
import { type Message, text, textList, textOrNull } from "./proto.ts";
import { rowsOf } from "./rows.ts";

const utf8 = (name: string, nullable: boolean): SmallColumn => ({ name, type: new Utf8(), nullable });

export const CATALOGS = [utf8("catalog_name", false)];
export const SCHEMAS = [utf8("catalog_name", true), utf8("db_schema_name", false)];
export const TABLES = [
  utf8("catalog_name", true),
  utf8("db_schema_name", true),
  utf8("table_name", false),
  utf8("table_type", false),
];
export const TABLES_WITH_SCHEMA: SmallColumn[] = [
  ...TABLES,
  { name: "table_schema", type: new Binary(), nullable: false },
];
export const TABLE_TYPES = [utf8("table_type", false)];
export const PRIMARY_KEYS: SmallColumn[] = [
  utf8("catalog_name", true),
  utf8("db_schema_name", true),
  utf8("table_name", false),
  utf8("column_name", false),
  utf8("key_name", true),
  { name: "key_sequence", type: new Int32(), nullable: false },
];
export const FOREIGN_KEYS: SmallColumn[] = [
  utf8("pk_catalog_name", true),
  utf8("pk_db_schema_name", true),
  utf8("pk_table_name", false),
  utf8("pk_column_name", false),
  utf8("fk_catalog_name", true),
  utf8("fk_db_schema_name", true),
  utf8("fk_table_name", false),
  utf8("fk_column_name", false),
  { name: "key_sequence", type: new Int32(), nullable: false },
  utf8("fk_key_name", true),
  utf8("pk_key_name", true),
  { name: "update_rule", type: new Uint8(), nullable: false },
  { name: "delete_rule", type: new Uint8(), nullable: false },
];

const HIDDEN = new Set(["pg_catalog", "information_schema", "pg_toast", "spillway"]);
const KINDS: Readonly<Record<string, string>> = { "BASE TABLE": "TABLE", VIEW: "VIEW", FOREIGN: "FOREIGN TABLE" };
/** Tables whose columns are described in one answer. */
const MAX_DESCRIBED = 5000;

export function catalogs(session: ServeSession): SmallResult {
  return smallResult(CATALOGS, [[session.database]]);
}

export function tableTypes(): SmallResult {
  return smallResult(TABLE_TYPES, [["FOREIGN TABLE"], ["TABLE"], ["VIEW"]]);
}

/** A catalog filter is a pattern for some clients and a name for others; empty means: without a catalog, which nothing is. */
function isOurs(session: ServeSession, catalog: unknown): boolean {
  const wanted = textOrNull(catalog);
  return wanted === null || like(wanted, session.database);
}

export async function schemas(session: ServeSession, command: Message): Promise<SmallResult> {
  if (!isOurs(session, command["catalog"])) return smallResult(SCHEMAS, []);
  const pattern = textOrNull(command["dbSchemaFilterPattern"]);
  const rows = await rowsOf(session, "SELECT schema_name::text FROM information_schema.schemata");
  const names = rows
    .map(([name]) => name ?? "")
    .filter((name) => isShown(name) && (pattern === null || like(pattern, name)));
  return smallResult(
    SCHEMAS,
    [...new Set(names)].toSorted(compare).map((name) => [session.database, name]),
  );
}

export async function tables(session: ServeSession, command: Message): Promise<SmallResult> {
  const withSchema = command["includeSchema"] === true;
  const columns = withSchema ? TABLES_WITH_SCHEMA : TABLES;
  if (!isOurs(session, command["catalog"])) return smallResult(columns, []);
  const [schemaPattern, tablePattern] = [
    textOrNull(command["dbSchemaFilterPattern"]),
    textOrNull(command["tableNameFilterPattern"]),
  ];
  const types = textList(command["tableTypes"]);
  const found = await rowsOf(
    session,
    "SELECT table_schema::text, table_name::text, table_type::text FROM information_schema.tables",
  );
  const rows = found
    .map(([schema, name, type]) => ({ schema: schema ?? "", name: name ?? "", type: KINDS[type ?? ""] ?? "TABLE" }))
    .filter(({ schema }) => isShown(schema) && (schemaPattern === null || like(schemaPattern, schema)))
    .filter(({ name }) => tablePattern === null || like(tablePattern, name))
    .filter(({ type }) => types.length === 0 || types.includes(type))
    .toSorted((a, b) => compare(a.type, b.type) || compare(a.schema, b.schema) || compare(a.name, b.name));
  const result: unknown[][] = [];
  for (const { schema, name, type } of rows) {
    const row: unknown[] = [session.database, schema, name, type];
    if (withSchema) {
      if (result.length >= MAX_DESCRIBED) break;
      const described = await describe(session, schema, name);
      // It was dropped meanwhile, or is a kind of table that cannot be read.
      if (described === null) continue;
      row.push(described);
    }
    result.push(row);
  }
  return smallResult(columns, result);
}

async function describe(session: ServeSession, schema: string, table: string): Promise<Buffer | null> {
  try {
    const { columns } = await session.prepare(`SELECT * FROM ${quoteQualified(schema, table)}`);
    return arrowSchemaOf(columns ?? [], { catalog: session.database, schema, table });
  } catch {
    return null;
  }
}

export async function primaryKeys(session: ServeSession, command: Message): Promise<SmallResult> {
  const table = text(command["table"]);
  const schema = textOrNull(command["dbSchema"]);
  if (!isOurs(session, command["catalog"])) return smallResult(PRIMARY_KEYS, []);
  const rows = await rowsOf(
    session,
    `SELECT k.table_schema::text, k.table_name::text, k.column_name::text, k.constraint_name::text, k.ordinal_position::text
     FROM information_schema.key_column_usage k JOIN information_schema.table_constraints c
       ON c.constraint_schema = k.constraint_schema AND c.constraint_name = k.constraint_name
         AND c.table_schema = k.table_schema AND c.table_name = k.table_name
     WHERE c.constraint_type = 'PRIMARY KEY'`,
  );
  const keys = rows
    .filter(([s, t]) => t === table && (schema === null || s === schema))
    .toSorted((a, b) => compare(a[3] ?? "", b[3] ?? "") || Number(a[4]) - Number(b[4]));
  return smallResult(
    PRIMARY_KEYS,
    keys.map(([s, t, column, key, at]) => [session.database, s, t, column, key, Number(at)]),
  );
}

/** References are not told: an empty answer is what clients expect of a source that has none to offer. */
export function foreignKeys(): SmallResult {
  return smallResult(FOREIGN_KEYS, []);
}

function isShown(schema: string): boolean {
  return !HIDDEN.has(schema) && !schema.startsWith("pg_temp") && !schema.startsWith("pg_toast");
}

/** SQL LIKE with `\` as the escape, the whole text, no regular expression made of user text unescaped. */
export function like(pattern: string, value: string): boolean {
  let source = "";
  for (let i = 0; i < pattern.length; i++) {
    const c = pattern[i] ?? "";
    if (c === "\\" && i + 1 < pattern.length) source += escape(pattern[++i] ?? "");
    else if (c === "%") source += "[^]*";
    else source += c === "_" ? "[^]" : escape(c);
  }
  return new RegExp(`^${source}$`, "u").test(value);
}

function escape(c: string): string {
  return /[\^$\\.*+?()[\]{}|/]/.test(c) ? `\\${c}` : c;
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
