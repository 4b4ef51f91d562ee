/** Expiry, removal and orphans on real stores: what goes, what stays, and what a pin, a window or a standby holds. */
import { existsSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { readMetadata } from "@spillway/lake/metadata";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { afterAll, beforeAll, expect, test } from "vitest";
import { appendFileLog, fileRequest, loadLakeTable } from "../catalog/catalog.ts";
import { fileLog, type MoverContext } from "./context.ts";
import { expireSnapshots } from "./expire.ts";
import { foldRelation } from "./fold.ts";
import { answerMaintenance, maintain, maintainRelation, maintainStep, SourceUpkeep } from "./maintain.ts";
import { changePolicy } from "./policy.ts";
import { referencedFiles, removeOrphans } from "./remove-orphans.ts";
import { removeDoomed, sweepPins } from "./remove.ts";
import { retain } from "./retain.ts";
import { compact } from "./compact.ts";
import { TestLake } from "./test-runtime.ts";
import { verifyTable } from "./verify.ts";

let db: TestDatabase;
let lake: TestLake;
beforeAll(async () => {
  db = await createTestDatabase();
  lake = await TestLake.open(db);
});
afterAll(async () => {
  await lake.close();
  await db.drop();
});

const EAGER = [
  "delete_compaction_min_deletes=1",
  "delete_compaction_min_ratio=0",
  "rewrite_min_input_files=2",
  "manifest_rewrite_min_manifests=3",
  "snapshot_retention=0",
  "snapshot_min_retained=1",
];

async function policy(name: string, ...set: string[]): Promise<void> {
  await changePolicy(lake.client, (await lake.relation(name)).relationId, { set });
}

function ctx(restoreWindowMs = 0): MoverContext {
  return { ...lake.ctx, restoreWindowMs };
}

async function folded(name: string, rounds = 3): Promise<void> {
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < 5; i++) await lake.upsert(name, i * 40 + 1, 1, `round ${round}`);
    await foldRelation(ctx(), await lake.relation(name));
  }
}

/** Files below the warehouse, without Spillway's own. */
function storeFiles(): string[] {
  return readdirSync(join(lake.home, "lake"), { recursive: true, withFileTypes: true })
    .filter((f) => f.isFile() && !f.parentPath.includes("_spillway"))
    .map((f) => `file://${join(f.parentPath, f.name)}`);
}

test("after compaction and expiry, what is left in the store is exactly what the tables name", async () => {
  await lake.makeInts("gone");
  await policy("gone", ...EAGER);
  await folded("gone");
  const report = await maintainRelation(ctx(), await lake.relation("gone"));
  expect(Object.keys(report)).toEqual(expect.arrayContaining(["compact", "expire"]));
  await lake.check("gone");
  const before = storeFiles().length;
  expect(await removeDoomed(ctx(3_600_000))).toEqual({ removed: 0, held: null });
  expect(storeFiles()).toHaveLength(before);
  const done = await removeDoomed(ctx());
  expect(done.removed).toBeGreaterThan(10);
  expect(new Set(storeFiles())).toEqual(await referencedFiles(ctx()));
  await lake.check("gone");
  expect((await verifyTable(ctx(), (await lake.relation("gone")).relationId)).ok).toBe(true);
  expect(await lake.count(`from spillway.counter where name = 'files_removed_total' and value = ${done.removed}`)).toBe(
    1,
  );
});

test("snapshots younger than the retention, tags and the last few stay", async () => {
  await lake.makeInts("ages");
  await folded("ages", 4);
  expect(await expireSnapshots(ctx(), await lake.relation("ages"))).toBeNull();
  await policy("ages", "snapshot_retention=0", "snapshot_min_retained=3");
  expect(await expireSnapshots(ctx(), await lake.relation("ages"))).toMatchObject({ snapshots: 3 });
  expect((await lake.metadata("ages")).snapshots).toHaveLength(3);
  // An hour later, one a minute: all were made in one minute or two.
  const later = { ...ctx(), clock: { ...lake.ctx.clock, wallMs: () => Date.now() + 3_600_000 } };
  await policy("ages", "snapshot_retention=24h", "snapshot_min_retained=1");
  await expireSnapshots(later, await lake.relation("ages"));
  expect((await lake.metadata("ages")).snapshots.length).toBeLessThanOrEqual(2);
});

test("a live pin holds back the removal of what it may see, and nothing else", async () => {
  await removeDoomed(ctx());
  await lake.makeInts("pinned", { lakeRetention: "25" });
  await policy("pinned", ...EAGER);
  await folded("pinned");
  await lake.client.query(
    `insert into spillway.pin (holder, floor, expires_at) values ('test', pg_snapshot_xmin(pg_current_snapshot()), now() + interval '1 minute')`,
  );
  const old = await lake.metadata("pinned");
  await lake.both("pinned", "insert into @ values (5, 55, 'newest', 1)");
  await lake.settled("pinned");
  await folded("pinned", 1);
  expect((await compact(ctx(), await lake.relation("pinned"))).units).toBeGreaterThan(0);
  expect((await retain(ctx(), await lake.relation("pinned"))).bands).toBe(3);
  expect((await expireSnapshots(ctx(), await lake.relation("pinned")))?.doomedFiles).toBeGreaterThan(5);
  expect(await removeDoomed(ctx())).toEqual({ removed: 0, held: null });
  // Everything that the pinned snapshot names is still there.
  const named = await readMetadata(
    lake.runtime.store,
    must((await lake.metadata("pinned")).metadataLog[0], "log").metadataFile,
  );
  expect(named.tableUuid).toBe(old.tableUuid);
  for (const s of old.snapshots) expect(existsSync(s.manifestList.slice(7))).toBe(true);
  await lake.client.query("update spillway.pin set expires_at = now() - interval '1 second'");
  expect(await sweepPins(ctx())).toBe(1);
  expect((await removeDoomed(ctx())).removed).toBeGreaterThan(5);
  await lake.client.query("delete from pinned_model where k < 30");
  await lake.check("pinned");
});

test("with synchronous standbys named and none connected, nothing is removed", async () => {
  await lake.makeInts("sync");
  await policy("sync", ...EAGER);
  await folded("sync", 1);
  await maintainRelation(ctx(), await lake.relation("sync"));
  await lake.client.query("alter system set synchronous_standby_names = 'none_such'");
  // Nobody is to wait for it, but for the removal.
  await lake.client.query("alter system set synchronous_commit = 'local'");
  await lake.client.query("select pg_reload_conf(), pg_sleep(0.3)");
  try {
    const before = storeFiles().length;
    const done = await removeDoomed(ctx());
    expect(done.removed).toBe(0);
    expect(done.held).toMatch(/no synchronous standby is connected/);
    expect(storeFiles()).toHaveLength(before);
  } finally {
    await lake.client.query("alter system reset synchronous_standby_names");
    await lake.client.query("alter system reset synchronous_commit");
    await lake.client.query("select pg_reload_conf(), pg_sleep(0.3)");
  }
  expect((await removeDoomed(ctx())).removed).toBeGreaterThan(0);
});

test("only files that the log knows and nobody names are orphans; a stranger's file stays; the log shrinks", async () => {
  const location = must(await loadLakeTable(lake.client, (await lake.relation("gone")).lakeId), "table").location;
  const [orphan, stranger] = [`${location}/data/orphan.parquet`, `${location}/data/stranger.parquet`];
  for (const path of [orphan, stranger]) writeFileSync(path.slice(7), "x");
  await appendFileLog(fileLog(ctx()), { op: 4711n, staged: [orphan] });
  const referenced = await referencedFiles(ctx());
  // Young entries are not looked at.
  expect(await removeOrphans(ctx(), 3_600_000)).toEqual({ removed: 0, logEntries: 0 });
  expect(existsSync(orphan.slice(7))).toBe(true);
  const later = { ...ctx(), clock: { ...lake.ctx.clock, wallMs: () => Date.now() + 7_200_000 } };
  const done = await removeOrphans(later, 3_600_000);
  expect(done.removed).toBe(1);
  expect(existsSync(orphan.slice(7))).toBe(false);
  expect(existsSync(stranger.slice(7))).toBe(true);
  for (const path of referenced) expect(existsSync(path.slice(7))).toBe(true);
  expect(
    readdirSync(join(lake.home, "lake", "_spillway", "log"), { recursive: true, withFileTypes: true }).filter((f) =>
      f.isFile(),
    ),
  ).toHaveLength(1);
  expect(
    await removeOrphans({ ...later, clock: { ...later.clock, wallMs: () => Date.now() + 20_000_000 } }, 3_600_000),
  ).toMatchObject({ removed: 0 });
});

test("somebody else's lake is not touched", async () => {
  await lake.makeInts("theirs");
  await policy("theirs", ...EAGER);
  await folded("theirs", 1);
  await maintainRelation(ctx(), await lake.relation("theirs"));
  const before = storeFiles().length;
  await lake.client.query("update spillway.warehouse set generation = generation - 1");
  await expect(removeDoomed(ctx())).rejects.toMatchObject({ code: "lake_not_ours" });
  expect(storeFiles()).toHaveLength(before);
  await lake.client.query("update spillway.warehouse set generation = generation + 1");
  await lake.client.query("insert into spillway.doomed_file (path, doomed_xid) values ('file:///etc/hostname', '3')");
  await expect(removeDoomed(ctx())).rejects.toMatchObject({ code: "lake_not_ours" });
  expect(existsSync("/etc/hostname")).toBe(true);
  await lake.client.query("delete from spillway.doomed_file where path like 'file:///etc/%'");
});

test("the step runs when the policy says so, once in its interval; a request runs what it names", async () => {
  await lake.makeInts("due");
  await policy("due", ...EAGER);
  await folded("due", 2);
  const runs = (): Promise<number> =>
    lake.count(
      "from spillway.journal j join spillway.relation x using (relation_id) where x.table_name = 'due' and kind = 'maintain'",
    );
  await maintainStep(ctx(), await lake.relation("due"));
  expect(await runs()).toBe(0);
  await policy("due", "maintenance_interval=0", "maintenance_enabled=false");
  await maintainStep(ctx(), await lake.relation("due"));
  expect(await runs()).toBe(0);
  await policy("due", "maintenance_enabled=true", "rewrite_enabled=false", "delete_compaction_enabled=false");
  await maintainStep(ctx(), await lake.relation("due"));
  expect(await runs()).toBe(1);
  expect(
    await lake.count(
      "from spillway.journal j join spillway.relation x using (relation_id) where x.table_name = 'due' and kind = 'compact'",
    ),
  ).toBe(0);
  await policy("due", "maintenance_interval=1h", ...EAGER, "rewrite_enabled=true", "delete_compaction_enabled=true");
  await maintainStep(ctx(), await lake.relation("due"));
  expect(await runs()).toBe(1);
  const { relationId } = await lake.relation("due");
  const upkeep = new SourceUpkeep();
  const done = await maintain(ctx(), upkeep, { relationId, passes: ["compact"] });
  expect(Object.keys(done.tables["public.due"] ?? {})).toEqual(["compact"]);
  const requestId = await fileRequest(lake.client, { kind: "maintain", relationId, detail: { passes: ["nonsense"] } });
  const request = { requestId, kind: "maintain", relationId, detail: { passes: ["nonsense"] } };
  expect(await answerMaintenance(ctx(), upkeep, request)).toMatchObject({ state: "failed", result: { code: "usage" } });
  await lake.check("due");
});
