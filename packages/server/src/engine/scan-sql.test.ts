/** Files of several schema versions, with deletes, read as the current schema: compared with a model in plain values. */
import { mkdtempSync, rmSync, truncateSync, unlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { PositionSet } from "@spillway/lake/puffin/position-set";
import { FileStore } from "@spillway/lake/store/file";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Engine } from "./instance.ts";
import { writeDataFiles } from "./parquet-out.ts";
import { readDataFiles } from "./readback.ts";
import { DeleteTables, hiddenSql, scanSql, type ScanField, type ScanFile, type ScanOptions } from "./scan-sql.ts";
import { batchOf, rowsOf, type PlainValue } from "./test-batches.ts";
import { specOf, type LakeField } from "./types.ts";

let engine: Engine;
let root: string;
let tables: DeleteTables;

beforeAll(async () => {
  engine = await Engine.open({ memoryBytes: 512 << 20, threads: 2 });
  tables = new DeleteTables(engine);
  root = mkdtempSync(join(tmpdir(), "spillway-scan-"));
});
afterAll(() => {
  engine.close();
  rmSync(root, { recursive: true, force: true });
});

const ID: LakeField = { id: 1, name: "id", kind: "int64" };

async function file(
  fields: readonly LakeField[],
  rows: readonly (readonly PlainValue[])[],
  deleted: readonly number[] = [],
): Promise<ScanFile> {
  async function* batches(): AsyncIterable<ReturnType<typeof batchOf>> {
    yield batchOf(fields.map(specOf), rows);
  }
  const [written] = await writeDataFiles({
    engine,
    batches: batches(),
    fields,
    spec: { specId: 0, fields: [] },
    store: new FileStore({ root, fsync: false }),
    dataLocation: `file://${root}/data`,
    stageDir: root,
  });
  const { path, recordCount } = must(written, "file");
  return { path: path.slice("file://".length), rows: recordCount, deletes: new PositionSet(deleted) };
}

async function scan(
  files: readonly ScanFile[],
  fields: readonly ScanField[],
  options: ScanOptions = {},
): Promise<unknown[][]> {
  const lease = await tables.lease(files);
  try {
    return await engine.use((session) => session.rows(scanSql(files, fields, lease.table, options)));
  } finally {
    lease.release();
  }
}

describe("schema evolution", () => {
  test("renamed, added with and without default, dropped, widened", async () => {
    const old = await file(
      [
        ID,
        { id: 2, name: "was", kind: "int32" },
        { id: 3, name: "gone", kind: "text" },
        { id: 4, name: "f", kind: "float32" },
        { id: 5, name: "m", kind: "decimal", decimal: { precision: 6, scale: 2 } },
      ],
      [
        [1n, 7, "x", 1.5, 12345n],
        [2n, null, "y", null, null],
      ],
    );
    const now: ScanField[] = [
      ID,
      { id: 2, name: "is", kind: "int64" },
      { id: 4, name: "f", kind: "float64" },
      { id: 5, name: "m", kind: "decimal", decimal: { precision: 30, scale: 2 } },
      { id: 6, name: "was", kind: "text", initialDefault: "it's \\x" },
      { id: 7, name: "n", kind: "int32" },
      { id: 8, name: "t", kind: "timestamptz", initialDefault: "2020-01-02 03:04:05.000006+00" },
      { id: 9, name: "b", kind: "bytes", initialDefault: "\\x00\\xFF" },
      { id: 10, name: "u", kind: "uuid", initialDefault: "00000000-0000-0000-0000-0000000000ff" },
      { id: 11, name: "p", kind: "bool", initialDefault: "true" },
      { id: 12, name: "s", kind: "int16", initialDefault: "-3" },
      { id: 13, name: "d", kind: "date", initialDefault: "2020-01-02" },
      { id: 14, name: "e", kind: "text", initialDefault: "" },
    ];
    const fresh = await file(now, [
      [3n, 2n ** 40n, 0.25, 1n, "w", 5, 1n, new Uint8Array([1]), new Uint8Array(16), false, 9, 0, "z"],
    ]);
    const uuid = new Uint8Array(16);
    uuid[15] = 0xff;
    const defaults = ["it's \\x", null, 1577934245000006n, new Uint8Array([0, 255]), uuid, true, -3, 18263, ""];
    expect(await scan([old, fresh], now)).toEqual([
      [1n, 7n, 1.5, 12345n, ...defaults],
      [2n, null, null, null, ...defaults],
      [3n, 2n ** 40n, 0.25, 1n, "w", 5, 1n, new Uint8Array([1]), new Uint8Array(16), false, 9, 0, "z"],
    ]);
  });
});

describe("deletes", () => {
  test("any mixture of files and deletes, scanned, and read in order with positions", async () => {
    const shape = fc.array(fc.record({ rows: fc.integer({ min: 1, max: 60 }), deleted: fc.array(fc.nat(59)) }), {
      minLength: 1,
      maxLength: 5,
    });
    await fc.assert(
      fc.asyncProperty(shape, async (shapes) => {
        let next = 0n;
        const files: ScanFile[] = [];
        const expected: [bigint, bigint, bigint][] = [];
        for (const [f, s] of shapes.entries()) {
          const rows = Array.from({ length: s.rows }, () => [(next += 1n)]);
          const deleted = new Set(s.deleted.filter((d) => d < s.rows));
          files.push(await file([ID], rows, [...deleted]));
          rows.forEach((r, i) => !deleted.has(i) && expected.push([must(r[0], "id"), BigInt(f), BigInt(i)]));
        }
        const plain = await scan(files, [ID]);
        const ids = expected.map((e) => e[0]);
        expect(plain.map((r) => r[0] as bigint).toSorted((a, b) => Number(a - b))).toEqual(ids);
        expect(await rowsOf(readDataFiles({ engine, files, fields: [ID], withPosition: true }))).toEqual(expected);
        expect((await scan(files, [])).length).toBe(expected.length);
      }),
      { numRuns: 25 },
    );
  });

  test("order is kept over many row groups", async () => {
    const rows = Array.from({ length: 300_000 }, (_, i) => [BigInt(i)]);
    const one = await file([ID], rows, [5, 150_000]);
    const two = await file([ID], rows.slice(0, 10), []);
    const got = await rowsOf(readDataFiles({ engine, files: [one, two], fields: [ID], withPosition: true }));
    expect(got.length).toBe(300_008);
    expect(got.every((r, i) => i === 0 || r[1] !== got[i - 1]?.[1] || Number(r[2]) > Number(got[i - 1]?.[2]))).toBe(
      true,
    );
    expect(got.every((r) => r[0] === r[2])).toBe(true);
  });

  test("a condition is applied, and no file is no row", async () => {
    const one = await file([ID], [[1n], [2n], [3n], [4n]], [1]);
    expect(await scan([one], [ID], { where: "id >= 2" })).toEqual([[3n], [4n]]);
    expect(await scan([], [ID, { id: 2, name: "x", kind: "uuid" }])).toEqual([]);
  });

  test("leave no table behind after a read, and few after scans", async () => {
    const one = await file([ID], [[1n], [2n]], [1]);
    const count = async (): Promise<unknown> =>
      (await engine.use((s) => s.rows("SELECT count(*) FROM duckdb_tables()")))[0]?.[0];
    const before = await count();
    await rowsOf(readDataFiles({ engine, files: [one], fields: [ID] }));
    expect(await count()).toBe(before);
    await scan([one], [ID]);
    await scan([one], [ID]);
    expect(await count()).toBe((before as bigint) + 1n);
  });

  test("hidden rows are exactly those left out, kept once for a set of deletes, and told apart from another's", async () => {
    const rows = Array.from({ length: 50 }, (_, i) => [BigInt(i)]);
    const one = await file([ID], rows, [3, 4, 49]);
    const clean = await file([ID], rows);
    const hidden = async (files: readonly ScanFile[], where?: string): Promise<[unknown[], number, string]> => {
      const lease = await tables.lease(files);
      const table = await lease.hidden(
        hiddenSql(files, [ID], must(lease.table, "table"), where === undefined ? {} : { where }),
        1,
      );
      const found = await engine.use((s) => s.rows(`SELECT id FROM ${table} ORDER BY id`));
      lease.release();
      return [found.map((r) => r[0]), lease.leases, table];
    };
    const [ids, leases, table] = await hidden([one, clean]);
    expect([ids, leases]).toEqual([[3n, 4n, 49n], 1]);
    const again = await hidden([one, clean]);
    expect([again[1], again[2]]).toEqual([2, table]);
    expect((await hidden([one, clean], "id > 3"))[0]).toEqual([4n, 49n]);
    const other = { ...one, deletes: new PositionSet([3, 5]) };
    expect((await hidden([other, clean])).slice(0, 2)).toEqual([[3n, 5n], 1]);
  });
});

describe("broken files", () => {
  test("a missing one and a cut one are typed errors", async () => {
    const missing = await file([ID], [[1n]]);
    unlinkSync(missing.path);
    await expect(scan([missing], [ID])).rejects.toMatchObject({ code: "engine_file_missing" });
    const good = await file([ID], [[1n]]);
    await expect(scan([good, missing], [ID])).rejects.toMatchObject({ code: "engine_file_missing" });
    const cut = await file(
      [ID],
      Array.from({ length: 1000 }, (_, i) => [BigInt(i)]),
    );
    truncateSync(cut.path, 200);
    await expect(scan([cut], [ID])).rejects.toMatchObject({ code: "engine_file_corrupt" });
  });
});

test("bytes are compared as bytes, also in files with bloom filters of others, and ours have none on them", async () => {
  const fields: ScanField[] = [ID, { id: 2, name: "b", kind: "bytes" }];
  const path = join(root, "bloom.parquet");
  const values = ["\\x00\\xFF\\x41", "\\xDE\\xAD\\xBE\\xEF", "abc"];
  await engine.use((s) =>
    s.run(`COPY (SELECT i AS id, ([${values.map((v) => `'${v}'::BLOB`).join(", ")}])[1 + i % 3] AS b FROM range(30) r (i))
      TO '${path}' (FORMAT parquet, DICTIONARY_SIZE_LIMIT 4096, FIELD_IDS {id: 1, b: 2})`),
  );
  const own = await file(
    [ID, { id: 2, name: "b", kind: "bytes" }],
    Array.from({ length: 30 }, (_, i) => [BigInt(i), new Uint8Array([0, 255, 65 + (i % 2)])]),
  );
  const count = async (files: readonly ScanFile[], tail: string): Promise<unknown> =>
    engine.use(async (s) => (await s.rows(`SELECT count(*) FROM (${scanSql(files, fields, null)}) t ${tail}`))[0]?.[0]);
  for (const value of values) {
    const files = [{ path, rows: 30n }];
    expect(await count(files, `WHERE b = '${value}'::BLOB`), value).toBe(10n);
    expect(await count(files, `SEMI JOIN (SELECT '${value}'::BLOB AS b) k ON t.b = k.b`), value).toBe(10n);
  }
  expect(await count([own], "WHERE b = '\\x00\\xFF\\x41'::BLOB")).toBe(15n);
  const plain = `SELECT count(*) FROM read_parquet('${own.path}') WHERE b = '\\x00\\xFF\\x41'::BLOB`;
  expect(await engine.use(async (s) => (await s.rows(plain))[0]?.[0])).toBe(15n);
});
