/** Columns and partitions that change under a mirrored table: followed in the stream, or copied again; the lake is right in the end. */

import { systemClock } from "@spillway/base/clock";
import { must } from "@spillway/base/assert";
import { parseLsn } from "@spillway/base/lsn";
import { readMetadata } from "@spillway/lake/metadata";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { TYPE_SAMPLES, TYPE_SETUP } from "@spillway/testkit/type-samples";
import { waitFor } from "@spillway/testkit/wait";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Runtime } from "../../roles/runtime.ts";
import { testRuntime } from "../test-runtime.ts";
import type { MoverContext } from "../context.ts";
import { tendCopies } from "./copies.ts";
import { registerMirrored } from "./onboard.ts";
import { Pump } from "./pump.ts";
import { currentRows, heapRows, initSource, lakeRows, TEST_SETTINGS, testHome } from "./test-mirror.ts";

describe.each([15, 18] as const)("on Postgres %i", (major) => {
  let db: TestDatabase;
  let runtime: Runtime;
  let ctx: MoverContext;
  const home = testHome();
  const stop = new AbortController();
  let running: Promise<unknown> = Promise.resolve();

  beforeAll(async () => {
    db = await createTestDatabase({ major });
    runtime = await testRuntime(db.url, home.dir);
    ctx = runtime.mover(null);
    await initSource(ctx, systemClock);
    const pump = new Pump(ctx, TEST_SETTINGS);
    running = Promise.all([pump.run(stop.signal), tendCopies(ctx, 1, stop.signal)]);
  });
  afterAll(async () => {
    stop.abort();
    await running;
    await runtime.close();
    await db.drop();
    home.remove();
  });

  async function mirrored(table: string, sql: string): Promise<void> {
    await db.client.query(sql);
    await registerMirrored(ctx, { tables: [table], parallel: 1 });
    await settled(table);
  }

  /** Waits until the lake is what the heap is. Returns how often the table was copied. */
  async function settled(table: string): Promise<number> {
    let report = "";
    await waitFor(
      `the lake to be as ${table} is`,
      async () => {
        const { rows } = await db.client.query<{ phase: string; stop_code: string | null; stop_reason: string }>(
          `select phase, stop_code, stop_reason from spillway.mirror_table join spillway.relation using (relation_id)
           where relid = $1::regclass`,
          [table],
        );
        report = JSON.stringify(rows[0]);
        if (rows[0]?.phase !== "live") return false;
        const fields = await db.client.query(`select * from ${table} limit 0`);
        const names = fields.fields.map((f) => f.name);
        const [lake, heap] = [await currentRows(ctx, db.client, table), await heapRows(db.client, table, names)];
        report += ` ${lake.length} ${heap.length} ${lake.find((r) => !heap.includes(r))} ${heap.find((r) => !lake.includes(r))}`;
        return lake.join("\n") === heap.join("\n");
      },
      { timeoutMs: 20_000, everyMs: 100 },
    ).catch((error: unknown) => {
      throw new Error(`${String(error)}: ${report.slice(0, 1000)}`);
    });
    const { rows } = await db.client.query<{ n: number }>(
      "select count(*)::int as n from spillway.journal where kind = 'mirror-copy' and detail ->> 'table' = $1",
      [`public.${table}`],
    );
    return rows[0]?.n ?? 0;
  }

  test("columns are added with and without a default, renamed, dropped, made nullable, in mid-transaction too", async () => {
    await mirrored(
      "cols",
      "create table cols (id int primary key, a int not null, b varchar(5)); insert into cols select g, g, 'b' from generate_series(1, 200) g",
    );
    await db.client.query("alter table cols add c int default 7, add d text");
    await db.client.query("insert into cols values (1001, 1, 'x', 8, 'd'); update cols set a = a + 1 where id < 5");
    await settled("cols");
    await db.client.query(
      "alter table cols rename a to aa; update cols set aa = 0 where id = 9; alter table cols alter aa drop not null; update cols set aa = null where id = 10",
    );
    await settled("cols");
    await db.client.query(
      `begin; insert into cols values (1002, 2, 'y', 9, 'e'); alter table cols drop b; insert into cols values (1003, 3, 10, 'f'); update cols set c = -1 where id = 1002; commit`,
    );
    expect(await settled("cols")).toBe(1);
    await db.client.query(
      `begin; insert into cols values (1004, 2, 1, 'e'); alter table cols add e text default 'deep'; insert into cols values (1005, 4, 11, 'g', 'h'); commit`,
    );
    expect(await settled("cols")).toBe(1);
    // Two steps in one transaction, each at its place.
    await db.client.query(
      `begin; alter table cols drop e; insert into cols values (1006, 3, 10, 'f'); alter table cols add f text default 'deep'; insert into cols values (1007, 4, 11, 'g', 'h'); commit`,
    );
    expect(await settled("cols")).toBe(1);
    await db.client.query("alter table cols alter d type varchar(100); insert into cols values (1015, 5, 5, 'v', 'v')");
    await settled("cols");
  });

  test("what rewrites rows makes the table be copied again", async () => {
    await mirrored(
      "rewr",
      "create table rewr (id int primary key, v int); insert into rewr select g, g from generate_series(1, 300) g",
    );
    await db.client.query("alter table rewr alter v type bigint using v * 1000; insert into rewr values (1000, 1)");
    expect(await settled("rewr")).toBe(2);
    await db.client.query("alter table rewr alter v type bigint using v + 5");
    expect(await settled("rewr")).toBe(3);
    await db.client.query("alter table rewr add r float8 default random(); update rewr set v = 0 where id = 5");
    expect(await settled("rewr")).toBe(4);
    await db.client.query("alter table rewr alter v type text; delete from rewr where id < 10");
    expect(await settled("rewr")).toBe(5);
    await db.client.query("truncate rewr; insert into rewr values (1, 'one', 1)");
    expect(await settled("rewr")).toBe(5);
  });

  test("wider types, other files of the same rows, and DDL that is rolled back leave the copy as it is", async () => {
    await mirrored(
      "wide",
      "create table wide (id int primary key, a smallint, b int, f real); insert into wide select g, g, g, g / 4.0 from generate_series(1, 500) g",
    );
    await db.client.query("alter table wide alter a type int");
    await db.client.query("alter table wide alter b type bigint, alter f type float8");
    await db.client.query("alter table wide add n int default 5");
    await db.client.query(
      "update wide set b = b * 10000000000 where id % 7 = 0; insert into wide values (1000, 70000, 1, 0.5)",
    );
    await db.client.query("vacuum full wide");
    await db.client.query(
      "begin; savepoint s; alter table wide drop n; rollback to s; insert into wide values (1001, 1, 2, 3, 4); commit",
    );
    // Idle: the new column is there without a change of a row.
    await db.client.query("alter table wide add late text default 'l'");
    expect(await settled("wide")).toBe(1);
    await db.client.query("update wide set late = 'x' where id < 10");
    expect(await settled("wide")).toBe(1);
  });

  test("no snapshot between is wrong when a type changes by an expression", async () => {
    await mirrored(
      "expr",
      "create table expr (id int primary key, v bigint); create table beside (id int primary key); insert into expr select g, g from generate_series(1, 1000) g",
    );
    await registerMirrored(ctx, { tables: ["beside"], parallel: 1 });
    const seen = new Map<string, { f: bigint; location: string }>();
    const over = new AbortController();
    const watching = (async () => {
      const client = await db.connect();
      while (!over.signal.aborted) {
        const { rows } = await client.query<{ f: string; location: string }>(
          `select f_lsn::text as f, metadata_location as location from spillway.seam join spillway.relation using (relation_id)
           join spillway.lake_table using (lake_id) where table_name = 'expr'`,
        );
        const row = rows[0];
        if (row?.f) seen.set(`${row.f} ${row.location}`, { f: parseLsn(row.f), location: row.location });
      }
    })();
    for (let i = 0; i < 20; i++) await db.client.query("insert into beside values ($1)", [i]);
    const { rows } = await db.client
      .query<{ lsn: string }>(
        "alter table expr alter v type bigint using v + 1000000; select pg_current_wal_insert_lsn()::text as lsn",
      )
      .then((r) => (r as unknown as { rows: { lsn: string }[] }[])[1] ?? { rows: [] });
    const altered = parseLsn(must(rows[0], "lsn").lsn);
    for (let i = 100; i < 140; i++) await db.client.query("insert into beside values ($1)", [i]);
    expect(await settled("expr")).toBe(2);
    over.abort();
    await watching;
    const sums = new Map<string, bigint>();
    for (const { f, location } of seen.values()) {
      const metadata = await readMetadata(ctx.store, location);
      const at = metadata.currentSnapshotId;
      if (at === undefined) continue;
      const rowsThen = sums.has(location) ? [] : await lakeRows(ctx, metadata, at, ["v"]);
      const sum =
        sums.get(location) ??
        rowsThen.reduce((total, row) => total + BigInt((JSON.parse(row) as string[])[0] ?? 0), 0n);
      sums.set(location, sum);
      expect(sum).toBe(f >= altered ? 1_000_500_500n : 500_500n);
    }
    expect(seen.size).toBeGreaterThan(2);
  });

  test("a transaction that is streamed while it alters a table makes it be copied again if it commits", async () => {
    await db.client.query(
      `do $$ begin execute format('alter database %I set logical_decoding_work_mem = %L', current_database(), '64kB'); end $$`,
    );
    await db.client.query("select pg_terminate_backend(pid) from pg_stat_replication");
    await mirrored("big", "create table big (id int primary key, t text)");
    const fill = "insert into big select g, repeat('x', 100) from generate_series(1, 3000) g";
    await db.client.query("begin");
    await db.client.query(fill);
    await db.client.query("alter table big add n int default 1");
    await db.client.query("update big set n = 2 where id < 100");
    await db.client.query("rollback");
    expect(await settled("big")).toBe(1);
    await db.client.query(
      `begin; ${fill}; alter table big add n int default 1; update big set n = 2 where id < 100; commit`,
    );
    expect(await settled("big")).toBe(2);
  });

  test("leaves come and go, with rows and without", async () => {
    await mirrored(
      "part",
      `create table part (id int, k int, v text, primary key (id, k)) partition by range (k);
      create table part_0 partition of part for values from (0) to (10); insert into part select g, g % 10, 'v' from generate_series(1, 100) g`,
    );
    await db.client.query(
      "create table part_1 partition of part for values from (10) to (20); insert into part values (1, 11, 'new')",
    );
    expect(await settled("part")).toBe(1);
    await db.client.query(
      "create table part_2 (like part including all); insert into part_2 values (5, 25, 'came along'); alter table part attach partition part_2 for values from (20) to (30)",
    );
    expect(await settled("part")).toBe(2);
    await db.client.query("alter table part detach partition part_0; insert into part values (7, 21, 'after')");
    expect(await settled("part")).toBe(3);
    await db.client.query("drop table part_1");
    expect(await settled("part")).toBe(4);
  });

  test("every type arrives as it is, by the copy and by the stream", async () => {
    await db.client.query(TYPE_SETUP);
    const types = Object.entries(TYPE_SAMPLES);
    const list = types.map(([type], i) => `c${i} ${type}`).join(", ");
    const fill = async (from: number): Promise<void> => {
      for (const [i, [, samples]] of types.entries()) {
        for (const [j, value] of [...samples, null].entries()) {
          await db.client.query(
            `insert into typed (id, c${i}) values ($1, $2) on conflict (id) do update set c${i} = excluded.c${i}`,
            [from + j, value],
          );
        }
      }
    };
    await db.client.query(`create table typed (id int primary key, ${list})`);
    await fill(0);
    await registerMirrored(ctx, { tables: ["typed"], parallel: 1 });
    await fill(1000);
    await db.client.query("update typed set c0 = not c0 where id % 2 = 0");
    await waitFor("the table to be live", async () => {
      const { rows } = await db.client.query(
        "select from spillway.mirror_table join spillway.relation using (relation_id) where relid = 'typed'::regclass and phase = 'live' and f_lsn_past(relation_id)".replace(
          " and f_lsn_past(relation_id)",
          "",
        ),
      );
      return rows.length === 1;
    });
    // Compared by Postgres itself: the lake's text, cast back, is the value.
    const names = ["id", ...types.map((_, i) => `c${i}`)];
    let faults: string[] = [];
    await waitFor(
      "the same values",
      async () => {
        const lake = (await currentRows(ctx, db.client, "typed")).map((row) => JSON.parse(row) as (string | null)[]);
        await db.client.query("create temp table if not exists typed_lake (like typed); truncate typed_lake");
        const places = names.map((_, i) => `$${i + 1}`).join(", ");
        for (const row of lake) await db.client.query(`insert into typed_lake values (${places})`, row);
        // Compared by Postgres, which prints both: a missing row differs in its id.
        const pairs = names.map(
          (n, i) =>
            `case when t.${n}::text is distinct from l.${n}::text then '${i === 0 ? "id" : types[i - 1]?.[0].replaceAll("'", "''")} ' || coalesce(t.id::text, 'none') || ': ' || left(coalesce(t.${n}::text, 'NULL'), 60) || ' / ' || left(coalesce(l.${n}::text, 'NULL'), 60) end`,
        );
        const { rows } = await db.client.query<{ faults: string[] }>(
          `select array_remove(array_agg(f), null) as faults from typed t full join typed_lake l using (id), unnest(array[${pairs.join(", ")}]) f`,
        );
        // One file's dictionary holds one zero: the sign of zero is the Parquet writer's.
        faults = (rows[0]?.faults ?? []).filter((f) => !/: -?0 \/ -?0$/.test(f));
        return faults.length === 0;
      },
      { timeoutMs: 20_000, everyMs: 500 },
    ).catch(() => {});
    expect(faults).toEqual([]);
  });

  test("where the role may not make event triggers, what is ambiguous is seen and copied again", async () => {
    await mirrored(
      "poor",
      "create table poor (id int primary key, v int, e text); insert into poor select g, g, 'e' from generate_series(1, 300) g",
    );
    await db.client.query(
      "drop event trigger spillway_mirror_ddl_end; drop event trigger spillway_mirror_rewrite; drop event trigger spillway_mirror_sql_drop",
    );
    await db.client.query("alter table poor add c int default 7; insert into poor values (1000, 1, 'x', 8)");
    expect(await settled("poor")).toBe(1);
    await db.client.query(
      `begin; alter table poor drop e; insert into poor values (1006, 3, 10); alter table poor add f text default 'deep'; insert into poor values (1007, 4, 11, 'g'); commit`,
    );
    expect(await settled("poor")).toBe(2);
    await db.client.query("alter table poor alter v type bigint using v * 1000");
    expect(await settled("poor")).toBe(3);
  });
});
