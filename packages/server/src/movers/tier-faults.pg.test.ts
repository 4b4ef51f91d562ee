/** What goes wrong between the copy and the drop: nothing is committed on the strength of the writer's word, and nothing is lost. */
import { mkdtempSync, renameSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import type pg from "pg";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { duckLiteral } from "../engine/engine.ts";
import { init, loadRelationByName, type Relation } from "../catalog/catalog.ts";
import type { Runtime } from "../roles/runtime.ts";
import { testRuntime } from "./test-runtime.ts";
import type { MoverContext } from "./context.ts";
import { Passes, type PassResult, recover, register } from "./movers.ts";
import { checkWhole } from "./test-whole.ts";

let db: TestDatabase;
let runtime: Runtime;
let client: pg.Client;
let home: string;
let count = 0;
let name: string;

beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "spillway-test-"));
  db = await createTestDatabase();
  client = db.client;
  runtime = await testRuntime(db.url, home, { engineMemoryBytes: 128 << 20 });
  await runtime.pool.withClient((c) =>
    init({ client: c, store: runtime.store, warehouse: runtime.warehouse, clock: systemClock, log: silentLogger }),
  );
});
afterAll(async () => {
  await runtime.close();
  await db.drop();
  rmSync(home, { recursive: true, force: true });
});

beforeEach(async () => {
  name = `f${++count}`;
  await client.query(`create table ${name} (id int, k int, v text, primary key (id, k)) partition by range (k)`);
  for (const lo of [0, 10])
    await client.query(`create table ${name}_${lo} partition of ${name} for values from (${lo}) to (${lo + 10})`);
  await client.query(`create table ${name}_model (like ${name} including all)`);
  await both("insert into @ select i, i % 20, 'v' || i from generate_series(1, 1000) i");
  await register(runtime.mover(null), { table: name, mode: "tiered" });
});

async function both(sql: string): Promise<void> {
  await client.query(sql.replaceAll("@", name));
  await client.query(sql.replaceAll("@", `${name}_model`));
}

async function relation(): Promise<Relation> {
  return must(await loadRelationByName(client, "public", name), name);
}

async function pass(ctx: MoverContext): Promise<PassResult> {
  return new Passes().run(ctx, { force: true, only: [(await relation()).relationId] });
}

/** A context in which `meddle` runs when the first new file is about to be read back. */
function meddling(meddle: (path: string) => Promise<void>): MoverContext {
  const ctx = runtime.mover(null);
  let done = false;
  const localize: MoverContext["cache"]["localize"] = async (requests) => {
    const local = await ctx.cache.localize(requests);
    if (!done) {
      done = true;
      await meddle(must(local.paths[0], "path"));
    }
    return local;
  };
  return { ...ctx, cache: Object.assign(Object.create(ctx.cache) as MoverContext["cache"], { localize }) };
}

async function tierPhases(): Promise<string[]> {
  const { rowId } = { rowId: (await relation()).relationId.toString() };
  const { rows } = await client.query<{ phase: string }>(
    "select phase from spillway.journal where kind = 'tier' and relation_id = $1 order by op_id",
    [rowId],
  );
  return rows.map((r) => r.phase);
}

describe("between the copy and the commit", () => {
  test("a value that was flipped on its way is found: nothing is committed, and the next try is good", async () => {
    const ctx = meddling(async (path) => {
      await runtime.engine.use((s) =>
        s.run(`COPY (SELECT id, k, CASE WHEN id = 20 THEN 'v2O' ELSE v END AS v FROM read_parquet(${duckLiteral(path)}))
          TO ${duckLiteral(`${path}.new`)} (FORMAT parquet, FIELD_IDS {id: 1, k: 2, v: 3})`),
      );
      renameSync(`${path}.new`, path);
    });
    expect((await pass(ctx)).failed).toEqual({ [`public.${name}`]: "verify_failed" });
    expect(await relation()).toMatchObject({ state: "stopped", stopCode: "verify_failed", seam: { t: 0n, s: null } });
    expect(await tierPhases()).toEqual(["abandoned"]);
    await checkWhole(runtime.mover(null), client, name);
    await recover(runtime.mover(null));
    expect((await client.query("select * from spillway.staged_file")).rows).toEqual([]);
    expect((await pass(runtime.mover(null))).failed).toEqual({});
    expect(await relation()).toMatchObject({ state: "active", seam: { t: 10n } });
    await checkWhole(runtime.mover(null), client, name);
  });

  test("a file that cannot be read is found, too", async () => {
    const { writeFileSync } = await import("node:fs");
    const ctx = meddling((path) => Promise.resolve(writeFileSync(path, "no Parquet")));
    expect(Object.keys((await pass(ctx)).failed)).toEqual([`public.${name}`]);
    expect(await relation()).toMatchObject({ seam: { t: 0n, s: null } });
    await recover(runtime.mover(null));
    expect((await pass(runtime.mover(null))).failed).toEqual({});
    await checkWhole(runtime.mover(null), client, name);
  });

  const meddlers: [string, string][] = [
    ["rewritten", "vacuum full @_0"],
    ["without its trigger for a while", "alter table @_0 disable trigger spillway_capture; update @_0 set v = 'unseen' where id = 3; update @_model set v = 'unseen' where id = 3; alter table @_0 enable always trigger spillway_capture"],
    ["truncated, and filled again", "truncate @_0; delete from @_model where k < 10; insert into @ values (1, 1, 'new'); insert into @_model values (1, 1, 'new')"],
  ]; // prettier-ignore
  for (const [label, sql] of meddlers) {
    test(`a leaf that was ${label} is copied again`, async () => {
      const ctx = meddling(async () => {
        for (const one of sql.split("; ")) await client.query(one.replaceAll("@", name));
      });
      expect((await pass(ctx)).failed).toEqual({});
      expect(await tierPhases()).toEqual(["abandoned", "committed"]);
      expect(await relation()).toMatchObject({ seam: { t: 10n } });
      await checkWhole(runtime.mover(null), client, name);
    });
  }

  test("a leaf that was altered is followed first", async () => {
    const ctx = meddling(async () => {
      await both("alter table @ add column extra int default 5");
      await both("insert into @ values (2000, 3, 'with it', 6)");
    });
    expect((await pass(ctx)).failed).toEqual({});
    expect((await pass(runtime.mover(null))).failed).toEqual({});
    await checkWhole(runtime.mover(null), client, name);
  });

  for (const [how, sql] of [
    ["detached", "alter table @ detach partition @_0"],
    ["dropped", "drop table @_0"],
  ] as const) {
    test(`a leaf that was ${how}: what was captured of it does not come back`, async () => {
      const ctx = meddling(async () => {
        await client.query(
          `update ${name} set v = 'captured' where k = 3; insert into ${name} values (3000, 4, 'captured')`,
        );
        await client.query(sql.replaceAll("@", name));
        await client.query(`delete from ${name}_model where k < 10`);
        await both("insert into @ values (3001, 5, 'in the hole')");
      });
      expect((await pass(ctx)).failed).toEqual({});
      if (how === "detached") await client.query(`insert into ${name}_0 values (4000, 2, 'not ours')`);
      await both("insert into @ values (3002, 25, 'later')");
      for (let i = 0; i < 4; i++) expect((await pass(runtime.mover(null))).failed).toEqual({});
      expect((await relation()).seam.t).toBe(20n);
      await checkWhole(runtime.mover(null), client, name);
      const { rows } = await client.query(
        "select tgname from pg_trigger where tgname like 'spillway%' and tgrelid = to_regclass($1)",
        [`${name}_0`],
      );
      expect(rows).toEqual([]);
    });
  }
});

describe("between the commit and the drop", () => {
  test("a leaf that was detached stays, without its capture; the lake has its rows", async () => {
    const reader = await db.connect();
    await reader.query(`begin; select count(*) from ${name}`);
    await pass(runtime.mover(null));
    await reader.query("commit");
    await client.query(`alter table ${name} detach partition ${name}_0`);
    await client.query(`insert into ${name}_0 values (4000, 2, 'not ours')`);
    expect((await pass(runtime.mover(null))).failed).toEqual({});
    await checkWhole(runtime.mover(null), client, name);
    const { rows } = await client.query(`select count(*)::int as n from ${name}_0`);
    expect(rows).toEqual([{ n: 501 }]);
  });
});
