/** Batches go into DuckDB and come back value by value; what DuckDB itself says of them is the oracle. */
import type { Column, ColumnBatch, ColumnKind, ColumnSpec } from "@spillway/base/columns";
import { INFINITY_DAYS, INFINITY_I64, NEG_INFINITY_DAYS, NEG_INFINITY_I64 } from "@spillway/base/columns";
import { must } from "@spillway/base/assert";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Engine } from "./instance.ts";
import { duckIdent } from "./quote.ts";
import { valueAt, type EngineSession } from "./session.ts";
import { columnOf, type PlainValue as Value } from "./test-batches.ts";
import { storedDuckType } from "./types.ts";

let engine: Engine;

beforeAll(async () => {
  engine = await Engine.open({ memoryBytes: 512 << 20, threads: 2 });
});
afterAll(() => engine.close());

async function roundTrip(specs: readonly ColumnSpec[], columns: readonly (readonly Value[])[]): Promise<unknown[][]> {
  return engine.use(async (session) => {
    const name = engine.freshName("t");
    await session.run(
      `CREATE TEMP TABLE ${name} (${specs.map((s) => `${duckIdent(s.name)} ${storedDuckType(s)}`).join(", ")})`,
    );
    const appender = session.appender(name, specs);
    const length = must(columns[0], "a column").length;
    const batch: ColumnBatch = { length, columns: specs.map((s, i) => columnOf(s, must(columns[i], "values"))) };
    appender.append(batch);
    appender.append(batch);
    appender.close();
    const out = await collect(session, `SELECT * FROM ${name}`);
    await session.run(`DROP TABLE ${name}`);
    return out;
  });
}

async function collect(session: EngineSession, sql: string): Promise<unknown[][]> {
  const rows: unknown[][] = [];
  for await (const batch of (await session.query(sql)).batches()) {
    for (let i = 0; i < batch.length; i++) rows.push(batch.columns.map((c) => valueAt(c, i)));
  }
  return rows;
}

const int64 = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n });
const timestamps = fc.oneof(
  fc.bigInt({ min: -(10n ** 17n), max: 9n * 10n ** 17n }),
  fc.constantFrom(INFINITY_I64, NEG_INFINITY_I64),
);
const dates = fc.oneof(
  fc.integer({ min: -2_000_000, max: 2_000_000 }),
  fc.constantFrom(INFINITY_DAYS, NEG_INFINITY_DAYS),
);

function decimals(precision: number): fc.Arbitrary<bigint> {
  const max = 10n ** BigInt(precision) - 1n;
  return fc.bigInt({ min: -max, max });
}

const text = fc
  .oneof(
    fc.string({ unit: "grapheme", maxLength: 40 }),
    fc.constantFrom(
      "",
      "twelve bytes",
      "thirteen byte",
      "é".repeat(6),
      `${"é".repeat(6)}x`,
      "\u{1F600}".repeat(3),
      "\u{1F600}".repeat(4),
    ),
    fc.string({ minLength: 13, maxLength: 300 }),
  )
  .map((s) => Buffer.from(s.replaceAll("\0", "0"), "utf8").toString("utf8"));

const KINDS: readonly (readonly [ColumnSpec, fc.Arbitrary<Value>])[] = [
  [{ name: "bool", kind: "bool" }, fc.boolean()],
  [{ name: "int16", kind: "int16" }, fc.integer({ min: -32768, max: 32767 })],
  [{ name: "int32", kind: "int32" }, fc.integer()],
  [{ name: "int64", kind: "int64" }, int64],
  [{ name: "float32", kind: "float32" }, fc.float()],
  [{ name: "float64", kind: "float64" }, fc.double()],
  [{ name: "date", kind: "date" }, dates],
  [{ name: "time", kind: "time" }, fc.bigInt({ min: 0n, max: 86_400_000_000n })],
  [{ name: "timestamp", kind: "timestamp" }, timestamps],
  [{ name: "timestamptz", kind: "timestamptz" }, timestamps],
  ...[3, 4, 9, 10, 18, 19, 38].map((precision): readonly [ColumnSpec, fc.Arbitrary<Value>] => [
    { name: `decimal${precision}`, kind: "decimal", decimal: { precision, scale: 2 } },
    decimals(precision),
  ]),
  [{ name: "uuid", kind: "uuid" }, fc.uint8Array({ minLength: 16, maxLength: 16 })],
  [{ name: "text", kind: "text" }, text],
  [{ name: "bytes", kind: "bytes" }, fc.uint8Array({ maxLength: 40 })],
];

describe("batches through DuckDB", () => {
  test.each(KINDS.map(([spec, values]) => [spec.name, spec, values] as const))("%s", async (_, spec, values) => {
    const arbitrary = fc.array(fc.option(values, { freq: 4, nil: null }), { minLength: 1, maxLength: 80 });
    await fc.assert(
      fc.asyncProperty(arbitrary, async (rows) => {
        const got = (await roundTrip([spec], [rows])).map((r) => r[0]);
        expect(got).toEqual([...rows, ...rows]);
      }),
      { numRuns: 60 },
    );
  });

  test("many rows over several chunks, every kind at once, with runs of nulls and of equal long strings", async () => {
    const rng = fc.sample(fc.tuple(...KINDS.map(([, v]) => fc.option(v, { freq: 6, nil: null }))), {
      numRuns: 5000,
      seed: 7,
    });
    const columns = KINDS.map((_, c) => rng.map((row) => (row[c] ?? null) as Value));
    const got = await roundTrip(
      KINDS.map(([s]) => s),
      columns,
    );
    expect(got.length).toBe(10000);
    expect(got.slice(0, 5000)).toEqual(rng.map((r) => r.slice()));
    expect(got.slice(5000)).toEqual(rng.map((r) => r.slice()));
  });

  test("long strings between short ones, a megabyte each, and a dictionary", async () => {
    const long = "ab\u00e9".repeat(300_000);
    const values = Array.from({ length: 3000 }, (_, i) =>
      i % 1000 === 7 ? `${i}${long}` : i % 3 === 0 ? "same long string here" : `row ${i}`,
    );
    const got = await roundTrip([{ name: "s", kind: "text" }], [values]);
    expect(got.map((r) => r[0])).toEqual([...values, ...values]);
    const grouped = await engine.use((s) =>
      collect(s, "SELECT ['a long string of letters', 'b long string of letters'][1 + i % 2] FROM range(9000) t(i)"),
    );
    expect(grouped.map((r) => r[0])).toEqual(
      Array.from({ length: 9000 }, (_, i) => `${i % 2 === 0 ? "a" : "b"} long string of letters`),
    );
  });

  test("DuckDB agrees on what the values are", async () => {
    await engine.use(async (session) => {
      await session.run("CREATE TEMP TABLE v (u UUID, d DECIMAL(20,3), e DECIMAL(9,2), t TIMESTAMPTZ, day DATE)");
      const appender = session.appender("v", [
        { name: "u", kind: "uuid" },
        { name: "d", kind: "decimal", decimal: { precision: 20, scale: 3 } },
        { name: "e", kind: "decimal", decimal: { precision: 9, scale: 2 } },
        { name: "t", kind: "timestamptz" },
        { name: "day", kind: "date" },
      ]);
      const uuid = Uint8Array.from(Buffer.from("f47ac10b58cc4372a5670e02b2c3d479", "hex"));
      const column = (kind: ColumnKind, value: Value, decimal?: { precision: number; scale: number }): Column =>
        columnOf(decimal ? { name: "x", kind, decimal } : { name: "x", kind }, [value]);
      appender.append({
        length: 1,
        columns: [
          column("uuid", uuid),
          column("decimal", -12345678901234567890n, { precision: 20, scale: 3 }),
          column("decimal", -1234567n, { precision: 9, scale: 2 }),
          column("timestamptz", NEG_INFINITY_I64),
          column("date", INFINITY_DAYS),
        ],
      });
      appender.close();
      expect(await session.rows("SELECT u::VARCHAR, d::VARCHAR, e::VARCHAR, t::VARCHAR, day::VARCHAR FROM v")).toEqual([
        ["f47ac10b-58cc-4372-a567-0e02b2c3d479", "-12345678901234567.890", "-12345.67", "-infinity", "infinity"],
      ]);
      await session.run("DROP TABLE v");
    });
  });

  test.each([[[0xff, 0x61]], [[...Buffer.from("long enough to be a pointer"), 0xc3]]])(
    "text that is not UTF-8 is refused",
    async (bytes) => {
      await engine.use(async (session) => {
        await session.run("CREATE OR REPLACE TEMP TABLE bad (s VARCHAR)");
        const spec: ColumnSpec = { name: "s", kind: "text" };
        const appender = session.appender("bad", [spec]);
        const column = columnOf(spec, [Uint8Array.from(bytes)]);
        expect(() => appender.append({ length: 1, columns: [column] })).toThrowError(/not UTF-8/);
        appender.close();
      });
    },
  );

  test("integers of other widths become the next batch kind", async () => {
    await engine.use(async (session) => {
      const sql =
        "SELECT (-5)::TINYINT, 200::UTINYINT, 65000::USMALLINT, 4000000000::UINTEGER, 18446744073709551615::UBIGINT, (-170141183460469231731687303715884105727)::HUGEINT";
      expect(await session.rows(sql)).toEqual([
        [-5, 200, 65000, 4000000000n, 18446744073709551615n, -170141183460469231731687303715884105727n],
      ]);
    });
  });
});
