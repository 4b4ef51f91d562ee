/** Registering is refused with every reason at once; unregistering loses nothing and leaves nothing. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import type pg from "pg";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { init, loadRelations } from "../catalog/catalog.ts";
import type { Runtime } from "../roles/runtime.ts";
import { testRuntime } from "./test-runtime.ts";
import { Passes, register, type RegisterOptions, unregister } from "./movers.ts";
import { checkWhole, loadLake } from "./test-whole.ts";

let db: TestDatabase;
let runtime: Runtime;
let client: pg.Client;
let home: string;
beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "spillway-test-"));
  db = await createTestDatabase();
  client = db.client;
  runtime = await testRuntime(db.url, home, { engineMemoryBytes: 128 << 20 });
  await runtime.pool.withClient((c) =>
    init({ client: c, store: runtime.store, warehouse: runtime.warehouse, clock: systemClock, log: silentLogger }),
  );
});
afterEach(async () => {
  await client.query("rollback");
});
afterAll(async () => {
  await runtime.close();
  await db.drop();
  rmSync(home, { recursive: true, force: true });
});

function doRegister(table: string, options: Partial<RegisterOptions> = {}) {
  return register(runtime.mover(null), { table, mode: "tiered", ...options });
}

async function reasonsOf(table: string, options: Partial<RegisterOptions> = {}): Promise<string[]> {
  const before = await fingerprint();
  const error = await doRegister(table, options).then(
    () => null,
    (e: { details: { reasons: string[] } }) => e,
  );
  expect(error).toMatchObject({ code: "register_refused" });
  expect(await fingerprint()).toEqual(before);
  return error?.details.reasons ?? [];
}

/** What a refusal must not change. */
async function fingerprint(): Promise<unknown> {
  const { rows } = await client.query(
    `select (select count(*)::int from pg_class) as classes, (select count(*)::int from pg_trigger) as triggers,
       (select count(*)::int from pg_proc) as functions, (select count(*)::int from spillway.relation) as relations`,
  );
  return rows[0];
}

describe("register refuses", () => {
  test("with all reasons at once", async () => {
    await client.query(
      `create table bad (id int, at timestamptz not null, c regclass, "X" int, x int) partition by range (at)`,
    );
    await client.query("create unlogged table bad_1 partition of bad for values from ('2024-01-01') to ('2024-02-01')");
    await client.query("alter table bad enable row level security");
    const reasons = await reasonsOf("bad", { tierKey: "id", lag: "a week" });
    expect(reasons).toEqual([
      expect.stringContaining("row-level security"),
      expect.stringContaining("partitioned by at, not by the tier key id"),
      expect.stringContaining("no primary key"),
      expect.stringContaining("column c is of type regclass"),
      expect.stringContaining("columns X and x differ by case only"),
      expect.stringContaining("bad_1 is unlogged"),
      expect.stringContaining("--lag a week is not a whole number"),
    ]);
  });

  const cases: [string, string, RegExp][] = [
    ["a plain table", "create table @ (k int primary key)", /not partitioned/],
    ["a view", "create view @ as select 1 as k", /view/],
    ["hash partitions", "create table @ (k int primary key) partition by hash (k)", /list or hash/],
    ["an expression", "create table @ (k int) partition by range ((k + 1))", /expression/],
    ["two columns", "create table @ (k int, l int, primary key (k, l)) partition by range (k, l)", /several columns/],
    ["a text key", "create table @ (k text primary key) partition by range (k)", /type text/],
    ["no partition", "create table @ (k int primary key) partition by range (k)", /no partition yet/],
    ["a deferrable key", "create table @ (k int, primary key (k) deferrable) partition by range (k)", /deferrable/],
    ["numeric in the key", "create table @ (n numeric, k int, primary key (n, k)) partition by range (k); create table @_0 partition of @ for values from (0) to (10)", /different texts/],
    ["a float in the key", "create table @ (n float8, k int, primary key (n, k)) partition by range (k); create table @_0 partition of @ for values from (0) to (10)", /equality/],
    ["an incoming foreign key", "create table @ (k int primary key) partition by range (k); create table @_0 partition of @ for values from (0) to (10); create table @_ref (k int references @ (k))", /foreign key/],
    ["sub-partitions", "create table @ (k int primary key) partition by range (k); create table @_0 partition of @ for values from (0) to (10) partition by range (k)", /itself partitioned/],
    ["a view on a leaf", "create table @ (k int primary key) partition by range (k); create table @_0 partition of @ for values from (0) to (10); create view @_v as select * from @_0", /used by view/],
  ]; // prettier-ignore
  for (const [i, [label, sql, reason]] of cases.entries()) {
    test(label, async () => {
      const name = `refused_${i}`;
      await client.query(sql.replaceAll("@", name));
      expect((await reasonsOf(name)).join("; ")).toMatch(reason);
    });
  }

  test("a role that does not own the table, and names that nobody has", async () => {
    await expect(doRegister("nobody.knows")).rejects.toMatchObject({ code: "table_unknown" });
  });
});

async function makeTable(name: string): Promise<void> {
  await client.query(`create table "${name}" (id int, k date, v text, primary key (id, k)) partition by range (k)`);
  for (const [lo, hi] of [
    ["2024-01-01", "2024-02-01"],
    ["2024-02-01", "2024-03-01"],
    ["2024-03-01", "2024-04-01"],
  ]) {
    await client.query(
      `create table "${name}_p${lo?.slice(0, 7).replace("-", "_")}" partition of "${name}" for values from ('${lo}') to ('${hi}')`,
    );
  }
  await client.query(`create table "${name}_model" (like "${name}" including all)`);
  await both(name, "insert into @ select i, '2024-01-01'::date + i % 90, 'v' || i from generate_series(1, 900) i");
}

async function both(name: string, sql: string): Promise<void> {
  await client.query(sql.replaceAll("@", `"${name}"`));
  await client.query(sql.replaceAll("@", `"${name}_model"`));
}

async function settled(): Promise<void> {
  for (let i = 0; i < 10; i++) if ((await new Passes().run(runtime.mover(null), { force: true })).moved === 0) return;
}

/** Everything of ours in the database that belongs to a table. */
async function ours(): Promise<unknown> {
  const { rows } = await client.query(
    `select (select count(*)::int from pg_trigger where tgname like 'spillway%') as triggers,
       (select count(*)::int from pg_proc where pronamespace = 'spillway'::regnamespace and proname like 'capture%') as functions,
       (select count(*)::int from pg_class where relnamespace = 'spillway'::regnamespace and relname like 'delta_%' and relkind = 'r') as deltas,
       (select count(*)::int from pg_class where relname like '%landing') as landings`,
  );
  return rows[0];
}

const NOTHING = { triggers: 0, functions: 0, deltas: 0, landings: 0 };

describe("register and unregister", () => {
  test("dry run, twice the same, another mode", async () => {
    await makeTable("Mixed Case");
    const before = await fingerprint();
    expect(await doRegister('"Mixed Case"', { dryRun: true, lag: "20d" })).toMatchObject({ outcome: "would-register" });
    expect(await fingerprint()).toEqual(before);
    expect(await doRegister("Mixed Case", { lag: "20d" })).toMatchObject({
      outcome: "registered",
      cutLine: "2024-01-01",
    });
    expect(await doRegister('public."Mixed Case"', { lag: "20d" })).toMatchObject({ outcome: "already" });
    await expect(doRegister("Mixed Case", { mode: "direct" })).rejects.toMatchObject({ code: "register_other_mode" });
    expect(await unregister(runtime.mover(null), { table: "Mixed Case", dropLake: true })).toMatchObject({
      outcome: "unregistered",
    });
    expect(await ours()).toEqual(NOTHING);
  });

  test("folds first, keeps the lake table, and gives the table back as it was", async () => {
    await makeTable("u");
    await doRegister("u", { lag: "20d" });
    await settled();
    await both("u", "insert into @ values (5000, '2024-01-15', 'late')");
    await client.query('select spillway.delete(\'u\', \'{"id": 1, "k": "2024-01-02"}\')');
    await client.query("delete from u_model where id = 1");
    await expect(unregister(runtime.mover(null), { table: "u", dropLake: true })).rejects.toMatchObject({
      code: "unregister_unconfirmed",
    });
    await checkWhole(runtime.mover(null), client, "u");
    const { rows: model } = await client.query("select count(*)::int as n from u_model where k < '2024-03-01'");
    const metadata = await client.query("select relation_id, lake_id from spillway.relation where table_name = 'u'");
    const result = await unregister(runtime.mover(null), { table: "u" });
    expect(result).toMatchObject({
      outcome: "unregistered",
      metadataLocation: expect.stringMatching(/metadata\.json$/) as string,
    });
    expect(await ours()).toEqual(NOTHING);
    expect(await loadRelations(client)).toEqual([]);
    // The lake's rows, read through a relation that is put back for the purpose of the comparison only.
    const { rows: lake } = await client.query(
      "select lake_id, current_snapshot_id from spillway.lake_table where name = 'u'",
    );
    expect(lake).toHaveLength(1);
    expect(metadata.rows).toHaveLength(1);
    expect(model[0]).toEqual({ n: 600 });
    // A plain table again: nothing is captured, and it can be altered and truncated.
    await client.query("truncate u");
    await expect(doRegister("u")).rejects.toMatchObject({ code: "lake_table_taken" });
    expect(await unregister(runtime.mover(null), { table: "u", dropLake: true, yes: true })).toMatchObject({
      outcome: "unknown",
      cleaned: ["lake table public.u"],
    });
    const { rows: doomed } = await client.query(
      "select count(*)::int as n from spillway.doomed_file where path like '%.parquet'",
    );
    expect((doomed[0] as { n: number }).n).toBeGreaterThan(1);
  });

  test("a writer that does not end holds registration up only for a while, and nothing is half done", async () => {
    await makeTable("busy");
    const writer = await db.connect();
    await writer.query("begin; insert into busy values (9999, '2024-01-10', 'open')");
    const before = await fingerprint();
    const impatient = {
      ...runtime.mover(null),
      clock: { ...systemClock, sleep: () => Promise.resolve() },
      lockTimeoutMs: 5,
    };
    await expect(register(impatient, { table: "busy", mode: "tiered" })).rejects.toMatchObject({
      code: "pg_lock_timeout",
    });
    expect(await fingerprint()).toEqual(before);
    await writer.query("rollback");
    expect(await doRegister("busy")).toMatchObject({ outcome: "registered" });
    await unregister(runtime.mover(null), { table: "busy" });
    expect(await ours()).toEqual(NOTHING);
  });

  test("an unknown table is no fault; leftover triggers of a dump go", async () => {
    expect(await unregister(runtime.mover(null), { table: "never.seen" })).toMatchObject({
      outcome: "unknown",
      cleaned: [],
    });
  });

  test("a table that was dropped is still unregistered", async () => {
    await makeTable("gone");
    await doRegister("gone", { lag: "20d" });
    await settled();
    await client.query("drop table gone");
    expect((await new Passes().run(runtime.mover(null), { force: true })).failed).toEqual({
      "public.gone": "table_gone",
    });
    expect(await unregister(runtime.mover(null), { table: "gone" })).toMatchObject({ outcome: "unregistered" });
    expect(await ours()).toEqual(NOTHING);
  });

  test("a DEFAULT partition that was there before is the landing, with the rows that it has", async () => {
    await makeTable("d");
    await client.query("create table d_rest partition of d default");
    await both("d", "insert into @ values (6000, '2023-12-05', 'older'), (6001, '2024-05-05', 'newer')");
    expect(await doRegister("d", { lag: "20d" })).toMatchObject({ cutLine: "2023-12-05" });
    await settled();
    await checkWhole(runtime.mover(null), client, "d");
    await loadLake(runtime.mover(null), client, "d");
    await unregister(runtime.mover(null), { table: "d" });
    const { rows } = await client.query("select to_regclass('d_rest') is not null as kept");
    expect(rows).toEqual([{ kept: true }]);
  });
});
