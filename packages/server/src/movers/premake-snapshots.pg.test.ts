/**
 * Rows of the landing that are given a partition, and transactions with a snapshot from before: that partition would be all
 * that a statement with a condition on the key looks at, and to such a snapshot its rows are not there yet.
 */
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { premake } from "./premake.ts";
import { TestLake } from "./test-runtime.ts";

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

/** A row that no partition is there for, and the same in the model. */
async function landed(name: string): Promise<void> {
  await lake.makeInts(name, { partitionWidth: "10" });
  await lake.both(name, "insert into @ values (7000, 95, 'landed', 1)");
  expect(await lake.count(`from only ${name}_landing where id = 7000`)).toBe(1);
}

describe.each(["repeatable read", "serializable"] as const)("a %s transaction that is older", (level) => {
  const suffix = level.slice(0, 1);

  test("sees the row still, and its update counts", async () => {
    const name = `old_${suffix}`;
    await landed(name);
    const client = await db.connect();
    await client.query(`begin isolation level ${level}`);
    await client.query("select 1");
    await expect(premake(lake.ctx, await lake.relation(name))).rejects.toMatchObject({ code: "pg_lock_timeout" });
    expect((await client.query(`select v from ${name} where k = 95`)).rows).toEqual([{ v: "landed" }]);
    expect((await client.query(`update ${name} set k = 96 where id = 7000 and k = 95`)).rowCount).toBe(1);
    await client.query("commit");
    await lake.client.query(`update ${name}_model set k = 96 where id = 7000`);
    await lake.settled(name);
    await lake.check(name);
    expect(await lake.count(`from only ${name}_landing where k >= 40`)).toBe(0);
    await client.end();
  });

  test("is waited for also when it reads elsewhere", async () => {
    const name = `elsewhere_${suffix}`;
    await landed(name);
    const client = await db.connect();
    await client.query(`begin isolation level ${level}`);
    await client.query("select count(*) from pg_class");
    await expect(premake(lake.ctx, await lake.relation(name))).rejects.toMatchObject({ code: "pg_lock_timeout" });
    await client.query("rollback");
    expect((await premake(lake.ctx, await lake.relation(name))).length).toBeGreaterThan(0);
    await client.end();
  });
});

test("empty partitions are made whoever looks on, and a transaction in READ COMMITTED without a statement is no reason to wait", async () => {
  await lake.makeInts("open", { partitionWidth: "10" });
  const client = await db.connect();
  await client.query("begin isolation level repeatable read");
  await client.query("select 1");
  await lake.client.query("insert into open_30 values (7000, 35, 'x', 1)");
  const made = await premake({ ...lake.ctx, premake: 4 }, await lake.relation("open"));
  expect(made.length).toBeGreaterThan(0);
  await client.query("rollback");
  await lake.client.query("insert into open values (7001, 205, 'landed', 1)");
  await client.query("begin");
  await client.query("select 1");
  const more = await premake(lake.ctx, await lake.relation("open"));
  expect(more.some((p) => p.lo <= 205n && p.hi > 205n)).toBe(true);
  await client.query("rollback");
  await client.end();
});
