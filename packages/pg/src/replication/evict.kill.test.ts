/** Taking a slot from a process that was stopped: it does not let go by itself, and its socket stays open. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type pg from "pg";
import { systemClock } from "@spillway/base/clock";
import { SLOT_HOLDER } from "@spillway/testkit/children/slot-holder";
import { startPostgres, type PgInstance } from "@spillway/testkit/postgres";
import { spawnScript } from "@spillway/testkit/processes";
import { sleep, waitFor } from "@spillway/testkit/wait";
import { connectRaw } from "../wire/connect-raw.ts";
import { evictSlotHolder } from "./evict.ts";
import { createSlot, dropSlot } from "./session.ts";
import { ReplicationStream } from "./stream.ts";

describe.each([15, 18] as const)("the holder of a slot of Postgres %i", (major) => {
  let server: PgInstance;
  let client: pg.Client;

  beforeAll(async () => {
    server = await startPostgres({ major });
    client = await server.connect();
    await client.query("CREATE TABLE t (id int, v text); CREATE PUBLICATION p FOR TABLE t");
  });
  afterAll(async () => {
    await client?.end();
    await server?.destroy();
  });

  test.each([
    ["stopped while idle", false],
    ["stopped with its socket full", true],
  ])("%s is evicted within 5 s", async (_, full) => {
    const connection = await connectRaw(server.url(), { replication: "database" });
    await createSlot(connection, { name: "held" });
    const holder = spawnScript(SLOT_HOLDER, [server.url(), "held", "p"]);
    await waitFor("the holder to stream", () => holder.stdout.includes("streaming"), { timeoutMs: 20_000 });
    process.kill(holder.pid, "SIGSTOP");
    if (full) {
      await client.query("INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 60000) g");
      await sleep(300);
    }
    const sql = await connectRaw(server.url());
    const tookMs = await evictSlotHolder({ sql, slot: "held", clock: systemClock });
    expect(tookMs).toBeLessThan(5000);
    const options = { slot: "held", startLsn: 0n, publications: ["p"] };
    const stream = await ReplicationStream.start(connection, options, { onChange: () => {}, onKeepalive: () => {} });
    await stream.stop();
    await dropSlot(connection, "held", true);
    await holder.kill("SIGKILL");
    await connection.close();
    await sql.close();
  });
});
