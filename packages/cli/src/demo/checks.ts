/** The demo's proofs: answers over both tiers against what Postgres says of the plain copy. */
import type { ColumnBatch } from "@spillway/base/columns";
import { textOf } from "@spillway/pg/columns/text-out";
import type { Seam } from "@spillway/server/seam/seam";
import type pg from "pg";

export interface Question {
  readonly title: string;
  /** In SQL that DuckDB and Postgres both understand; the table is `@`. */
  readonly sql: string;
}

export const QUESTIONS: readonly Question[] = [
  {
    title: "delay by month",
    sql: `SELECT extract(month FROM departed) AS month, count(*) AS flights, sum(delay) AS delay, max(delay) AS worst
      FROM @ GROUP BY 1 ORDER BY 1`,
  },
  {
    title: "the ten long routes with most delay",
    sql: `SELECT origin, destination, count(*) AS flights, sum(delay) AS delay FROM @ WHERE distance > 1000
      GROUP BY 1, 2 ORDER BY 4 DESC, 1, 2 LIMIT 10`,
  },
  {
    title: "delay by state around the cut-line, joined with airports",
    sql: `SELECT a.state, count(*) AS flights, sum(f.delay) AS delay FROM @ f JOIN airports a ON a.iata = f.origin
      WHERE f.departed >= '2001-05-25' AND f.departed < '2001-06-08' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 10`,
  },
  {
    title: "late and new flights of the writer",
    sql: `SELECT count(*) AS flights, sum(flight_id) AS ids, min(departed) AS first, max(departed) AS last
      FROM @ WHERE flight_id > 1000000000`,
  },
];

export interface Answer {
  readonly header: readonly string[];
  readonly rows: readonly (readonly string[])[];
  readonly same: boolean;
  readonly ms: number;
  readonly plainMs: number;
}

/** Asks both and compares value by value. */
export async function answer(seam: Seam, client: pg.Client, question: Question): Promise<Answer> {
  const started = performance.now();
  const result = await seam.query(question.sql.replaceAll("@", "flights"));
  const rows: string[][] = [];
  for await (const batch of result.batches()) rows.push(...textRows(batch));
  const ms = performance.now() - started;
  const plainStarted = performance.now();
  const plain = await client.query<(string | null)[]>({
    text: `SELECT ${result.columns.map((c) => `q."${c.name}"::text`).join(", ")} FROM (${question.sql.replaceAll("@", "flights_plain")}) q`,
    rowMode: "array",
  });
  const plainMs = performance.now() - plainStarted;
  const same = JSON.stringify(rows) === JSON.stringify(plain.rows.map((r) => r.map((v) => v ?? "NULL")));
  return { header: result.columns.map((c) => c.name), rows, same, ms, plainMs };
}

function textRows(batch: ColumnBatch): string[][] {
  return Array.from({ length: batch.length }, (_, row) => batch.columns.map((column) => textOf(column, row) ?? "NULL"));
}

/**
 * Both tables in one statement: one point in time, whatever the writer does meanwhile. Checksums over all rows first; only if they
 * differ the rows are looked for. Returns how many differ.
 */
export async function differingNow(seam: Seam): Promise<number> {
  const columns = "flight_id, departed, delay, distance, origin, destination";
  const both = `SELECT ${columns}, 1 AS n FROM flights UNION ALL SELECT ${columns}, -1 AS n FROM flights_plain`;
  const [sums] = await texts(
    seam,
    `SELECT sum(n) AS rows, sum(n * hash(${columns})::HUGEINT) AS checksum, count(*) > 0 AS any FROM (${both}) b`,
  );
  if (sums?.join() === "0,0,true") return 0;
  const grouped = `SELECT ${columns} FROM (${both}) b GROUP BY ${columns} HAVING sum(n) <> 0`;
  const [differing] = await texts(seam, `SELECT count(*) AS differing FROM (${grouped}) x`);
  return Number(differing?.[0] ?? -1);
}

async function texts(seam: Seam, sql: string): Promise<string[][]> {
  const result = await seam.query(sql);
  const rows: string[][] = [];
  for await (const batch of result.batches()) rows.push(...textRows(batch));
  return rows;
}

export interface RowComparison {
  readonly rows: number;
  /** The first few lines that only one side has. */
  readonly differences: readonly string[];
}

const LINE = "flight_id, departed, delay, distance, origin, destination";
const SHOWN = 5;

/**
 * Every row as text, in the order of the key: what the seam reads against what Postgres prints of the plain copy. While
 * nobody writes.
 */
export async function compareAllRows(
  seam: Seam,
  client: pg.Client,
  onProgress: (rows: number) => void,
): Promise<RowComparison> {
  const result = await seam.query(`SELECT ${LINE} FROM flights ORDER BY departed, flight_id`);
  const days = await plainDays(client);
  const differences: string[] = [];
  let rows = 0;
  let day = "";
  let lines: string[] = [];
  let asked: Promise<string[]> = Promise.resolve([]);
  const close = async (): Promise<void> => {
    if (day === "") return;
    days.delete(day);
    const expected = await asked;
    rows += lines.length;
    onProgress(rows);
    differences.push(...differingLines(lines, expected).slice(0, SHOWN));
    lines = [];
  };
  for await (const batch of result.batches()) {
    for (const cells of textRows(batch)) {
      const next = cells[1]?.slice(0, 10) ?? "";
      if (next !== day) {
        await close();
        day = next;
        asked = plainLines(client, day);
        asked.catch(() => {});
      }
      lines.push(cells.join("\t"));
    }
  }
  await close();
  for (const missing of days) differences.push(`the whole day ${missing} is missing`);
  return { rows, differences: differences.slice(0, SHOWN) };
}

async function plainDays(client: pg.Client): Promise<Set<string>> {
  const { rows } = await client.query<{ d: string }>("SELECT DISTINCT departed::date::text AS d FROM flights_plain");
  return new Set(rows.map((r) => r.d));
}

async function plainLines(client: pg.Client, day: string): Promise<string[]> {
  const line = LINE.split(", ")
    .map((c) => `coalesce(${c}::text, 'NULL')`)
    .join(` || E'\\t' || `);
  const { rows } = await client.query<{ text: string | null }>(
    `SELECT string_agg(${line}, E'\\n' ORDER BY departed, flight_id) AS text FROM flights_plain
     WHERE departed >= $1::date AND departed < $1::date + 1`,
    [day],
  );
  return rows[0]?.text?.split("\n") ?? [];
}

function differingLines(found: readonly string[], expected: readonly string[]): string[] {
  if (found.length === expected.length && found.every((line, i) => line === expected[i])) return [];
  const [a, b] = [new Set(found), new Set(expected)];
  return [
    ...found.filter((line) => !b.has(line)).map((line) => `only in flights: ${line}`),
    ...expected.filter((line) => !a.has(line)).map((line) => `only in the plain copy: ${line}`),
  ];
}
