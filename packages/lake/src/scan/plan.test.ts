/** Which deletes apply, what is cached, what is refused. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { applyUpdates } from "../commit.ts";
import { writeDeletionVectors, writePositionDeletes } from "../deletes/deletes.ts";
import { createTableMetadata } from "../metadata.ts";
import type { DataFile, FormatVersion, ManifestEntry, PartitionSpec, TableMetadata } from "../model.ts";
import { PositionSet } from "../puffin/position-set.ts";
import { partitionKey } from "../snapshot/removals.ts";
import { stageSnapshot, type StageRequest } from "../snapshot/stage.ts";
import { FileStore } from "../store/file.ts";
import { DeleteIndex } from "./delete-index.ts";
import { factsOfSummary, partitionColumns } from "./facts.ts";
import { ManifestCache } from "./manifest-cache.ts";
import { planScan, snapshotIdOfRef } from "./scan.ts";

const base = mkdtempSync(join(tmpdir(), "spillway-plan-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));
const store = new FileStore({ root: base, fsync: false });
let tables = 0;

const FIELDS = [
  { id: 1, name: "k", required: true, type: { kind: "long" } },
  { id: 2, name: "v", required: false, type: { kind: "double" } },
] as const;
const BY_KEY: PartitionSpec = {
  specId: 0,
  fields: [{ fieldId: 1000, sourceId: 1, name: "k", transform: { kind: "identity" } }],
};

function newTable(formatVersion: FormatVersion, spec: PartitionSpec = BY_KEY): TableMetadata {
  const location = `${store.root}/t${tables++}`;
  const schema = { schemaId: 0, fields: FIELDS };
  return createTableMetadata({ tableUuid: crypto.randomUUID(), location, schema, spec, formatVersion, nowMs: 1 });
}

function dataFile(metadata: TableMetadata, name: string, key: bigint): DataFile {
  return {
    content: "data",
    path: `${metadata.location}/data/${name}.parquet`,
    format: "parquet",
    specId: 0,
    partition: [key],
    recordCount: 100n,
    fileSizeBytes: 1000n,
  };
}

let nextSnapshot = 1n;
async function commit(metadata: TableMetadata, change: Partial<StageRequest>): Promise<TableMetadata> {
  const operation = change.addDeleteFiles || change.removeDataFiles ? "overwrite" : "append";
  const staged = await stageSnapshot({ metadata, store, operation, snapshotId: nextSnapshot++, nowMs: 1, ...change });
  return applyUpdates(metadata, staged.updates, 2);
}

const names = (files: readonly DataFile[]): string[] => files.map((f) => f.path.replace(/.*\//, "")).toSorted();

describe("deletes", () => {
  test("v2: position deletes hit files of the same or an earlier commit, not later ones", async () => {
    let metadata = newTable(2);
    const [a, b] = [dataFile(metadata, "a", 1n), dataFile(metadata, "b", 1n)];
    const folder = `${metadata.location}/data`;
    const deletes = await writePositionDeletes(store, folder, [
      { dataFile: a, positions: new PositionSet([1]) },
      { dataFile: b, positions: new PositionSet([2]) },
    ]);
    metadata = await commit(metadata, { addDataFiles: [a], addDeleteFiles: deletes });
    metadata = await commit(metadata, { addDataFiles: [b] });
    const { tasks, stats } = await planScan({ store, metadata });
    const byName = new Map(tasks.map((task) => [task.dataFile.path, task.deletes]));
    expect(byName.get(a.path)?.map((f) => f.path)).toEqual([deletes[0]?.path]);
    expect(byName.get(b.path)).toEqual([]);
    expect(stats).toMatchObject({ deleteManifests: 1, deleteFiles: 1 });
  });

  test("v3: a deletion vector comes by its reference, an older snapshot keeps the older one", async () => {
    let metadata = newTable(3);
    const [a, b] = [dataFile(metadata, "a", 1n), dataFile(metadata, "b", 2n)];
    metadata = await commit(metadata, { addDataFiles: [a, b] });
    const write = (dataFile: DataFile, list: number[]): Promise<DataFile[]> =>
      writeDeletionVectors(store, `${metadata.location}/data`, [{ dataFile, positions: new PositionSet(list) }]);
    const first = await write(a, [1]);
    metadata = await commit(metadata, { addDeleteFiles: first });
    const older = metadata.currentSnapshotId;
    const second = await write(a, [1, 2]);
    metadata = await commit(metadata, { addDeleteFiles: second, removeDeleteFiles: first });
    const plan = await planScan({ store, metadata });
    expect(plan.tasks.map((task) => names(task.deletes))).toEqual([names(second), []]);
    expect(plan.tasks[0]?.deletes[0]).toMatchObject({ recordCount: 2n, contentOffset: 4n, partition: [1n] });
    expect(plan.tasks.map((task) => task.dataFile.firstRowId)).toEqual([0n, 100n]);
    const before = await planScan({ store, metadata, ...(older === undefined ? {} : { snapshotId: older }) });
    expect(before.tasks.map((task) => names(task.deletes))).toEqual([names(first), []]);
    // The other partition's deletes are not even read.
    const pruned = await planScan({ store, metadata, filter: { op: "=", fieldId: 1, value: 2n } });
    expect(pruned.stats.deleteManifests).toBe(0);
    expect(names(pruned.tasks.map((task) => task.dataFile))).toEqual(["b.parquet"]);
  });

  const entry = (file: DataFile, sequenceNumber: bigint): ManifestEntry => ({
    status: "added",
    snapshotId: 1n,
    sequenceNumber,
    fileSequenceNumber: sequenceNumber,
    dataFile: file,
  });

  test("position deletes without a reference go by partition and bounds", () => {
    const metadata = newTable(2);
    const [a, b, elsewhere] = [dataFile(metadata, "a", 1n), dataFile(metadata, "b", 1n), dataFile(metadata, "c", 2n)];
    const loose: DataFile = { ...dataFile(metadata, "deletes", 1n), content: "position-deletes" };
    const bounds = new Map([[2147483546, new TextEncoder().encode(b.path)]]);
    const onlyB: DataFile = { ...loose, path: `${loose.path}-b`, lowerBounds: bounds, upperBounds: bounds };
    const index = new DeleteIndex([entry(loose, 5n), entry(onlyB, 5n)], metadata.partitionSpecs);
    const of = (file: DataFile, seq: bigint): string[] =>
      index.deletesOf(file, seq, partitionKey(file)).map((f) => f.path);
    expect(of(a, 5n)).toEqual([loose.path]);
    expect(of(b, 5n)).toEqual([loose.path, onlyB.path]);
    expect(of(b, 6n)).toEqual([]);
    expect(of(elsewhere, 5n)).toEqual([]);
  });

  test("equality deletes are refused exactly where they apply", () => {
    const metadata = newTable(2);
    const file = dataFile(metadata, "a", 1n);
    const equality: DataFile = { ...dataFile(metadata, "eq", 1n), content: "equality-deletes", equalityIds: [1] };
    const refused = expect.objectContaining({ code: "equality_deletes_unsupported" });
    const index = new DeleteIndex([entry(equality, 5n)], metadata.partitionSpecs);
    expect(() => index.deletesOf(file, 4n, partitionKey(file))).toThrow(refused);
    expect(index.deletesOf(file, 5n, partitionKey(file))).toEqual([]);
    const other = dataFile(metadata, "b", 2n);
    expect(index.deletesOf(other, 4n, partitionKey(other))).toEqual([]);
    const global = new DeleteIndex(
      [entry({ ...equality, specId: 1, partition: [] }, 5n)],
      [BY_KEY, { specId: 1, fields: [] }],
    );
    expect(() => global.deletesOf(other, 4n, partitionKey(other))).toThrow(refused);
  });

  test("two deletion vectors for one file are corruption, not a choice", () => {
    const metadata = newTable(3);
    const file = dataFile(metadata, "a", 1n);
    const vector: DataFile = { ...file, content: "position-deletes", format: "puffin", referencedDataFile: file.path };
    expect(() => new DeleteIndex([entry(vector, 1n), entry(vector, 2n)], metadata.partitionSpecs)).toThrow(
      expect.objectContaining({ code: "puffin_invalid" }),
    );
  });
});

describe("the rest of a plan", () => {
  test("a table without a snapshot has no tasks; unknown snapshots and refs are refused", async () => {
    const metadata = newTable(3);
    expect((await planScan({ store, metadata })).tasks).toEqual([]);
    const unknown = { code: "lake_snapshot_unknown" };
    await expect(planScan({ store, metadata, snapshotId: 2n ** 60n })).rejects.toMatchObject(unknown);
    expect(() => snapshotIdOfRef(metadata, "nope")).toThrow(expect.objectContaining(unknown));
  });

  test("filters that do not fit are refused", async () => {
    const metadata = newTable(3);
    const invalid = { code: "lake_expression_invalid" };
    for (const filter of [
      { op: "=", fieldId: 99, value: 1n },
      { op: "=", fieldId: 1, value: "text" },
      { op: "=", fieldId: 2, value: 1n },
      { op: "starts-with", fieldId: 1, value: "x" },
    ] as const) {
      await expect(planScan({ store, metadata, filter })).rejects.toMatchObject(invalid);
    }
  });

  test("manifests are read once; skipped ones never; the cache stays within its bound", async () => {
    let metadata = newTable(3);
    for (let key = 0n; key < 4n; key++) {
      metadata = await commit(metadata, { addDataFiles: [dataFile(metadata, `f${key}`, key)] });
    }
    const reads: string[] = [];
    const counting = Object.assign(Object.create(store) as FileStore, {
      get: (path: string) => {
        reads.push(path);
        return store.get(path);
      },
    });
    const cache = new ManifestCache();
    const filter = { op: "in", fieldId: 1, values: [1n, 2n] } as const;
    const plan = await planScan({ store: counting, metadata, filter, cache });
    expect(plan.stats).toEqual({
      manifestsConsidered: 4,
      manifestsSkipped: 2,
      filesConsidered: 4,
      filesSkipped: 2,
      rowsConsidered: 400,
      rowsSkipped: 200,
      bytesConsidered: 2000,
      bytesSkipped: 0,
      deleteManifests: 0,
      deleteFiles: 0,
    });
    expect(plan.tasks.every((task) => task.residual.op === "true")).toBe(true);
    expect(reads).toHaveLength(3);
    await planScan({ store: counting, metadata, filter, cache });
    expect(reads).toHaveLength(3);
    const small = new ManifestCache(2500);
    for (let i = 0; i < 3; i++) await planScan({ store, metadata, cache: small });
    expect(small.stats.bytes).toBeLessThanOrEqual(2500);
  });

  test("a manifest that cannot be read is read again the next time", async () => {
    let metadata = newTable(3);
    metadata = await commit(metadata, { addDataFiles: [dataFile(metadata, "a", 1n)] });
    const cache = new ManifestCache();
    const path = metadata.snapshots[0]?.manifestList ?? "";
    const bytes = await store.get(path);
    await store.delete([path]);
    await expect(planScan({ store, metadata, cache })).rejects.toMatchObject({ code: "store_not_found" });
    await store.put(path, bytes.subarray(0, bytes.length - 5));
    await expect(planScan({ store, metadata, cache })).rejects.toMatchObject({ code: "lake_file_corrupt" });
    await store.put(path, bytes);
    expect((await planScan({ store, metadata, cache })).tasks).toHaveLength(1);
  });

  test("a summary that does not deny NaN may hold NaN", () => {
    const spec: PartitionSpec = {
      specId: 0,
      fields: [{ fieldId: 1000, sourceId: 2, name: "v", transform: { kind: "identity" } }],
    };
    const column = partitionColumns(spec, [{ schemaId: 0, fields: FIELDS }]).get(2)?.[0];
    if (!column) throw new Error("a column");
    expect(factsOfSummary(column, { containsNull: false }).mayNan).toBe(true);
    expect(factsOfSummary(column, { containsNull: false, containsNan: false })).toMatchObject({
      mayNan: false,
      mayValue: false,
    });
  });
});
