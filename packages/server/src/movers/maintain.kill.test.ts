/**
 * kill -9 of a worker at every fault point of folding, compaction, retention, expiry and removal, then another worker: the table is
 * exactly what a plain copy of it is, verify finds nothing, nothing is staged any more, and no file is left that
 * nobody knows.
 */
import { mkdtempSync, readdirSync, rmSync, utimesSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { faultEnv, faultPointsOf } from "@spillway/testkit/faults";
import { type ProcessResult, runCli, spawnCli } from "@spillway/testkit/processes";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Runtime } from "../roles/runtime.ts";
import { testRuntime } from "./test-runtime.ts";
import { referencedFiles } from "./remove-orphans.ts";
import { checkWhole } from "./test-whole.ts";

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
    SPILLWAY_RESTORE_WINDOW: "0",
  };
  runtime = await testRuntime(db.url, home, { engineMemoryBytes: 128 << 20 });
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

async function both(name: string, sql: string): Promise<void> {
  await db.client.query(sql.replaceAll("@", name));
  await db.client.query(sql.replaceAll("@", `${name}_model`));
}

/** Four months by day, the first two in the lake. */
async function makeTable(name: string, retention: readonly string[]): Promise<void> {
  await db.client.query(
    `create table ${name} (id int, at timestamptz, v text, primary key (id, at)) partition by range (at)`,
  );
  for (const [i, month] of ["01", "02", "03", "04"].entries()) {
    await db.client.query(
      `create table ${name}_${month} partition of ${name} for values from ('2024-${month}-01 00:00+00') to ('2024-0${i + 2}-01 00:00+00')`,
    );
  }
  await db.client.query(`create table ${name}_model (like ${name} including all)`);
  await both(
    name,
    "insert into @ select i, '2024-01-01'::timestamptz + i * interval '2 hours', 'v' || i from generate_series(1, 1400) i",
  );
  expect(await run(["register", "--table", name, "--lag", "30d"])).toMatchObject({ code: 0 });
  expect(await run(["worker", "--once"])).toMatchObject({ code: 0 });
  await correct(name, "one");
  expect(await run(["worker", "--once"])).toMatchObject({ code: 0 });
  const set = [
    "fold_interval=0",
    "maintenance_interval=0",
    "delete_compaction_min_deletes=1",
    "delete_compaction_min_ratio=0",
    "rewrite_min_input_files=2",
    "snapshot_retention=0",
    "snapshot_min_retained=1",
  ];
  expect(await run(["policy", "--table", name, "--set", ...set])).toMatchObject({ code: 0 });
  if (retention.length > 0) {
    await db.client.query("update spillway.relation set lake_retention = $2 where table_name = $1", [
      name,
      ...retention,
    ]);
  }
  await correct(name, "two");
}

/** Replaces and deletes rows that are in the lake. */
async function correct(name: string, v: string): Promise<void> {
  const { rows } = await db.client.query<{ id: number; at: Date }>(
    `select id, at from ${name}_model where at < '2024-03-01' and id % 40 = 1`,
  );
  for (const { id, at } of rows) {
    const row = JSON.stringify({ id, at: at.toISOString(), v });
    if (id % 120 === 1) await db.client.query("select spillway.delete($1, $2)", [name, row]);
    else await db.client.query("select spillway.upsert($1, $2)", [name, row]);
  }
  await db.client.query(`delete from ${name}_model where at < '2024-03-01' and id % 120 = 1`);
  await db.client.query(`update ${name}_model set v = $1 where at < '2024-03-01' and id % 40 = 1`, [v]);
}

async function unknownFiles(): Promise<string[]> {
  const files = readdirSync(join(home, "lake"), { recursive: true, withFileTypes: true })
    .filter((f) => f.isFile() && !f.parentPath.includes("_spillway") && !f.name.endsWith(".spillway-tmp"))
    .map((f) => `file://${join(f.parentPath, f.name)}`);
  const { rows } = await db.client.query<{ path: string }>(
    "select path from spillway.staged_file union select path from spillway.doomed_file",
  );
  const known = new Set([...rows.map((r) => r.path), ...(await referencedFiles(runtime.mover(null)))]);
  return files.filter((f) => !known.has(f));
}

const POINTS = ["fold.", "compact.", "retain.", "expire.", "remove."].flatMap((prefix) => faultPointsOf(prefix));

describe("kill -9 at", () => {
  for (const [i, point] of POINTS.entries()) {
    test(point, async () => {
      const name = `m${i}`;
      // The newest row is of April 26: with 60 days, January is over.
      const isRetained = point.startsWith("retain.");
      await makeTable(name, isRetained ? [String(60n * 86_400_000_000n)] : []);
      const killed = await run(["worker", "--once"], faultEnv({ point, action: "kill" }));
      expect(killed.signal).toBe("SIGKILL");
      if (!isRetained) {
        await correct(name, "three");
        await both(name, `insert into @ values (9000, '2024-01-05 12:34:56+00', 'historical')`);
        await checkWhole(runtime.mover(null), db.client, name);
      }
      expect(await run(["worker", "--once"])).toMatchObject({ code: 0 });
      if (isRetained) await db.client.query(`delete from ${name}_model where at < '2024-02-01'`);
      await checkWhole(runtime.mover(null), db.client, name);
      expect((await db.client.query("select path from spillway.staged_file")).rows).toEqual([]);
      expect((await db.client.query("select op_id from spillway.journal where phase = 'open'")).rows).toEqual([]);
      expect(await unknownFiles()).toEqual([]);
      const verified = await run(["verify", "--table", name, "--json"]);
      expect(JSON.parse(verified.stdout)).toMatchObject({ ok: true });
      expect(verified.code).toBe(0);
      await db.client.query(
        `update spillway.relation set policy = '{"maintenance_enabled": "false"}' where table_name = $1`,
        [name],
      );
    });
  }
});

test("kill -9 while files are written: what is half there goes once it is old, and never before", async () => {
  await makeTable("torn", []);
  await db.client.query(
    "update spillway.relation set state = 'stopped', stop_code = 'test' where table_name <> 'torn'",
  );
  const temporary = (): string[] =>
    readdirSync(join(home, "lake"), { recursive: true, withFileTypes: true })
      .filter((f) => f.name.endsWith(".spillway-tmp"))
      .map((f) => join(f.parentPath, f.name));
  // Rows that do not fit into one moment: the newest partition, whose successor's first row makes it old.
  await both(
    "torn",
    `insert into @ select i, '2024-03-01'::timestamptz + i * interval '5 seconds', md5(i::text) || md5((-i)::text)
     from generate_series(10000, 400000) i`,
  );
  await both("torn", "insert into @ values (1, '2024-04-29 12:00+00', 'late')");
  const child = spawnCli(["worker", "--once"], { env });
  for (let i = 0; temporary().length === 0 && i < 3000; i++) await new Promise((r) => setTimeout(r, 5));
  await child.kill();
  const left = temporary();
  expect(left.length).toBeGreaterThan(0);
  expect(await run(["worker", "--once"])).toMatchObject({ code: 0 });
  expect(await run(["maintain", "--all", "--pass", "orphans"])).toMatchObject({ code: 0 });
  expect(temporary()).toEqual(left);
  const yesterday = Date.now() / 1000 - 25 * 3600;
  for (const file of left) utimesSync(file, yesterday, yesterday);
  expect(await run(["maintain", "--all", "--pass", "orphans"])).toMatchObject({ code: 0 });
  expect(temporary()).toEqual([]);
  await checkWhole(runtime.mover(null), db.client, "torn");
});

test("maintain runs by itself when nobody leads, and policy says where each value comes from", async () => {
  const done = await run(["maintain", "--table", "m0", "--pass", "compact", "--json"]);
  expect(done).toMatchObject({ code: 0 });
  expect(JSON.parse(done.stdout)).toMatchObject({ state: "done" });
  expect(await run(["maintain", "--table", "m0", "--pass", "nonsense"])).toMatchObject({ code: 2 });
  expect(await run(["policy", "--table", "m0", "--set", "fold_rows=many"])).toMatchObject({ code: 2 });
  expect(await run(["policy", "--table", "no_such"])).toMatchObject({ code: 2 });
  expect(await run(["policy", "--table", "m0", "--reset", "--set", "fold_rows=7"])).toMatchObject({ code: 0 });
  const policy = JSON.parse((await run(["policy", "--table", "m0", "--json"])).stdout) as {
    settings: { name: string; value: string; origin: string }[];
  };
  const by = new Map(policy.settings.map((s) => [s.name, [s.value, s.origin]]));
  expect(by.get("fold_rows")).toEqual(["7", "table"]);
  expect(by.get("maintenance_enabled")).toEqual(["true", "default"]);
  expect(await run(["restore", "adopt"])).toMatchObject({ code: 1 });
  expect(await run(["verify", "--all", "--table", "m0"])).toMatchObject({ code: 2 });
});
