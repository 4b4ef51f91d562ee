/**
 * What `bench read` reads: the same rows as a registered table in two tiers, as a plain table of Postgres with its indexes,
 * and as Parquet without deletes. Rows get to the lake by the movers, and corrections by plain statements.
 */
import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import { assert, must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { FileStore } from "@spillway/lake/store/file";
import { copyOut } from "@spillway/pg/copy/copy-out";
import { selectList } from "@spillway/pg/columns/plan";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import { init, loadRelationByName, readTableColumns } from "@spillway/server/catalog/catalog";
import { writeDataFiles } from "@spillway/server/engine/engine";
import { asTiered, foldRelation, Passes, register } from "@spillway/server/movers/movers";
import type { Runtime } from "@spillway/server/roles/runtime";
import type pg from "pg";

export interface Sources {
  readonly rows: number;
  readonly home: string;
  readonly runtime: Runtime;
  readonly client: pg.Client;
}

export const START_MS = Date.UTC(2024, 0, 1);
const START = "timestamptz '2024-01-01 00:00:00+00'";
/** Where the partitions end, as parts of all rows: one second a row. */
const BOUNDS = [0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 0.98, 1];
const COLUMNS = `id bigint, ts timestamptz, customer int, kind text, amount numeric(12,2), score float8, note text`;

/** Makes `events` (nothing of it in the lake yet), `flat` and `customers`. */
export async function loadHeap({ rows, client }: Sources): Promise<void> {
  await client.query(`set maintenance_work_mem = '256MB'; set synchronous_commit = off`);
  await client.query(`create table events (${COLUMNS}, primary key (id, ts)) partition by range (ts)`);
  for (let i = 0; i + 1 < BOUNDS.length; i++) {
    const [from, to] = [Math.floor(rows * must(BOUNDS[i], "bound")), Math.floor(rows * must(BOUNDS[i + 1], "bound"))];
    const at = (n: number): string => `'${new Date(START_MS + n * 1000).toISOString()}'`;
    // Filled before it has an index and a parent: several times faster than row by row through the parent.
    await client.query(`create table events_${i} (${COLUMNS})`);
    await client.query(`insert into events_${i} select i, ${START} + i * interval '1 second', i % 1000,
      (array['new','paid','shipped','done','void'])[1 + i % 5], ((i * 7919 % 1000000) / 100.0)::numeric(12,2), i / 8.0,
      'note number ' || (i * 7919 % 10000000) from generate_series(${from}::bigint, ${to - 1}::bigint) i`);
    await client.query(`alter table events_${i} add primary key (id, ts)`);
    await client.query(`alter table events attach partition events_${i} for values from (${at(from)}) to (${at(to)})`);
  }
  await client.query(`create table flat as table events`);
  await client.query(`alter table flat add primary key (id, ts)`);
  await client.query(`create index on flat (ts)`);
  await client.query(`create index on flat (customer)`);
  await client.query(`create table customers (id int primary key, region text)`);
  await client.query(`insert into customers select i, 'region ' || i % 12 from generate_series(0, 999) i`);
  await client.query(`vacuum analyze flat`);
  await client.query(`vacuum analyze events`);
  await client.query(`vacuum analyze customers`);
}

/** Registers `events` so that 90 % of it go to the lake. */
export async function registerEvents({ rows, runtime }: Sources): Promise<void> {
  const { store, warehouse, pool } = runtime;
  await pool.withClient((c) => init({ client: c, store, warehouse, clock: systemClock, log: silentLogger }));
  await register(runtime.mover(null), { table: "public.events", mode: "tiered", lag: `${Math.round(rows * 0.095)}s` });
  await tierAll(runtime);
}

/** All but the last 2 %. */
export async function tierMore({ rows, client, runtime }: Sources): Promise<void> {
  await client.query(`update spillway.relation set lag = ${BigInt(Math.round(rows * 0.015)) * 1_000_000n}`);
  await tierAll(runtime);
}

async function tierAll(runtime: Runtime): Promise<void> {
  const passes = new Passes();
  for (let i = 0; i < 20; i++) {
    const done = await passes.run(runtime.mover(null), { force: true });
    assert(Object.keys(done.failed).length === 0, () => `a pass failed: ${JSON.stringify(done.failed)}`);
    if (done.moved === 0) return;
  }
}

/** 0.25 % of the rows corrected and folded, spread over all files. */
export async function correctFolded(sources: Sources): Promise<void> {
  await correct(sources, 0);
  const { client, runtime } = sources;
  const relation = must(asTiered(must(await loadRelationByName(client, "public", "events"), "events")), "tiered");
  await foldRelation(runtime.mover(null), relation);
}

/** As many others corrected, which stay in the delta. */
export async function correctKept(sources: Sources): Promise<void> {
  await correct(sources, 1);
  const { client } = sources;
  const relation = must(await loadRelationByName(client, "public", "events"), "events");
  await client.query("vacuum analyze flat");
  await client.query(`vacuum analyze spillway.delta_${relation.relationId}`);
}

async function correct({ client, rows }: Sources, part: number): Promise<void> {
  const which = `id % 400 = ${part} and id < ${Math.floor(rows * 0.87)}`;
  await client.query(`update flat set amount = amount + 1, note = 'corrected ' || id where ${which}`);
  await client.query(`insert into events select * from flat where ${which}`);
}

/** The rows of the plain table in files of their own, written as the movers write theirs: what DuckDB alone reads. */
export async function plainParquet({ client, runtime, home }: Sources): Promise<string[]> {
  const root = mkdtempSync(join(home, "plain-"));
  const { rows } = await client.query<{ oid: number }>("select 'flat'::regclass::oid as oid");
  const columns = await readTableColumns(client, Number(must(rows[0], "flat").oid));
  const plans = columns.map((c) => c.copyPlan);
  const connection = await connectRaw(runtime.conninfo);
  const fields = columns.map((c, i) => ({
    id: i + 1,
    name: c.name,
    kind: c.plan.kind,
    ...(c.plan.decimal ? { decimal: c.plan.decimal } : {}),
  }));
  const files = await writeDataFiles({
    engine: runtime.engine,
    batches: copyOut({ connection, source: `(select ${selectList(plans)} from flat order by ts)`, columns: plans }),
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
