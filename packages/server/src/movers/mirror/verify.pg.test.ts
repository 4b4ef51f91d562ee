/** Verify under load: exact on a live table, names what differs, and a copy again puts it right. A lost slot, too. */
import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { waitFor } from "@spillway/testkit/wait";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadRelationByName } from "../../catalog/catalog.ts";
import type { Runtime } from "../../roles/runtime.ts";
import { testRuntime } from "../test-runtime.ts";
import type { MoverContext } from "../context.ts";
import { registerMirrored } from "./onboard.ts";
import { Pump } from "./pump.ts";
import { resync } from "./resync.ts";
import { initSource, TEST_SETTINGS, testHome } from "./test-mirror.ts";
import { verifyMirrored } from "./verify-mirror.ts";

describe.each([15, 18] as const)("on Postgres %i", (major) => {
  let db: TestDatabase;
  let runtime: Runtime;
  let ctx: MoverContext;
  let id = 0n;
  let stop = new AbortController();
  let running: Promise<unknown> = Promise.resolve();
  const home = testHome();

  beforeAll(async () => {
    db = await createTestDatabase({ major });
    runtime = await testRuntime(db.url, home.dir);
    ctx = runtime.mover(null);
    await initSource(ctx, systemClock);
    await db.client.query(
      "create table v (id int primary key, n int, t text); insert into v select g, g, 't' from generate_series(1, 20000) g",
    );
    await registerMirrored(ctx, { tables: ["v"], parallel: 1 });
    id = must(await loadRelationByName(db.client, "public", "v"), "v").relationId;
    startPump();
    await live();
  });
  afterAll(async () => {
    await stopPump();
    await runtime.close();
    await db.drop();
    home.remove();
  });

  function startPump(): void {
    stop = new AbortController();
    running = new Pump(ctx, TEST_SETTINGS).run(stop.signal);
  }
  async function stopPump(): Promise<void> {
    stop.abort();
    await running;
  }
  async function live(): Promise<void> {
    await waitFor(
      "the table to be live",
      async () => {
        const { rows } = await db.client.query<{ phase: string }>("select phase from spillway.mirror_table");
        return rows[0]?.phase === "live";
      },
      { timeoutMs: 20_000 },
    );
  }

  test("is exact while the table is written as fast as can be", async () => {
    const over = new AbortController();
    const writer = await db.connect();
    const writing = (async () => {
      for (let i = 0; !over.signal.aborted; i++) {
        await writer.query(
          `update v set n = n + 1 where id % 100 = ${i % 100}; insert into v values (${100_000 + i}, 1, 'w'); delete from v where id = ${99_000 + i}`,
        );
      }
      return writer;
    })();
    for (let i = 0; i < 3; i++) {
      const report = await verifyMirrored(ctx, id);
      expect(report).toMatchObject({ ok: true, differences: [] });
      expect(report.rows).toBe(report.lakeRows);
    }
    over.abort();
    await writing;
    const { rows } = await db.client.query(
      "select verified_rows::int as n, verified_lsn is not null as lsn from spillway.mirror_table",
    );
    expect(rows).toMatchObject([{ lsn: true }]);
  });

  test("names the rows that differ, and a copy again puts them right", async () => {
    await stopPump();
    await db.client.query("alter publication spillway drop table v");
    await db.client.query(
      "update v set t = 'unseen' where id = 77; delete from v where id = 78; insert into v values (-5, 0, 'unseen')",
    );
    await db.client.query("alter publication spillway add table v");
    startPump();
    const report = await verifyMirrored(ctx, id);
    expect(report.ok).toBe(false);
    expect([...report.differences].toSorted((a, b) => Number(a.key) - Number(b.key))).toEqual([
      { key: "-5", fault: "missing in the lake" },
      { key: "77", fault: "differs" },
      { key: "78", fault: "not in the heap" },
    ]);
    await resync(ctx, id, { parallel: 1 });
    await live();
    expect(await verifyMirrored(ctx, id)).toMatchObject({ ok: true });
  });

  test("a lost slot stops the table; resync makes another one", async () => {
    await stopPump();
    const { rows } = await db.client.query<{ slot_name: string }>("select slot_name from spillway.mirror");
    await db.client.query("select pg_drop_replication_slot($1)", [rows[0]?.slot_name]);
    await db.client.query("update v set t = 'not decoded' where id = 5");
    startPump();
    await waitFor(
      "the alarm",
      async () => {
        const found = await db.client.query<{ stop_code: string }>("select stop_code from spillway.relation");
        return found.rows[0]?.stop_code === "mirror_slot_lost";
      },
      { timeoutMs: 20_000 },
    );
    expect(await resync(ctx, null, { parallel: 1 })).toMatchObject({ newSlot: true });
    await live();
    expect(await verifyMirrored(ctx, id)).toMatchObject({ ok: true });
  });

  test("without a pump it says so", async () => {
    await stopPump();
    await expect(verifyMirrored(ctx, id)).rejects.toMatchObject({ code: "mirror_no_pump" });
  });
});
