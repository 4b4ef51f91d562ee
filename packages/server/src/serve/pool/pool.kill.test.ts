/** Pools of real nodes: found again, replaced, routed around; statements on them ended, retried or told of. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import { newUuid } from "@spillway/base/ids";
import { silentLogger } from "@spillway/base/log";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { REPO_ROOT } from "@spillway/testkit/host";
import { guardGroup } from "@spillway/testkit/reaper";
import { waitFor } from "@spillway/testkit/wait";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { Control, installControl } from "../../control/control.ts";
import { localNodes } from "../../roles/local-nodes.ts";
import type { NodeConfig } from "../../roles/node.ts";
import { ClientSession } from "../session/client-session.ts";
import { OWNER } from "../session/sessions.ts";
import { ask, testPrincipal, testSource, type TestSource } from "../session/test-serve.ts";
import type { NodeBackend } from "./backend.ts";
import { Pool, type PoolSpec } from "./pool.ts";
import { controlNodeStore } from "./store.ts";

const COMMAND = [
  process.execPath,
  "--import",
  "tsx",
  "--conditions=source",
  join(REPO_ROOT, "packages/cli/src/main.ts"),
];

let source: TestSource;
let controlDb: TestDatabase;
let control: Control;
let directory: string;
let poolId: string;
const pools: Pool<NodeConfig>[] = [];

beforeAll(async () => {
  source = await testSource();
  controlDb = await createTestDatabase({});
  await installControl({ conninfo: controlDb.url, clock: systemClock, log: silentLogger });
  control = await Control.open({ conninfo: controlDb.url, clock: systemClock, log: silentLogger });
});
afterAll(async () => {
  await control.close();
  await controlDb.drop();
  await source.close();
});

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "spwn-"));
  const { client } = controlDb;
  await client.query("insert into spillway_control.tenant (name) values ('t') on conflict do nothing");
  await client.query(
    "insert into spillway_control.database (tenant_id, name, source_url) select id, 'd', 'x' from spillway_control.tenant where name = 't' on conflict do nothing",
  );
  const { rows } = await client.query(
    "insert into spillway_control.pool (database_id, name) select id, $1 from spillway_control.database where name = 'd' returning id::text",
    [`p${newUuid().slice(0, 8)}`],
  );
  poolId = rows[0].id as string;
});
afterEach(async () => {
  for (const pool of pools.splice(0)) await pool.close({ end: true });
  rmSync(directory, { recursive: true, force: true });
});

function guarded(backend: NodeBackend<NodeConfig>): NodeBackend<NodeConfig> {
  return {
    ...backend,
    start: (config, onExit) => {
      const started = backend.start(config, onExit);
      guardGroup(started.pid);
      return started;
    },
  };
}

function startPool(spec: Partial<PoolSpec> = {}, managerId = newUuid()): Pool<NodeConfig> {
  const pool = new Pool<NodeConfig>({
    spec: {
      id: poolId,
      name: "p",
      nodes: { READONLY: 0, WRITEONLY: 0, DUAL: 1 },
      concurrency: 4,
      queueLimit: 50,
      queueTimeoutMs: 60_000,
      drainTimeoutMs: 5000,
      ...spec,
    },
    store: controlNodeStore({ control, host: "test", managerId, leaseMs: 1000 }),
    backend: guarded(localNodes({ directory, command: COMMAND, log: silentLogger })),
    managerId,
    build: "test",
    clock: systemClock,
    log: silentLogger,
    configOf: (row, token, place) =>
      Promise.resolve({
        nodeId: row.id,
        generation: row.generation,
        token,
        build: "test",
        ...place,
        databaseUrl: source.db.url,
        warehouse: source.store.root,
        s3Endpoint: null,
        s3Region: "us-east-1",
        s3PathStyle: false,
        cacheBytes: 64 << 20,
        memoryBytes: 400 << 20,
        threads: 1,
        spillBytes: 256 << 20,
        connectTimeoutMs: 5000,
        concurrency: 4,
      }),
  });
  pools.push(pool);
  pool.start();
  return pool;
}

function open(pool: Pool<NodeConfig>): ClientSession {
  return new ClientSession({
    protocol: "pgwire",
    application: "test",
    address: "local",
    database: "d",
    principal: testPrincipal(),
    runner: pool,
    guard: OWNER,
    clock: systemClock,
    outcome: (id) => source.seam.outcome(id),
  });
}

const ready = (pool: Pool<NodeConfig>, count: number): Promise<unknown> =>
  waitFor(`${count} ready nodes`, () => pool.members.filter((m) => m.isReady).length === count || null, {
    timeoutMs: 60_000,
  });

test("statements, transactions and cancels go through nodes as they do in one process", async () => {
  const pool = startPool();
  const session = open(pool);
  // Sent before any node is ready: it waits.
  expect(await ask(session, "SELECT count(*), sum(k)::BIGINT FROM items")).toEqual([["3000", String(2999 * 1500)]]);
  expect(await ask(session, "SELECT label FROM items WHERE id = $1", ["1500"])).toEqual([["label 2"]]);
  const update = await session.run(await session.prepare("UPDATE items SET price = price WHERE id < 3"));
  expect([update.command, await update.rowCount]).toEqual(["UPDATE", 3]);
  await ask(session, "BEGIN");
  await ask(session, "UPDATE items SET label = 'through' WHERE id IN (100, 2600)");
  expect(await ask(session, "SELECT count(*) FROM items WHERE label = 'through'")).toEqual([["2"]]);
  await ask(session, "ROLLBACK");
  expect(await ask(session, "SELECT count(*) FROM items WHERE label = 'through'")).toEqual([["0"]]);
  const startMs = performance.now();
  const slow = "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b";
  await expect(ask(session, slow, [], { timeoutMs: 300 })).rejects.toMatchObject({ code: "statement_timeout" });
  expect(performance.now() - startMs).toBeLessThan(1300);
  await expect(ask(session, "SELECT * FROM read_text('/etc/passwd')")).rejects.toMatchObject({
    code: "engine_sql_error",
  });
  // A reader that stops reading costs the window, not the result.
  const many = await session.run(await session.prepare("SELECT i, md5(i::VARCHAR) AS m FROM range(2000000) t(i)"));
  const before = process.memoryUsage.rss();
  const reader = many.messages()[Symbol.asyncIterator]();
  await reader.next();
  await new Promise((resolve) => setTimeout(resolve, 500));
  expect(process.memoryUsage.rss() - before).toBeLessThan(64 << 20);
  await reader.return?.();
  await waitFor("nothing in flight", () => pool.members.every((m) => m.inFlight === 0) || null);
  await session.close();
});

test("a killed node is replaced; reads go on elsewhere, a transaction on it says so", async () => {
  const pool = startPool({ nodes: { READONLY: 0, WRITEONLY: 0, DUAL: 2 } });
  await ready(pool, 2);
  const errors: unknown[] = [];
  const stop = new AbortController();
  let done = 0;
  const load = Array.from({ length: 3 }, async () => {
    const session = open(pool);
    while (!stop.signal.aborted) {
      await ask(session, "SELECT count(*) FROM items").then(
        ([row]) => (row?.[0] === "3000" ? (done += 1) : errors.push(row)),
        (error: unknown) => errors.push(error),
      );
    }
    await session.close();
  });
  const inTransaction = open(pool);
  await ask(inTransaction, "BEGIN");
  await ask(inTransaction, "UPDATE items SET label = 'lost' WHERE id IN (200, 2700)");
  const holder = pool.members.find((m) => m.transactions === 1);
  const pid = holder?.row.pid ?? 0;
  await new Promise((resolve) => setTimeout(resolve, 300));
  const killedMs = performance.now();
  process.kill(pid, "SIGKILL");
  const before = done;
  await waitFor(
    "a replacement to be started",
    () => pool.members.some((m) => m.row.pid !== pid && m.state === "starting") || null,
    {
      timeoutMs: 5000,
    },
  );
  expect(performance.now() - killedMs).toBeLessThan(1000);
  await expect(ask(inTransaction, "SELECT 1")).rejects.toMatchObject({ code: "node_lost_in_transaction" });
  await expect(ask(inTransaction, "SELECT 1")).rejects.toMatchObject({ code: "transaction_failed" });
  await ask(inTransaction, "ROLLBACK");
  await ready(pool, 2);
  await new Promise((resolve) => setTimeout(resolve, 300));
  stop.abort();
  await Promise.all(load);
  expect(errors).toEqual([]);
  expect(done).toBeGreaterThan(before);
  expect(await ask(inTransaction, "SELECT count(*) FROM items WHERE label = 'lost'")).toEqual([["0"]]);
  await inTransaction.close();
});

test("nodes outlive their manager: the next one adopts them; two managers start each node once", async () => {
  const nodes = { READONLY: 1, WRITEONLY: 0, DUAL: 1 };
  const first = startPool({ nodes });
  const second = startPool({ nodes });
  await ready(first, 2);
  await ready(second, 2);
  const pids = (pool: Pool<NodeConfig>): (number | null)[] => pool.members.map((m) => m.row.pid).toSorted();
  expect(pids(second)).toEqual(pids(first));
  const before = pids(first);
  await first.close({ end: false });
  await second.close({ end: false });
  const third = startPool({ nodes });
  await ready(third, 2);
  expect(pids(third)).toEqual(before);
  const session = open(third);
  expect(await ask(session, "SELECT count(*) FROM items")).toEqual([["3000"]]);
  // Writes only go where they may.
  const reader = third.members.find((m) => m.role === "READONLY");
  const writer = third.members.find((m) => m.role === "DUAL");
  for (let i = 0; i < 4; i++) await ask(session, "UPDATE items SET price = price WHERE id = 1");
  expect([(reader?.ewmaMs ?? 0) === 0 || (writer?.ewmaMs ?? 0) > 0, writer?.ewmaMs === 0]).toEqual([true, false]);
  third.spec = {
    id: poolId,
    name: "p",
    nodes: { READONLY: 0, WRITEONLY: 0, DUAL: 1 },
    concurrency: 4,
    queueLimit: 50,
    queueTimeoutMs: 5000,
    drainTimeoutMs: 2000,
  };
  await waitFor("the surplus node to be gone", () => third.members.length === 1 || null, { timeoutMs: 10_000 });
  expect(await ask(session, "SELECT count(*) FROM items")).toEqual([["3000"]]);
  await session.close();
});

test("a node that is stopped, not dead, is avoided within its probe, and replaced", async () => {
  const pool = startPool({ nodes: { READONLY: 0, WRITEONLY: 0, DUAL: 2 } });
  await ready(pool, 2);
  const [victim] = pool.members;
  const pid = victim?.row.pid ?? 0;
  process.kill(pid, "SIGSTOP");
  const session = open(pool);
  const startMs = performance.now();
  const answers = await Promise.all(Array.from({ length: 4 }, () => ask(open(pool), "SELECT count(*) FROM items")));
  expect(answers).toEqual(Array.from({ length: 4 }, () => [["3000"]]));
  expect(performance.now() - startMs).toBeLessThan(15_000);
  await waitFor("the stopped node to be replaced", () => !pool.members.some((m) => m.row.pid === pid) || null, {
    timeoutMs: 20_000,
  });
  await ready(pool, 2);
  await session.close();
});

test("a lost answer to COMMIT is looked up", async () => {
  const pool = startPool();
  await ready(pool, 1);
  const session = open(pool);
  await ask(session, "BEGIN");
  await ask(session, "UPDATE items SET label = 'decided' WHERE id IN (300, 2800)");
  const pid = pool.members[0]?.row.pid ?? 0;
  const committing = ask(session, "COMMIT");
  process.kill(pid, "SIGKILL");
  const outcome = await committing.then(
    () => "committed",
    (error: { code: string }) => error.code,
  );
  const seen = await ask(session, "SELECT count(*) FROM items WHERE label = 'decided'");
  expect(seen).toEqual([[outcome === "committed" ? "2" : "0"]]);
  expect(["committed", "node_lost_in_transaction"]).toContain(outcome);
  await session.close();
});

test("writes under killed nodes: each is applied once, whatever became of its answer", async () => {
  const pool = startPool({ nodes: { READONLY: 0, WRITEONLY: 0, DUAL: 2 } });
  await ready(pool, 2);
  await ask(open(pool), "UPDATE items SET price = 0 WHERE id IN (400, 2900)");
  let acknowledged = 0;
  const stop = new AbortController();
  const writers = Array.from({ length: 2 }, async () => {
    const session = open(pool);
    while (!stop.signal.aborted) {
      const sql = "UPDATE items SET price = price + 1 WHERE id IN (400, 2900)";
      const update = await session.prepare(sql, [], { describe: false });
      const rows = await session.run(update).then((r) => r.rowCount);
      expect(rows).toBe(2);
      acknowledged += 1;
    }
  });
  for (let i = 0; i < 3; i++) {
    await new Promise((resolve) => setTimeout(resolve, 700));
    const busy = pool.members.find((m) => m.inFlight > 0 && m.isReady);
    if (busy?.row.pid) process.kill(busy.row.pid, "SIGKILL");
    await ready(pool, 2);
  }
  stop.abort();
  await Promise.all(writers);
  const [row] = await ask(open(pool), "SELECT min(price), max(price) FROM items WHERE id IN (400, 2900)");
  expect(row).toEqual([`${acknowledged}.00`, `${acknowledged}.00`]);
  expect(acknowledged).toBeGreaterThan(3);
});
