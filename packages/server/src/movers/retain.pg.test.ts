/** Lake retention end to end: rows go by whole bands, writes below the line are refused, verify stays exact. */
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadBands } from "../catalog/catalog.ts";
import { foldRelation } from "./fold.ts";
import { register } from "./register.ts";
import { retain, type RetainResult } from "./retain.ts";
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

async function run(name: string): Promise<RetainResult> {
  return retain(lake.ctx, await lake.relation(name));
}

async function codeOf(work: Promise<unknown>): Promise<string> {
  return work.then(
    () => "ok",
    (error: { code?: string }) => error.code ?? String(error),
  );
}

test("whole bands behind the newest key leave the lake; writes below the line are refused", async () => {
  await lake.makeInts("r", { lakeRetention: "25" });
  // The newest key is 39: [0, 10) is behind 14.
  expect(await run("r")).toEqual({ bands: 1, rows: 1000n, r: 10n });
  await lake.client.query("delete from r_model where k < 10");
  await lake.check("r");
  expect(await verifyTable(lake.ctx, (await lake.relation("r")).relationId)).toMatchObject({
    ok: true,
    lakeRows: 1000n,
  });
  expect((await loadBands(lake.client, (await lake.relation("r")).relationId)).map((b) => [b.state, b.rows])).toEqual([
    ["expired", 0n],
    ["dropped", 1000n],
  ]);
  expect(await run("r")).toMatchObject({ bands: 0 });
  expect(await codeOf(lake.client.query("insert into r values (1, 3, 'x', 1)"))).toBe("SPW02");
  expect(await codeOf(lake.client.query(`select spillway.upsert('r', '{"id": 1, "k": 3}')`))).toBe("SPW02");
  expect(await codeOf(lake.client.query(`select spillway.delete('r', '{"id": 1, "k": 3}')`))).toBe("SPW02");
  await lake.upsert("r", 11, 11, "still");
  await lake.check("r");
  expect(await lake.count("from spillway.counter where name = 'retained_rows_expired_total' and value = 1000")).toBe(1);
});

test("corrections below the line go with it, also those that were folded; files across it keep what is above", async () => {
  await lake.makeInts("f", { lakeRetention: "25" });
  for (const id of [41, 81]) await lake.upsert("f", id, 1, "folded");
  await lake.upsert("f", 55, 15, "folded, above");
  await foldRelation(lake.ctx, await lake.relation("f"));
  await lake.upsert("f", 121, 1, "waiting");
  await lake.remove("f", 42, 2);
  expect(await run("f")).toMatchObject({ bands: 1, rows: 1000n });
  await lake.client.query("delete from f_model where k < 10");
  await lake.check("f");
  expect(await lake.count(`from spillway.delta_${(await lake.relation("f")).relationId}`)).toBe(0);
  expect((await verifyTable(lake.ctx, (await lake.relation("f")).relationId)).ok).toBe(true);
});

test("a transaction that began before the line moved gets 40001, and one that writes holds the line back", async () => {
  await lake.makeInts("t", { lakeRetention: "25" });
  const [old, writer] = [await db.connect(), await db.connect()];
  await old.query("begin isolation level repeatable read; select 1");
  await writer.query("begin");
  await writer.query(`select spillway.upsert('t', '{"id": 41, "k": 1, "v": "in time"}')`);
  const moving = run("t");
  await new Promise((resolve) => setTimeout(resolve, 1200));
  expect((await lake.relation("t")).seam.r).toBe(null);
  await writer.query("commit");
  expect(await moving).toMatchObject({ bands: 1 });
  expect(await codeOf(old.query(`select spillway.upsert('t', '{"id": 41, "k": 1}')`))).toBe("40001");
  await old.query("rollback");
  await lake.client.query("delete from t_model where k < 10");
  await lake.check("t");
});

test("day partitions and a date key: files go whole", async () => {
  await lake.client.query("create table d (id int, at date, v text, primary key (id, at)) partition by range (at)");
  for (let m = 1; m <= 6; m++) {
    await lake.client.query(
      `create table d_${m} partition of d for values from ('2024-0${m}-01') to ('2024-0${m + 1}-01')`,
    );
  }
  await lake.client.query("create table d_model (like d including all)");
  await lake.both(
    "d",
    "insert into @ select i, '2024-01-01'::date + i % 180, 'v' || i from generate_series(1, 1800) i",
  );
  await register(lake.ctx, { table: "d", mode: "tiered", lag: "10d", lakeRetention: "90d", lakePartition: "month" });
  await lake.settled("d");
  await lake.client.query(`select spillway.upsert('d', '{"id": 31, "at": "2024-02-01", "v": "x"}')`);
  await foldRelation(lake.ctx, await lake.relation("d"));
  // The newest day is 2024-06-28: January and February and March are over.
  expect(await run("d")).toMatchObject({ bands: 2 });
  expect((await lake.tasks("d")).every((t) => t.deletes.length === 0)).toBe(true);
  expect((await verifyTable(lake.ctx, (await lake.relation("d")).relationId)).ok).toBe(true);
  expect(await lake.count("from d_model where at >= '2024-03-01' and at < '2024-06-01'")).toBe(
    Number((await verifyTable(lake.ctx, (await lake.relation("d")).relationId)).lakeRows),
  );
});
