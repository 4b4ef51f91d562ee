/** Transactions larger than the buffer: staged, published whole, with values that were not sent, and rolled back parts. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import { type PgInstance, startPostgres } from "@spillway/testkit/postgres";
import { waitFor } from "@spillway/testkit/wait";
import type pg from "pg";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Runtime } from "../../roles/runtime.ts";
import { testRuntime } from "../test-runtime.ts";
import type { MoverContext } from "../context.ts";
import { removeAbandonedFiles } from "../recover.ts";
import { registerMirrored } from "./onboard.ts";
import { Pump } from "./pump.ts";
import { heapRows, initSource, lakeMetadata, lakeRows, publishedOf, TEST_SETTINGS, testHome } from "./test-mirror.ts";

describe.each([15, 18] as const)("on Postgres %i", (major) => {
  let server: PgInstance;
  let client: pg.Client;
  let runtime: Runtime;
  let ctx: MoverContext;
  const home = testHome();
  const stop = new AbortController();
  let running: Promise<unknown> = Promise.resolve();

  beforeAll(async () => {
    // So little that transactions of some thousand rows are streamed while they run.
    server = await startPostgres({ major, settings: { logical_decoding_work_mem: "64kB" } });
    client = await server.connect();
    runtime = await testRuntime(server.url(), home.dir);
    ctx = runtime.mover(null);
    await initSource(ctx, systemClock);
    await client.query(`create table s (id int primary key, v int, t text); create table w (id int primary key, v int, big text);
      alter table w alter big set storage external;
      insert into s select g, 0, 'start' from generate_series(1, 6000) g;
      insert into w select g, 0, repeat(md5(g::text), 100) from generate_series(1, 800) g`);
    await registerMirrored(ctx, { tables: ["s", "w"], parallel: 1 });
    running = new Pump(ctx, { ...TEST_SETTINGS, maxBufferedRows: 1500 }).run(stop.signal);
  });
  afterAll(async () => {
    stop.abort();
    await running;
    await runtime.close();
    await client.end();
    await server.destroy();
    home.remove();
  });

  async function same(): Promise<void> {
    let report = "";
    await waitFor(
      "the lake to be as the heap is",
      async () => {
        const stopped = await client.query<{ r: string }>(
          "select stop_code || stop_reason as r from spillway.relation where state = 'stopped'",
        );
        if (stopped.rows.length > 0) throw new Error(stopped.rows[0]?.r);
        for (const [table, columns] of [
          ["s", ["id", "v", "t"]],
          ["w", ["id", "v", "big"]],
        ] as const) {
          const metadata = await lakeMetadata(ctx, table);
          const last = publishedOf(metadata).at(-1);
          if (!last) return false;
          const [lake, heap] = [
            await lakeRows(ctx, metadata, last.snapshotId, columns),
            await heapRows(client, table, columns),
          ];
          report = `${table}: ${lake.length} of ${heap.length}`;
          if (lake.join("\n") !== heap.join("\n")) return false;
        }
        return true;
      },
      { timeoutMs: 20_000, everyMs: 100 },
    ).catch((error: unknown) => {
      throw new Error(`${String(error)}: ${report}`);
    });
  }

  /** What anybody sees of the sum of v at each published snapshot. */
  async function sums(): Promise<Set<number>> {
    const metadata = await lakeMetadata(ctx, "s");
    const found = new Set<number>();
    for (const { snapshotId } of publishedOf(metadata)) {
      const rows = await lakeRows(ctx, metadata, snapshotId, ["v"]);
      found.add(rows.reduce((sum, row) => sum + Number((JSON.parse(row) as string[])[0]), 0));
    }
    return found;
  }

  test("every row, twice, with a savepoint that is rolled back and other transactions in between", async () => {
    await same();
    const other = await server.connect();
    await client.query("begin; update s set v = v + 1");
    await other.query("insert into w values (9001, 1, 'between')");
    await client.query("savepoint a; update s set v = v + 100; delete from s where id < 1000; rollback to a");
    await other.query("update w set v = 5 where id = 9001");
    await client.query(
      "update s set v = v + 1, t = 'twice' where id <= 3000; delete from s where id > 5500; insert into s select g, 1, 'new' from generate_series(7001, 9000) g",
    );
    await client.query("commit");
    await other.end();
    await same();
    // Before, and after: nothing in between.
    expect([...(await sums())].toSorted((a, b) => a - b)).toEqual([0, 5500 + 3000 + 2000]);
  });

  test("values that were not sent, in rows that were staged", async () => {
    for (const round of [1, 2]) {
      await client.query(`begin; update w set v = v + ${round}; update w set v = v * 2; update w set v = -v where id % 3 = 0;
        update w set id = id + 20000 where id % 50 = 0; update w set big = 'short' where id % 7 = 0; update w set v = v + 1; commit`);
      await same();
    }
  });

  test("rows that are staged, and emptied by a TRUNCATE before anybody saw them", async () => {
    await client.query(
      "begin; insert into s select g, 0, 't' from generate_series(20001, 29000) g; update s set v = 0; truncate s",
    );
    await client.query("insert into s select g, 0, 't' from generate_series(1, 6000) g; commit");
    await same();
  });

  test("a large transaction that is rolled back leaves nothing behind", async () => {
    const sizes = (): number =>
      readdirSync(join(home.dir, "lake"), { recursive: true }).filter((f) => String(f).endsWith(".parquet")).length;
    await same();
    const before = sizes();
    await client.query(
      "begin; update s set v = v + 7; update s set v = v + 7; rollback; insert into w values (9100, 1, 'after')",
    );
    await same();
    await client.query("truncate s; insert into w values (9101, 1, 'after')");
    await same();
    await waitFor("staged files to go", async () => {
      await removeAbandonedFiles(ctx);
      const { rows } = await client.query("select from spillway.staged_file");
      return rows.length === 0;
    });
    expect(sizes()).toBeLessThanOrEqual(before + 4);
  });
});
