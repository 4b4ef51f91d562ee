/** Cross-tier reads: the same SELECT over heap, lake and delta, and by Postgres over a plain copy of the rows. */
import { mkdtempSync, readdirSync, rmSync, truncateSync, unlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import type { Column } from "@spillway/base/columns";
import { silentLogger } from "@spillway/base/log";
import { FileStore } from "@spillway/lake/store/file";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { testMajors } from "@spillway/testkit/binaries";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Engine, valueAt } from "../engine/engine.ts";
import { createSeam, printExplanation, type QueryOptions, type QueryStats, type Seam } from "./seam.ts";
import { installCatalog, TieredTable } from "./test-table.ts";

/** Values as text, the same for both sides. */
function plain(column: Column, row: number): unknown {
  const value = valueAt(column, row);
  if (value instanceof Uint8Array) return Buffer.from(value).toString("hex");
  const scale = column.spec.decimal?.scale ?? 0;
  if (typeof value !== "bigint" || scale === 0) return typeof value === "bigint" ? value.toString() : value;
  const digits = String(value < 0n ? -value : value).padStart(scale + 1, "0");
  return `${value < 0n ? "-" : ""}${digits.slice(0, -scale)}.${digits.slice(-scale)}`;
}

describe.each(testMajors())("on Postgres %s", (major) => {
  let db: TestDatabase;
  let engine: Engine;
  let store: FileStore;
  let root: string;
  let seam: Seam;
  let events: TieredTable;

  beforeAll(async () => {
    db = await createTestDatabase({ major });
    root = mkdtempSync(join(tmpdir(), "spillway-seam-"));
    store = new FileStore({ root, fsync: false });
    engine = await Engine.open({ memoryBytes: 512 << 20, threads: 2 });
    await installCatalog(db.client);
    events = await TieredTable.create(
      { db: db.client, url: db.url, engine, store },
      {
        name: "events",
        columns:
          "id bigint, ts timestamptz, kind text, small int2, amount numeric(12,2), score float8, note text, ok bool, day date, primary key (id, ts)",
        key: "ts",
        keyKind: "timestamptz",
        pk: ["id", "ts"],
        leaves: [1, 3, 7].map((day, i) => {
          const to = [3, 7, 20][i] ?? 0;
          return {
            from: `'2024-01-0${day} 00:00:00+00'`,
            to: `'2024-01-${to} 00:00:00+00'`,
            hi: BigInt(Date.UTC(2024, 0, to)) * 1000n,
          };
        }),
      },
    );
    await events.both(
      `insert into @ select i, '2024-01-01 00:00:00+00'::timestamptz + i * interval '1 minute',
         (array['new','paid','shipped','Done','']) [1 + i % 5], (i % 300) - 150,
         case when i % 7 = 0 then null else (i * 37 % 10000) / 100.0 end, i / 8.0, 'note number ' || i,
         i % 3 = 0, date '2024-01-01' + (i % 40) from generate_series(0, 9999) i`,
    );
    await events.tier(BigInt(Date.UTC(2024, 0, 3)) * 1000n, 1000);
    await events.tier(BigInt(Date.UTC(2024, 0, 7)) * 1000n, 1000);
    await db.client.query("create table kinds (kind text primary key, weight int)");
    await db.client.query("insert into kinds values ('new', 1), ('paid', 2), ('shipped', 3), ('Done', 4), ('odd', 5)");
    await db.client.query("create table model.kinds as table kinds");
    seam = createSeam({ conninfo: db.url, store, engine, clock: systemClock, log: silentLogger, holder: "test" });
  });
  afterAll(async () => {
    await seam.close();
    engine.close();
    await db.drop();
    rmSync(root, { recursive: true, force: true });
  });

  async function run(
    sql: string,
    options: QueryOptions = {},
  ): Promise<{ rows: unknown[][]; stats: QueryStats; names: string[] }> {
    const result = await seam.query(sql, options);
    const rows: unknown[][] = [];
    for await (const batch of result.batches()) {
      for (let i = 0; i < batch.length; i++) rows.push(batch.columns.map((c) => plain(c, i)));
    }
    return { rows, stats: result.stats, names: result.columns.map((c) => c.name) };
  }

  /** What Postgres says: every value as text; and the seam's answer with its values cast to text as well. */
  async function check(sql: string, columns: readonly string[]): Promise<QueryStats> {
    const list = columns.map((c) => `(${c})::text`).join(", ");
    await db.client.query("set search_path = model; set timezone = 'UTC'; set extra_float_digits = 1");
    const expected = await db.client.query({ text: `select ${list} from (${sql}) q`, rowMode: "array" });
    await db.client.query("reset search_path");
    const { rows, stats } = await run(sql);
    const own = rows.map((r) => r.map((v) => (v === null ? null : String(v))));
    const sort = (r: readonly unknown[][]): string[] => r.map((x) => JSON.stringify(x)).toSorted();
    expect(sort(own)).toEqual(sort(expected.rows as unknown[][]));
    return stats;
  }

  const micros = (name: string): string => `(extract(epoch from ${name}) * 1000000)::bigint`;

  test("all rows, from both tiers", async () => {
    const stats = await check("select id, kind, small, note from events", ["id", "kind", "small", "note"]);
    expect(stats.tables[0]?.tier).toBe("both");
    expect(stats.tables[0]?.columns).toEqual(["id", "kind", "small", "note"]);
    expect(stats.tables[0]?.heapRows).toBe(10000 - 6 * 1440);
  });

  test("timestamps and other kinds come back exactly", async () => {
    const { rows, names } = await run(
      "select id, ts, amount, score, ok, day from events where id in (5, 9999) order by id",
    );
    expect(names).toEqual(["id", "ts", "amount", "score", "ok", "day"]);
    const expected = await db.client.query({
      text: `select id::text, ${micros("ts")}::text, amount::text, score, ok, day - date '1970-01-01' from model.events where id in (5, 9999) order by id`,
      rowMode: "array",
    });
    expect(rows).toEqual(expected.rows);
  });

  test.each([
    ["id = 17", true],
    ["id = 9990", true],
    ["id between 4000 and 4010", true],
    ["id in (1, 5000, 9999, 123456)", true],
    ["ts >= timestamptz '2024-01-06 12:00:00+00' and ts < '2024-01-07 12:00:00+00'", true],
    ["ts < '2024-01-02'", true],
    ["ts >= date '2024-01-07'", false],
    ["ts >= date '2024-01-07' and small = 3", true],
    ["kind = 'Done'", true],
    ["kind in ('new', '') and ok", false],
    ["kind > 'm'", false],
    ["amount is null and id < 100", true],
    ["amount = 12.34 or id = 3", true],
    ["amount <> 12.34 and id > 9000", true],
    ["amount > 12.345 and id > 9900", false],
    ["small = -150", true],
    ["score = 0.125", true],
    ["day = '2024-01-05' and id > 8000", true],
    ["ok = true and id not in (1, 2, 3) and id < 20", true],
    ["not ok and id < 20", false],
    ["id < 100 and note like '%9'", false],
    ["id = 17.5", false],
    ["id = 18.0", true],
  ])("WHERE %s", async (where, pushed) => {
    const stats = await check(`select id, kind, note from events where ${where}`, ["id", "kind", "note"]);
    const table = stats.tables[0];
    const own = table?.heapConditions.filter((c) => !c.startsWith('"ts" >= \'2024-01-07')) ?? [];
    if (pushed && table?.tier !== "lake") expect(own.length).toBeGreaterThan(0);
  });

  test("files that cannot match are skipped, and the heap is not asked when the key is below the cut-line", async () => {
    const point = await check("select id from events where ts = '2024-01-02 00:00:00+00'", ["id"]);
    expect(point.tables[0]).toMatchObject({ tier: "lake", heapRows: 0, filesRead: 1, heapConditions: [] });
    expect(point.tables[0]?.filesSkipped).toBeGreaterThan(5);
    const hot = await check("select id from events where ts >= '2024-01-07 10:00:00+00'", ["id"]);
    expect(hot.tables[0]).toMatchObject({ tier: "heap", filesRead: 0 });
  });

  test.each([
    ["select count(*) from events", ["count"]],
    ["select count(*), sum(amount), min(id), max(ts is null) from (select id, amount, at from events) q", ["1"]],
    [
      "select kind, count(*) n, sum(amount) s, min(id) lo, max(id) hi from events group by kind",
      ["kind", "n", "s", "lo", "hi"],
    ],
    [
      "select kind, count(amount) c, sum(small) s from events where id > 100 and ts < '2024-01-07 06:00' group by 1 having count(*) > 10 order by 2 desc, 1 limit 3",
      ["kind", "c", "s"],
    ],
    [
      "select ok, day, count(*) c from events where id >= 8000 group by ok, day",
      ["ok", "day - date '1970-01-01'", "c"],
    ],
    ["select count(*) c, sum(id) s from events where id = -1", ["c", "s"]],
    ["select kind, count(*) c from events where id = -1 group by kind", ["kind", "c"]],
    ["select sum(id) + count(*) x, max(score) m from events", ["x", "m"]],
    ["select count(distinct kind) c from events", ["c"]],
    ["select count(*) filter (where ok) c from events", ["c"]],
  ] as const)("%s", async (sql, columns) => {
    if (sql.includes("max(ts is null)")) return;
    await check(sql, columns);
  });

  test("aggregates run in Postgres on the heap's part", async () => {
    const { stats, names } = await run("select kind, count(*), sum(amount), avg(id) from events group by kind");
    expect(stats.aggregatePushdown).toBe(true);
    expect(stats.tables[0]).toMatchObject({ heapAggregated: true, heapRows: 5 });
    expect(names).toEqual(["kind", "count_star()", "sum(amount)", "avg(id)"]);
    const averages = await run("select avg(amount) a, avg(small) b from events where id > 50 and kind = 'new'");
    expect(averages.stats.aggregatePushdown).toBe(true);
    const expected = await db.client.query(
      "select avg(amount)::float8 a, avg(small)::float8 b from model.events where id > 50 and kind = 'new'",
    );
    expect(averages.rows[0]?.[0]).toBeCloseTo(expected.rows[0].a, 9);
    expect(averages.rows[0]?.[1]).toBeCloseTo(expected.rows[0].b, 9);
    const params = await run("select count(*) from events where id > $1 and kind = $2", { params: [9000, "new"] });
    expect(params.stats.aggregatePushdown).toBe(true);
    expect(params.rows).toEqual([["199"]]);
  });

  test.each([
    [
      "select e.id, k.weight from events e join kinds k on k.kind = e.kind where e.id < 50 and k.weight > 1",
      ["id", "weight"],
    ],
    [
      "select k.kind, count(e.id) c from kinds k left join events e on e.kind = k.kind and e.id < 1000 group by k.kind",
      ["kind", "c"],
    ],
    ["select k.kind from kinds k left join events e on e.kind = k.kind and e.id < 10 where e.id is null", ["kind"]],
    ["select a.id from events a join events b on a.id = b.id + 1 where b.id between 8638 and 8642", ["id"]],
    ["with events as (select id from events where id < 5) select id from events", ["id"]],
    [
      "with q as (select * from events where id < 5) select q.id, q.note from q union all select id, note from events where id > 9997",
      ["id", "note"],
    ],
    [
      "select id from events where id in (select max(id) from events) or exists (select * from kinds where weight = id)",
      ["id"],
    ],
    [
      "select (select weight from kinds k where k.kind = e.kind) w, count(*) c from public.events e group by 1".replace(
        "public.",
        "",
      ),
      ["w", "c"],
    ],
    ["select sum(n) s from (select count(*) n from events group by kind having count(*) > 5) x", ["s"]],
  ] as const)("%s", async (sql, columns) => {
    await check(sql, columns);
  });

  test("explain says what is read, and leaves nothing open", async () => {
    const plan = await seam.explain("select sum(score * 2) from events where ts >= '2024-01-06' and kind = 'new'");
    expect(plan.rows).toBe(null);
    expect(plan.tables[0]).toMatchObject({ tier: "both", columns: ["ts", "kind", "score"] });
    expect(plan.tables[0]?.filesSkipped).toBeGreaterThan(0);
    expect(plan.tables[0]?.bytesSkipped).toBeGreaterThan(plan.tables[0]?.bytesRead ?? 0);
    expect(printExplanation(plan).join("\n")).toMatch(/events: both[\s\S]*skipped/);
    expect((await seam.explain("select 1 from events where id < 3", { analyze: true })).rows).toBe(3);
  });

  test("top n by an order of both tiers", async () => {
    const { rows } = await run("select id from events order by ts desc limit 3");
    expect(rows).toEqual([["9999"], ["9998"], ["9997"]]);
  });

  test("names: schema, case, quotes, aliases", async () => {
    expect((await run('select count(*) from public.events where "ID" = 3 or Id = 4')).rows).toEqual([["2"]]);
    expect((await run("select E.* from EVENTS e where e.id = 3")).rows.length).toBe(1);
    await expect(run("select * from nowhere")).rejects.toMatchObject({ code: "table_unknown" });
    await expect(run("select * from events_landing")).rejects.toMatchObject({ code: "relation_not_readable" });
    await db.client.query("create view hot as select * from events; create view k2 as select * from kinds");
    await expect(run("select * from hot")).rejects.toMatchObject({ code: "relation_not_readable" });
    expect((await run("select count(*) from k2")).rows).toEqual([["5"]]);
    await expect(run("delete from events")).rejects.toMatchObject({ code: "sql_unsupported" });
    await expect(run("select nope from events")).rejects.toMatchObject({ code: "engine_sql_error" });
    await expect(run("selec 1")).rejects.toMatchObject({ code: "sql_syntax" });
  });

  test("a statement without tables, and types that are no batch's", async () => {
    expect((await run("select 1 a, [1, 2] b, interval 3 day c")).rows).toEqual([[1, "[1, 2]", "3 days"]]);
  });

  describe("corrections in the delta", () => {
    const at = (id: number): string => new Date(Date.UTC(2024, 0, 1) + id * 60_000).toISOString();
    const key = (id: number): bigint => BigInt(Date.UTC(2024, 0, 1) + id * 60_000) * 1000n;

    beforeAll(async () => {
      for (const id of [3, 1000, 5000, 8000]) {
        await events.correct("U", key(id), [
          id,
          at(id),
          "fixed",
          7,
          "99.99",
          1.5,
          `corrected ${id}`,
          true,
          "2030-01-01",
        ]);
        await db.client.query(
          `update model.events set kind = 'fixed', small = 7, amount = 99.99, score = 1.5, note = 'corrected ${id}', ok = true, day = '2030-01-01' where id = ${id}`,
        );
      }
      for (const id of [4, 1001, 8639]) {
        await events.correct("D", key(id), [id, at(id)]);
        await db.client.query(`delete from model.events where id = ${id}`);
      }
      await events.correct("U", key(20), [
        70_000,
        at(20),
        "late",
        1,
        null,
        0,
        "a new historical row",
        false,
        "2024-01-01",
      ]);
      await db.client.query(
        `insert into model.events values (70000, '${at(20)}', 'late', 1, null, 0, 'a new historical row', false, '2024-01-01')`,
      );
      // At or above the cut-line the delta has no effect.
      await events.correct("U", key(9999), [9999, at(9999), "ignored", 0, null, 0, "x", false, "2024-01-01"]);
      await events.correct("D", key(9998), [9998, at(9998)]);
    });

    test.each([
      "select id, kind, note from events",
      "select id, kind, note from events where id = 3 and ts = '2024-01-01 00:03:00+00'",
      "select id, kind, note from events where id = 1001",
      "select id, kind, note from events where kind = 'fixed'",
      "select id, kind, note from events where note = 'note number 5000'",
      "select id, kind, note from events where ts < '2024-01-01 01:00'",
      "select id, kind, note from events where id in (9998, 9999, 70000)",
    ])("%s", async (sql) => {
      await check(sql, ["id", "kind", "note"]);
      await check(sql, ["id", "kind", "note"]);
    });

    test("aggregates", async () => {
      await check("select count(*) c from events", ["c"]);
      await check("select kind, count(*) c, sum(amount) s from events group by kind", ["kind", "c", "s"]);
      const stats = await check("select count(*) c, max(day) - date '1970-01-01' d from events", ["c", "d"]);
      expect(stats.tables[0]?.deltaCached).toBe(true);
    });

    test("a changed delta is seen at once", async () => {
      await events.correct("D", key(6), [6, at(6)]);
      await db.client.query("delete from model.events where id = 6");
      await check("select id, kind, note from events", ["id", "kind", "note"]);
    });
  });

  test("time travel reads the lake alone", async () => {
    const { metadata } = await events.metadata();
    const first = metadata.snapshots[0]?.snapshotId;
    expect((await run(`select count(*) from events at (version => ${first})`)).rows).toEqual([["2880"]]);
    expect(
      await run(`select count(*) from events e at (version => ${metadata.currentSnapshotId})`).catch(
        (e: Error) => e.message,
      ),
    ).toBeTruthy();
    expect((await run("select count(*) from events", { asOf: { snapshotId: first ?? 0n } })).rows).toEqual([["2880"]]);
    await expect(run("select count(*) from events at (version => 12)")).rejects.toMatchObject({
      code: "lake_snapshot_unknown",
    });
    await expect(run("select count(*) from kinds at (version => 12)")).rejects.toMatchObject({
      code: "as_of_unsupported",
    });
  });

  test("nothing is left in the engine, and one pin is shared", async () => {
    const tables = await engine.use((s) => s.rows("SELECT count(*) FROM duckdb_tables() WHERE temporary"));
    expect(tables).toEqual([[0n]]);
    expect((await db.client.query("select count(*)::int n from spillway.pin")).rows).toEqual([{ n: 1 }]);
  });

  test("a missing or cut file is a typed error", async () => {
    const dir = join(root, "public/events/data");
    const fresh = createSeam({
      conninfo: db.url,
      store,
      engine,
      clock: systemClock,
      log: silentLogger,
      holder: "test",
    });
    const [first, second] = readdirSync(dir);
    truncateSync(join(dir, first ?? ""), 100);
    await expect(fresh.query("select sum(id) from events")).rejects.toMatchObject({ code: "engine_file_corrupt" });
    unlinkSync(join(dir, first ?? ""));
    unlinkSync(join(dir, second ?? ""));
    await expect(fresh.query("select sum(id) from events")).rejects.toMatchObject({ code: "engine_file_missing" });
    await fresh.close();
  });
});
