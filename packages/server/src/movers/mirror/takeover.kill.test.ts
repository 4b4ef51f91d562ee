/**
 * A leader that is stopped while its pump is busy and its socket is full: a standby ends its walsender, takes the slot, and F moves again
 * within 5 s; nothing is lost or doubled, and what the stopped one does when it wakes up changes nothing.
 */
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { runCli, spawnCli, type TestProcess } from "@spillway/testkit/processes";
import { sleep, waitFor } from "@spillway/testkit/wait";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Runtime } from "../../roles/runtime.ts";
import { testRuntime } from "../test-runtime.ts";
import { heapRows, lakeMetadata, lakeRows, publishedOf, testHome } from "./test-mirror.ts";

/** What is promised, and what a machine with other work may add to it. */
const TAKEOVER_MS = 5_000;
const SLACK_MS = 4_000;

let db: TestDatabase;
let runtime: Runtime;
let env: Record<string, string>;
const home = testHome();
const workers: TestProcess[] = [];

beforeAll(async () => {
  db = await createTestDatabase();
  env = {
    SPILLWAY_DATABASE_URL: db.url,
    SPILLWAY_WAREHOUSE: join(home.dir, "lake"),
    SPILLWAY_CACHE_DIR: join(home.dir, "cache"),
    SPILLWAY_CAMPAIGN_INTERVAL: "300ms",
    SPILLWAY_METRICS_LISTEN: "off",
    SPILLWAY_MIRROR_FLUSH_INTERVAL: "100ms",
  };
  runtime = await testRuntime(db.url, home.dir, { engineMemoryBytes: 128 << 20 });
  expect(await runCli(["init"], { env })).toMatchObject({ code: 0 });
});
afterAll(async () => {
  for (const worker of workers) {
    worker.signal("SIGCONT");
    await worker.kill("SIGKILL");
  }
  await runtime.close();
  await db.drop();
  home.remove();
});

async function frontier(): Promise<string> {
  const { rows } = await db.client.query<{ f: string }>("select f_lsn::text as f from spillway.seam");
  return rows[0]?.f ?? "";
}

async function sender(): Promise<{ pid: number; blocked: boolean } | undefined> {
  const { rows } = await db.client.query<{ pid: number; blocked: boolean }>(
    `select s.active_pid as pid, coalesce(a.wait_event in ('WalSenderWriteData', 'ClientWrite'), false) as blocked
     from pg_replication_slots s left join pg_stat_activity a on a.pid = s.active_pid
     where s.active and not s.temporary and s.database = current_database()`,
  );
  return rows[0];
}

test("a stopped leader with a full socket is replaced within 5 s", async () => {
  await db.client.query(
    "create table busy (id int primary key, v int, t text); insert into busy select g, 0, repeat('x', 200) from generate_series(1, 2000) g",
  );
  expect(await runCli(["register", "--mode", "mirrored", "--table", "busy"], { env })).toMatchObject({ code: 0 });
  workers.push(spawnCli(["worker"], { env }));
  await waitFor("the table to be live", async () => (await frontier()) !== "", { timeoutMs: 30_000 });
  workers.push(spawnCli(["worker"], { env }));
  await sleep(3000);
  const over = new AbortController();
  const writing = (async () => {
    const client = await db.connect();
    // More a second than the buffers of a socket hold.
    while (!over.signal.aborted)
      await client.query("update busy set v = v + 1, t = repeat(md5(v::text), 30)").catch(() => over.abort());
  })();
  await sleep(1500);
  const moving = await frontier();
  await waitFor("the pump to be busy", async () => (await frontier()) !== moving && (await sender()) !== undefined, {
    timeoutMs: 20_000,
  });
  const before = must(await sender(), "the walsender");
  must(workers[0], "the leader").signal("SIGSTOP");
  const startMs = performance.now();
  await waitFor("the old walsender to be blocked", async () => (await sender())?.blocked === true, {
    timeoutMs: 3_000,
    everyMs: 20,
  }).catch(() => {});
  // Enough is on its way; what comes next is only to be caught up with.
  over.abort();
  await writing;
  const stuck = await frontier();
  await waitFor("F to move again", async () => (await frontier()) !== stuck && (await sender())?.pid !== before.pid, {
    timeoutMs: 30_000,
    everyMs: 20,
  });
  const tookMs = performance.now() - startMs;
  must(workers[0], "the old leader").signal("SIGCONT");
  await waitFor(
    "the lake to be as the heap is",
    async () => {
      const metadata = await lakeMetadata(runtime.mover(null), "busy");
      const last = publishedOf(metadata).at(-1);
      if (!last) return false;
      const lake = await lakeRows(runtime.mover(null), metadata, last.snapshotId, ["id", "v", "t"]);
      return lake.join("\n") === (await heapRows(db.client, "busy", ["id", "v", "t"])).join("\n");
    },
    { timeoutMs: 60_000, everyMs: 500 },
  );
  expect(tookMs).toBeLessThan(TAKEOVER_MS + SLACK_MS);
  if (process.env["SPILLWAY_TEST_LOG"]) {
    const stoppedAt = new Date(performance.timeOrigin + startMs).toISOString();
    process.stderr.write(
      `stopped at ${stoppedAt}, taken over in ${Math.round(tookMs)} ms\n${must(workers[1], "standby").stderr}\n`,
    );
  }
});
