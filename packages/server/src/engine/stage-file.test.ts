/** Batches are staged and read by DuckDB; what it reads is compared value by value with what was staged. */
import { existsSync } from "node:fs";
import type { ColumnBatch } from "@spillway/base/columns";
import { INFINITY_DAYS, INFINITY_I64, NEG_INFINITY_DAYS, NEG_INFINITY_I64 } from "@spillway/base/columns";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Engine } from "./instance.ts";
import { StageFile } from "./stage-file.ts";
import { batchOf, columnOf, type PlainValue } from "./test-batches.ts";
import { type LakeField, specOf, storedDuckType } from "./types.ts";

let engine: Engine;

beforeAll(async () => {
  engine = await Engine.open({ memoryBytes: 512 << 20, threads: 2 });
});
afterAll(() => engine.close());

const int64 = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n });
const timestamps = fc.oneof(
  fc.bigInt({ min: -(10n ** 17n), max: 9n * 10n ** 17n }),
  fc.constantFrom(INFINITY_I64, NEG_INFINITY_I64),
);
const text = fc
  .oneof(fc.string({ unit: "grapheme", maxLength: 40 }), fc.constantFrom("", "\u{1F600}".repeat(4)))
  .map((s) => Buffer.from(s.replaceAll("\0", "0"), "utf8").toString("utf8"));

function decimal(precision: number): readonly [Omit<LakeField, "id">, fc.Arbitrary<PlainValue>] {
  const max = 10n ** BigInt(precision) - 1n;
  const field = { name: `decimal${precision}`, kind: "decimal", decimal: { precision, scale: 2 } } as const;
  return [field, fc.bigInt({ min: -max, max })];
}

const KINDS: readonly (readonly [Omit<LakeField, "id">, fc.Arbitrary<PlainValue>])[] = [
  [{ name: "bool", kind: "bool" }, fc.boolean()],
  [{ name: "int16", kind: "int16" }, fc.integer({ min: -32768, max: 32767 })],
  [{ name: "int32", kind: "int32" }, fc.integer()],
  [{ name: "int64", kind: "int64" }, int64],
  [{ name: "float32", kind: "float32" }, fc.float()],
  [{ name: "float64", kind: "float64" }, fc.oneof(fc.double(), fc.constantFrom(-0, Number.NaN))],
  [
    { name: "date", kind: "date" },
    fc.oneof(fc.integer({ min: -2e6, max: 2e6 }), fc.constantFrom(INFINITY_DAYS, NEG_INFINITY_DAYS)),
  ],
  [{ name: "time", kind: "time" }, fc.bigInt({ min: 0n, max: 86_400_000_000n })],
  [{ name: "timestamp", kind: "timestamp" }, timestamps],
  [{ name: 'odd "zone"', kind: "timestamptz" }, timestamps],
  ...[1, 4, 9, 10, 18, 19, 38].map(decimal),
  [{ name: "uuid", kind: "uuid" }, fc.uint8Array({ minLength: 16, maxLength: 16 })],
  [{ name: "text", kind: "text" }, text],
  [{ name: "bytes", kind: "bytes" }, fc.uint8Array({ maxLength: 40 })],
];

async function stagedOf(fields: readonly LakeField[], batches: readonly ColumnBatch[]): Promise<StageFile> {
  const stage = await StageFile.create(engine, fields);
  for (const batch of batches) await stage.append(batch);
  await stage.finish();
  return stage;
}

async function roundTrip(fields: readonly LakeField[], batches: readonly ColumnBatch[]): Promise<unknown[][]> {
  const stage = await stagedOf(fields, batches);
  try {
    return await engine.use((s) => s.rows(`SELECT * FROM ${stage.sql}`));
  } finally {
    await stage.remove();
  }
}

describe("staged rows are read as they were", () => {
  test.each(KINDS.map(([field, values]) => [field.name, { ...field, id: 3 }, values] as const))(
    "%s",
    async (_, field, values) => {
      const arbitrary = fc.array(fc.option(values, { freq: 4, nil: null }), { minLength: 1, maxLength: 300 });
      await fc.assert(
        fc.asyncProperty(arbitrary, fc.boolean(), async (some, nulls) => {
          const kept = nulls ? some : some.filter((v) => v !== null);
          const batch = batchOf(
            [specOf(field)],
            kept.map((v) => [v]),
          );
          const got = await roundTrip([field], kept.length === 0 ? [] : [batch, batch]);
          expect(got.map((r) => r[0])).toEqual([...kept, ...kept]);
        }),
        { numRuns: 40 },
      );
    },
  );

  test("in types that are the lake's", async () => {
    const fields = KINDS.map(([field], i) => ({ ...field, id: i + 1 }));
    const batch = batchOf(fields.map(specOf), [fields.map(() => null)]);
    const stage = await stagedOf(fields, [batch]);
    const types = await engine.use((s) => s.rows(`SELECT column_name, column_type FROM (DESCRIBE FROM ${stage.sql})`));
    await stage.remove();
    const wanted = fields.map((f) => [f.name, storedDuckType(f).replaceAll(", ", ",")]);
    expect(types).toEqual(wanted);
  });

  test("over many row groups and batches, in order", async () => {
    const fields = KINDS.map(([field], i) => ({ ...field, id: i + 1 }));
    const rows = fc.sample(fc.tuple(...KINDS.map(([, v]) => fc.option(v, { freq: 9, nil: null }))), {
      numRuns: 3000,
      seed: 11,
    }) as unknown as PlainValue[][];
    const whole = batchOf(fields.map(specOf), rows);
    const batches = Array.from({ length: 50 }, () => whole);
    const stage = await stagedOf(fields, batches);
    const got = await engine.use((s) => s.rows(`SELECT * FROM ${stage.sql} WHERE file_row_number >= 147000`));
    const [counted] = await engine.use((s) =>
      s.rows(`SELECT count(*), count(DISTINCT row_group_id) FROM parquet_metadata('${stage.path}'), ${stage.sql}`),
    );
    await stage.remove();
    expect(got).toEqual(rows);
    expect(Number(counted?.[1])).toBe(2);
    expect(stage.rows).toBe(150_000);
  });

  test("NULLs whose places hold bytes", async () => {
    const field: LakeField = { id: 1, name: "s", kind: "text" };
    const column = columnOf(specOf(field), ["ab", "\u00e9", "cd", "ef"]);
    const batch = { length: 4, columns: [{ ...column, validity: Uint8Array.of(1, 0, 0, 1) }] };
    expect(await roundTrip([field], [batch])).toEqual([["ab"], [null], [null], ["ef"]]);
  });
});

describe("a stage", () => {
  const field: LakeField = { id: 1, name: "s", kind: "text" };

  test.each([
    ["bytes that are no text", [[0xff, 0x61]]],
    ["a character that is cut", [[0x61, 0xc3]]],
    ["a character that is cut in two values", [[0x61, 0xc3], [0xa9]]],
  ])("refuses %s", async (_, values) => {
    const stage = await StageFile.create(engine, [field]);
    const column = columnOf(
      specOf(field),
      values.map((v) => Uint8Array.from(v)),
    );
    const work = async (): Promise<void> => {
      await stage.append({ length: values.length, columns: [column] });
      await stage.finish();
    };
    await expect(work()).rejects.toMatchObject({ code: "engine_value_refused" });
    await stage.remove();
    expect(existsSync(stage.path)).toBe(false);
  });

  test("that is given up leaves no file", async () => {
    const stage = await StageFile.create(engine, [field]);
    await stage.append(batchOf([specOf(field)], [["x"]]));
    expect(existsSync(stage.path)).toBe(true);
    await stage.remove();
    expect(existsSync(stage.path)).toBe(false);
  });
});
