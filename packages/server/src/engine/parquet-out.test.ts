/** Files are written from batches and read back by DuckDB as anybody would; metrics are checked against the rows. */
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import type { ColumnBatch } from "@spillway/base/columns";
import type { DataFile, PartitionSpec, PrimitiveValue, Transform } from "@spillway/lake/model";
import { FileStore } from "@spillway/lake/store/file";
import type { ObjectStore } from "@spillway/lake/store/store";
import { applyTransform } from "@spillway/lake/transforms";
import { compareValues, decodeValue } from "@spillway/lake/values";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Engine } from "./instance.ts";
import { writeDataFiles, type WriteOptions } from "./parquet-out.ts";
import { duckList } from "./quote.ts";
import { batchOf, type PlainValue } from "./test-batches.ts";
import { icebergType, specOf, type LakeField } from "./types.ts";

let engine: Engine;
let root: string;
let store: FileStore;

beforeAll(async () => {
  engine = await Engine.open({ memoryBytes: 512 << 20, threads: 2 });
  root = mkdtempSync(join(tmpdir(), "spillway-out-"));
  store = new FileStore({ root, fsync: false });
});
afterAll(() => {
  engine.close();
  rmSync(root, { recursive: true, force: true });
});

const FIELDS: readonly LakeField[] = [
  { id: 1, name: "id", kind: "int64" },
  { id: 4, name: 'odd "name"', kind: "text" },
  { id: 7, name: "At", kind: "timestamptz" },
  { id: 9, name: "day", kind: "date" },
  { id: 12, name: "f", kind: "float64" },
  { id: 13, name: "g", kind: "float32" },
  { id: 14, name: "d", kind: "decimal", decimal: { precision: 20, scale: 3 } },
  { id: 15, name: "b", kind: "bytes" },
  { id: 16, name: "u", kind: "uuid" },
  { id: 17, name: "s", kind: "int16" },
  { id: 18, name: "t", kind: "bool" },
];
const NONE: PartitionSpec = { specId: 0, fields: [] };

const row = fc.tuple(
  fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
  fc.option(
    fc.oneof(
      fc.string({ unit: "grapheme", maxLength: 30 }),
      fc.constant("é".repeat(200)),
      fc.constant("\u{10FFFF}".repeat(20)),
    ),
  ),
  fc.bigInt({ min: -60_000_000_000_000_000n, max: 250_000_000_000_000_000n }),
  fc.option(fc.integer({ min: -700_000, max: 2_900_000 })),
  fc.option(fc.oneof(fc.double(), fc.constantFrom(0, -0, Number.NaN, Infinity))),
  fc.option(fc.oneof(fc.float(), fc.constantFrom(-0, Number.NaN))),
  fc.option(fc.bigInt({ min: -(10n ** 20n) + 1n, max: 10n ** 20n - 1n })),
  fc.option(fc.uint8Array({ maxLength: 300 })),
  fc.option(fc.uint8Array({ minLength: 16, maxLength: 16 })),
  fc.option(fc.integer({ min: -32768, max: 32767 })),
  fc.option(fc.boolean()),
);
type Row = readonly PlainValue[];

async function* batches(rows: readonly Row[], size = 700): AsyncIterable<ColumnBatch> {
  for (let i = 0; i < rows.length; i += size) yield batchOf(FIELDS.map(specOf), rows.slice(i, i + size));
}

async function write(rows: readonly Row[], more: Partial<WriteOptions> = {}): Promise<DataFile[]> {
  const location = `file://${root}/${engine.freshName("t")}/data`;
  return writeDataFiles({
    engine,
    batches: batches(rows),
    fields: FIELDS,
    spec: NONE,
    store,
    dataLocation: location,
    stageDir: join(root, "stage"),
    ...more,
  });
}

function clean(text: readonly Row[]): Row[] {
  return text.map((r) => r.map((v) => (typeof v === "string" ? Buffer.from(v.replaceAll("\0", "x")).toString() : v)));
}

function sample(count: number, seed: number): Row[] {
  return clean(fc.sample(row, { numRuns: count, seed }));
}

async function readBack(files: readonly DataFile[]): Promise<unknown[][]> {
  const list = duckList(files.map((f) => f.path.slice("file://".length)));
  return engine.use((session) =>
    session.rows(`SELECT * FROM read_parquet(${list}) ORDER BY file_index, file_row_number`),
  );
}

function key(values: readonly unknown[]): string {
  return values
    .map((v) => (v instanceof Uint8Array ? Buffer.from(v).toString("hex") : Object.is(v, -0) ? "-0" : String(v)))
    .join("|");
}

/** The metrics of a file against its own rows, read back. */
async function checkMetrics(file: DataFile): Promise<void> {
  const rows = await readBack([file]);
  expect(file.recordCount).toBe(BigInt(rows.length));
  FIELDS.forEach((field, c) => {
    const type = icebergType(field);
    const values = rows.map((r) => r[c] as PrimitiveValue | null);
    const present = values.filter((v): v is PrimitiveValue => v !== null);
    expect(file.valueCounts?.get(field.id)).toBe(BigInt(values.length));
    expect(file.nullValueCounts?.get(field.id)).toBe(BigInt(values.length - present.length));
    if (field.kind.startsWith("float")) {
      expect(file.nanValueCounts?.get(field.id)).toBe(BigInt(present.filter((v) => Number.isNaN(v)).length));
    }
    const lower = file.lowerBounds?.get(field.id);
    const upper = file.upperBounds?.get(field.id);
    const real = present.filter((v) => !Number.isNaN(v));
    if (field.kind !== "text" && field.kind !== "bytes" && real.length > 0) expect(lower && upper).toBeTruthy();
    for (const value of real) {
      if (lower) expect(compareValues(type, decodeValue(type, lower), value)).toBeLessThanOrEqual(0);
      if (upper) expect(compareValues(type, decodeValue(type, upper), value)).toBeGreaterThanOrEqual(0);
    }
  });
}

describe("data files", () => {
  test("hold exactly the rows, with true metrics, whatever the rows are", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(row, { minLength: 1, maxLength: 40 }), async (raw) => {
        const rows = clean(raw);
        const files = await write(rows);
        expect(files.length).toBe(1);
        expect((await readBack(files)).map(key)).toEqual(rows.map(key));
        for (const file of files) await checkMetrics(file);
      }),
      { numRuns: 40 },
    );
  });

  test("end at the row limit, in order, and are announced before they exist", async () => {
    const rows = sample(5000, 1);
    const announced: string[] = [];
    const onFile = async (location: string): Promise<void> => {
      expect(existsSync(location.slice("file://".length))).toBe(false);
      announced.push(location);
    };
    const files = await write(rows, { fileRows: 1400, onFile });
    expect(files.map((f) => f.recordCount)).toEqual([1400n, 1400n, 1400n, 800n]);
    expect(announced).toEqual(files.map((f) => f.path));
    expect((await readBack(files)).map(key)).toEqual(rows.map(key));
  });

  test("carry field ids, zstd and 32-bit ints for int16", async () => {
    const [file] = await write(sample(10, 2));
    const path = must(file, "file").path.slice("file://".length);
    const schema = await engine.use((s) =>
      s.rows(`SELECT name, field_id, type FROM parquet_schema('${path}') WHERE field_id IS NOT NULL`),
    );
    expect(schema.map((r) => [r[0], r[1]])).toEqual(FIELDS.map((f) => [f.name, BigInt(f.id)]));
    expect(schema.find((r) => r[0] === "s")?.[2]).toBe("INT32");
    const codecs = await engine.use((s) => s.rows(`SELECT DISTINCT compression FROM parquet_metadata('${path}')`));
    expect(codecs).toEqual([["ZSTD"]]);
  });

  const transforms: readonly (readonly [string, Transform, number])[] = [
    ["hour", { kind: "hour" }, 7],
    ["day", { kind: "day" }, 7],
    ["month", { kind: "month" }, 7],
    ["year", { kind: "year" }, 7],
    ["day of a date", { kind: "day" }, 9],
    ["month of a date", { kind: "month" }, 9],
    ["year of a date", { kind: "year" }, 9],
    ["truncate", { kind: "truncate", width: 1000 }, 17],
    ["truncate of a long", { kind: "truncate", width: 10 ** 9 }, 1],
  ];
  test.each(transforms)("are partitioned by %s as the spec says, and lose no row", async (_, transform, sourceId) => {
    // The multiple below the smallest long is no long; Iceberg leaves that case open.
    const bounded = sample(300, 3).map((r) => [(r[0] as bigint) / 2n, ...r.slice(1)]);
    const rows = bounded.map((r, i) =>
      r.map((v, c) => (c === 2 && i % 3 > 0 ? 1_700_000_000_000_000n + BigInt(i) * 1_800_000_000n : v)),
    );
    const spec: PartitionSpec = { specId: 3, fields: [{ fieldId: 1000, sourceId, name: "p", transform }] };
    const files = await write(rows, { spec });
    const column = FIELDS.findIndex((f) => f.id === sourceId);
    const type = icebergType(must(FIELDS[column], "field"));
    for (const file of files) {
      expect(file.specId).toBe(3);
      const values = (await readBack([file])).map((r) =>
        applyTransform(transform, type, r[column] as PrimitiveValue | null),
      );
      expect(new Set(values)).toEqual(new Set(file.partition));
    }
    expect(new Set(files.map((f) => f.partition[0])).size).toBe(files.length);
    expect((await readBack(files)).map(key).toSorted()).toEqual(rows.map(key).toSorted());
  });

  test("of an empty source are none", async () => {
    expect(await write([])).toEqual([]);
  });
});

describe("a failure leaves nothing behind", () => {
  function leftovers(): string[] {
    return readdirSync(root, { recursive: true, withFileTypes: true })
      .filter((e) => e.isFile())
      .map((e) => join(e.parentPath, e.name));
  }

  test("when the source fails after some files were written", async () => {
    const before = leftovers();
    async function* failing(): AsyncIterable<ColumnBatch> {
      yield* batches(sample(3000, 4));
      throw new Error("the source broke");
    }
    await expect(write([], { batches: failing(), fileRows: 700 })).rejects.toThrow("the source broke");
    expect(leftovers()).toEqual(before);
    expect(await engine.use((s) => s.rows("SELECT count(*) FROM duckdb_tables()"))).toEqual([[0n]]);
  });

  test("when the store refuses, and when the journal does", async () => {
    const before = leftovers();
    const refusing = {
      root: store.root,
      put: async () => Promise.reject(new Error("the store refused")),
      delete: async () => {},
      sweepTemporary: async () => 0,
    } as unknown as ObjectStore;
    await expect(write(sample(50, 5), { store: refusing })).rejects.toThrow("the store refused");
    const onFile = async (): Promise<void> => Promise.reject(new Error("the journal refused"));
    await expect(write(sample(50, 6), { onFile })).rejects.toThrow("the journal refused");
    expect(leftovers()).toEqual(before);
  });

  test("when the caller gives up", async () => {
    const before = leftovers();
    const stop = new AbortController();
    async function* slow(): AsyncIterable<ColumnBatch> {
      yield* batches(sample(1500, 7));
      stop.abort();
      yield* batches(sample(1500, 8));
    }
    await expect(write([], { batches: slow(), fileRows: 700, signal: stop.signal })).rejects.toMatchObject({
      code: "engine_interrupted",
    });
    expect(leftovers()).toEqual(before);
  });
});
