/** INSERT, UPDATE and DELETE that read registered tables, or have a WITH, and the same by Postgres on plain copies. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { FileStore } from "@spillway/lake/store/file";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Engine, valueAt } from "../engine/engine.ts";
import { createSeam, type Seam } from "./seam.ts";
import { installCatalog, TieredTable } from "./test-table.ts";

let db: TestDatabase;
let engine: Engine;
let root: string;
let seam: Seam;
const tables: Record<string, TieredTable> = {};

beforeAll(async () => {
  db = await createTestDatabase();
  root = mkdtempSync(join(tmpdir(), "spillway-dml-"));
  const store = new FileStore({ root, fsync: false });
  engine = await Engine.open({ memoryBytes: 256 << 20, threads: 2 });
  await installCatalog(db.client);
  const fixture = { db: db.client, url: db.url, engine, store };
  const leaves = [0, 100, 200].map((lo) => ({ from: String(lo), to: String(lo + 100), hi: BigInt(lo + 100) }));
  const shape = { key: "k", keyKind: "int" as const, pk: ["id", "k"], leaves };
  tables["items"] = await TieredTable.create(fixture, {
    ...shape,
    name: "items",
    columns: 'id int, k int, v text collate "en-x-icu", n int, primary key (id, k)',
  });
  tables["other"] = await TieredTable.create(fixture, {
    ...shape,
    schema: "S 2",
    name: "Other",
    columns: "id int, k int, w numeric(10,2), twice int generated always as (id * 2) stored, primary key (id, k)",
  });
  await tables["items"].both(
    "insert into @ select i, i, case i % 3 when 0 then 'a' when 1 then 'B' else 'c' end || i, 0 from generate_series(0, 299) i",
  );
  await tables["other"].both("insert into @ (id, k, w) select i * 2, i, i / 4.0 from generate_series(0, 299) i");
  await tables["items"].tier(200n);
  await tables["other"].tier(100n);
  await tables["items"].correct("U", 5n, [5, 5, "corrected", 7]);
  await db.client.query("update model.items set v = 'corrected', n = 7 where id = 5");
  await tables["other"].correct("D", 6n, [12, 6]);
  await db.client.query(`delete from model."Other" where id = 12 and k = 6`);
  await db.client.query("create table plain (id int primary key, n bigint)");
  await db.client.query("create table model.plain (id int primary key, n bigint)");
  await db.client.query("create view both_tiers as select * from items");
  seam = createSeam({ conninfo: db.url, store, engine, clock: systemClock, log: silentLogger, holder: "test" });
});
afterAll(async () => {
  await seam.close();
  engine.close();
  await db.drop();
  rmSync(root, { recursive: true, force: true });
});

async function rows(sql: string): Promise<string[]> {
  const result = await seam.query(sql);
  const found: string[] = [];
  for await (const batch of result.batches()) {
    for (let i = 0; i < batch.length; i++) found.push(batch.columns.map((c) => String(valueAt(c, i))).join("|"));
  }
  return found.toSorted();
}

async function same(): Promise<void> {
  for (const [own, model, list] of [
    ["items", "model.items", "id, k, v, n"],
    ['"S 2"."Other"', 'model."Other"', "id, k, w, twice"],
    ["plain", "model.plain", "id, n"],
  ] as const) {
    const found = await rows(`select ${list.replace("w,", "w::varchar,")} from ${own}`);
    const { rows: wanted } = await db.client.query({ text: `select ${list} from ${model}`, rowMode: "array" });
    expect(found).toEqual(wanted.map((r: unknown[]) => r.map(String).join("|")).toSorted());
  }
}

/** `items`, `other` and `plain` in braces stand for the tables. */
const OWN: Record<string, string> = { items: "items", other: '"S 2"."Other"', plain: "public.plain" };
const MODEL: Record<string, string> = { items: "model.items", other: 'model."Other"', plain: "model.plain" };
const named = (sql: string, names: Record<string, string>): string =>
  sql.replace(/\{(\w+)\}/g, (_, name: string) => names[name] ?? "");

test.each([
  "delete from {items} where id in (select id from {other} where k between 20 and 30)",
  "update {items} set n = (select count(*) from {other} o where o.id = items.id) where k < 60",
  "update {items} set n = n + o.twice from {other} o where o.id = items.id and o.k in (40, 110) returning items.id, items.n, o.w",
  "delete from {items} using {other} o where o.id = items.id and o.w = 20 returning items.id",
  "insert into {items} (id, k, v, n) select id + 1000, k, 'from other', twice from {other} where k < 130 and w > 5 on conflict do nothing",
  "insert into {items} (id, k, v, n) select id, k, v || '!', n from {items} where k in (3, 103, 250) on conflict (id, k) do update set v = excluded.v returning id, v",
  "update {items} set n = (select max(x.n) from {items} x where x.k < items.k) where k in (50, 150, 250)",
  "delete from {items} where not exists (select 1 from {other} o where o.id = items.id) and k between 60 and 80",
  "with low as (select id from {other} where k < 15), n as (select count(*)::int as c from low) update {items} set n = n.c from n where id in (select id from low)",
  "with recursive t (i) as (select 1 union all select i + 1 from t where i < 9) delete from {items} where id in (select i from t) returning id",
  "with r as materialized (select random() as x) update {items} set n = (r.x * 1000000)::int - (r.x * 1000000)::int from r where k < 300",
  "with items_ as (select * from {items} where k > 95) insert into {other} (id, k, w) select id + 5000, k, n from items_ where k < 205 returning id, twice",
  "insert into {plain} select 1, count(*) from {items} union all select 2, sum(twice) from {other}",
  "with s as (select sum(n) as n from {items}) update {plain} set n = s.n from s returning plain.n",
  "delete from {plain} where n < (select max(k) from {items} where k < 10)",
  // An order that is not that of the bytes: 'a…' < 'B…' here.
  "update {items} set n = -1 where v < 'b'",
  "insert into {plain} select 7, count(*) from {items} where v < 'b'",
])("%s", async (sql) => {
  const result = await seam.execute(named(sql, OWN), { tieredReads: true });
  const model = await db.client.query({ text: named(sql, MODEL), rowMode: "array" });
  expect([result.command, result.rowCount]).toEqual([model.command, model.rowCount]);
  const text = (r: readonly unknown[]): string => r.map((v) => (v === null ? null : String(v))).join("|");
  expect(result.rows.map(text).toSorted()).toEqual((model.rows as unknown[][]).map(text).toSorted());
  expect((await db.client.query("select relname from pg_class where relname like 'spw\\_%'")).rows).toEqual([]);
  await same();
});

test.each([
  ["delete from items where id in (select id from both_tiers)", "relation_not_readable|sql_unsupported"],
  [
    "with w as (insert into plain values (9, 9) returning id) delete from items where id in (select id from w)",
    "sql_unsupported",
  ],
  [
    "with items as (select * from public.items where k < 10) delete from plain using items where items.id = plain.id",
    "sql_unsupported",
  ],
  [
    "insert into items (id, k) values (1, 1) on conflict (id, k) do update set n = (select max(n) from items)",
    "sql_unsupported",
  ],
])("%s is refused, and nothing happened", async (sql, code) => {
  await expect(seam.execute(sql, { tieredReads: true })).rejects.toMatchObject({ code: expect.stringMatching(code) });
  await same();
});

test("a caller who does not say that he may read all of it is refused", async () => {
  const sql = named("delete from {items} where id in (select id from {other})", OWN);
  await expect(seam.execute(sql)).rejects.toMatchObject({ code: "sql_unsupported" });
  await expect(seam.execute(named("insert into {plain} select 3, count(*) from {items}", OWN))).rejects.toMatchObject({
    code: "sql_unsupported",
  });
});

test("only the rows that a subquery can mean are fetched from the lake", async () => {
  const run = (where: string): Promise<unknown> =>
    seam.execute(named(`insert into {plain} select 50 + count(*), 0 from {items} where ${where}`, OWN), {
      tieredReads: true,
      maxLakeRows: 60,
    });
  await run("k between 10 and 25");
  await expect(run("n = n")).rejects.toMatchObject({ code: "limit_exceeded" });
});
