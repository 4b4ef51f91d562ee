/**
 * kill -9 of a worker at every fault point of registering and tiering, then another worker: the table is exactly what a plain copy
 * of it is, nothing is staged any more, and no file is left in the store that the catalog does not know.
 */
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { faultEnv, faultPointsOf } from "@spillway/testkit/faults";
import { runCli, spawnCli, type ProcessResult } from "@spillway/testkit/processes";
import { sleep, waitFor } from "@spillway/testkit/wait";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadRelationByName, readStatus } from "../catalog/catalog.ts";
import { checkWhole, referencedBy } from "../movers/test-whole.ts";
import { openRuntime, type Runtime } from "./runtime.ts";

let db: TestDatabase;
let home: string;
let runtime: Runtime;
let env: Record<string, string>;

beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "spillway-test-"));
  db = await createTestDatabase();
  env = {
    SPILLWAY_DATABASE_URL: db.url,
    SPILLWAY_WAREHOUSE: join(home, "lake"),
    SPILLWAY_CACHE_DIR: join(home, "cache"),
    SPILLWAY_CAMPAIGN_INTERVAL: "300ms",
    SPILLWAY_CYCLE_INTERVAL: "200ms",
    SPILLWAY_METRICS_LISTEN: "off",
  };
  runtime = await openRuntime({
    databaseUrl: db.url,
    warehouse: join(home, "lake"),
    s3Endpoint: null,
    s3Region: "us-east-1",
    s3PathStyle: true,
    cacheDir: join(home, "cache"),
    cacheBytes: 1 << 30,
    connectTimeoutMs: 5000,
    engineMemoryBytes: 128 << 20,
    lockTimeoutMs: 100,
    premake: 2,
    applicationName: "test",
    clock: systemClock,
    log: silentLogger,
  });
  expect(await run(["init"])).toMatchObject({ code: 0 });
});
afterAll(async () => {
  await runtime.close();
  await db.drop();
  rmSync(home, { recursive: true, force: true });
});

function run(args: string[], extra: Record<string, string> = {}): Promise<ProcessResult> {
  return runCli(args, { env: { ...env, ...extra }, timeoutMs: 60_000 });
}

async function makeTable(name: string): Promise<void> {
  await db.client.query(
    `create table ${name} (id int, at timestamptz, v text, primary key (id, at)) partition by range (at)`,
  );
  for (const [i, month] of ["01", "02", "03", "04"].entries()) {
    await db.client.query(
      `create table ${name}_2024_${month} partition of ${name} for values from ('2024-${month}-01 00:00+00') to ('2024-0${i + 2}-01 00:00+00')`,
    );
  }
  await db.client.query(`create table ${name}_model (like ${name} including all)`);
  await both(
    name,
    "insert into @ select i, '2024-01-01'::timestamptz + i * interval '2 hours', 'v' || i from generate_series(1, 1400) i",
  );
}

async function both(name: string, sql: string): Promise<void> {
  await db.client.query(sql.replaceAll("@", name));
  await db.client.query(sql.replaceAll("@", `${name}_model`));
}

/** Files of the lake that neither a table's metadata nor a doomed or staged row names, other than the logs. */
async function unknownFiles(): Promise<string[]> {
  const files = readdirSync(join(home, "lake"), { recursive: true, withFileTypes: true })
    .filter((f) => f.isFile() && !f.parentPath.includes("_spillway") && !f.name.endsWith(".spillway-tmp"))
    .map((f) => `file://${join(f.parentPath, f.name)}`);
  const { rows } = await db.client.query<{ path: string }>(
    "select path from spillway.staged_file union select path from spillway.doomed_file",
  );
  const known = new Set([...rows.map((r) => r.path), ...(await referencedFiles())]);
  return files.filter((f) => !known.has(f));
}

async function referencedFiles(): Promise<string[]> {
  const { rows } = await db.client.query<{ metadata_location: string }>(
    "select metadata_location from spillway.lake_table",
  );
  const lists = await Promise.all(rows.map((r) => referencedBy(runtime.store, r.metadata_location)));
  return lists.flat();
}

describe("kill -9 at", () => {
  for (const [i, point] of faultPointsOf("tier.").entries()) {
    test(point, async () => {
      const name = `t${i}`;
      await makeTable(name);
      expect(await run(["register", "--table", name, "--lag", "30d"])).toMatchObject({ code: 0 });
      const killed = await run(["worker", "--once"], faultEnv({ point, action: "kill" }));
      expect(killed.signal).toBe("SIGKILL");
      // What is dropped already, plain SQL cannot reach.
      const reach = point === "tier.after_drop" ? "and at >= '2024-02-01'" : "";
      await both(name, `update @ set v = 'after the kill' where id % 50 = 0 ${reach}`);
      await both(name, `insert into @ values (9000, '2024-01-05 12:34:56+00', 'historical')`);
      await checkWhole(runtime.mover(null), db.client, name);
      const result = await run(["worker", "--once"]);
      expect(result).toMatchObject({ code: 0 });
      await checkWhole(runtime.mover(null), db.client, name);
      const relation = must(await loadRelationByName(db.client, "public", name), name);
      expect(relation.seam.t).toBe(BigInt(Date.parse("2024-03-01T00:00:00Z")) * 1000n);
      const { rows } = await db.client.query("select path from spillway.staged_file");
      expect(rows).toEqual([]);
      expect(await unknownFiles()).toEqual([]);
    });
  }

  for (const [i, point] of faultPointsOf("register.").entries()) {
    test(point, async () => {
      const name = `r${i}`;
      await makeTable(name);
      const killed = await run(["register", "--table", name], faultEnv({ point, action: "kill" }));
      expect(killed.signal).toBe("SIGKILL");
      const again = await run(["register", "--table", name, "--json"]);
      expect(again).toMatchObject({ code: 0 });
      expect(JSON.parse(again.stdout)).toMatchObject({
        outcome: point === "register.after_commit" ? "already" : "registered",
      });
      expect(await run(["worker", "--once"])).toMatchObject({ code: 0 });
      await checkWhole(runtime.mover(null), db.client, name);
      expect(await unknownFiles()).toEqual([]);
    });
  }
});

describe("kill -9 in the middle of unregister at", () => {
  for (const [i, point] of faultPointsOf("unregister.").entries()) {
    test(point, async () => {
      const name = `u${i}`;
      await makeTable(name);
      expect(await run(["register", "--table", name, "--lag", "30d"])).toMatchObject({ code: 0 });
      expect(await run(["worker", "--once"])).toMatchObject({ code: 0 });
      await both(name, `insert into @ values (9000, '2024-01-05 12:34:56+00', 'historical')`);
      const killed = await run(["unregister", "--table", name], faultEnv({ point, action: "kill" }));
      expect(killed.signal).toBe("SIGKILL");
      await checkWhole(runtime.mover(null), db.client, name);
      await both(name, `insert into @ values (9001, '2024-01-06 12:34:56+00', 'between')`);
      const again = await run(["unregister", "--table", name, "--json"]);
      expect(again).toMatchObject({ code: 0 });
      expect(JSON.parse(again.stdout)).toMatchObject({ outcome: "unregistered" });
      const { rows } = await db.client.query(
        "select tgname from pg_trigger where tgname like 'spillway%' and tgrelid = $1::regclass",
        [name],
      );
      expect(rows).toEqual([]);
      expect(await run(["worker", "--once"])).toMatchObject({ code: 0 });
      expect(await unknownFiles()).toEqual([]);
    });
  }
});

test("SIGTERM steps down at once, and a standby leads", async () => {
  const [first, second] = [spawnCli(["worker"], { env }), spawnCli(["worker"], { env })];
  try {
    const leader = await Promise.race([
      first.waitForLine(/Leading/).then(() => first),
      second.waitForLine(/Leading/).then(() => second),
    ]);
    const standby = leader === first ? second : first;
    await sleep(500);
    leader.signal("SIGTERM");
    expect(await leader.done).toMatchObject({ code: 0 });
    await standby.waitForLine(/Leading/, 5000);
    await waitFor("the standby's heartbeat", async () => (await readStatus(db.client)).worker.alive);
    standby.signal("SIGTERM");
    expect(await standby.done).toMatchObject({ code: 0 });
  } finally {
    await Promise.all([first.killGroup(), second.killGroup()]);
  }
});

test("SIGTERM in the middle of a copy undoes it", async () => {
  const name = "big";
  await makeTable(name);
  await both(
    name,
    "insert into @ select i, '2024-01-02'::timestamptz + i * interval '1 second', repeat('v', 100) from generate_series(10000, 700000) i",
  );
  expect(await run(["register", "--table", name, "--lag", "30d"])).toMatchObject({ code: 0 });
  const worker = spawnCli(["worker"], { env });
  try {
    await waitFor("a file of the copy", async () => {
      const { rows } = await db.client.query<{ n: number }>(
        "select count(*)::int as n from spillway.staged_file f join spillway.journal j using (op_id) where kind = 'tier' and phase = 'open'",
      );
      return (rows[0]?.n ?? 0) > 0;
    });
    const started = performance.now();
    worker.signal("SIGTERM");
    expect(await worker.done).toMatchObject({ code: 0 });
    expect(performance.now() - started).toBeLessThan(5000);
  } finally {
    await worker.killGroup();
  }
  const { rows } = await db.client.query("select kind from spillway.journal where phase = 'open'");
  expect(rows).toEqual([]);
  expect(await run(["worker", "--once"])).toMatchObject({ code: 0 });
  await checkWhole(runtime.mover(null), db.client, name);
  expect((await db.client.query("select path from spillway.staged_file")).rows).toEqual([]);
  expect(await unknownFiles()).toEqual([]);
});

test("a leader that is stopped inside its commit commits nothing after it woke up", async () => {
  const name = "stopped";
  await makeTable(name);
  expect(await run(["register", "--table", name, "--lag", "30d"])).toMatchObject({ code: 0 });
  const old = spawnCli(["worker", "--once"], {
    env: { ...env, ...faultEnv({ point: "tier.before_commit", action: "stop" }) },
  });
  try {
    await waitFor(
      "the stopped leader's files",
      async () => {
        const { rows } = await db.client.query<{ n: number }>(
          "select count(*)::int as n from spillway.staged_file where path like '%metadata.json'",
        );
        return (rows[0]?.n ?? 0) > 0;
      },
      { timeoutMs: 20_000 },
    );
    expect(await run(["worker", "--once"])).toMatchObject({ code: 0 });
    old.cont();
    await sleep(1500);
    await checkWhole(runtime.mover(null), db.client, name);
    expect((await db.client.query("select path from spillway.staged_file")).rows).toEqual([]);
  } finally {
    await old.killGroup();
  }
  expect(await run(["worker", "--once"])).toMatchObject({ code: 0 });
  expect(await unknownFiles()).toEqual([]);
  await checkWhole(runtime.mover(null), db.client, name);
});
