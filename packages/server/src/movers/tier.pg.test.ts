/** Registering and tiering against real Postgres, a real store and DuckDB, compared with a plain copy of the table. */
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import type pg from "pg";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { init, loadBands, loadRelationByName } from "../catalog/catalog.ts";
import type { Runtime } from "../roles/runtime.ts";
import { testRuntime } from "./test-runtime.ts";
import { Passes, type PassResult, register, type RegisterOptions } from "./movers.ts";
import { checkWhole, loadLake } from "./test-whole.ts";

let db: TestDatabase;
let runtime: Runtime;
let client: pg.Client;
let home: string;
beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "spillway-test-"));
  db = await createTestDatabase();
  runtime = await testRuntime(db.url, home);
  client = db.client;
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

async function pass(name: string): Promise<PassResult> {
  const relation = must(await loadRelationByName(client, "public", name), name);
  return new Passes().run(runtime.mover(null), { force: true, only: [relation.relationId] });
}

async function settled(name: string): Promise<void> {
  for (let i = 0; i < 10; i++) if ((await pass(name)).moved === 0) return;
  throw new Error("the passes do not come to an end");
}

async function makeInts(name: string, options: Partial<RegisterOptions> = {}): Promise<void> {
  await client.query(
    `create table ${name} (id int, k int, v text, w numeric(10,2), primary key (id, k)) partition by range (k)`,
  );
  for (let i = 0; i < 4; i++) {
    await client.query(
      `create table ${name}_${i * 10} partition of ${name} for values from (${i * 10}) to (${i * 10 + 10})`,
    );
  }
  await client.query(`create table ${name}_model (like ${name} including all)`);
  await both(name, `insert into @ select i, i % 40, 'v' || i, i / 3.0 from generate_series(1, 4000) i`);
  await register(runtime.mover(null), { table: `public.${name}`, mode: "tiered", lag: "10", ...options });
}

async function both(name: string, sql: string): Promise<void> {
  await client.query(sql.replaceAll("@", name));
  await client.query(sql.replaceAll("@", `${name}_model`));
}

async function leaves(name: string): Promise<string[]> {
  const { rows } = await client.query<{ n: string }>(
    "select c.relname as n from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = $1::regclass order by 1",
    [name],
  );
  return rows.map((r) => r.n);
}

describe("tiering", () => {
  test("moves what is behind the lag, premakes, and the whole stays the same, also as it is corrected", async () => {
    await makeInts("a");
    await both("a", "insert into @ values (9001, 3, 'before', 1.5)");
    expect((await pass("a")).failed).toEqual({});
    // The greatest key is 39, the lag 10: [0,10) and [10,20) are due.
    expect(await leaves("a")).toEqual(["a_20", "a_30", "a_40", "a_50", "a_landing"]);
    const relation = await loadRelationByName(client, "public", "a");
    expect(relation?.seam.t).toBe(20n);
    await checkWhole(runtime.mover(null), client, "a");
    await both("a", "insert into @ values (9002, 3, 'late', null), (9003, 45, 'next', 1)");
    await client.query("select spillway.delete('a', '{\"id\": 41, \"k\": 1}')");
    await client.query("delete from a_model where id = 41");
    await both("a", "update @ set k = 5 where id = 25");
    await checkWhole(runtime.mover(null), client, "a");
    await settled("a");
    await checkWhole(runtime.mover(null), client, "a");
    const bands = await loadBands(client, relation?.relationId ?? 0n);
    expect(bands.map((b) => [b.lo, b.hi, b.state, b.rows])).toEqual([
      [0n, 10n, "dropped", 1002n],
      [10n, 20n, "dropped", 1000n],
      [20n, 30n, "dropped", 999n],
    ]);
    expect(await leaves("a")).toEqual(["a_30", "a_40", "a_50", "a_60", "a_landing"]);
    const { rows } = await client.query("select count(*)::int as n from spillway.staged_file");
    expect(rows).toEqual([{ n: 0 }]);
  });

  test("keep-heap keeps every partition, and the lake has a copy that plain DML corrects", async () => {
    await makeInts("b", { keepHeap: true });
    await settled("b");
    expect(await leaves("b")).toContain("b_0");
    expect(await loadLake(runtime.mover(null), client, "b")).toBe(2000);
    await both(
      "b",
      "update @ set v = 'x' where k = 7; delete from @ where k = 8; insert into @ values (9100, 3, 'n', 1)",
    );
    await checkWhole(runtime.mover(null), client, "b");
    const { rows } = await client.query(
      "(table b except all table b_model) union all (table b_model except all table b)",
    );
    expect(rows).toEqual([]);
  });

  test("rows beyond the premade range get their partition, and those in a hole go along", async () => {
    await makeInts("c");
    await both("c", "insert into @ values (9001, 77, 'far', 1), (9002, 78, 'far', 1)");
    expect((await client.query("select count(*)::int as n from c_landing")).rows).toEqual([{ n: 2 }]);
    await client.query("drop table c_0; delete from c_model where k < 10");
    await both("c", "insert into @ values (9003, 4, 'in a hole', 1)");
    await settled("c");
    expect((await client.query("select count(*)::int as n from only c_landing")).rows).toEqual([{ n: 0 }]);
    expect(await leaves("c")).toContain("c_70");
    await checkWhole(runtime.mover(null), client, "c");
  });

  test("a partition that somebody made below the cut-line stops the table, and says so", async () => {
    await makeInts("d");
    await settled("d");
    await client.query("create table d_stray partition of d for values from (0) to (5)");
    expect((await pass("d")).failed).toEqual({ "public.d": "partition_unsupported" });
    const stopped = await loadRelationByName(client, "public", "d");
    expect(stopped).toMatchObject({ state: "stopped", stopCode: "partition_unsupported" });
    await client.query("drop table d_stray");
    expect((await pass("d")).failed).toEqual({});
    expect(await loadRelationByName(client, "public", "d")).toMatchObject({ state: "active", stopCode: null });
  });

  test("a drop that gets no lock waits, is shown, and comes later", async () => {
    await makeInts("e");
    const reader = await db.connect();
    await reader.query("begin; select count(*) from e");
    await pass("e");
    const { rows } = await client.query("select step, code, reason from spillway.relation_wait");
    expect(rows).toEqual([
      {
        step: "drop",
        code: "pg_lock_timeout",
        reason: expect.stringMatching(/e_0 waits for a lock.*held by \d+/) as string,
      },
    ]);
    await checkWhole(runtime.mover(null), client, "e");
    await both("e", "update @ set v = 'while waiting' where k = 3");
    await reader.query("commit");
    await settled("e");
    expect(await leaves("e")).not.toContain("e_0");
    expect((await client.query("select * from spillway.relation_wait")).rows).toEqual([]);
    await checkWhole(runtime.mover(null), client, "e");
  });

  test("a partition that was changed behind its capture is not dropped", async () => {
    await makeInts("f");
    const reader = await db.connect();
    await reader.query("begin; select count(*) from f");
    await pass("f");
    await reader.query("commit");
    await client.query(
      "alter table f_0 disable trigger spillway_capture; alter table f_0 enable always trigger spillway_capture",
    );
    expect((await pass("f")).failed).toEqual({ "public.f": "partition_changed" });
    expect(await leaves("f")).toContain("f_0");
    await client.query("vacuum full f_10");
    expect((await loadRelationByName(client, "public", "f"))?.stopReason).toMatch(
      /f_0 is not dropped, because its capture triggers/,
    );
    // The operator compares it, and takes it away: the table goes on by itself.
    await client.query("drop table f_0, f_10");
    expect((await pass("f")).failed).toEqual({});
    expect(await loadRelationByName(client, "public", "f")).toMatchObject({ state: "active" });
    expect((await client.query("select * from spillway.relation_wait")).rows).toEqual([]);
  });
});

describe("following ALTER TABLE", () => {
  test("add with a default, drop, rename, widen, make nullable: on both tiers", async () => {
    await makeInts("g");
    await settled("g");
    await both("g", "insert into @ values (9001, 3, 'old delta', 1)");
    await both(
      "g",
      "alter table @ add column x int default 7; alter table @ add column y timestamptz; alter table @ drop column v",
    );
    await both("g", "alter table @ rename column w to ww; alter table @ alter column ww type numeric(14,2)");
    await both("g", "alter table @ rename column y to w; alter table @ add column b boolean default true");
    await both(
      "g",
      "insert into @ (id, k, ww, x, w) values (9002, 4, 123456789012.5, null, '2024-02-03 04:05:06.789+00')",
    );
    expect((await pass("g")).failed).toEqual({});
    await checkWhole(runtime.mover(null), client, "g");
    await both("g", "insert into @ (id, k, ww) values (9003, 45, 2), (9004, 5, 3)");
    await settled("g");
    await checkWhole(runtime.mover(null), client, "g");
    const { rows } = await client.query(
      "select name, field_id, dropped from spillway.relation_column c join spillway.relation using (relation_id) where table_name = 'g' order by attnum",
    );
    expect(rows).toEqual([
      { name: "id", field_id: 1, dropped: false },
      { name: "k", field_id: 2, dropped: false },
      { name: "v", field_id: 3, dropped: true },
      { name: "ww", field_id: 4, dropped: false },
      { name: "x", field_id: 5, dropped: false },
      { name: "w", field_id: 6, dropped: false },
      { name: "b", field_id: 7, dropped: false },
    ]);
  });

  test("the table's own name", async () => {
    await makeInts("h");
    await settled("h");
    await client.query("alter table h rename to h2; alter table h_model rename to h2_model");
    await pass("h");
    await settled("h2");
    await both("h2", "insert into @ values (9001, 3, 'renamed', 1)");
    await checkWhole(runtime.mover(null), client, "h2");
  });

  test("what cannot be followed stops the table until it is undone; captures go on", async () => {
    await makeInts("i");
    await settled("i");
    await both("i", "alter table @ add column r double precision default random()");
    expect((await pass("i")).failed).toEqual({ "public.i": "schema_change_unsupported" });
    await both("i", "insert into @ (id, k, v, r) values (9001, 3, 'meanwhile', 0.5)");
    await both("i", "alter table @ drop column r");
    expect((await pass("i")).failed).toEqual({});
    await checkWhole(runtime.mover(null), client, "i");
  });
});

test("no file is left in the store that no table refers to", () => {
  const files = readdirSync(join(home, "lake"), { recursive: true }).map(String);
  expect(files.filter((f) => f.endsWith("spillway-tmp"))).toEqual([]);
});
