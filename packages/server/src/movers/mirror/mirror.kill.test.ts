/**
 * kill -9 of the processes of the mirror at every fault point, and at any moment: the next worker brings the lake to exactly what
 * the heap is, every snapshot on the way was whole, and no file is left that the catalog does not know.
 */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { faultEnv, faultPointsOf } from "@spillway/testkit/faults";
import { type ProcessResult, runCli, spawnCli } from "@spillway/testkit/processes";
import { sleep, waitFor } from "@spillway/testkit/wait";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Runtime } from "../../roles/runtime.ts";
import { testRuntime } from "../test-runtime.ts";
import { referencedBy } from "../test-whole.ts";
import { heapRows, lakeMetadata, lakeRows, publishedOf, testHome } from "./test-mirror.ts";

let db: TestDatabase;
let runtime: Runtime;
let env: Record<string, string>;
const home = testHome();

beforeAll(async () => {
  db = await createTestDatabase();
  env = {
    SPILLWAY_DATABASE_URL: db.url,
    SPILLWAY_WAREHOUSE: join(home.dir, "lake"),
    SPILLWAY_CACHE_DIR: join(home.dir, "cache"),
    SPILLWAY_CAMPAIGN_INTERVAL: "300ms",
    SPILLWAY_CYCLE_INTERVAL: "500ms",
    SPILLWAY_METRICS_LISTEN: "off",
    SPILLWAY_MIRROR_FLUSH_INTERVAL: "50ms",
    SPILLWAY_MAX_BUFFERED_ROWS: "2000",
  };
  runtime = await testRuntime(db.url, home.dir, { engineMemoryBytes: 128 << 20 });
  expect(await run(["init"])).toMatchObject({ code: 0 });
});
afterAll(async () => {
  await runtime.close();
  await db.drop();
  home.remove();
});

function run(args: string[], extra: Record<string, string> = {}): Promise<ProcessResult> {
  return runCli(args, { env: { ...env, ...extra }, timeoutMs: 90_000 });
}

/** Two tables whose sums are equal after every transaction. */
async function makeTables(name: string): Promise<void> {
  await db.client.query(`create table ${name} (id int primary key, v int, t text);
    create table ${name}_b (id int primary key, v int);
    insert into ${name} select g, 1, 't' from generate_series(1, 5000) g;
    insert into ${name}_b select g, 1 from generate_series(1, 5000) g`);
}

async function change(name: string, i: number): Promise<void> {
  await db.client.query(`begin; update ${name} set v = v + 1, t = 'c${i}' where id % 50 = ${i % 50};
    update ${name}_b set v = v + 1 where id % 50 = ${i % 50};
    delete from ${name} where id = ${6500 + i}; delete from ${name}_b where id = ${6500 + i};
    insert into ${name} values (${7000 + i}, 5, 'n'); insert into ${name}_b values (${7000 + i}, 5); commit`);
}

/** Larger than the buffer, and longer under way than the pump looks away: it is staged before its commit comes. */
async function large(name: string, times = 1): Promise<void> {
  const again = `update ${name} set v = v + 1; update ${name}_b set v = v + 1;`.repeat(times - 1);
  await db.client
    .query(`begin; ${again} update ${name} set v = v + 1; savepoint s; update ${name} set v = v + 100; rollback to s;
    update ${name}_b set v = v + 1; commit`);
}

async function expectEqual(name: string): Promise<void> {
  const sums = new Map<string, Map<bigint, number>>();
  for (const table of [name, `${name}_b`]) {
    const columns = table === name ? ["id", "v", "t"] : ["id", "v"];
    const metadata = await lakeMetadata(runtime.mover(null), table);
    const wanted = await heapRows(db.client, table, columns);
    const last = publishedOf(metadata).at(-1);
    const found = last ? await lakeRows(runtime.mover(null), metadata, last.snapshotId, columns) : [];
    expect(found.length).toBe(wanted.length);
    expect(found.join("\n") === wanted.join("\n")).toBe(true);
    const bySnapshot = new Map<bigint, number>();
    for (const { lsn, snapshotId } of publishedOf(metadata)) {
      const rows = await lakeRows(runtime.mover(null), metadata, snapshotId, ["v"]);
      bySnapshot.set(
        lsn,
        rows.reduce((sum, row) => sum + Number((JSON.parse(row) as string[])[0]), 0),
      );
    }
    sums.set(table, bySnapshot);
  }
  // Across the tables: at each LSN that both have, the sums are those of one instant.
  const [a, b] = [sums.get(name), sums.get(`${name}_b`)];
  for (const [lsn, sum] of a ?? []) if (b?.has(lsn)) expect(b.get(lsn)).toBe(sum);
}

async function unknownFiles(): Promise<string[]> {
  const files = readdirSync(join(home.dir, "lake"), { recursive: true, withFileTypes: true })
    .filter((f) => f.isFile() && !f.parentPath.includes("_spillway") && !f.name.endsWith(".spillway-tmp"))
    .map((f) => `file://${join(f.parentPath, f.name)}`);
  const { rows } = await db.client.query<{ path: string }>(
    "select path from spillway.staged_file union select path from spillway.doomed_file",
  );
  const tables = await db.client.query<{ metadata_location: string }>(
    "select metadata_location from spillway.lake_table",
  );
  const lists = await Promise.all(tables.rows.map((r) => referencedBy(runtime.store, r.metadata_location)));
  const known = new Set([...rows.map((r) => r.path), ...lists.flat()]);
  return files.filter((f) => !known.has(f));
}

describe("kill -9 at", () => {
  for (const [i, point] of faultPointsOf("mirror.").entries()) {
    test(point, async () => {
      const name = `m${i}`;
      await makeTables(name);
      const args = ["register", "--mode", "mirrored", "--table", name, "--table", `${name}_b`];
      const kill = faultEnv({ point, action: "kill" });
      const ofRegister = ["mirror.registered", "mirror.range_copied", "mirror.copied"].includes(point);
      const registered = await run(args, ofRegister ? kill : {});
      if (ofRegister) {
        expect(registered.signal).toBe("SIGKILL");
        await change(name, 1);
        expect(await run(args)).toMatchObject({ code: 0 });
      } else expect(registered).toMatchObject({ code: 0 });
      await change(name, 2);
      if (!ofRegister) {
        if (point !== "mirror.before_join") expect(await run(["worker", "--once"])).toMatchObject({ code: 0 });
        await change(name, 3);
        await large(name, point === "mirror.staged" ? 25 : 1);
        const killed = await run(["worker", "--once"], kill);
        expect(killed.signal).toBe("SIGKILL");
      }
      await change(name, 4);
      const result = await run(["worker", "--once"]);
      expect(result).toMatchObject({ code: 0 });
      await expectEqual(name);
      const { rows } = await db.client.query("select path from spillway.staged_file");
      expect(rows).toEqual([]);
      expect(await unknownFiles()).toEqual([]);
    });
  }
});

test("workers killed at any moment under load lose nothing and double nothing", async () => {
  const name = "load";
  await makeTables(name);
  expect(await run(["register", "--mode", "mirrored", "--table", `${name},${name}_b`])).toMatchObject({ code: 0 });
  let i = 0;
  const stop = new AbortController();
  const writing = (async () => {
    const client = await db.connect();
    void client;
    while (!stop.signal.aborted) {
      await change(name, i++);
      await sleep(3);
    }
  })();
  for (let kill = 0; kill < 6; kill++) {
    const worker = spawnCli(["worker"], { env });
    await sleep(900 + ((kill * 379) % 700));
    process.kill(worker.pid, "SIGKILL");
  }
  stop.abort();
  await writing;
  expect(i).toBeGreaterThan(100);
  expect(await run(["worker", "--once"])).toMatchObject({ code: 0 });
  await expectEqual(name);
  expect(await unknownFiles()).toEqual([]);
  const { rows } = await db.client.query("select table_name from spillway.relation where state = 'stopped'");
  expect(rows).toEqual([]);
});

test("SIGTERM flushes and leaves; the last table takes slot and publication along", async () => {
  const { rows } = await db.client.query<{ n: string }>(
    "select schema_name || '.' || table_name as n from spillway.relation",
  );
  // It flushes because it is told to end, not because it is time.
  const worker = spawnCli(["worker"], { env: { ...env, SPILLWAY_MIRROR_FLUSH_INTERVAL: "60s" } });
  await waitFor(
    "the slot in use",
    async () => {
      const slots = await db.client.query<{ active: boolean }>(
        "select active from pg_replication_slots where database = current_database()",
      );
      return slots.rows[0]?.active === true;
    },
    { timeoutMs: 20_000 },
  );
  await change("load", 50_000);
  await sleep(1000);
  process.kill(worker.pid, "SIGTERM");
  await waitFor(
    "the worker to leave",
    async () => {
      const slots = await db.client.query<{ active: boolean }>(
        "select active from pg_replication_slots where database = current_database()",
      );
      return slots.rows[0]?.active === false;
    },
    { timeoutMs: 20_000 },
  );
  await expectEqual("load");
  for (const { n } of rows) expect(await run(["unregister", "--table", n])).toMatchObject({ code: 0 });
  const left = await db.client.query(
    "select slot_name from pg_replication_slots where database = current_database() union all select pubname from pg_publication",
  );
  expect(left.rows).toEqual([]);
});
