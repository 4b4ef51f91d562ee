/**
 * Six queries over a table of which 98 % (and, beside, 90 %) is in the lake and 0.5 % was corrected, half of it folded: by
 * Spillway, by Postgres with all rows in its heap and indexed, and by DuckDB directly on the same rows in Parquet without
 * deletes or heap. All three in this process tree, in turn, medians. The answers are compared.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { assert, must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { connect } from "@spillway/pg/connect";
import { duckList, type Engine, valueAt } from "@spillway/server/engine/engine";
import { openRuntime } from "@spillway/server/roles/runtime";
import { createSeam, type Seam } from "@spillway/server/seam/seam";
import type pg from "pg";
import { startEmbedded } from "../embedded/server.ts";
import {
  correctFolded,
  correctKept,
  loadHeap,
  plainParquet,
  registerEvents,
  type Sources,
  START_MS,
  tierMore,
} from "./read-load.ts";
import { atLeast, atMost, type BenchReport, type BenchRun, geometricMean, median, report } from "./report.ts";

interface Query {
  readonly name: string;
  readonly aggregates: boolean;
  readonly sql: (table: string, customers: string) => string;
}

export async function run(bench: BenchRun): Promise<BenchReport> {
  const rows = bench.option("rows", bench.quick ? 1_000_000 : 10_000_000);
  const runs = bench.option("runs", bench.quick ? 3 : 5);
  const home = mkdtempSync(join(tmpdir(), "spillway-bench-"));
  const server = await startEmbedded({
    settings: { shared_buffers: "1GB", max_wal_size: "8GB", fsync: "off", jit: "off" },
  });
  try {
    const runtime = await openRuntime({
      databaseUrl: server.url(),
      warehouse: join(home, "lake"),
      s3Endpoint: null,
      s3Region: "us-east-1",
      s3PathStyle: true,
      cacheDir: join(home, "cache"),
      cacheBytes: 1 << 30,
      connectTimeoutMs: 10_000,
      engineMemoryBytes: 1 << 30,
      lockTimeoutMs: 1000,
      premake: 0,
      applicationName: "spillway bench",
      clock: systemClock,
      log: silentLogger,
    });
    const client = await connect(server.url());
    const seam = createSeam({
      conninfo: runtime.conninfo,
      store: runtime.store,
      engine: runtime.engine,
      clock: systemClock,
      log: silentLogger,
      holder: "bench",
    });
    try {
      return await measure(bench, { rows, runs, home, runtime, client, seam });
    } finally {
      await seam.close();
      await client.end();
      await runtime.close();
    }
  } finally {
    await server.stop();
    rmSync(home, { recursive: true, force: true });
  }
}

interface Setup extends Sources {
  readonly runs: number;
  readonly seam: Seam;
}

async function measure(bench: BenchRun, setup: Setup): Promise<BenchReport> {
  const { rows } = setup;
  const started = performance.now();
  const say = (text: string): void => bench.say(`${((performance.now() - started) / 1000).toFixed(0)} s: ${text}`);
  say(`loading ${rows} rows twice`);
  await loadHeap(setup);
  say("tiering 90 %");
  await registerEvents(setup);
  await correctFolded(setup);
  await correctKept(setup);
  let at90: Comparison | null = null;
  if (!bench.quick) {
    const files = await plainParquet(setup);
    say("measuring at 90 %");
    at90 = await compare(bench, setup, files);
  }
  say("tiering 98 %");
  await tierMore(setup);
  await correctKept(setup);
  const files98 = await plainParquet(setup);
  say("measuring at 98 %");
  const at98 = await compare(bench, setup, files98);
  const bars = {
    agg_vs_postgres: atLeast(at98.aggVsPostgres, 3),
    agg_vs_duckdb: atMost(at98.aggVsDuckdb, 3),
    point_ms: atMost(at98.pointMs, 50),
  };
  return report("read", bars, { rows, lake_98: at98, ...(at90 ? { lake_90: at90 } : {}) });
}

function queriesOf(rows: number): Query[] {
  const seconds = (n: number): string =>
    new Date(START_MS + n * 1000).toISOString().replace("T", " ").replace("Z", "+00");
  const id = Math.floor(rows * 0.6173);
  return [
    { name: "count", aggregates: true, sql: (t) => `select count(*) from ${t}` },
    {
      name: "filtered",
      aggregates: true,
      sql: (t) =>
        `select sum(amount), count(*) from ${t} where kind = 'paid' and ts >= '${seconds(Math.floor(rows * 0.3))}'`,
    },
    {
      name: "group",
      aggregates: true,
      sql: (t) => `select kind, count(*), sum(amount), max(id) from ${t} group by kind order by kind`,
    },
    { name: "top", aggregates: false, sql: (t) => `select id, amount from ${t} order by amount desc, id limit 10` },
    {
      name: "join",
      aggregates: true,
      sql: (t, c) =>
        `select c.region, sum(e.amount) from ${t} e join ${c} c on c.id = e.customer group by c.region order by 1`,
    },
    {
      name: "point",
      aggregates: false,
      sql: (t) => `select id, customer, kind, amount from ${t} where id = ${id} and ts = '${seconds(id)}'`,
    },
  ];
}

interface Comparison {
  readonly aggVsPostgres: number;
  readonly aggVsDuckdb: number;
  readonly pointMs: number;
  readonly medians_ms: Readonly<Record<string, Readonly<Record<string, number>>>>;
}

async function compare(bench: BenchRun, setup: Setup, files: readonly string[]): Promise<Comparison> {
  const { client, seam, runtime, rows, runs } = setup;
  const medians: Record<string, Record<string, number>> = {};
  const [vsPostgres, vsDuckdb]: [number[], number[]] = [[], []];
  let pointMs = 0;
  for (const query of queriesOf(rows)) {
    const times: Record<string, number[]> = { spillway: [], postgres: [], duckdb: [] };
    const answers: Record<string, string> = {};
    const plain = `read_parquet(${duckList(files)})`;
    const engines: Record<string, () => Promise<string>> = {
      spillway: () => bySeam(seam, query.sql("events", "customers")),
      postgres: () => byPostgres(client, query.sql("flat", "customers")),
      duckdb: () => byDuckdb(runtime.engine, query.sql(plain, "customers")),
    };
    for (let i = 0; i <= runs; i++) {
      for (const [name, work] of Object.entries(engines)) {
        const started = performance.now();
        answers[name] = await work();
        if (i > 0) times[name]?.push(performance.now() - started);
      }
    }
    assert(
      answers["spillway"] === answers["duckdb"],
      () => `${query.name}: ${answers["spillway"]} is not ${answers["duckdb"]}`,
    );
    assert(
      answers["spillway"] === answers["postgres"],
      () => `${query.name}: ${answers["spillway"]} is not ${answers["postgres"]}`,
    );
    const of = Object.fromEntries(Object.entries(times).map(([name, list]) => [name, Number(median(list).toFixed(2))]));
    medians[query.name] = of;
    bench.say(`${query.name}: ${JSON.stringify(of)}`);
    const own = must(of["spillway"], "time");
    if (query.aggregates) {
      vsPostgres.push(must(of["postgres"], "time") / own);
      vsDuckdb.push(own / must(of["duckdb"], "time"));
    }
    if (query.name === "point") pointMs = own;
  }
  return {
    aggVsPostgres: geometricMean(vsPostgres),
    aggVsDuckdb: geometricMean(vsDuckdb),
    pointMs,
    medians_ms: medians,
  };
}

/** Numbers without trailing zeros, so that 1.50 equals 1.5. */
function plainNumber(value: unknown): string {
  const text = String(value);
  return /^-?\d+\.\d+$/.test(text) ? text.replace(/\.?0+$/, "") : text;
}

async function bySeam(seam: Seam, sql: string): Promise<string> {
  const result = await seam.query(sql);
  const out: string[] = [];
  for await (const batch of result.batches()) {
    for (let i = 0; i < batch.length; i++)
      out.push(batch.columns.map((c) => plainNumber(scaled(valueAt(c, i), c.spec.decimal?.scale ?? 0))).join(","));
  }
  return out.join(";");
}

async function byDuckdb(engine: Engine, sql: string): Promise<string> {
  return engine.use(async (session) => {
    const result = await session.query(sql);
    const out: string[] = [];
    for await (const batch of result.batches()) {
      for (let i = 0; i < batch.length; i++)
        out.push(batch.columns.map((c) => plainNumber(scaled(valueAt(c, i), c.spec.decimal?.scale ?? 0))).join(","));
    }
    return out.join(";");
  });
}

async function byPostgres(client: pg.Client, sql: string): Promise<string> {
  const { rows } = await client.query({ text: sql, rowMode: "array" });
  return (rows as unknown[][]).map((r) => r.map(plainNumber).join(",")).join(";");
}

function scaled(value: unknown, scale: number): unknown {
  if (typeof value !== "bigint" || scale === 0) return value;
  const digits = String(value < 0n ? -value : value).padStart(scale + 1, "0");
  return `${value < 0n ? "-" : ""}${digits.slice(0, -scale)}.${digits.slice(-scale)}`;
}
