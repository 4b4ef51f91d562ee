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
import { FileStore } from "@spillway/lake/store/file";
import { connect } from "@spillway/pg/connect";
import { copyOut } from "@spillway/pg/copy/copy-out";
import { selectList } from "@spillway/pg/columns/plan";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import { init, loadRelationByName, readTableColumns } from "@spillway/server/catalog/catalog";
import { duckList, type Engine, valueAt, writeDataFiles } from "@spillway/server/engine/engine";
import { asTiered, foldRelation, Passes, register } from "@spillway/server/movers/movers";
import { openRuntime, type Runtime } from "@spillway/server/roles/runtime";
import { createSeam, type Seam } from "@spillway/server/seam/seam";
import type pg from "pg";
import { startEmbedded } from "../embedded/server.ts";
import { atLeast, atMost, type BenchReport, type BenchRun, geometricMean, median, report } from "./report.ts";

const PARTITIONS = 50;
const START = "timestamptz '2024-01-01 00:00:00+00'";
const START_MS = Date.UTC(2024, 0, 1);

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

interface Setup {
  readonly rows: number;
  readonly runs: number;
  readonly home: string;
  readonly runtime: Runtime;
  readonly client: pg.Client;
  readonly seam: Seam;
}

async function measure(bench: BenchRun, setup: Setup): Promise<BenchReport> {
  const { rows, runtime, client } = setup;
  bench.say(`loading ${rows} rows twice`);
  await load(setup);
  const { store, warehouse, pool } = runtime;
  await pool.withClient((c) => init({ client: c, store, warehouse, clock: systemClock, log: silentLogger }));
  await register(runtime.mover(null), { table: "public.events", mode: "tiered", lag: `${Math.round(rows * 0.095)}s` });
  bench.say("tiering 90 %");
  await tierAll(runtime);
  await correct(setup, 0);
  const files = await plainParquet(setup);
  bench.say("measuring at 90 %");
  const at90 = await compare(bench, setup, files);
  bench.say("tiering 98 %");
  await client.query(`update spillway.relation set lag = ${BigInt(Math.round(rows * 0.015)) * 1_000_000n}`);
  await tierAll(runtime);
  await correct(setup, 1);
  const files98 = await plainParquet(setup);
  bench.say("measuring at 98 %");
  const at98 = await compare(bench, setup, files98);
  const bars = {
    agg_vs_postgres: atLeast(at98.aggVsPostgres, 3),
    agg_vs_duckdb: atMost(at98.aggVsDuckdb, 3),
    point_ms: atMost(at98.pointMs, 50),
  };
  return report("read", bars, { rows, lake_98: at98, lake_90: at90 });
}

const COLUMNS = `id bigint, ts timestamptz, customer int, kind text, amount numeric(12,2), score float8, note text`;

async function load({ rows, client }: Setup): Promise<void> {
  await client.query(`create table events (${COLUMNS}, primary key (id, ts)) partition by range (ts)`);
  const width = rows / PARTITIONS;
  for (let i = 0; i < PARTITIONS; i++) {
    const bound = (n: number): string => `'${new Date(START_MS + n * width * 1000).toISOString()}'`;
    await client.query(
      `create table events_${i} partition of events for values from (${bound(i)}) to (${bound(i + 1)})`,
    );
  }
  await client.query(`insert into events select i, ${START} + i * interval '1 second', i % 1000,
    (array['new','paid','shipped','done','void'])[1 + i % 5], (i::bigint * 7919 % 1000000) / 100.0, i / 8.0,
    'note number ' || (i::bigint * 7919 % 10000000) from generate_series(0, ${rows - 1}) i`);
  await client.query(`create table flat as table events`);
  await client.query(`alter table flat add primary key (id, ts)`);
  await client.query(`create index on flat (ts); create index on flat (customer)`);
  await client.query(`create table customers (id int primary key, region text)`);
  await client.query(`insert into customers select i, 'region ' || i % 12 from generate_series(0, 999) i`);
  await client.query(`vacuum analyze flat`);
  await client.query(`vacuum analyze events`);
  await client.query(`analyze customers`);
}

async function tierAll(runtime: Runtime): Promise<void> {
  const passes = new Passes();
  for (let i = 0; i < 20; i++) {
    const done = await passes.run(runtime.mover(null), { force: true });
    assert(Object.keys(done.failed).length === 0, () => `a pass failed: ${JSON.stringify(done.failed)}`);
    if (done.moved === 0) return;
  }
}

/** 0.25 % of the lake's rows corrected and folded, then as many again that stay in the delta. */
async function correct({ client, runtime, rows }: Setup, round: number): Promise<void> {
  const relation = must(asTiered(must(await loadRelationByName(client, "public", "events"), "events")), "tiered");
  const below = Math.floor(rows * 0.87);
  for (const part of [0, 1]) {
    const which = `id % 400 = ${round * 2 + part} and id < ${below}`;
    const change = `amount = amount + 1, note = 'corrected ' || id`;
    await client.query(`update flat set ${change} where ${which}`);
    await client.query(`insert into events select * from flat where ${which}`);
    if (part === 0) await foldRelation(runtime.mover(null), relation);
  }
  await client.query("vacuum analyze flat");
  await client.query(`vacuum analyze spillway.delta_${relation.relationId}`);
}

/** The rows of the plain table in files of their own: what DuckDB alone reads. */
async function plainParquet({ client, runtime, home }: Setup): Promise<string[]> {
  const root = mkdtempSync(join(home, "plain-"));
  const { rows } = await client.query<{ oid: number }>("select 'flat'::regclass::oid as oid");
  const columns = await readTableColumns(client, Number(must(rows[0], "flat").oid));
  const plans = columns.map((c) => c.copyPlan);
  const connection = await connectRaw(runtime.conninfo);
  const source = `(select ${selectList(plans)} from flat order by ts)`;
  const fields = columns.map((c, i) => ({
    id: i + 1,
    name: c.name,
    kind: c.plan.kind,
    ...(c.plan.decimal ? { decimal: c.plan.decimal } : {}),
  }));
  const files = await writeDataFiles({
    engine: runtime.engine,
    batches: copyOut({ connection, source, columns: plans }),
    fields,
    spec: { specId: 0, fields: [] },
    store: new FileStore({ root, fsync: false }),
    dataLocation: `file://${root}/data`,
    stageDir: root,
  });
  await connection.close();
  await runtime.engine.use((s) =>
    s.run(
      `CREATE OR REPLACE TABLE customers AS SELECT i::INTEGER AS id, 'region ' || i % 12 AS region FROM range(1000) r(i)`,
    ),
  );
  return files.map((f) => f.path.slice("file://".length));
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
