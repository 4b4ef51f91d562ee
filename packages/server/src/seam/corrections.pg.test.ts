/** INSERT, UPDATE and DELETE over both tiers, and the same statements by Postgres on a plain copy of the rows. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { FileStore } from "@spillway/lake/store/file";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { testMajors } from "@spillway/testkit/binaries";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Engine, valueAt } from "../engine/engine.ts";
import { createSeam, type ExecuteResult, type Seam } from "./seam.ts";
import { installCatalog, TieredTable } from "./test-table.ts";

describe.each(testMajors())("on Postgres %s", (major) => {
  let db: TestDatabase;
  let engine: Engine;
  let root: string;
  let seam: Seam;
  let table: TieredTable;

  beforeAll(async () => {
    db = await createTestDatabase({ major });
    root = mkdtempSync(join(tmpdir(), "spillway-dml-"));
    const store = new FileStore({ root, fsync: false });
    engine = await Engine.open({ memoryBytes: 256 << 20, threads: 2 });
    await installCatalog(db.client);
    table = await TieredTable.create(
      { db: db.client, url: db.url, engine, store },
      {
        name: "Items",
        columns: `id int, k bigint, "Label" text default 'none', price numeric(10,2) check (price >= 0), tags text[], doc jsonb,
          twice bigint generated always as (k * 2) stored, made timestamptz default '2024-01-01', primary key (id, k)`,
        key: "k",
        keyKind: "int",
        pk: ["id", "k"],
        leaves: [0, 1000, 2000].map((lo) => ({ from: String(lo), to: String(lo + 1000), hi: BigInt(lo + 1000) })),
      },
    );
    await table.both(
      `insert into @ (id, k, "Label", price, tags, doc) select i, i, 'label ' || i % 7, i / 4.0, array['a', i::text],
         jsonb_build_object('n', i) from generate_series(0, 2999) i`,
    );
    await table.tier(1000n);
    await table.tier(2000n);
    await db.client.query("create table factor (id int primary key, f numeric)");
    await db.client.query("insert into factor values (5, 2), (1500, 3), (2500, 4)");
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
    const own = await rows(
      `select id, k, "Label", price::varchar, tags, doc, twice, epoch_us(made)::varchar from "Items"`,
    );
    const model = await db.client.query({
      text: `select concat_ws('|', id, k, coalesce("Label", 'null'), coalesce(price::text, 'null'), coalesce(tags::text, 'null'),
        coalesce(doc::text, 'null'), twice, coalesce((extract(epoch from made) * 1000000)::bigint::text, 'null')) from model."Items"`,
      rowMode: "array",
    });
    expect(own).toEqual(model.rows.map((r: unknown[]) => String(r[0])).toSorted());
  }

  /** The statement on both; tag, count and RETURNING must agree. `@` is the table. */
  async function both(sql: string): Promise<ExecuteResult> {
    const result = await seam.execute(sql.replaceAll("@", '"Items"'));
    const model = await db.client.query({ text: sql.replaceAll("@", 'model."Items"'), rowMode: "array" });
    expect([result.command, result.rowCount]).toEqual([model.command, model.rowCount]);
    const text = (r: readonly unknown[]): string => r.map((v) => (v === null ? null : String(v))).join("|");
    expect(result.rows.map(text).toSorted()).toEqual((model.rows as unknown[][]).map(text).toSorted());
    await same();
    return result;
  }

  test.each([
    "update @ set price = price + 1 where id = 5 returning id, price",
    'update @ set price = price * 2, "Label" = \'x\' || id where id in (10, 1010, 2010) returning id, "Label"',
    "delete from @ where k between 1490 and 1510 and id % 2 = 0",
    "delete from @ where id = 7",
    "update @ as i set price = i.price * f.f from factor f where f.id = i.id returning i.id, i.price, f.f",
    'delete from @ using factor f where f.id = "Items".id and f.f = 2',
    "update @ set doc = doc || '{\"x\": 1}', tags = tags || 'z'::text where k = 20 and id = 20",
    'insert into @ (id, k) values (3000, 2999), (3001, 50), (3002, 1999) returning id, "Label", twice',
    "insert into @ (id, k, price) select 4000 + g, g, g from generate_series(10, 30, 10) g",
    'insert into @ (id, k, price) values (5, 5, 1), (8, 8, 99.5) on conflict (id, k) do update set price = excluded.price + coalesce("Items".price, 0) returning id, price',
    "insert into @ (id, k, price) values (9, 9, 1), (9999, 9, 1), (2500, 2500, 3) on conflict do nothing",
    "insert into @ (id, k, price) values (9, 9, 1), (9998, 9, 1), (2501, 2501, 3), (9998, 2999, 2) on conflict (id, k) do nothing returning id, k, price",
    "update @ set k = k + 1 where id = 100",
    "update @ set k = 2600 where id = 101 returning id, k",
    "update @ set k = 60 where id = 2601 returning id, k",
    'update @ set "Label" = null where k >= 1995 and k < 2005',
    "delete from @ where id = 3001 and k = 50",
    "update @ set price = 1 where false",
    "update @ set price = $$7$$::numeric where \"Label\" = 'label 3' and k < 100 /* a ' comment */ -- ;\n;",
  ])("%s", async (sql) => {
    await both(sql);
  });

  test("a large part of the lake, and what a row was before does not matter", async () => {
    const result = await both("update @ set price = 3 where k < 2000");
    expect(result.deltaRows).toBeGreaterThan(1900);
    const again = await both("update @ set price = 3 where k < 2000");
    expect(again.deltaRows).toBe(0);
    await both("delete from @ where k < 500");
    await both("insert into @ (id, k) values (0, 0)");
  });

  test("parameters", async () => {
    const result = await seam.execute('update "Items" set "Label" = $2 where id = $1 returning "Label"', {
      params: [600, "it's $1"],
    });
    expect(result.rows).toEqual([["it's $1"]]);
    await db.client.query(`update model."Items" set "Label" = $2 where id = $1`, [600, "it's $1"]);
    await same();
  });

  test.each([
    ["insert into @ (id, k) values (601, 601)", /duplicate key/],
    ["insert into @ (id, k) values (2700, 2700)", /duplicate key/],
    ["update @ set price = -1 where id = 602", /check constraint/],
    ["update @ set k = null where id = 602", /null value/],
    ["update @ set id = 603, k = 603 where id = 602", /duplicate key/],
  ])("%s fails as it always does, and changes nothing", async (sql, message) => {
    await expect(seam.execute(sql.replaceAll("@", '"Items"'))).rejects.toThrow(message);
    await same();
  });

  test.each([
    ["with x as (delete from factor returning id) delete from @ where id in (select id from x)", "sql_unsupported"],
    ["truncate @", "sql_unsupported"],
    ["delete from only @ where id = 1", "sql_unsupported"],
    ["delete from @ where id = 1; delete from @ where id = 2", "sql_unsupported"],
    ["delete from @ where id in (select id from @ where k = 3)", "sql_unsupported"],
    ["delete from nowhere", "table_unknown"],
    ["delete from @ where nope = 1", "pg_error"],
  ])("%s is refused", async (sql, code) => {
    await expect(seam.execute(sql.replaceAll("@", '"Items"'))).rejects.toMatchObject({ code });
  });

  test("more lake rows than may be looked at are refused", async () => {
    await expect(
      seam.execute(`update "Items" set price = 1 where "Label" like 'l%'`, { maxLakeRows: 100 }),
    ).rejects.toMatchObject({
      code: "limit_exceeded",
    });
    await same();
  });

  test("two writers of the same lake row: each counts", async () => {
    const work = Array.from({ length: 8 }, () =>
      seam.execute(`update "Items" set price = price + 1 where id = 700 and k = 700`),
    );
    await Promise.all(work);
    await db.client.query(`update model."Items" set price = price + 8 where id = 700`);
    await same();
  });

  test("a plain table is Postgres's alone", async () => {
    const result = await seam.execute("update factor set f = f + 1 returning id");
    expect([result.rowCount, result.deltaRows]).toEqual([3, 0]);
  });
});
