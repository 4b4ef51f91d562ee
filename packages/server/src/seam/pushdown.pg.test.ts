/**
 * Pushed-down predicates against the engine without them: for random conditions over edge values, Postgres must give every
 * row that DuckDB accepts (else rows are lost), and exactly those where the condition is understood whole.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { FileStore } from "@spillway/lake/store/file";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Engine, valueAt } from "../engine/engine.ts";
import { createSeam, type Seam } from "./seam.ts";
import { installCatalog, TieredTable } from "./test-table.ts";

const VALUES: Readonly<Record<string, readonly string[]>> = {
  i: ["0", "-1", "1", "2147483647", "-2147483648", "7", "7.5", "7.0", "99999999999"],
  b: ["0", "-9223372036854775808", "9223372036854775807", "42", "4.2e1"],
  s: ["0", "32767", "-32768", "40000"],
  f: ["0", "-0.0", "1.5", "'NaN'::double", "'Infinity'::double", "0.1", "-1e300"],
  n: ["0", "1.10", "1.1", "-99999.99", "1.105", "12345678901"],
  t: ["''", "'a'", "'A'", "'é'", "'a '", "'ä'", "'zz'", "'it''s'"],
  d: ["'2024-01-01'", "date '1969-12-31'", "'infinity'", "'-infinity'", "timestamp '2024-01-01 12:00'", "'0001-01-01'"],
  ts: ["'2024-01-01'", "timestamp '2024-06-01 00:00:00.000001'", "'infinity'", "date '2024-01-01'"],
  tz: [
    "'2024-01-01 00:00:00+02'",
    "timestamptz '2024-01-01'",
    "'-infinity'",
    "date '2024-01-01'",
    "timestamp '2024-01-01 01:00'",
  ],
  o: ["true", "false"],
  u: [
    "'00000000-0000-0000-0000-000000000000'",
    "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
    "'7fffffff-0000-0000-0000-000000000001'",
  ],
};

const column = fc.constantFrom(...Object.keys(VALUES));
const constantOf = (name: string): fc.Arbitrary<string> => fc.constantFrom(...(VALUES[name] ?? []));

const leaf: fc.Arbitrary<string> = column.chain((c) =>
  fc.oneof(
    fc.tuple(fc.constantFrom("=", "<>", "<", "<=", ">", ">="), constantOf(c)).map(([op, v]) => `${c} ${op} ${v}`),
    fc.tuple(fc.constantFrom("<", ">="), constantOf(c)).map(([op, v]) => `${v} ${op} ${c}`),
    fc.tuple(constantOf(c), constantOf(c)).map(([a, b]) => `${c} between ${a} and ${b}`),
    fc.array(constantOf(c), { minLength: 1, maxLength: 3 }).map((v) => `${c} in (${v.join(", ")})`),
    fc.array(constantOf(c), { minLength: 1, maxLength: 3 }).map((v) => `${c} not in (${v.join(", ")})`),
    fc.constantFrom(`${c} is null`, `${c} is not null`),
  ),
);
const condition = fc.oneof(
  { weight: 3, arbitrary: leaf },
  { weight: 1, arbitrary: fc.tuple(leaf, leaf).map(([a, b]) => `(${a} or ${b})`) },
  { weight: 1, arbitrary: fc.tuple(leaf, leaf).map(([a, b]) => `${a} and ${b}`) },
);

describe("pushed-down conditions", () => {
  let db: TestDatabase;
  let engine: Engine;
  let root: string;
  let seam: Seam;

  beforeAll(async () => {
    db = await createTestDatabase();
    root = mkdtempSync(join(tmpdir(), "spillway-push-"));
    const store = new FileStore({ root, fsync: false });
    engine = await Engine.open({ memoryBytes: 256 << 20, threads: 2 });
    await installCatalog(db.client);
    const table = await TieredTable.create(
      { db: db.client, url: db.url, engine, store },
      {
        name: "edges",
        columns:
          "k int, i int, b bigint, s int2, f float8, n numeric(12,2), t text, d date, ts timestamp, tz timestamptz, o bool, u uuid, primary key (k)".replace(
            "t text",
            't text collate "en-x-icu"',
          ),
        key: "k",
        keyKind: "int",
        pk: ["k"],
        leaves: [0, 100].map((lo) => ({ from: String(lo), to: String(lo + 100), hi: BigInt(lo + 100) })),
      },
    );
    const pick = (c: string, k: number): string => {
      const list = (VALUES[c] ?? []).filter(
        (v) => !/^(7\.5|7\.0|99999999999|4\.2e1|40000|1\.105|12345678901)$/.test(v),
      );
      return k % (list.length + 1) === list.length
        ? "null"
        : (list[k % (list.length + 1)] ?? "null").replace("::double", "::float8");
    };
    for (let k = 0; k < 200; k++) {
      const values = Object.keys(VALUES).map((c, i) => pick(c, k * (i + 3) + (k >> 3)));
      await table.both(`insert into @ values (${k}, ${values.join(", ")})`);
    }
    await table.tier(100n);
    seam = createSeam({ conninfo: db.url, store, engine, clock: systemClock, log: silentLogger, holder: "test" });
  });
  afterAll(async () => {
    await seam.close();
    engine.close();
    await db.drop();
    rmSync(root, { recursive: true, force: true });
  });

  async function keys(sql: string): Promise<{ keys: string; aggregated: boolean } | string> {
    try {
      const result = await seam.query(sql);
      const found: string[] = [];
      for await (const batch of result.batches()) {
        for (let i = 0; i < batch.length; i++) found.push(batch.columns.map((c) => String(valueAt(c, i))).join(","));
      }
      return { keys: found.toSorted().join(" "), aggregated: result.stats.aggregatePushdown };
    } catch (error) {
      // A condition that DuckDB refuses is refused with and without push-down.
      return (error as { code: string }).code;
    }
  }

  test("change no answer, whatever they are", async () => {
    let aggregated = 0;
    await fc.assert(
      fc.asyncProperty(condition, async (where) => {
        // Adding nothing keeps the meaning and hides the condition from the push-down: it is no comparison with a constant.
        const hidden = `select k from edges where coalesce((${where}), false)`;
        expect(await keys(`select k from edges where ${where}`)).toEqual(await keys(hidden));
        const parts = await keys(`select o, count(*), sum(n), min(b), max(tz) from edges where ${where} group by o`);
        const whole = await keys(
          `select o, count(*), sum(n), min(b), max(tz) from edges where coalesce((${where}), false) group by o`,
        );
        if (typeof parts === "string" || typeof whole === "string") expect(parts).toEqual(whole);
        else {
          expect(parts.keys).toBe(whole.keys);
          aggregated += parts.aggregated ? 1 : 0;
        }
      }),
      { numRuns: 150 },
    );
    expect(aggregated).toBeGreaterThan(30);
  });

  async function inOrder(sql: string): Promise<{ rows: string[]; heapRows: number; limit: string } | string> {
    try {
      const result = await seam.query(sql);
      const rows: string[] = [];
      for await (const batch of result.batches()) {
        for (let i = 0; i < batch.length; i++) rows.push(batch.columns.map((c) => String(valueAt(c, i))).join(","));
      }
      const [table] = result.stats.tables;
      return { rows, heapRows: table?.heapRows ?? 0, limit: table?.heapLimit ?? "" };
    } catch (error) {
      return (error as { code: string }).code;
    }
  }

  test("limits and orders change no answer, and keep rows in the heap", async () => {
    const direction = fc.constantFrom("", "asc", "desc", "desc nulls first", "asc nulls first", "nulls last");
    const order = fc.array(fc.tuple(column, direction), { minLength: 1, maxLength: 3 });
    let pushed = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.oneof(condition, fc.constant("true")),
        order,
        fc.nat(30),
        fc.nat(20),
        async (where, by, n, skip) => {
          const text = (name: (c: string) => string): string => by.map(([c, d]) => `${name(c)} ${d}`).join(", ");
          const sql = (w: string, name: (c: string) => string): string =>
            `select k, t, n as m from edges ${w === "true" ? "" : `where ${w}`} order by ${text(name)}, k limit ${n} offset ${skip}`;
          const own = await inOrder(sql(where, (c) => c));
          // No plain column: nothing is pushed down.
          const whole = await inOrder(sql(where, (c) => `coalesce(${c}, null)`));
          if (typeof own === "string" || typeof whole === "string") {
            expect(own).toEqual(whole);
            return;
          }
          expect(own.rows).toEqual(whole.rows);
          expect(whole.limit).toBe("");
          if (own.limit === "") return;
          pushed += 1;
          expect(own.heapRows).toBeLessThanOrEqual(n + skip);
        },
      ),
      { numRuns: 200 },
    );
    expect(pushed).toBeGreaterThan(60);
  });

  test.each([
    ["select k from edges limit 5", "limit 5"],
    ["select * from edges where k > 20 limit 5 offset 2", "limit 7"],
    ["select k, lower(t) from edges where t > 'a' limit 3", "limit 3"],
    ["select e.k from edges e order by e.t desc limit 2", 'order by "t" collate "c" desc nulls last limit 2'],
    // An order, a filter or a shape that is not the rows' own.
    ["select -k as i from edges order by i limit 5", ""],
    ["select k from edges where k + 1 > 3 limit 5", ""],
    ["select distinct o from edges limit 5", ""],
    ["select o, count(*) from edges group by o limit 5", ""],
    ["select unnest([k, k]) from edges limit 5", ""],
    ["select row_number() over (order by i) from edges limit 5", ""],
    ["select k from edges order by s + 1 limit 5", ""],
    ["select k from edges order by random() limit 5", ""],
    ["select k from edges where k > 3 union all select 1 limit 5", ""],
    ["select a.k from edges a join edges b using (k) limit 5", ""],
    ["select k from edges limit 10%", ""],
    ["select * replace (-k as i) from edges order by i limit 5", ""],
    ["select k from (select * from edges) x limit 5", ""],
    ["select max(k) from edges limit 5", ""],
  ])("%s", async (sql, limit) => {
    const result = await seam.query(sql);
    for await (const _batch of result.batches());
    expect(result.stats.tables[0]?.heapLimit.toLowerCase()).toBe(limit);
  });

  test("texts are compared by their bytes in the heap as well", async () => {
    const sql = "select k from edges where t >= 'B' and t < 'b' and t between 'A' and 'zz'";
    const result = await seam.query(sql);
    for await (const _batch of result.batches());
    expect(result.stats.tables[0]?.heapConditions.join(" ")).toContain('"t" COLLATE "C" >= ');
    expect(await keys(sql)).toEqual(
      await keys("select k from edges where coalesce(t >= 'B' and t < 'b' and t between 'A' and 'zz', false)"),
    );
  });
});
