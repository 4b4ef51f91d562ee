/** Aggregates of the lake as all rows less the deleted ones: never another answer than Postgres's, whatever changes between. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import type { Column } from "@spillway/base/columns";
import { silentLogger } from "@spillway/base/log";
import { FileStore } from "@spillway/lake/store/file";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { Engine, valueAt } from "../engine/engine.ts";
import { createSeam, type QueryStats, type Seam } from "./seam.ts";
import { installCatalog, TieredTable } from "./test-table.ts";

/** The same for Postgres's text and a batch's value: numbers without trailing zeros. */
function canonical(text: string): string {
  return /^-?\d+\.\d+$/.test(text) ? text.replace(/\.?0+$/, "") : text;
}

function textAt(column: Column, row: number): string | null {
  const value = valueAt(column, row);
  if (value === null) return null;
  const scale = column.spec.decimal?.scale ?? 0;
  if (typeof value !== "bigint" || scale === 0) return canonical(String(value));
  const digits = String(value < 0n ? -value : value).padStart(scale + 1, "0");
  return canonical(`${value < 0n ? "-" : ""}${digits.slice(0, -scale)}.${digits.slice(-scale)}`);
}

const ROWS = 3000;
const COLUMNS = "k int primary key, g text, n numeric(12,2), i int, b bigint, f float8, j int";

describe("aggregates of the lake as a difference", () => {
  let db: TestDatabase;
  let engine: Engine;
  let root: string;
  let store: FileStore;
  let seam: Seam;
  let table: TieredTable;
  let name: string;
  let count = 0;

  beforeAll(async () => {
    db = await createTestDatabase();
    root = mkdtempSync(join(tmpdir(), "spillway-partials-"));
    store = new FileStore({ root, fsync: false });
    engine = await Engine.open({ memoryBytes: 256 << 20, threads: 2 });
    await installCatalog(db.client);
    await db.client.query("create table labels (j int primary key, label text)");
    await db.client.query("insert into labels select j, 'label ' || j % 3 from generate_series(0, 7) j");
    await db.client.query("create schema model");
    await db.client.query("create table model.labels as table labels");
    seam = createSeam({ conninfo: db.url, store, engine, clock: systemClock, log: silentLogger, holder: "test" });
  });
  beforeEach(async () => {
    name = `sums${(count += 1)}`;
    table = await TieredTable.create(
      { db: db.client, url: db.url, engine, store },
      {
        name,
        columns: COLUMNS,
        key: "k",
        keyKind: "int",
        pk: ["k"],
        leaves: [
          { from: "0", to: "1000", hi: 1000n },
          { from: "1000", to: "2000", hi: 2000n },
          { from: "2000", to: "9000", hi: 9000n },
        ],
      },
    );
    await table.both(`insert into @ select k, 'g' || k % 7, case when k % 5 = 0 then null else k / 8.0 end, k % 500, k * 3, k / 4.0,
      k % 10 from generate_series(0, ${ROWS - 1}) k`);
    await table.tier(1000n, 400);
  });
  afterAll(async () => {
    await seam.close();
    engine.close();
    await db.drop();
    rmSync(root, { recursive: true, force: true });
  });

  async function put(k: number, g: string | null, n: number | null, i: number | null): Promise<void> {
    await table.correct("U", BigInt(k), [k, g, n, i, k * 3, k / 4, k % 10]);
    await db.client.query(
      `insert into ${table.model} values ($1, $2, $3, $4, $1 * 3, $1 / 4.0, $1 % 10)
       on conflict (k) do update set g = excluded.g, n = excluded.n, i = excluded.i, f = excluded.f`,
      [k, g, n, i],
    );
  }

  async function remove(k: number): Promise<void> {
    await table.correct("D", BigInt(k), [k, null, null, null, null, null, null]);
    await db.client.query(`delete from ${table.model} where k = $1`, [k]);
  }

  /** `@` is the table. Asked three times: deletes are looked up the first time, and taken off from the second on. */
  async function same(sql: string): Promise<QueryStats> {
    await db.client.query("set search_path = model");
    const expected = await db.client.query({ text: sql.replaceAll("@", name), rowMode: "array" });
    await db.client.query("reset search_path");
    const wanted = (expected.rows as unknown[][]).map((r) =>
      JSON.stringify(r.map((v) => (v === null ? null : canonical(String(v))))),
    );
    let stats: QueryStats | null = null;
    for (let again = 0; again < 3; again++) {
      const result = await seam.query(sql.replaceAll("@", name));
      const rows: string[] = [];
      for await (const batch of result.batches()) {
        for (let i = 0; i < batch.length; i++) rows.push(JSON.stringify(batch.columns.map((c) => textAt(c, i))));
      }
      expect(rows.toSorted(), `${sql}, time ${again}`).toEqual(wanted.toSorted());
      stats = result.stats;
    }
    if (!stats) throw new Error("no answer");
    return stats;
  }

  const GROUPED = "select g, count(*), count(n), sum(n), sum(b), min(i), max(i) from @ group by g";

  test("counts, sums, minima and maxima, in groups and over all", async () => {
    for (let k = 3; k < 1000; k += 97) await put(k, `g${k % 7}`, 10_000.25 + k, 250);
    for (let k = 50; k < 1000; k += 190) await remove(k);
    expect((await same(GROUPED)).lakeDifference).toBe(true);
    expect((await same("select count(*), sum(i), sum(n) from @ where i < 400 and k > 10")).lakeDifference).toBe(true);
    expect((await same("select sum(n) + 1 as s, count(*) * 2 as c from @ where g = 'g3'")).lakeDifference).toBe(true);
  });

  test("a group whose rows are all deleted is none, and a sum of nothing is NULL", async () => {
    await put(10, "lonely", 5, 1);
    for (let k = 0; k < 1000; k += 100) await put(k, "null sums", null, null);
    await same(GROUPED);
    await table.tier(2000n, 400);
    await put(1500, "gone", 7, 7);
    await remove(10);
    await put(1500, "g2", 7, 7);
    await same(GROUPED);
    await same("select g, sum(n), count(*) from @ where k = 1500 or k = 10 group by g");
    await same("select sum(n), max(i), count(*) from @ where k between 100 and 100");
    expect((await same("select sum(n), count(n) from @ where k < 0")).aggregatePushdown).toBe(true);
  });

  test("a deleted row that was the maximum makes the live ones be read", async () => {
    await same("select max(b) from @ where k < 900");
    await remove(899);
    expect((await same("select max(b), count(*) from @ where k < 900")).lakeDifference).toBe(false);
    expect((await same("select min(b), count(*) from @ where k < 900")).lakeDifference).toBe(true);
    await remove(0);
    expect((await same("select min(b), count(*) from @ where k < 900")).lakeDifference).toBe(false);
  });

  test("a join with a plain table is aggregated before it, where that is the same", async () => {
    for (let k = 3; k < 1000; k += 97) await put(k, `g${k % 7}`, 77.5 + k, 250);
    await remove(500);
    const joined = "from @ e join labels l on l.j = e.j";
    const early = async (sql: string): Promise<readonly boolean[]> => {
      const stats = await same(sql);
      const heap = stats.tables.find((t) => t.table.endsWith(name));
      return [stats.aggregatePushdown, heap?.heapAggregated ?? false];
    };
    for (const sql of [
      `select l.label, sum(e.n), count(*), min(e.b), count(e.n) ${joined} group by l.label`,
      `select sum(n), count(*) ${joined}`,
      `select sum(e.n) as n, l.label from labels l, @ e where e.j = l.j and e.j <> 3 and l.j < 7 group by l.label having count(*) > 100`,
      `select upper(label) as u, e.j + 1 as up, max(e.n) ${joined} group by 1, 2 order by u, up`,
      `select count(*) from @ e join labels l on l.j >= e.j join labels m on m.j = l.j`,
    ]) {
      expect(await early(sql), sql).toEqual([true, true]);
    }
    for (const sql of [
      `select l.label, sum(e.n) from @ e left join labels l on l.j = e.j group by l.label`,
      `select l.label, sum(e.n) from @ e right join labels l on l.j = e.j group by l.label`,
      `select l.label, sum(l.j) ${joined} group by l.label`,
      `select l.label, sum(e.n) ${joined} where e.k > 20 group by l.label`,
      `select l.label, sum(e.n) ${joined} where exists (select 1 from labels m where m.j = e.j) group by l.label`,
      `select l.label, sum(e.n) from @ e join labels l using (j) group by l.label`,
      `select e.g, sum(e.n) from @ e join @ o on o.k = e.k group by e.g`,
      `select l.label, count(distinct e.i) ${joined} group by l.label`,
      `select l.label, sum(e.n * l.j) ${joined} group by l.label`,
      `select a.label, c from labels a join (select j, count(*) as c from @ group by j) s on s.j = a.j`,
      `select l.label from @ e join labels l on l.j = e.j where e.i = 5 order by e.k limit 0`,
    ]) {
      expect((await early(sql))[0], sql).toBe(false);
    }
    await expect(seam.query(`select j, sum(n) from ${name} e join labels l on l.j = e.j group by j`)).rejects.toThrow(
      /[Aa]mbiguous/,
    );
  });

  test("sums of floats are never taken off", async () => {
    await put(5, "g5", 1, 1);
    expect((await same("select count(*), sum(f) from @")).lakeDifference).toBe(false);
    expect((await same("select count(*), max(f) from @")).lakeDifference).toBe(true);
  });

  test("most of a table deleted: looked up", async () => {
    for (let k = 0; k < 1000; k += 5) await remove(k);
    expect((await same("select count(*), sum(i) from @")).lakeDifference).toBe(false);
  });

  test("a change of the delta, the cut-line, the snapshot or the columns is seen at once", async () => {
    await put(7, "g1", 1, 1);
    expect((await same(GROUPED)).lakeDifference).toBe(true);
    await put(7, "g1", 2, 3);
    await put(8, "g1", 2, 4);
    await same(GROUPED);
    await table.tier(2000n, 400);
    await same(GROUPED);
    await remove(1700);
    expect((await same(GROUPED)).lakeDifference).toBe(true);
    await table.both("alter table @ rename column i to was_i");
    await table.both("alter table @ rename column j to i");
    await same(GROUPED);
    await table.both("insert into @ values (8000, 'g1', 99999.99, 1, 2, 3, -77)");
    expect((await same("select g, count(*), sum(n), sum(i) from @ group by g")).lakeDifference).toBe(true);
  });

  test("random corrections between random questions", async () => {
    let seed = 12345;
    const random = (n: number): number => (seed = (seed * 48271) % 2147483647) % n;
    const questions = [
      GROUPED,
      "select count(*), sum(n), max(b), min(b) from @",
      "select i, count(*), sum(n) from @ where i < 20 group by i",
      "select g, max(n), min(n) from @ where b between 300 and 2000 group by g having count(*) > 3",
      "select l.label, sum(e.n), count(*), max(e.i) from @ e join labels l on l.j = e.j group by l.label",
      "select l.label, e.g, round(avg(e.i), 6), count(e.n) from labels l join @ e on e.j = l.j where e.k < 2500 and l.j > 1 group by 1, 2",
    ];
    for (let round = 0; round < 12; round++) {
      for (let n = random(6); n >= 0; n--) {
        const k = random(1000);
        if (random(4) === 0) await remove(k);
        else await put(k, `g${random(9)}`, random(3) === 0 ? null : random(10_000) / 100, random(600));
      }
      if (round === 6) await table.tier(2000n, 300);
      await same(questions[random(questions.length)] ?? GROUPED);
      await same(questions[round % questions.length] ?? GROUPED);
    }
  });
});
