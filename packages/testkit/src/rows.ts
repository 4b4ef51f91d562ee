/**
 * The oracle for data: rows as Postgres itself prints them, compared value by value with rows from anywhere else.
 * It shares no code with what it judges: Postgres casts every value to text, and the comparison is of texts.
 */
import { quoteIdent, quoteQualified } from "@spillway/pg/quote";
import type pg from "pg";

export interface RowSet {
  readonly columns: readonly string[];
  /** Which of the columns name a row. */
  readonly key: readonly string[];
  /** Each value as Postgres text; null for NULL. */
  readonly rows: readonly (readonly (string | null)[])[];
}

export interface FetchOptions {
  readonly schema?: string;
  readonly table: string;
  readonly key: readonly string[];
  /** Default: every column, in the table's order. */
  readonly columns?: readonly string[];
  /** A SQL condition. */
  readonly where?: string;
}

/** All rows of a table as text, ordered by the key. */
export async function fetchRows(client: pg.ClientBase, options: FetchOptions): Promise<RowSet> {
  const schema = options.schema ?? "public";
  const columns = options.columns ?? (await columnsOf(client, schema, options.table));
  const list = columns.map((name) => `${quoteIdent(name)}::text`).join(", ");
  const from = quoteQualified(schema, options.table);
  // The table's column, not the text of the same name in the list.
  const order = options.key.map((name) => `t.${quoteIdent(name)}`).join(", ");
  const where = options.where === undefined ? "" : `WHERE ${options.where}`;
  const result = await client.query<(string | null)[]>({
    text: `SELECT ${list} FROM ${from} AS t ${where} ORDER BY ${order}`,
    rowMode: "array",
  });
  return { columns, key: options.key, rows: result.rows };
}

async function columnsOf(client: pg.ClientBase, schema: string, table: string): Promise<string[]> {
  const { rows } = await client.query<{ attname: string }>(
    "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
    [quoteQualified(schema, table)],
  );
  return rows.map((row) => row.attname);
}

/**
 * Compares two row sets by key. Gives null when they hold the same rows (in any order), else a readable report of at
 * most `limit` differences: rows missing, rows too many (a doubled key counts), values that differ.
 */
export function diffRows(expected: RowSet, actual: RowSet, limit = 10): string | null {
  if (expected.columns.join("\0") !== actual.columns.join("\0")) {
    return `columns differ: expected (${expected.columns.join(", ")}), got (${actual.columns.join(", ")})`;
  }
  const [left, right] = [byKey(expected), byKey(actual)];
  const found: string[] = [];
  for (const [key, rows] of left) {
    const others = right.get(key) ?? [];
    for (let i = 0; i < Math.max(rows.length, others.length); i++) {
      const text = diffOne(expected.columns, rows[i], others[i]);
      if (text !== null) found.push(`${key}: ${text}`);
    }
  }
  for (const [key, rows] of right) {
    if (!left.has(key)) found.push(...rows.map((row) => `${key}: too many: ${show(row)}`));
  }
  if (found.length === 0) return null;
  const head = `${found.length} differences (${expected.rows.length} rows expected, ${actual.rows.length} found)`;
  const more = found.length > limit ? [`… and ${found.length - limit} more`] : [];
  return [head, ...found.slice(0, limit), ...more].join("\n  ");
}

/** Throws with the report when the two differ. */
export function expectSameRows(expected: RowSet, actual: RowSet): void {
  const report = diffRows(expected, actual);
  if (report !== null) throw new Error(report);
}

type Row = RowSet["rows"][number];

function byKey(set: RowSet): Map<string, Row[]> {
  const at = set.key.map((name) => set.columns.indexOf(name));
  if (at.includes(-1)) throw new Error(`the key (${set.key.join(", ")}) is not among the columns`);
  const map = new Map<string, Row[]>();
  for (const row of set.rows) {
    const key = show(at.map((i) => row[i] ?? null));
    const found = map.get(key);
    if (found) found.push(row);
    else map.set(key, [row]);
  }
  // Rows of a doubled key are compared in a fixed order, whatever order they came in.
  for (const rows of map.values()) if (rows.length > 1) rows.sort((a, b) => (show(a) < show(b) ? -1 : 1));
  return map;
}

function diffOne(columns: readonly string[], expected: Row | undefined, actual: Row | undefined): string | null {
  if (!actual) return `missing: ${show(expected ?? [])}`;
  if (!expected) return `too many: ${show(actual)}`;
  const differing = columns.flatMap((name, i) =>
    expected[i] === actual[i] ? [] : [`${name}: expected ${showValue(expected[i])}, got ${showValue(actual[i])}`],
  );
  return differing.length === 0 ? null : differing.join("; ");
}

function show(row: Row): string {
  return `(${row.map(showValue).join(", ")})`;
}

function showValue(value: string | null | undefined): string {
  return value === null || value === undefined ? "NULL" : JSON.stringify(value);
}
