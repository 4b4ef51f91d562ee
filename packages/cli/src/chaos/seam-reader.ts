/**
 * The reading process of the chaos run (`chaos seam-reader`, started by it): reads through the seam without pause and
 * writes what it saw to the file that SPILLWAY_CHAOS_LOG names, a line for each read. Three kinds of read:
 *
 *     whole   the table and the plain one beside it in one statement: rows that only one of them has
 *     sums    count and sum over a range of pairs: every pair has two rows, whose `d` add up to 0
 *     rows    the rows of a range of keys, to be compared with what was committed when
 */
import { appendFileSync } from "node:fs";
import { must } from "@spillway/base/assert";
import { sharedClock as clock } from "@spillway/ha/client/shared-clock";
import type { Seam } from "@spillway/server/seam/seam";
import { report, type Bench } from "../bench/report.ts";
import { Random } from "./random.ts";
import { allRows, openChaosSeam } from "./seam-open.ts";
import type { SeenRow } from "./seam-model.ts";
import { type ChaosTable, keyOfValue, TABLES } from "./seam-tables.ts";
import { reasonOf } from "./seam-client.ts";

export interface RowsLine {
  readonly kind: "rows";
  readonly table: string;
  readonly startMs: number;
  readonly endMs: number;
  readonly low: number;
  readonly high: number;
  /** id, key, stamp. */
  readonly rows: readonly (readonly [number, number, number])[];
}

export type ReadLine =
  | RowsLine
  | { readonly kind: "whole" | "sums"; readonly table: string; readonly fault: string | null }
  | { readonly kind: "error"; readonly table: string; readonly reason: string };

export const run: Bench = async (options) => {
  const env = process.env;
  const logFile = must(env["SPILLWAY_CHAOS_LOG"], "SPILLWAY_CHAOS_LOG");
  const random = new Random(options.option("seed", 1), `reader ${process.pid}`);
  const { seam, close } = await openChaosSeam(env, "chaos reader");
  try {
    while (!options.signal.aborted) {
      const table = random.pick(TABLES);
      const line = await read(seam, table, random).catch((error: unknown): ReadLine => ({
        kind: "error",
        table: table.name,
        reason: reasonOf(error),
      }));
      process.stdout.write(".");
      appendFileSync(logFile, `${JSON.stringify(line)}\n`);
      if (line.kind === "error") await clock.sleep(100);
    }
  } finally {
    await close();
  }
  return report("seam-reader", {}, {});
};

function read(seam: Seam, table: ChaosTable, random: Random): Promise<ReadLine> {
  switch (random.weighted({ whole: 3, sums: 3, rows: 4 })) {
    case "whole":
      return table.writes === "plain" ? whole(seam, table) : rows(seam, table, random, true);
    case "sums":
      return sums(seam, table, random);
    default:
      return rows(seam, table, random, random.chance(0.4));
  }
}

/** Rows that only one of the two has, with its side; empty when they are equal. */
export async function difference(seam: Seam, table: ChaosTable): Promise<string[]> {
  const columns = "id, k, s, d, v";
  const [t, shadow] = [`SELECT ${columns} FROM ${table.name}`, `SELECT ${columns} FROM ${table.name}_shadow`];
  const found = await allRows(
    seam,
    `SELECT 'lost' AS fault, x.id, x.k::VARCHAR AS k, x.s FROM (${shadow} EXCEPT ALL ${t}) x
     UNION ALL SELECT 'doubled', y.id, y.k::VARCHAR, y.s FROM (${t} EXCEPT ALL ${shadow}) y`,
  );
  return found.map((row) => row.map(String).join(" "));
}

async function whole(seam: Seam, table: ChaosTable): Promise<ReadLine> {
  const found = await difference(seam, table);
  return { kind: "whole", table: table.name, fault: found.length === 0 ? null : found.slice(0, 10).join("; ") };
}

async function sums(seam: Seam, table: ChaosTable, random: Random): Promise<ReadLine> {
  const from = random.chance(0.5) ? 0 : 2 * random.int(0, 5000);
  const found = await allRows(seam, `SELECT count(*) AS n, sum(d) AS z FROM ${table.name} WHERE id >= ${from}`);
  const [n, z] = found[0] ?? [];
  const sound = Number(n) % 2 === 0 && (z === null || Number(z) === 0);
  return { kind: "sums", table: table.name, fault: sound ? null : `torn: from id ${from} ${n} rows, sum ${z}` };
}

export async function rows(seam: Seam, table: ChaosTable, random: Random, everything: boolean): Promise<RowsLine> {
  const low = everything ? -1_000_000 : random.int(-10, 600);
  const high = everything ? 100_000_000 : low + random.int(1, 400);
  const where = everything ? "" : ` WHERE k >= ${literal(table, low)} AND k < ${literal(table, high)}`;
  const startMs = clock.monotonicMs();
  const found = await allRows(seam, `SELECT id, k, s FROM ${table.name}${where}`);
  const endMs = clock.monotonicMs();
  const seen = found.map(
    ([id, k, s]) => [Number(id), keyOfValue(table, k), Number(s)] as const satisfies readonly number[],
  );
  return { kind: "rows", table: table.name, startMs, endMs, low, high, rows: seen };
}

function literal(table: ChaosTable, key: number): string {
  // DuckDB's own syntax is stricter about the interval.
  return table.key === "int"
    ? String(key)
    : `TIMESTAMPTZ '${new Date(Date.UTC(2024, 0, 1) + key * 60_000).toISOString()}'`;
}

export function seenRow([id, key, stamp]: readonly [number, number, number]): SeenRow {
  return { id, key, stamp };
}
