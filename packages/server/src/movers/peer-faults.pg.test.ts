/** Faults that other tiering systems have, and that no other test of ours is about (docs/internals/peer-faults.md). */
import { must } from "@spillway/base/assert";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadLakeTable, loadRelationByName } from "../catalog/catalog.ts";
import { foldRelation } from "./fold.ts";
import { SourceUpkeep } from "./maintain.ts";
import { Passes, register } from "./movers.ts";
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

test("ALTER TABLE while nobody works is followed by the worker that comes next, as what it was", async () => {
  await lake.makeInts("away");
  // A new name for one column, and a new column of the old name: no comparison of names alone tells this apart.
  await lake.both("away", "alter table @ rename column v to old_v; alter table @ add column v text default 'new'");
  await lake.both("away", "alter table @ drop column w");
  await lake.both("away", "insert into @ (id, k, old_v, v) values (9001, 3, 'o', 'n'), (9002, 33, 'o', 'n')");
  const next = await TestLake.open(db, lake.home);
  await next.settled("away");
  await next.check("away");
  await next.runtime.close();
});

test("table names that are one when their punctuation is taken away have two lakes", async () => {
  await db.client.query("create schema a; create schema a_b");
  for (const [name, value] of [
    ["a.b_c", "first"],
    ["a_b.c", "second"],
  ] as const) {
    await db.client.query(
      `create table ${name} (id int, k int, v text, primary key (id, k)) partition by range (k);
       create table ${name}_0 partition of ${name} for values from (0) to (10);
       create table ${name}_1 partition of ${name} for values from (10) to (20);
       insert into ${name} select i, i % 20, '${value}' from generate_series(1, 100) i`,
    );
    await register(lake.ctx, { table: name, mode: "tiered", lag: "5" });
  }
  for (let i = 0; i < 4; i++) expect((await new Passes().run(lake.ctx, { force: true })).failed).toEqual({});
  const relations = await Promise.all(
    [
      ["a", "b_c"],
      ["a_b", "c"],
    ].map(async ([schema, table]) => must(await loadRelationByName(db.client, schema ?? "", table ?? ""), "relation")),
  );
  const tables = await Promise.all(
    relations.map(async (r) => must(await loadLakeTable(db.client, r.lakeId ?? 0n), "lake table")),
  );
  expect(new Set(tables.map((t) => t.location)).size).toBe(2);
  expect(new Set(relations.map((r) => r.relationId)).size).toBe(2);
  for (const relation of relations) {
    const report = await verifyTable(lake.ctx, relation.relationId);
    expect(report).toMatchObject({ ok: true, lakeRows: 50n });
  }
});

test.each([
  ["timestamptz", "'2024-01-01 00:00+00'::timestamptz", "interval '1 day'", "60d"],
  ["date", "'2024-01-01'::date", "1", "60d"],
  ["timestamp", "'2024-01-01'::timestamp", "interval '1 day'", "60d"],
] as const)("verify compares tables with a key of type %s", async (type, start, step, lag) => {
  const name = `by_${type}`;
  const at = (days: number): string => `(${start} + ${days} * ${step})`;
  await db.client.query(
    `create table ${name} (id int, k ${type}, v text, primary key (id, k)) partition by range (k);
     create table ${name}_model (like ${name} including all)`,
  );
  for (const days of [0, 30, 60, 90]) {
    await db.client.query(
      `create table ${name}_${days} partition of ${name} for values from (${at(days)}) to (${at(days + 30)})`,
    );
  }
  await lake.both(
    name,
    `insert into @ select i, ${start} + (i % 120) * ${step}, 'v' || i from generate_series(1, 600) i`,
  );
  await register(lake.ctx, { table: `public.${name}`, mode: "tiered", lag });
  await lake.settled(name);
  await lake.check(name);
  await lake.client.query(`insert into ${name} values (9000, ${at(3)}, 'historical')`);
  const { relationId } = await lake.relation(name);
  await foldRelation(lake.ctx, await lake.relation(name));
  const report = await verifyTable(lake.ctx, relationId);
  expect(report.ok).toBe(true);
  expect(report.lakeRows).toBeGreaterThan(100n);
});

test("no snapshot ever has an equality delete, and inserts write no delete at all", async () => {
  await lake.makeInts("plain");
  const before = (await lake.metadata("plain")).snapshots;
  expect(before.length).toBeGreaterThan(0);
  for (const { summary } of before) expect(Number(summary["total-delete-files"] ?? 0)).toBe(0);
  for (let i = 0; i < 3; i++) {
    await lake.upsert("plain", 1 + 40 * i, 1, `changed ${i}`);
    await lake.remove("plain", 2 + 40 * i, 2);
    await foldRelation(lake.ctx, await lake.relation("plain"));
  }
  const { snapshots } = await lake.metadata("plain");
  expect(snapshots.length).toBeGreaterThan(before.length);
  for (const { summary } of snapshots) expect(Number(summary["total-equality-deletes"] ?? 0)).toBe(0);
  expect(Number(snapshots.at(-1)?.summary["total-position-deletes"] ?? 0)).toBeGreaterThan(0);
  await lake.check("plain");
});

test("the journal does not grow for ever; the last of each kind, by which due times are counted, stays", async () => {
  await lake.makeInts("aged");
  const { relationId } = await lake.relation("aged");
  const ops = `from spillway.journal where relation_id = ${relationId} and kind = 'tier'`;
  expect(await lake.count(ops)).toBeGreaterThan(1);
  await lake.client.query(
    `update spillway.journal set ended_at = now() - interval '40 days' where relation_id = ${relationId} and ended_at is not null`,
  );
  await new SourceUpkeep().run(lake.ctx, ["orphans"]);
  expect(await lake.count(ops)).toBe(1);
  await lake.settled("aged");
  await lake.check("aged");
});
