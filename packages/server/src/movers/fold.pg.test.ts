/** Folding against real Postgres, a real store and DuckDB, compared with a plain copy of the table. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { readMetadata } from "@spillway/lake/metadata";
import { planScan } from "@spillway/lake/scan/scan";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import type pg from "pg";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { init, loadBands, loadLakeTable, loadRelationByName } from "../catalog/catalog.ts";
import type { Runtime } from "../roles/runtime.ts";
import { testRuntime } from "./test-runtime.ts";
import { foldRelation, type FoldOptions, type FoldResult } from "./fold.ts";
import { keyRanges } from "./fold-lookup.ts";
import { asTiered, Passes, register, type RegisterOptions, type TieredRelation } from "./movers.ts";
import { TABLE_STEPS } from "./steps.ts";
import { checkWhole } from "./test-whole.ts";

let db: TestDatabase;
let runtime: Runtime;
let client: pg.Client;
let home: string;
beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "spillway-test-"));
  db = await createTestDatabase();
  runtime = await testRuntime(db.url, home);
  client = db.client;
  await runtime.pool.withClient((c) =>
    init({ client: c, store: runtime.store, warehouse: runtime.warehouse, clock: systemClock, log: silentLogger }),
  );
});
afterEach(async () => {
  await client.query("rollback");
});
afterAll(async () => {
  await runtime.close();
  await db.drop();
  rmSync(home, { recursive: true, force: true });
});

const BEFORE_FOLD = TABLE_STEPS.filter((s) => s.name !== "fold" && s.name !== "maintain");

async function settled(name: string): Promise<void> {
  const relation = must(await loadRelationByName(client, "public", name), name);
  for (let i = 0; i < 10; i++) {
    const done = await new Passes().run(runtime.mover(null), {
      force: true,
      only: [relation.relationId],
      steps: BEFORE_FOLD,
    });
    expect(done.failed).toEqual({});
    if (done.moved === 0) return;
  }
  throw new Error("the passes do not come to an end");
}

async function tiered(name: string): Promise<TieredRelation> {
  return must(asTiered(must(await loadRelationByName(client, "public", name), name)), name);
}

async function fold(name: string, options: FoldOptions = {}): Promise<FoldResult> {
  return foldRelation(runtime.mover(null), await tiered(name), options);
}

async function deltaRows(name: string): Promise<number> {
  const { relationId } = await tiered(name);
  const { rows } = await client.query<{ n: number }>(
    `select count(*)::int as n from spillway.delta_${relationId} where key < (select t from spillway.seam where relation_id = ${relationId})`,
  );
  return must(rows[0], "count").n;
}

/** The journaled rows of the bands, together. */
async function bandRows(name: string): Promise<bigint> {
  const bands = await loadBands(client, (await tiered(name)).relationId);
  return bands.reduce((sum, b) => sum + (b.rows ?? 0n), 0n);
}

async function both(name: string, sql: string): Promise<void> {
  await client.query(sql.replaceAll("@", name));
  await client.query(sql.replaceAll("@", `${name}_model`));
}

/** Corrects rows of either tier, the model with them. */
async function upsert(name: string, id: number, k: number, v: string, w = "1.25"): Promise<void> {
  await client.query("select spillway.upsert($1, $2)", [name, JSON.stringify({ id, k, v, w })]);
  await client.query(
    `insert into ${name}_model values ($1, $2, $3, $4) on conflict (id, k) do update set v = excluded.v, w = excluded.w`,
    [id, k, v, w],
  );
}

async function remove(name: string, id: number, k: number): Promise<void> {
  await client.query("select spillway.delete($1, $2)", [name, JSON.stringify({ id, k })]);
  await client.query(`delete from ${name}_model where id = $1 and k = $2`, [id, k]);
}

async function makeInts(name: string, options: Partial<RegisterOptions> = {}): Promise<void> {
  await client.query(
    `create table ${name} (id int, k int, v text, w numeric(10,2), primary key (id, k)) partition by range (k)`,
  );
  for (let i = 0; i < 4; i++) {
    await client.query(
      `create table ${name}_${i * 10} partition of ${name} for values from (${i * 10}) to (${i * 10 + 10})`,
    );
  }
  await client.query(`create table ${name}_model (like ${name} including all)`);
  await both(name, `insert into @ select i, i % 40, 'v' || i, i / 3.0 from generate_series(1, 4000) i`);
  await register(runtime.mover(null), { table: `public.${name}`, mode: "tiered", lag: "10", ...options });
  await settled(name);
}

async function snapshotFiles(name: string) {
  const lake = must(await loadLakeTable(client, (await tiered(name)).lakeId), "lake table");
  const metadata = await readMetadata(runtime.store, lake.metadataLocation);
  return { metadata, tasks: (await planScan({ store: runtime.store, metadata })).tasks };
}

describe.each([3, 2] as const)("format version %i", (formatVersion) => {
  const name = `f${formatVersion}`;

  test("upserts, tombstones, new keys and idle tombstones go to the lake, and every row stays what it was", async () => {
    await makeInts(name, { formatVersion });
    await upsert(name, 41, 1, "changed");
    await upsert(name, 90_001, 3, "new");
    await remove(name, 42, 2);
    await client.query(`select spillway.delete('${name}', '{"id": 777777, "k": 4}')`);
    await both(
      name,
      "insert into @ values (43, 3, 'again', 2) on conflict (id, k) do update set v = excluded.v, w = 2",
    );
    const done = await fold(name);
    expect(done).toMatchObject({ passes: 1, deltaRows: 5, upserts: 3, replaced: 3 });
    expect(await deltaRows(name)).toBe(0);
    await checkWhole(runtime.mover(null), client, name);
    expect(await bandRows(name)).toBe(2000n);
    const { tasks } = await snapshotFiles(name);
    expect(
      tasks.flatMap((t) => t.deletes).every((d) => d.format === (formatVersion === 3 ? "puffin" : "parquet")),
    ).toBe(true);
  });

  test("a second fold of the same file absorbs its vector, and its own upserts", async () => {
    for (let round = 0; round < 3; round++) {
      for (let i = 0; i < 30; i++) await upsert(name, i * 40 + 1, 1, `round ${round}`);
      for (let i = 0; i < 5; i++) await remove(name, 40 * (50 + i * 3 + round) + 7, 7);
      await fold(name);
      await checkWhole(runtime.mover(null), client, name);
    }
    const { tasks } = await snapshotFiles(name);
    for (const task of tasks) expect(task.deletes.length).toBeLessThanOrEqual(1);
  });

  test("bounded passes fold everything, oldest first", async () => {
    for (let i = 0; i < 25; i++) await upsert(name, i * 40 + 5, 5, `bounded ${i}`);
    expect((await fold(name, { rowsPerPass: 10, maxPasses: 1 })).deltaRows).toBe(10);
    expect(await deltaRows(name)).toBe(15);
    await checkWhole(runtime.mover(null), client, name);
    expect(await fold(name, { rowsPerPass: 10 })).toMatchObject({ passes: 2, deltaRows: 15 });
    await checkWhole(runtime.mover(null), client, name);
  });

  test("rows older than every partition get a band of their own", async () => {
    await both(name, "insert into @ values (1, -5, 'older', 1), (2, -500, 'oldest', null)");
    await fold(name);
    await checkWhole(runtime.mover(null), client, name);
    const [first] = await loadBands(client, (await tiered(name)).relationId);
    expect([first?.hi, first?.rows]).toEqual([0n, 2n]);
    await remove(name, 1, -5);
    await fold(name);
    await checkWhole(runtime.mover(null), client, name);
  });

  test("a file whose rows are all deleted goes", async () => {
    const { rows } = await client.query<{ id: number; k: number }>(`select id, k from ${name}_model where k < 10`);
    for (const { id, k } of rows) await remove(name, id, k);
    await fold(name);
    await checkWhole(runtime.mover(null), client, name);
    const { tasks } = await snapshotFiles(name);
    for (const t of tasks) expect(t.dataFile.recordCount).toBeGreaterThan(0n);
    expect((await loadBands(client, (await tiered(name)).relationId))[1]?.rows).toBe(0n);
  });
});

test("version 3: a replaced row keeps its row id", async () => {
  const rowIds = async (): Promise<Map<string, bigint>> => {
    const { tasks } = await snapshotFiles("ids");
    const ids = new Map<string, bigint>();
    for (const task of tasks) {
      const path = task.dataFile.path.slice("file://".length);
      const rows = await runtime.engine.use((s) =>
        s.rows(
          `SELECT id, v, _row_id, file_row_number FROM read_parquet('${path}', schema = MAP {
             1: {name: 'id', type: 'INTEGER', default_value: NULL}, 3: {name: 'v', type: 'VARCHAR', default_value: NULL},
             2147483540: {name: '_row_id', type: 'BIGINT', default_value: NULL}})`,
        ),
      );
      for (const [id, v, own, at] of rows as [number, string, bigint | null, bigint][]) {
        ids.set(`${id} ${v}`, own ?? must(task.dataFile.firstRowId, "row id") + at);
      }
    }
    return ids;
  };
  await makeInts("ids");
  const before = await rowIds();
  await upsert("ids", 81, 1, "once");
  await fold("ids");
  await upsert("ids", 81, 1, "twice");
  await upsert("ids", 70_000, 1, "new");
  await fold("ids");
  const after = await rowIds();
  expect(after.get("81 twice")).toBe(before.get("81 v81"));
  expect([...before.values()]).not.toContain(after.get("70000 new"));
});

test("keep-heap: plain DML below the cut-line reaches the lake", async () => {
  await makeInts("kept", { keepHeap: true });
  await both("kept", "update @ set v = 'changed' where id % 100 = 1");
  await both("kept", "delete from @ where id % 100 = 2");
  await settled("kept");
  await fold("kept");
  expect(await deltaRows("kept")).toBe(0);
  await checkWhole(runtime.mover(null), client, "kept");
});

test("columns that came and went do not disturb the checksums", async () => {
  await makeInts("cols");
  await upsert("cols", 41, 1, "one");
  await both("cols", "alter table @ add column x int default 7");
  await settled("cols");
  await both("cols", "insert into @ (id, k, v, x) values (90001, 2, 'with x', 8)");
  await fold("cols");
  await checkWhole(runtime.mover(null), client, "cols");
  await both("cols", "alter table @ drop column v");
  await settled("cols");
  await client.query(`select spillway.upsert('cols', '{"id": 41, "k": 1, "x": 1}')`);
  await client.query("update cols_model set x = 1, w = null where id = 41");
  await client.query(`select spillway.upsert('cols', '{"id": 81, "k": 1, "x": 2}')`);
  await client.query("update cols_model set x = 2, w = null where id = 81");
  await fold("cols");
  await checkWhole(runtime.mover(null), client, "cols");
  expect(await bandRows("cols")).toBe(2001n);
});

test("a transaction that holds a delta row does not hold up the fold, and its correction survives", async () => {
  await makeInts("held");
  await upsert("held", 41, 1, "first");
  const other = await db.connect();
  await other.query("begin");
  await other.query(`select spillway.upsert('held', '{"id": 41, "k": 1, "v": "second", "w": 9}')`);
  await fold("held");
  expect(await deltaRows("held")).toBe(1);
  await checkWhole(runtime.mover(null), client, "held");
  await other.query("commit");
  await client.query("update held_model set v = 'second', w = 9 where id = 41");
  await checkWhole(runtime.mover(null), client, "held");
  await fold("held");
  expect(await deltaRows("held")).toBe(0);
  await checkWhole(runtime.mover(null), client, "held");
});

test("clients correct the same keys at full rate while folds run: nothing is lost, nothing comes back", async () => {
  await makeInts("busy");
  const { relationId } = await tiered("busy");
  const run = { stop: false };
  let corrections = 0;
  const clients = await Promise.all([1, 2, 3].map(() => db.connect()));
  const work = clients.map(async (c, n) => {
    for (let i = 0; !run.stop; i++) {
      const id = ((i * 7 + n) % 60) * 40 + 1;
      await c.query("begin");
      // The same change in the model, under one lock for each key, so that both have the same order.
      await c.query("select pg_advisory_xact_lock($1)", [id]);
      if (i % 5 === 0) {
        await c.query(`select spillway.delete('busy', $1)`, [JSON.stringify({ id, k: 1 })]);
        await c.query("delete from busy_model where id = $1 and k = 1", [id]);
      } else {
        const v = `${n}-${i}`;
        await c.query(`select spillway.upsert('busy', $1)`, [JSON.stringify({ id, k: 1, v, w: i % 1000 })]);
        await c.query(
          "insert into busy_model values ($1, 1, $2, $3) on conflict (id, k) do update set v = excluded.v, w = excluded.w",
          [id, v, i % 1000],
        );
      }
      await c.query("commit");
      corrections += 1;
    }
  });
  let folded = 0;
  for (const end = Date.now() + 2000; Date.now() < end;) folded += (await fold("busy", { rowsPerPass: 25 })).deltaRows;
  run.stop = true;
  await Promise.all(work);
  expect(corrections).toBeGreaterThan(100);
  expect(folded).toBeGreaterThan(25);
  await checkWhole(runtime.mover(null), client, "busy");
  await fold("busy");
  const { rows } = await client.query(`select count(*)::int as n from spillway.delta_${relationId}`);
  expect(rows).toEqual([{ n: 0 }]);
  await checkWhole(runtime.mover(null), client, "busy");
});

test("ranges of keys hold every key and leave the largest gaps out", () => {
  const keys = BigInt64Array.from([5n, 1n, 2n, 100n, 101n, 50n]);
  expect(keyRanges(keys, 3)).toEqual([
    [1n, 5n],
    [50n, 50n],
    [100n, 101n],
  ]);
  expect(keyRanges(keys, 1)).toEqual([[1n, 101n]]);
  expect(keyRanges(new BigInt64Array(0), 3)).toEqual([]);
});
