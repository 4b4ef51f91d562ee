/**
 * `spillway sql` over mirrored tables: whichever tier answers, the answer is one moment of Postgres, and the moment that was asked
 * for. Money moves between tables in every transaction, so that a sum over tables that were read at two moments is wrong.
 */

import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { parseLsn } from "@spillway/base/lsn";
import { connect, endClient } from "@spillway/pg/connect";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { waitFor } from "@spillway/testkit/wait";
import type pg from "pg";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { valueAt } from "../../engine/engine.ts";
import type { Runtime } from "../../roles/runtime.ts";
import { testRuntime } from "../test-runtime.ts";
import { createSeam, printExplanation, type QueryOptions, type QueryStats, type Seam } from "../../seam/seam.ts";
import type { MoverContext } from "../context.ts";
import { Passes } from "../pass.ts";
import { register } from "../register.ts";
import { registerMirrored } from "./onboard.ts";
import { Pump } from "./pump.ts";
import { initSource, lakeMetadata, publishedOf, TEST_SETTINGS, testHome } from "./test-mirror.ts";

const ACCOUNTS = 400;
const TOTAL = 1_000_000;

describe.each([15, 18] as const)("on Postgres %i", (major) => {
  let db: TestDatabase;
  let runtime: Runtime;
  let ctx: MoverContext;
  let seam: Seam;
  let pump: { stop(): Promise<void> };
  /** Of the one row of the tiered table's lake that is corrected. */
  let coldAmount = 0;
  const home = testHome();

  beforeAll(async () => {
    db = await createTestDatabase({ major });
    runtime = await testRuntime(db.url, home.dir);
    ctx = runtime.mover(null);
    await initSource(ctx, systemClock);
    await db.client.query(`
      create table left_side (id int primary key, owner text not null, amount bigint not null);
      create table right_side (id int primary key, amount bigint not null);
      create table plain (id int primary key, amount bigint not null);
      create table tiered (id int, k int, amount bigint not null, primary key (id, k)) partition by range (k);
      create table tiered_0 partition of tiered for values from (0) to (10);
      create table tiered_10 partition of tiered for values from (10) to (20);
      create table tiered_20 partition of tiered for values from (20) to (30);
      insert into tiered select g, g % 30, 0 from generate_series(1, 300) g;
      create table ledger (n bigint primary key, note text, at timestamptz default now());
      create table big (id int primary key, kind int, v text);
      create index on big (kind);
      insert into left_side select g, 'owner ' || g, ${TOTAL / ACCOUNTS} from generate_series(1, ${ACCOUNTS}) g;
      insert into right_side select g, 0 from generate_series(1, ${ACCOUNTS}) g;
      insert into plain select g, 0 from generate_series(1, ${ACCOUNTS}) g;
      insert into big select g, g % 1000, repeat('v' || g, 20) from generate_series(1, 300000) g;
      analyze`);
    await registerMirrored(ctx, { tables: ["left_side", "right_side", "ledger", "big"], parallel: 1 });
    await register(ctx, { table: "public.tiered", mode: "tiered", lag: "5" });
    await new Passes().run(ctx, { force: true });
    pump = startPump();
    await waitFor("every table live", async () => {
      const { rows } = await db.client.query<{ ok: boolean }>(
        "select bool_and(phase = 'live') as ok from spillway.mirror_table",
      );
      return rows[0]?.ok === true;
    });
    seam = createSeam({
      conninfo: db.url,
      store: runtime.store,
      engine: runtime.engine,
      clock: systemClock,
      log: silentLogger,
      holder: "test",
    });
  });
  afterAll(async () => {
    await seam.close();
    await pump.stop();
    await runtime.close();
    await db.drop();
    home.remove();
  });

  function startPump(): { stop(): Promise<void> } {
    const stop = new AbortController();
    const running = new Pump(ctx, { ...TEST_SETTINGS, flushIntervalMs: 100, idleIntervalMs: 60_000 }).run(stop.signal);
    return {
      stop: async () => {
        stop.abort();
        await running;
      },
    };
  }

  async function read(sql: string, options: QueryOptions = {}): Promise<{ rows: unknown[][]; stats: QueryStats }> {
    const result = await seam.query(sql, options);
    const rows: unknown[][] = [];
    for await (const batch of result.batches()) {
      for (let i = 0; i < batch.length; i++) rows.push(batch.columns.map((c) => String(valueAt(c, i))));
    }
    return { rows, stats: result.stats };
  }

  async function held(sql: string): Promise<unknown[][]> {
    const { rows } = await db.client.query<unknown[]>({ text: sql, rowMode: "array" });
    return rows.map((row) => row.map(String));
  }

  /** Transfers until it is stopped; every transaction keeps the sum over the three tables. */
  async function transfers(work: () => Promise<void>): Promise<number> {
    const client = await connect(db.url);
    const state = { over: false };
    let count = 0;
    const run = async (): Promise<void> => {
      for (let i = 0; !state.over; i++) {
        await transfer(client, i);
        count += 1;
      }
    };
    const running = run();
    try {
      await work();
    } finally {
      state.over = true;
      await running;
      await endClient(client);
    }
    return count;
  }

  async function transfer(client: pg.ClientBase, i: number): Promise<void> {
    const [from, to] = [1 + ((i * 7) % ACCOUNTS), 1 + ((i * 13) % ACCOUNTS)];
    await client.query(`begin;
      update left_side set amount = amount - 10 where id = ${from};
      ${target(i, to)};
      insert into ledger values ((select coalesce(max(n), 0) + 1 from ledger), 'transfer ${i}');
      commit`);
    if (i % 5 === 4) {
      await client.query(`begin; update left_side set amount = amount + 10 where id = ${to};
        update right_side set amount = amount - 10 where id = ${from}; commit`);
    }
  }

  /** Where the money goes. Of the tiered table to a row of the heap (k is 29), or to one of the lake, corrected by a plain INSERT. */
  function target(i: number, to: number): string {
    if (i % 3 !== 1) return `update ${i % 3 === 0 ? "plain" : "right_side"} set amount = amount + 10 where id = ${to}`;
    if (i % 4 !== 1) return `update tiered set amount = amount + 10 where id = ${29 + 30 * (i % 9)} and k = 29`;
    coldAmount += 10;
    return `insert into tiered values (3, 3, ${coldAmount})`;
  }

  const BOTH = `SELECT (SELECT sum(amount) FROM left_side) + (SELECT sum(amount) FROM right_side) + (SELECT sum(amount) FROM plain)
    + (SELECT sum(amount) FROM tiered) AS s`;

  test("strict answers from the lake with everything that was committed before it was asked", async () => {
    await transfers(async () => {
      for (let i = 1; i <= 15; i++) {
        await db.client.query("update big set v = $1 where id = 1", [`strict ${i}`]);
        const { rows, stats } = await read("SELECT v FROM big WHERE id = 1", { freshness: { kind: "strict" } });
        expect(rows).toEqual([[`strict ${i}`]]);
        expect(stats.mirror).toMatchObject({ tier: "lake", why: "fresh" });
        expect(must(stats.tables[0], "table")).toMatchObject({ tier: "lake", heapRows: 0 });
      }
    });
  });

  test("strict on an idle server does not wait for anybody else's commit", async () => {
    await db.client.query("insert into ledger values (-1, 'idle')");
    const { rows, stats } = await read("SELECT note FROM ledger WHERE n = -1", {
      freshness: { kind: "strict", timeoutMs: 10_000 },
    });
    expect(rows).toEqual([["idle"]]);
    expect(stats.mirror).toMatchObject({ tier: "lake", why: "fresh" });
    expect(must(stats.mirror, "mirror").waitedMs).toBeLessThan(3000);
    await db.client.query("delete from ledger where n < 0");
  });

  test("when the pump is away, strict answers from the heap and says so, and an age is refused to lie", async () => {
    await pump.stop();
    await db.client.query("update big set v = 'away' where id = 2");
    const strict = await read("SELECT v FROM big WHERE id = 2", { freshness: { kind: "strict", timeoutMs: 300 } });
    expect(strict.rows).toEqual([["away"]]);
    expect(strict.stats.mirror).toMatchObject({ tier: "heap", why: "not_in_time" });
    const old = await read("SELECT sum(length(v)) FROM big", { freshness: { kind: "within", ms: 100 } });
    expect(old.stats.mirror).toMatchObject({ tier: "heap", why: "too_old" });
    const within = await read("SELECT count(*) FROM big", { freshness: { kind: "within", ms: 600_000 } });
    expect(within.rows).toEqual([["300000"]]);
    pump = startPump();
    const again = await read("SELECT v FROM big WHERE id = 2", { freshness: { kind: "strict", timeoutMs: 15_000 } });
    expect([again.rows, again.stats.mirror?.tier]).toEqual([[["away"]], "lake"]);
  });

  test("by cost: a point look-up from the heap, a scan from the lake; both as new as the statement", async () => {
    await db.client.query("update big set kind = 5000, v = 'newest' where id = 3");
    const point = await read("SELECT v FROM big WHERE kind = 5000");
    expect(point.rows).toEqual([["newest"]]);
    expect(point.stats.mirror).toMatchObject({ tier: "heap", why: "cheaper" });
    const scan = await read("SELECT count(*), max(kind), sum(length(v)) FROM (SELECT kind, v, id FROM big) x");
    expect(scan.rows).toEqual(await held("select count(*), max(kind), sum(length(v)) from big"));
    expect(scan.stats.mirror).toMatchObject({ tier: "lake", why: "cheaper" });
    const { mirror } = scan.stats;
    expect(must(mirror?.heapMs, "heap")).toBeGreaterThan(must(mirror?.lakeMs, "lake"));
    const within = await read("SELECT id, v FROM big WHERE kind > 400", { freshness: { kind: "within", ms: 60_000 } });
    expect(within.stats.mirror).toMatchObject({ tier: "lake", waitedMs: 0 });
    expect(printExplanation({ ...within.stats, rows: null }).join("\n")).toMatch(
      /mirrored tables: lake at [0-9A-F/]+: it is cheaper, F is \d+ ms old \(expected: heap \d+ ms, lake \d+ ms\)/,
    );
    const counted = await read("SELECT count(*) FROM big", { freshness: { kind: "strict" } });
    expect(counted.rows).toEqual([["300000"]]);
  });

  test("under load every statement is one moment: from the lake, from the heap, and with other tables", async () => {
    const tiers = new Set<string>();
    const done = await transfers(async () => {
      for (let i = 0; i < 12; i++) {
        const all = await read(BOTH, i % 2 === 0 ? { freshness: { kind: "strict" } } : {});
        expect(all.rows).toEqual([[String(TOTAL)]]);
        expect(all.stats.mirror).toMatchObject({ tier: "heap", why: "other_tables" });
        expect(all.stats.tables.map((t) => t.tier)).toEqual(["heap", "heap", "heap", "both"]);
        // Of the mirrored ones alone: a ledger row for each transfer, so both sides of it are of the same moment.
        const sql =
          "SELECT (SELECT count(*) FROM ledger WHERE note LIKE 'transfer%'), (SELECT max(n) FROM ledger), (SELECT sum(amount) FROM left_side), (SELECT sum(amount) FROM right_side)";
        for (const options of [
          { freshness: { kind: "strict" } as const },
          { freshness: { kind: "within", ms: 5000 } as const },
          {},
        ]) {
          const { rows, stats } = await read(sql, options);
          const [count, max] = must(rows[0], "row");
          expect(count).toBe(max);
          tiers.add(`${options.freshness?.kind ?? "default"} ${stats.mirror?.tier}`);
        }
      }
    });
    expect(done).toBeGreaterThan(20);
    expect([...tiers]).toContain("strict lake");
  });

  test("as of a position: all tables of one moment, the last that was published until then", async () => {
    // The oracle: what Postgres held after each transfer, with nobody else writing, by the transfer's number.
    const states = new Map<string, unknown[]>();
    const moments: { lsn: bigint; n: bigint }[] = [];
    const sums = "(SELECT sum(amount) FROM left_side), (SELECT sum(amount) FROM right_side)";
    const sql = `SELECT (SELECT max(n) FROM ledger), ${sums}`;
    for (let i = 1; i <= 20; i++) {
      await transfer(db.client, i * 35 + 2);
      const state = must((await held(sql))[0], "state");
      const lsn = parseLsn(String((await held("select pg_current_wal_insert_lsn()"))[0]?.[0]));
      states.set(String(state[0]), state);
      moments.push({ lsn, n: BigInt(String(state[0])) });
      await new Promise((resolve) => setTimeout(resolve, i % 4 === 0 ? 250 : 5));
    }
    await read("SELECT max(n) FROM ledger", { freshness: { kind: "strict", timeoutMs: 15_000 } });
    const published = publishedOf(await lakeMetadata(ctx, "ledger")).map((p) => p.lsn);
    const seen = new Set<unknown>();
    for (const { lsn, n } of moments) {
      const flush = published.findLast((p) => p <= lsn) ?? 0n;
      const surely = moments.findLast((m) => m.lsn <= flush);
      if (surely === undefined) continue;
      const { rows, stats } = await read(sql, { asOf: { lsn } });
      const row = must(rows[0], "row");
      expect(row).toEqual(states.get(String(row[0])));
      expect(BigInt(String(row[0]))).toBeGreaterThanOrEqual(surely.n);
      expect(BigInt(String(row[0]))).toBeLessThanOrEqual(n);
      expect(stats.tables.map((t) => t.tier)).toEqual(["lake", "lake", "lake"]);
      seen.add(row[0]);
    }
    expect(seen.size).toBeGreaterThan(1);
    const f = parseLsn(String((await held("select min(f_lsn) from spillway.seam"))[0]?.[0]));
    const lsn = must(moments.at(-1), "moment").lsn;
    await expect(read(sql, { asOf: { lsn: f + (1n << 40n) } })).rejects.toMatchObject({ code: "as_of_lsn_ahead" });
    await expect(read(sql, { asOf: { lsn: 1n } })).rejects.toMatchObject({ code: "as_of_lsn_gone" });
    await expect(read(BOTH, { asOf: { lsn } })).rejects.toMatchObject({ code: "as_of_unsupported" });
  });

  test("a rewrite that the stream does not tell is never hidden by the lake", async () => {
    await db.client.query("create table rewritten (id int primary key, v int)");
    await db.client.query("insert into rewritten select g, g from generate_series(1, 1000) g");
    await registerMirrored(ctx, { tables: ["rewritten"], parallel: 1 });
    const sum = "SELECT sum(v) FROM rewritten";
    await waitFor("the table is read from the lake", async () => {
      const { stats } = await read(sum, { freshness: { kind: "strict" } });
      return stats.mirror?.tier === "lake";
    });
    await db.client.query("alter table rewritten alter v type int using v + 1");
    for (let i = 0; i < 10; i++) {
      const { rows } = await read(sum, { freshness: { kind: "strict", timeoutMs: 500 } });
      expect(rows).toEqual([["501500"]]);
    }
  });
});
