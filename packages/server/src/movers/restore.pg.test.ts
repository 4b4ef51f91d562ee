/** Real copies of a real data directory: a clone deletes nothing, a restored database reads back exactly, a fork lives by itself. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import { openStore } from "@spillway/lake/store/open";
import { type PgInstance, startPostgres } from "@spillway/testkit/postgres";
import type pg from "pg";
import { afterAll, beforeAll, expect, test } from "vitest";
import { claimLake, renewOwnership, requireOwnership } from "../catalog/catalog.ts";
import type { Runtime } from "../roles/runtime.ts";
import type { MoverContext } from "./context.ts";
import { foldRelation } from "./fold.ts";
import { maintainRelation } from "./maintain.ts";
import { asTiered, type TieredRelation } from "./movers.ts";
import { changePolicy } from "./policy.ts";
import { removeDoomed } from "./remove.ts";
import { adoptLake as adopt } from "./restore.ts";
import { forkLake as fork } from "./restore-fork.ts";
import { TestLake, testRuntime } from "./test-runtime.ts";
import { checkWhole } from "./test-whole.ts";
import { verifyTable } from "./verify.ts";
import { loadRelationByName } from "../catalog/catalog.ts";
import { must } from "@spillway/base/assert";

let server: PgInstance;
let client: pg.Client;
let lake: TestLake;
const closers: (() => Promise<void>)[] = [];
beforeAll(async () => {
  server = await startPostgres();
  client = await server.connect("postgres");
  lake = await TestLake.open({ url: server.url("postgres"), client });
  await lake.makeInts("t");
  await changePolicy(client, (await lake.relation("t")).relationId, {
    set: [
      "snapshot_retention=0",
      "snapshot_min_retained=1",
      "rewrite_min_input_files=2",
      "delete_compaction_min_deletes=1",
      "delete_compaction_min_ratio=0",
    ],
  });
  await corrections(lake.ctx, client, "before");
});
afterAll(async () => {
  for (const close of closers.toReversed()) await close();
  await client.end().catch(() => {});
  await lake.close();
  await server.destroy();
});

async function relationOf(c: pg.Client): Promise<TieredRelation> {
  return must(asTiered(must(await loadRelationByName(c, "public", "t"), "t")), "t");
}

async function corrections(ctx: MoverContext, c: pg.Client, v: string): Promise<void> {
  for (let i = 0; i < 10; i++) {
    const id = i * 40 + 1;
    await c.query("select spillway.upsert('t', $1)", [JSON.stringify({ id, k: 1, v })]);
    await c.query("update t_model set v = $2, w = null where id = $1", [id, v]);
    if (i % 3 === 0) await foldRelation(ctx, await relationOf(c));
  }
}

/** The original goes on: it folds, compacts, expires, and says that it is alive. */
async function goOn(restoreWindowMs: number): Promise<void> {
  await corrections(lake.ctx, client, "after");
  await maintainRelation(lake.ctx, await relationOf(client));
  await claim(lake.runtime, 0);
  await removeDoomed({ ...lake.ctx, restoreWindowMs });
  await renew(lake.runtime);
}

/** What a worker does when its term begins. */
function claim(runtime: Runtime, watchMs: number): Promise<string> {
  const { pool, store, warehouse } = runtime;
  return claimLake({ lend: (work) => pool.withClient(work), store, warehouse, clock: systemClock, watchMs });
}

function renew(runtime: Runtime): Promise<void> {
  return runtime.pool.withClient((c) =>
    renewOwnership(c, runtime.store, runtime.warehouse, systemClock, () => Promise.resolve()),
  );
}

interface Copy {
  readonly server: PgInstance;
  readonly client: pg.Client;
  readonly runtime: Runtime;
  readonly ctx: MoverContext;
}

/** The data directory as it is now, in another server. */
async function copyServer(warehouse = join(lake.home, "lake")): Promise<Copy> {
  const home = mkdtempSync(join(tmpdir(), "spillway-test-"));
  await server.stop();
  execFileSync("cp", ["-a", server.dataDir, join(home, "data")]);
  execFileSync("chmod", ["755", home]);
  await server.start();
  client = await server.connect("postgres");
  (lake as { client: pg.Client }).client = client;
  const copy = await startPostgres({ dataDir: join(home, "data") });
  const other = await copy.connect("postgres");
  const runtime = await testRuntime(copy.url("postgres"), home, { warehouse, applicationName: "copy" });
  closers.push(async () => {
    await runtime.close();
    await other.end().catch(() => {});
    await copy.destroy();
    rmSync(home, { recursive: true, force: true });
  });
  return { server: copy, client: other, runtime, ctx: runtime.mover(null) };
}

function filesIn(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((f) => f.isFile())
    .map((f) => join(f.parentPath, f.name))
    .toSorted();
}

test("a clone is refused, and deletes nothing, whatever its own catalog dooms", async () => {
  const clone = await copyServer();
  await goOn(3_600_000);
  await expect(
    clone.runtime.pool.withClient((c) => requireOwnership(c, clone.runtime.store, clone.runtime.warehouse)),
  ).rejects.toMatchObject({ code: "lake_not_ours" });
  await maintainRelation(clone.ctx, await relationOf(clone.client));
  const before = filesIn(join(lake.home, "lake"));
  await expect(removeDoomed({ ...clone.ctx, restoreWindowMs: 0 })).rejects.toMatchObject({ code: "lake_not_ours" });
  expect(filesIn(join(lake.home, "lake"))).toEqual(before);
  await expect(renew(clone.runtime)).rejects.toMatchObject({ code: "lake_not_ours" });
  await checkWhole(lake.ctx, client, "t");
});

test("a clone that is there before its original's next renewal is refused all the same, and deletes nothing meanwhile", async () => {
  const clone = await copyServer();
  await maintainRelation(clone.ctx, await relationOf(clone.client));
  const before = filesIn(join(lake.home, "lake"));
  const remove = (): Promise<unknown> => removeDoomed({ ...clone.ctx, restoreWindowMs: 0 });
  await expect(remove()).rejects.toMatchObject({ code: "lake_unclaimed" });
  // The original was restarted as well: whoever leads there looks around first, and so do both.
  const claims = [claim(clone.runtime, 1500), claim(lake.runtime, 0)];
  expect(await claims[1]).toBe("claimed");
  await expect(claims[0]).rejects.toMatchObject({ code: "lake_not_ours" });
  await expect(remove()).rejects.toMatchObject({ code: "lake_not_ours" });
  await expect(renew(clone.runtime)).rejects.toMatchObject({ code: "lake_not_ours" });
  expect(filesIn(join(lake.home, "lake"))).toEqual(before);
  await renew(lake.runtime);
  expect(await claim(lake.runtime, 60_000)).toBe("held");
  await checkWhole(lake.ctx, client, "t");
});

test("two copies that claim at the same moment: at most one of them has the lake afterwards", async () => {
  const clone = await copyServer();
  const outcomes = await Promise.allSettled([claim(clone.runtime, 300), claim(lake.runtime, 300)]);
  expect(outcomes.filter((o) => o.status === "fulfilled").length).toBeGreaterThan(0);
  const renewals = await Promise.allSettled([renew(clone.runtime), renew(lake.runtime)]);
  expect(renewals.filter((r) => r.status === "fulfilled").length).toBe(1);
  if (renewals[0]?.status === "fulfilled") await adopt(lake.ctx);
  await checkWhole(lake.ctx, client, "t");
});

test("a fork has a lake of its own: the same rows, and the original's files stay as they are", async () => {
  const warehouse = join(lake.home, "fork");
  const clone = await copyServer(warehouse);
  await goOn(3_600_000);
  const original = openStore({
    root: join(lake.home, "lake"),
    endpoint: null,
    region: "",
    pathStyle: true,
    clock: systemClock,
    random: Math.random,
  });
  const before = filesIn(join(lake.home, "lake")).map((f) => [f, readFileSync(f).length]);
  expect(await fork(clone.ctx, { original })).toMatchObject({ generation: 1n, tables: 1 });
  await checkWhole(clone.ctx, clone.client, "t");
  expect((await verifyTable(clone.ctx, (await relationOf(clone.client)).relationId)).differences).toEqual([]);
  await corrections(clone.ctx, clone.client, "in the fork");
  await maintainRelation(clone.ctx, await relationOf(clone.client));
  expect((await removeDoomed({ ...clone.ctx, restoreWindowMs: 0 })).removed).toBeGreaterThan(0);
  await renew(clone.runtime);
  await checkWhole(clone.ctx, clone.client, "t");
  expect((await verifyTable(clone.ctx, (await relationOf(clone.client)).relationId)).ok).toBe(true);
  expect(filesIn(join(lake.home, "lake")).map((f) => [f, readFileSync(f).length])).toEqual(before);
  await checkWhole(lake.ctx, client, "t");
  await expect(fork(clone.ctx, { original })).rejects.toMatchObject({ code: "restore_not_needed" });
});

test("restored to before a compaction and an expiry, within the window: adopted, it reads back exactly", async () => {
  const restored = await copyServer();
  await goOn(3_600_000);
  expect(await adopt(restored.ctx)).toMatchObject({ tables: 1, droppedSnapshots: 0 });
  await checkWhole(restored.ctx, restored.client, "t");
  expect((await verifyTable(restored.ctx, (await relationOf(restored.client)).relationId)).differences).toEqual([]);
  await expect(adopt(restored.ctx)).rejects.toMatchObject({ code: "restore_not_needed" });
  // The one that it was restored from is fenced.
  await expect(removeDoomed({ ...lake.ctx, restoreWindowMs: 0 })).rejects.toMatchObject({ code: "lake_not_ours" });
  await expect(renew(lake.runtime)).rejects.toMatchObject({ code: "lake_not_ours" });
  await corrections(restored.ctx, restored.client, "adopted");
  await maintainRelation(restored.ctx, await relationOf(restored.client));
  await removeDoomed({ ...restored.ctx, restoreWindowMs: 0 });
  await checkWhole(restored.ctx, restored.client, "t");
  // Taken back, for the test after this one.
  await adopt(lake.ctx).catch((error: unknown) => expect(error).toMatchObject({ code: "restore_incomplete" }));
});

test("beyond the window the adoption names the tables, and changes nothing", async () => {
  const fresh = await startPostgres();
  const freshClient = await fresh.connect("postgres");
  [server, client] = [fresh, freshClient];
  closers.push(() => fresh.destroy());
  const old = lake;
  closers.push(() => old.close());
  lake = await TestLake.open({ url: fresh.url("postgres"), client: freshClient });
  await lake.makeInts("t");
  await changePolicy(client, (await lake.relation("t")).relationId, {
    set: [
      "snapshot_retention=0",
      "snapshot_min_retained=1",
      "rewrite_min_input_files=2",
      "delete_compaction_min_deletes=1",
      "delete_compaction_min_ratio=0",
    ],
  });
  await corrections(lake.ctx, client, "before");
  const restored = await copyServer();
  await goOn(0);
  const owner = readFileSync(join(lake.home, "lake/_spillway/owner.json"), "utf8");
  await expect(adopt(restored.ctx)).rejects.toMatchObject({ code: "restore_incomplete", message: /public\.t/ });
  expect(readFileSync(join(lake.home, "lake/_spillway/owner.json"), "utf8")).toBe(owner);
  await checkWhole(lake.ctx, client, "t");
});
