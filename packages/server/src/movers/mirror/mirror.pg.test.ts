/** The mirror against real Postgres: every published snapshot is what Postgres held at its LSN, whatever was done. */

import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { waitFor } from "@spillway/testkit/wait";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Runtime } from "../../roles/runtime.ts";
import { testRuntime } from "../test-runtime.ts";
import type { MoverContext } from "../context.ts";
import { registerMirrored } from "./onboard.ts";
import { Pump, type PumpSettings } from "./pump.ts";
import { heapRows, initSource, lakeMetadata, lakeRows, publishedOf, TEST_SETTINGS, testHome } from "./test-mirror.ts";

const TABLES: Readonly<Record<string, readonly string[]>> = {
  marks: ["id", "n"],
  plain: ["id", "v", "n", "amount"],
  wide: ["k", "v", "big"],
  pair: ["a", "b", "v"],
  parted: ["id", "at", "v"],
};

/** A small generator of numbers that can be repeated. */
function numbers(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

describe.each([15, 18] as const)("on Postgres %i", (major) => {
  let db: TestDatabase;
  let runtime: Runtime;
  let ctx: MoverContext;
  const home = testHome();
  /** What every table held after transaction i. */
  const states: Record<string, string[]>[] = [];

  beforeAll(async () => {
    db = await createTestDatabase({ major });
    runtime = await testRuntime(db.url, home.dir);
    ctx = runtime.mover(null);
    await initSource(ctx, systemClock);
    await db.client.query(`
      create table marks (id int primary key, n int);
      create table plain (id int8 primary key, v text, n int, amount numeric(12,2));
      create table wide (k text primary key, v int, big text);
      alter table wide alter big set storage external;
      create table pair (a int, b text, v text, primary key (b, a));
      alter table pair replica identity full;
      create table parted (id int, at int, v text, primary key (id, at)) partition by range (at);
      create table parted_0 partition of parted for values from (0) to (100);
      create table parted_1 partition of parted for values from (100) to (200);
      insert into marks values (1, 0);
      insert into plain select g, 'v' || g, g, g / 3.0 from generate_series(1, 3000) g;
      insert into wide select 'k' || g, g, repeat(md5(g::text), 200) from generate_series(1, 50) g;
      insert into pair select g, 'b' || g % 7, 'v' from generate_series(1, 500) g;
      insert into parted select g, g % 200, 'p' from generate_series(1, 400) g`);
    await remember();
  });
  afterAll(async () => {
    await runtime.close();
    await db.drop();
    home.remove();
  });

  async function remember(): Promise<void> {
    const state: Record<string, string[]> = {};
    for (const [table, columns] of Object.entries(TABLES)) state[table] = await heapRows(db.client, table, columns);
    states.push(state);
  }

  /** One transaction, which also says its number in `marks`. */
  async function transaction(statements: readonly string[]): Promise<void> {
    await db.client.query("begin");
    for (const sql of statements) await db.client.query(sql);
    await db.client.query("update marks set n = $1", [states.length]);
    await db.client.query("commit");
    await remember();
  }

  async function withPump(work: (pump: Pump) => Promise<void>, settings: Partial<PumpSettings> = {}): Promise<void> {
    const stop = new AbortController();
    const pump = new Pump(ctx, { ...TEST_SETTINGS, ...settings });
    const running = pump.run(stop.signal);
    try {
      await work(pump);
    } finally {
      stop.abort();
      await running;
    }
  }

  async function phases(): Promise<string[]> {
    const { rows } = await db.client.query<{ phase: string }>(
      "select phase from spillway.mirror_table order by relation_id",
    );
    return rows.map((r) => r.phase);
  }

  async function caughtUp(): Promise<void> {
    const { rows } = await db.client.query<{ lsn: string }>("select pg_current_wal_insert_lsn()::text as lsn");
    await db.client.query("select pg_logical_emit_message(false, 'spillway.flush', '')");
    await waitFor(
      `F past ${rows[0]?.lsn}`,
      async () => {
        const stops = await db.client.query<{ t: string }>(
          "select table_name || ': ' || stop_code || ' ' || stop_reason as t from spillway.relation where state = 'stopped'",
        );
        if (stops.rows.length > 0) throw new Error(stops.rows.map((r) => r.t).join("\n"));
        const found = await db.client.query<{ ok: boolean }>(
          "select bool_and(coalesce(f_lsn >= $1, false)) as ok from spillway.seam",
          [rows[0]?.lsn],
        );
        return found.rows[0]?.ok === true;
      },
      { timeoutMs: 30_000 },
    );
  }

  /** Every snapshot of every table from `since` on. Returns how many instants were compared. */
  async function checkAll(): Promise<number> {
    const all = new Map<string, Awaited<ReturnType<typeof lakeMetadata>>>();
    for (const table of Object.keys(TABLES)) all.set(table, await lakeMetadata(ctx, table));
    let checked = 0;
    for (const mark of publishedOf(must(all.get("marks"), "marks"))) {
      const [row = "[]"] = await lakeRows(ctx, must(all.get("marks"), "marks"), mark.snapshotId, ["id", "n"]);
      const n = Number((JSON.parse(row) as string[])[1]);
      for (const [table, columns] of Object.entries(TABLES)) {
        const metadata = must(all.get(table), table);
        const snapshot = publishedOf(metadata).findLast((s) => s.lsn <= mark.lsn);
        if (!snapshot) continue;
        const rows = await lakeRows(ctx, metadata, snapshot.snapshotId, columns);
        const wanted = must(must(states[n], `state ${n}`)[table], table);
        if (rows.join("\n") !== wanted.join("\n")) {
          const [a, b] = [new Set(rows), new Set(wanted)];
          const text = {
            missing: wanted.filter((r) => !a.has(r)).slice(0, 5),
            extra: rows.filter((r) => !b.has(r)).slice(0, 5),
            counts: [rows.length, wanted.length],
          };
          throw new Error(`${table} at ${mark.lsn} (transaction ${n}): ${JSON.stringify(text).slice(0, 2000)}`);
        }
      }
      checked++;
    }
    return checked;
  }

  test("tables are copied and join the stream", async () => {
    const progress: number[] = [];
    const done = await registerMirrored(ctx, {
      tables: ["public.*"],
      parallel: 2,
      onProgress: (p) => progress.push(Number(p.rows)),
    });
    expect(done.map((r) => r.outcome)).toEqual(["registered", "registered", "registered", "registered", "registered"]);
    expect(progress.length).toBeGreaterThan(0);
    await transaction(["insert into plain values (100001, 'after the copy', 1, 2)", "delete from plain where id = 7"]);
    await withPump(async () => {
      await waitFor("all live", async () => (await phases()).every((p) => p === "live"), { timeoutMs: 30_000 });
      await caughtUp();
    });
    expect(await checkAll()).toBeGreaterThan(0);
  });

  test("keys that change, come back, savepoints, TRUNCATE, unchanged large values", async () => {
    await withPump(async () => {
      await transaction(["update plain set id = id + 1000000 where id between 10 and 20"]);
      await transaction([
        "delete from plain where id = 1",
        "insert into plain values (1, 'again', 5, 5)",
        "update plain set v = 'twice' where id = 1",
      ]);
      await transaction([
        "insert into plain values (-1, 'a', 1, 1)",
        "savepoint s",
        "update plain set v = 'lost' where id < 100",
        "rollback to s",
        "update plain set v = 'kept' where id = -1",
      ]);
      await transaction(["update wide set v = v + 1 where v < 20", "update wide set k = k || '!' where v = 5"]);
      await transaction(["update wide set v = v + 100", "update wide set v = -v", "delete from wide where v < -140"]);
      await transaction(["update pair set v = 'x' where a % 3 = 0", "update pair set a = a + 1000 where a < 20"]);
      await transaction(["update parted set at = 150 where id = 3", "delete from parted where id < 3"]);
      await transaction([
        "insert into pair values (1, 'n', 'n')",
        "truncate pair",
        "insert into pair values (2, 'm', 'm'), (3, 'm', 'o')",
        "update pair set v = 'p' where a = 3",
      ]);
      await transaction(["truncate parted"]);
      await transaction(["insert into parted values (1, 1, 'new'), (1, 101, 'new')"]);
      await caughtUp();
    });
    expect(await checkAll()).toBeGreaterThan(1);
  });

  test("random transactions, with the pump ending and beginning in between", async () => {
    const next = numbers(major * 7919);
    const statement = (): string => {
      const id = next(60);
      switch (next(14)) {
        case 0:
        case 1:
          return `insert into plain values (${id}, 'i${next(1000)}', ${next(100)}, ${next(10_000)} / 100.0) on conflict (id) do update set v = excluded.v`;
        case 2:
          return `delete from plain where id = ${id}`;
        case 3:
          return `update plain set id = id + ${next(5) - 2} where id = ${id} and not exists (select from plain p where p.id between ${id - 3} and ${id + 3} and p.id <> ${id})`;
        case 4:
          return `update plain set n = n + 1, amount = null where id % 7 = ${next(7)}`;
        case 5:
          return `insert into wide values ('k${id}', ${next(99)}, repeat(md5('${next(9999)}'), ${next(2) * 300 + 1})) on conflict (k) do update set v = excluded.v`;
        case 6:
          return `update wide set v = v + 1 where k like 'k${next(9)}%'`;
        case 7:
          return `update wide set k = 'r' || k where k = 'k${id}' and not exists (select from wide where k = 'rk${id}')`;
        case 8:
          return `delete from wide where k in ('k${id}', 'rk${id}')`;
        case 9:
          return `insert into pair values (${id}, 'b${next(3)}', 'r') on conflict do nothing`;
        case 10:
          return `update pair set v = v || 'u' where a = ${id}`;
        case 11:
          return `delete from pair where a < ${next(30)}`;
        case 12:
          return `insert into parted values (${id}, ${next(200)}, 'r') on conflict (id, at) do update set v = parted.v || 'c'`;
        default:
          return next(12) === 0
            ? "truncate pair"
            : `update parted set at = (at + ${next(200)}) % 200 where id = ${id} and (select count(*) from parted where id = ${id}) = 1`;
      }
    };
    for (let round = 0; round < 6; round++) {
      await withPump(
        async () => {
          for (let i = 0; i < 25; i++) {
            const list = Array.from({ length: 1 + next(6) }, statement);
            if (next(4) === 0)
              list.splice(next(list.length), 0, "savepoint s", statement(), statement(), "rollback to s");
            await transaction(list);
          }
          if (round % 2 === 0) await caughtUp();
        },
        { flushIntervalMs: 20 + next(60) },
      );
    }
    await withPump(caughtUp);
    expect(await checkAll()).toBeGreaterThan(10);
  });
});
