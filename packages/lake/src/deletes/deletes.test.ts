import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { parquetMetadata } from "hyparquet";
import { parquetWriteBuffer } from "hyparquet-writer";
import { afterAll, describe, expect, test } from "vitest";
import type { DataFile } from "../model.ts";
import { PositionSet } from "../puffin/position-set.ts";
import { FileStore } from "../store/file.ts";
import {
  checkDeletionVector,
  DeleteLoader,
  mayConcern,
  mergeDeletes,
  writeDeletionVectors,
  writePositionDeletes,
} from "./deletes.ts";

const base = mkdtempSync(join(tmpdir(), "spillway-deletes-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));
const store = new FileStore({ root: base, fsync: false });
const folder = `${store.root}/t/data`;

function dataFile(name: string, partition: DataFile["partition"] = []): DataFile {
  return {
    content: "data",
    path: `${folder}/${name}.parquet`,
    format: "parquet",
    specId: 3,
    partition,
    recordCount: 1_000_000n,
    fileSizeBytes: 1n,
  };
}
const listed = (sets: ReadonlyMap<string, PositionSet>): Record<string, number[]> =>
  Object.fromEntries([...sets].map(([path, set]) => [path, [...set]]));

describe.each([
  ["deletion vectors", writeDeletionVectors],
  ["position delete files", writePositionDeletes],
])("%s", (_, write) => {
  test("what was written is loaded", async () => {
    const positions = fc.uniqueArray(fc.nat({ max: 300_000 }), { maxLength: 40 });
    await fc.assert(
      fc.asyncProperty(fc.array(positions, { maxLength: 4 }), async (lists) => {
        const deletes = lists.map((list, i) => ({
          dataFile: dataFile(`f${i}`, [i]),
          positions: new PositionSet(list),
        }));
        const files = await write(store, folder, deletes);
        const real = deletes.filter((d) => !d.positions.isEmpty);
        expect(files.map((f) => [f.referencedDataFile, f.partition, f.specId, f.recordCount])).toEqual(
          real.map((d) => [d.dataFile.path, d.dataFile.partition, 3, BigInt(d.positions.cardinality)]),
        );
        const loader = new DeleteLoader(store);
        const expected = Object.fromEntries(real.map((d) => [d.dataFile.path, [...d.positions]]));
        expect(listed(await loader.load(files))).toEqual(expected);
        expect(listed(await loader.load(files))).toEqual(expected);
      }),
      { numRuns: 25 },
    );
  });

  test("only wanted files are given", async () => {
    const files = await write(
      store,
      folder,
      ["a", "b"].map((name) => ({ dataFile: dataFile(name), positions: new PositionSet([7]) })),
    );
    const wanted = new Set([dataFile("b").path]);
    expect([...(await new DeleteLoader(store).load(files, wanted)).keys()]).toEqual([dataFile("b").path]);
  });
});

describe("deletion vectors only", () => {
  test("entries agree with the footer", async () => {
    const [a, b] = await writeDeletionVectors(store, folder, [
      { dataFile: dataFile("a"), positions: new PositionSet([1, 2, 3]) },
      { dataFile: dataFile("b"), positions: new PositionSet([4]) },
    ]);
    if (!a || !b) throw new Error("two vectors");
    expect(a.path).toBe(b.path);
    await checkDeletionVector(store, a);
    await checkDeletionVector(store, b);
    const invalid = { code: "puffin_invalid" };
    await expect(checkDeletionVector(store, { ...a, recordCount: 4n })).rejects.toMatchObject(invalid);
    await expect(checkDeletionVector(store, { ...a, contentSizeInBytes: 1n })).rejects.toMatchObject(invalid);
    const wrongPlace = { ...a, contentOffset: (a.contentOffset ?? 0n) + 1n };
    await expect(new DeleteLoader(store).load([wrongPlace])).rejects.toMatchObject(invalid);
    await expect(new DeleteLoader(store).load([{ ...a, recordCount: 9n }])).rejects.toMatchObject(invalid);
  });
});

describe("position delete files only", () => {
  test("field ids, whole bounds, sorted rows over several row groups", async () => {
    const positions = new PositionSet();
    positions.addRange(0, 250_000);
    const long = dataFile("x".repeat(120));
    const [file] = await writePositionDeletes(store, folder, [{ dataFile: long, positions }]);
    if (!file) throw new Error("one file");
    const bytes = await store.get(file.path);
    const metadata = parquetMetadata(
      bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length) as ArrayBuffer,
    );
    expect(metadata.schema.map((e) => [e.name, e.field_id, e.repetition_type])).toEqual([
      ["table", undefined, undefined],
      ["file_path", 2147483546, "REQUIRED"],
      ["pos", 2147483545, "REQUIRED"],
    ]);
    expect(metadata.row_groups.length).toBeGreaterThan(1);
    expect(metadata.row_groups[0]?.columns[0]?.meta_data?.statistics?.min_value).toBe(long.path);
    const bound = file.upperBounds?.get(2147483546);
    expect(new TextDecoder().decode(bound)).toBe(long.path);
    expect(file.lowerBounds?.get(2147483545)).toEqual(new Uint8Array(8));
    expect((await new DeleteLoader(store).load([file])).get(long.path)?.cardinality).toBe(250_000);
    expect(bytes.length).toBeLessThan(2_500_000);
  });

  test("foreign files: several data files in one, duplicates, without field ids", async () => {
    const rows: [string, bigint][] = [
      ["b", 5n],
      ["a", 9n],
      ["b", 2n],
      ["a", 9n],
    ];
    const bytes = new Uint8Array(
      parquetWriteBuffer({
        columnData: [
          { name: "file_path", data: rows.map(([path]) => path), type: "STRING" },
          { name: "pos", data: rows.map(([, pos]) => pos), type: "INT64" },
        ],
      }),
    );
    const path = `${folder}/foreign.parquet`;
    await store.put(path, bytes);
    const file: DataFile = { ...dataFile("x"), content: "position-deletes", path, fileSizeBytes: BigInt(bytes.length) };
    expect(listed(await new DeleteLoader(store).load([file]))).toEqual({ a: [9], b: [2, 5] });
    await store.put(path, bytes.subarray(0, bytes.length - 9));
    const cut = { ...file, fileSizeBytes: BigInt(bytes.length - 9) };
    await expect(new DeleteLoader(store).load([cut])).rejects.toMatchObject({ code: "deletes_invalid" });
  });

  test("which data files one may concern", async () => {
    const [file] = await writePositionDeletes(store, folder, [
      { dataFile: dataFile("m"), positions: new PositionSet([1]) },
    ]);
    if (!file) throw new Error("one file");
    const { referencedDataFile: _, ...byBounds } = file;
    for (const one of [file, byBounds]) {
      expect(mayConcern(one, dataFile("m").path)).toBe(true);
      expect(mayConcern(one, dataFile("l").path)).toBe(false);
      expect(mayConcern(one, dataFile("n").path)).toBe(false);
    }
    const { lowerBounds: _l, upperBounds: _u, ...unbounded } = byBounds;
    expect(mayConcern(unbounded, "anything")).toBe(true);
  });

  test("equality deletes are refused by name", async () => {
    const file: DataFile = { ...dataFile("eq"), content: "equality-deletes" };
    await expect(new DeleteLoader(store).load([file])).rejects.toMatchObject({ code: "equality_deletes_unsupported" });
  });
});

test("merging is the union, and changes nothing that it was given", () => {
  const old = new Map([
    ["a", new PositionSet([1])],
    ["b", new PositionSet([2])],
  ]);
  const added = new Map([
    ["b", new PositionSet([3])],
    ["c", new PositionSet([4])],
  ]);
  const merged = mergeDeletes(old, added);
  for (const set of merged.values()) set.add(99);
  expect(listed(merged)).toEqual({ a: [1, 99], b: [2, 3, 99], c: [4, 99] });
  expect(listed(old)).toEqual({ a: [1], b: [2] });
  expect(listed(added)).toEqual({ b: [3], c: [4] });
});

test("the loader's cache is bounded, and a failed load is tried again", async () => {
  const files = await writeDeletionVectors(
    store,
    folder,
    Array.from({ length: 20 }, (_, i) => ({ dataFile: dataFile(`c${i}`), positions: new PositionSet([i]) })),
  );
  const loader = new DeleteLoader(store, 2000);
  await loader.load(files);
  expect(loader.cachedBytes).toBeLessThanOrEqual(2000);
  const [first] = files;
  if (!first) throw new Error("a file");
  const bytes = await store.get(first.path);
  await store.delete([first.path]);
  const fresh = new DeleteLoader(store);
  await expect(fresh.load([first])).rejects.toMatchObject({ code: "store_not_found" });
  await store.put(first.path, bytes);
  expect((await fresh.load([first])).size).toBe(1);
});

test("vectors that lie together are fetched by one request, far ones apart", async () => {
  const wide = new PositionSet(Array.from({ length: 60_000 }, (_, i) => i * 2));
  const sets = [
    new PositionSet([1]),
    new PositionSet([2]),
    wide.union(new PositionSet([2 ** 33])),
    new PositionSet([3]),
  ];
  for (let block = 0; block < 20; block++)
    sets[2]?.addAll(Array.from({ length: 5000 }, (_, i) => block * 65536 + i * 13));
  const files = await writeDeletionVectors(
    store,
    folder,
    sets.map((positions, i) => ({ dataFile: dataFile(`r${i}`), positions })),
  );
  const reads: number[] = [];
  const counting = Object.assign(Object.create(store) as FileStore, {
    getRange: (path: string, offset: number, length: number) => {
      reads.push(length);
      return store.getRange(path, offset, length);
    },
  });
  const small = await new DeleteLoader(counting).load(files.filter((_, i) => i !== 2));
  expect(listed(small)).toEqual(
    Object.fromEntries([0, 1, 3].map((i) => [dataFile(`r${i}`).path, [...(sets[i] ?? [])]])),
  );
  expect(reads).toHaveLength(2);
  const all = await new DeleteLoader(counting).load(files);
  expect([...all.values()].map((set) => set.cardinality)).toEqual(sets.map((set) => set.cardinality));
  expect(reads).toHaveLength(3);
});
