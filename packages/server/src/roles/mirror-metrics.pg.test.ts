/** The metrics and the status of mirrored tables, against what was done to them. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { Metrics } from "@spillway/base/metrics";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { waitFor } from "@spillway/testkit/wait";
import { afterAll, beforeAll, expect, test } from "vitest";
import { init, readStatus, type TableStatus } from "../catalog/catalog.ts";
import { Pump, registerMirrored } from "../movers/movers.ts";
import { MirrorMetrics } from "./mirror-metrics.ts";
import { openRuntime, type Runtime } from "./runtime.ts";

let db: TestDatabase;
let runtime: Runtime;
let home: string;
let registry: Metrics;
let metrics: MirrorMetrics;
let stop: () => Promise<void>;

beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "spillway-metrics-"));
  db = await createTestDatabase();
  runtime = await openRuntime({
    databaseUrl: db.url,
    warehouse: join(home, "lake"),
    s3Endpoint: null,
    s3Region: "us-east-1",
    s3PathStyle: true,
    cacheDir: join(home, "cache"),
    cacheBytes: 1 << 30,
    connectTimeoutMs: 5000,
    engineMemoryBytes: 256 << 20,
    lockTimeoutMs: 100,
    premake: 2,
    applicationName: "test",
    clock: systemClock,
    log: silentLogger,
  });
  const { store, warehouse, pool } = runtime;
  await pool.withClient((client) => init({ client, store, warehouse, clock: systemClock, log: silentLogger }));
  // Postgres sends an open transaction once its own memory for it is too small.
  await db.client
    .query(`do $$ begin execute format('alter database %I set logical_decoding_work_mem = ''64kB''', current_database()); end $$;
    create table a (id int primary key, v text); create table b (id int primary key, v text);
    insert into a select g, 'v' || g from generate_series(1, 1000) g; analyze a`);
  await registerMirrored(runtime.mover(null), { tables: ["a", "b"], parallel: 1 });
  registry = new Metrics();
  metrics = new MirrorMetrics(registry);
  const over = new AbortController();
  const settings = { flushIntervalMs: 300, maxBufferedRows: 2000, indexBytes: 1 << 28, idleIntervalMs: 300 };
  const pump = new Pump(runtime.mover(null), settings, { onFlush: (stats) => metrics.flushed(stats) });
  metrics.follow(() => pump.status);
  const running = pump.run(over.signal);
  stop = async () => {
    over.abort();
    await running;
  };
});
afterAll(async () => {
  await stop();
  await runtime.close();
  await db.drop();
  rmSync(home, { recursive: true, force: true });
});

const refresh = (): Promise<void> => runtime.pool.withClient((c) => metrics.refresh(c, silentLogger, 1 << 30));

function value(name: string, labels = ""): number {
  const line = registry
    .render()
    .split("\n")
    .find((l) => l.startsWith(`spillway_${name}${labels} `));
  return Number(must(line, `${name}${labels}`).split(" ").at(-1));
}

async function table(name: string): Promise<TableStatus> {
  const { tables } = await readStatus(db.client);
  return must(
    tables.find((t) => t.table === `public.${name}`),
    name,
  );
}

test("before the pump has joined a table, its copy is shown; then its stream", async () => {
  await waitFor(
    "both tables live",
    async () => (await table("a")).mirror?.phase === "live" && (await table("b")).mirror?.phase === "live",
  );
  const { mirror, heapRows } = await table("a");
  expect(heapRows).toBe(1000);
  expect(mirror).toMatchObject({
    phase: "live",
    copy: null,
    verified: null,
    frontier: expect.stringMatching(/^[0-9A-F]+\/[0-9A-F]+$/),
  });
  await refresh();
  expect(value("mirror_state", '{reason="",state="live",table="public.a"}')).toBe(1);
  expect(value("mirror_live", '{table="public.a"}')).toBe(1);
});

test("operations and bytes of each table, flushes and their times, lag", async () => {
  await db.client.query(
    "update a set v = 'x' where id <= 100; delete from a where id > 990; insert into b select g, 'w' from generate_series(1, 50) g",
  );
  await waitFor("the operations", async () => {
    await refresh();
    return registry.render().includes('spillway_mirror_table_rows_total{table="public.b"} 50\n');
  });
  expect(value("mirror_table_rows_total", '{table="public.a"}')).toBe(110);
  expect(value("mirror_table_bytes_total", '{table="public.a"}')).toBeGreaterThan(100);
  expect(value("mirror_operations_total")).toBe(160);
  expect(value("mirror_flushes_total")).toBeGreaterThan(0);
  expect(value("mirror_flush_seconds_count")).toBe(value("mirror_flushes_total"));
  await waitFor("a small lag", async () => {
    await refresh();
    return value("mirror_lag_seconds", '{table="public.a"}') < 5 && value("mirror_lag_transactions") === 0;
  });
  expect(value("mirror_lag_bytes", '{table="public.a"}')).toBeGreaterThanOrEqual(0);
  expect(value("slot_retained_wal_bytes", `{slot="${await slotName()}"}`)).toBeGreaterThan(0);
});

test("what is buffered and staged of an open transaction is shown, and gone when it ends", async () => {
  await db.client.query("begin; insert into b select g, repeat(md5(g::text), 10) from generate_series(1000, 60000) g");
  await waitFor(
    "buffers",
    async () => {
      await refresh();
      return value("mirror_buffered_rows") > 0 || value("mirror_staged_bytes") > 0;
    },
    { timeoutMs: 15_000 },
  ).catch(() => {});
  const seen = value("mirror_buffered_rows") + value("mirror_staged_bytes");
  await db.client.query("commit");
  await waitFor("the end of it", async () => {
    await refresh();
    return registry.render().includes('spillway_mirror_table_rows_total{table="public.b"} 59051\n');
  });
  expect([value("mirror_buffered_rows"), value("mirror_staged_bytes")]).toEqual([0, 0]);
  expect(seen).toBeGreaterThan(0);
});

test("a table that stops shows its reason as a state", async () => {
  await db.client.query(
    "update spillway.mirror_table m set phase = 'needs_copy' from spillway.relation x where x.relation_id = m.relation_id and table_name = 'b'",
  );
  await db.client.query(
    "update spillway.relation set state = 'stopped', stop_code = 'mirror_row_missing', stop_reason = 'a test' where table_name = 'b'",
  );
  await refresh();
  expect(value("mirror_state", '{reason="mirror_row_missing",state="needs_copy",table="public.b"}')).toBe(1);
  expect(registry.render()).not.toContain('state="live",table="public.b"');
  expect(value("mirror_live", '{table="public.b"}')).toBe(0);
});

test("a copy's progress and a certificate's age", async () => {
  await db.client
    .query(`update spillway.mirror_table m set verified_at = now() - interval '2 hours', verified_lsn = '0/AB', verified_rows = 990, verified_sum = 'ff'
    from spillway.relation x where x.relation_id = m.relation_id and table_name = 'a'`);
  const { mirror } = await table("a");
  expect(mirror?.verified).toMatchObject({ lsn: "0/AB", rows: 990 });
  expect(Math.round(must(mirror?.verified, "certificate").ageMs / 60_000)).toBe(120);
  const id = "(select relation_id from spillway.relation where table_name = 'a')";
  await db.client.query(`insert into spillway.journal (op_id, kind, phase, epoch, started_at) overriding system value
      values (-7, 'mirror-copy', 'open', 0, now() - interval '10 seconds');
    update spillway.mirror_table set phase = 'copying', copy_op = -7 where relation_id = ${id};
    insert into spillway.mirror_range (relation_id, part, leaf, leaf_schema, leaf_name, first_block, end_block, rows, done_at)
    values (${id}, 0, 'a'::regclass, 'public', 'a', 0, 300, 60000, now()), (${id}, 1, 'a'::regclass, 'public', 'a', 300, 400, null, null)`);
  const { copy } = must((await table("a")).mirror, "mirror");
  expect(copy).toMatchObject({ parts: 2, done: 1, rows: 60_000 });
  expect(must(copy?.rowsPerSecond, "rate")).toBeGreaterThan(5000);
  expect(must(copy?.rowsPerSecond, "rate")).toBeLessThanOrEqual(6000);
  expect([3, 4]).toContain(copy?.secondsLeft);
});

async function slotName(): Promise<string> {
  const { rows } = await db.client.query<{ s: string }>("select slot_name as s from spillway.mirror");
  return String(rows[0]?.s);
}
