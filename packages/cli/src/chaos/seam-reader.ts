/**
 * The reading process of the chaos run (`chaos seam-reader`, started by it): reads through the seam without pause and
 * writes what it saw to the file that SPILLWAY_CHAOS_LOG names, a line for each read. Three kinds of read:
 *
 *     whole   the table and the plain one beside it in one statement: rows that only one of them has
 *     sums    count and sum over a range of pairs: every pair has two rows, whose `d` add up to 0
 *     rows    the rows of a range of keys, to be compared with what was committed when
 */
import { appendFileSync } from "node:fs";
import { silentLogger } from "@spillway/base/log";
import { must } from "@spillway/base/assert";
import { SETTINGS } from "@spillway/base/settings";
import { parseBytes } from "@spillway/base/config";
import { sharedClock as clock } from "@spillway/ha/client/shared-clock";
import { valueAt } from "@spillway/server/engine/engine";
import { openRuntime } from "@spillway/server/roles/runtime";
import { createSeam, type Seam } from "@spillway/server/seam/seam";
import { report, type Bench } from "../bench/report.ts";
import { Random } from "./random.ts";
import type { SeenRow } from "./seam-model.ts";
import { type ChaosTable, keyOfValue, TABLES } from "./seam-tables.ts";
import { reasonOf } from "./seam-client.ts";

export type ReadLine =
  | { readonly kind: "whole" | "sums"; readonly table: string; readonly fault: string | null }
  | {
      readonly kind: "rows";
      readonly table: string;
      readonly startMs: number;
      readonly endMs: number;
      readonly low: number;
      readonly high: number;
      /** id, key, stamp. */
      readonly rows: readonly (readonly [number, number, number])[];
    }
  | { readonly kind: "error"; readonly table: string; readonly reason: string };

export const run: Bench = async (options) => {
  const env = process.env;
  const logFile = must(env["SPILLWAY_CHAOS_LOG"], "SPILLWAY_CHAOS_LOG");
  const random = new Random(options.option("seed", 1), `reader ${process.pid}`);
  const runtime = await openRuntime({
    databaseUrl: must(env["SPILLWAY_DATABASE_URL"], "SPILLWAY_DATABASE_URL"),
    warehouse: must(env["SPILLWAY_WAREHOUSE"], "SPILLWAY_WAREHOUSE"),
    s3Endpoint: null,
    s3Region: "",
    s3PathStyle: true,
    cacheDir: env["SPILLWAY_CACHE_DIR"] ?? null,
    cacheBytes: 1 << 30,
    connectTimeoutMs: 2000,
    engineMemoryBytes: parseBytes(String(SETTINGS.engineMemory.default)) ?? 512 << 20,
    lockTimeoutMs: 100,
    premake: 2,
    applicationName: "chaos reader",
    clock,
    log: silentLogger,
  });
  const { conninfo, store, cache, engine } = runtime;
  // A short pin, so that the files of an old one really go.
  const seam = createSeam({
    conninfo,
    store,
    cache,
    engine,
    clock,
    log: silentLogger,
    holder: "chaos",
    pinTtlMs: 3000,
  });
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
    await seam.close();
    await runtime.close();
  }
  return report("seam-reader", {}, {});
};

function read(seam: Seam, table: ChaosTable, random: Random): Promise<ReadLine> {
  switch (random.weighted({ whole: 3, sums: 3, rows: 4 })) {
    case "whole":
      return whole(seam, table);
    case "sums":
      return sums(seam, table, random);
    default:
      return rows(seam, table, random);
  }
}

/** Rows that only one of the two has, with its side; empty when they are equal. */
export async function difference(seam: Seam, table: ChaosTable): Promise<string[]> {
  const columns = "id, k, s, d, v";
  const [t, shadow] = [`SELECT ${columns} FROM ${table.name}`, `SELECT ${columns} FROM ${table.name}_shadow`];
  const found = await all(
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
  const found = await all(seam, `SELECT count(*) AS n, sum(d) AS z FROM ${table.name} WHERE id >= ${from}`);
  const [n, z] = found[0] ?? [];
  const sound = Number(n) % 2 === 0 && (z === null || Number(z) === 0);
  return { kind: "sums", table: table.name, fault: sound ? null : `torn: from id ${from} ${n} rows, sum ${z}` };
}

async function rows(seam: Seam, table: ChaosTable, random: Random): Promise<ReadLine> {
  const everything = random.chance(0.4);
  const low = everything ? -1_000_000 : random.int(-10, 600);
  const high = everything ? 100_000_000 : low + random.int(1, 400);
  const where = everything ? "" : ` WHERE k >= ${literal(table, low)} AND k < ${literal(table, high)}`;
  const startMs = clock.monotonicMs();
  const found = await all(seam, `SELECT id, k, s FROM ${table.name}${where}`);
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

async function all(seam: Seam, sql: string): Promise<unknown[][]> {
  const result = await seam.query(sql);
  const out: unknown[][] = [];
  for await (const batch of result.batches()) {
    for (let i = 0; i < batch.length; i++) out.push(batch.columns.map((column) => valueAt(column, i)));
  }
  return out;
}

export function seenRow([id, key, stamp]: readonly [number, number, number]): SeenRow {
  return { id, key, stamp };
}
