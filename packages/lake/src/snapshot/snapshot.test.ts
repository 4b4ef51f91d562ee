/**
 * Snapshots against a model: whatever the sequence of operations, the manifests say exactly what a
 * plain map of live files says, and expiry leaves neither a missing file nor garbage.
 */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { notFound, type ObjectStore } from "../store/store.ts";
import { applyUpdates, checkRequirements } from "../commit.ts";
import { createTableMetadata, currentSnapshot, parseMetadata, printMetadata } from "../metadata.ts";
import type { DataFile, FormatVersion, ManifestEntry, Snapshot, TableMetadata } from "../model.ts";
import { changedFiles } from "./diff.ts";
import { stageExpire, unreferencedFiles } from "./expire.ts";
import { fileKey } from "./removals.ts";
import { storeSource } from "./source.ts";
import { type StageRequest, stageSnapshot } from "./stage.ts";

/** Objects in a map; the real stores have their own tests. */
class MemoryStore implements ObjectStore {
  readonly root = "file:///lake";
  readonly objects = new Map<string, Uint8Array>();

  async get(path: string): Promise<Uint8Array> {
    const bytes = this.objects.get(path);
    if (!bytes) throw notFound(path);
    return bytes;
  }
  async getRange(path: string, offset: number, length: number): Promise<Uint8Array> {
    return (await this.get(path)).subarray(offset, offset + length);
  }
  async put(path: string, data: Uint8Array | AsyncIterable<Uint8Array>): Promise<{ size: number }> {
    if (!(data instanceof Uint8Array)) throw new TypeError("bytes only");
    this.objects.set(path, data.slice());
    return { size: data.length };
  }
  head(): Promise<never> {
    throw new TypeError("snapshots never look a file up");
  }
  list(): AsyncIterable<never> {
    throw new TypeError("snapshots never list");
  }
  async sweepTemporary(): Promise<number> {
    return 0;
  }

  async delete(paths: readonly string[]): Promise<void> {
    for (const path of paths) this.objects.delete(path);
  }
}

const LOCATION = "file:///lake/db/t";

/** A table with its store, and the model beside it. */
class Table {
  readonly store = new MemoryStore();
  readonly source = storeSource(this.store);
  metadata: TableMetadata;
  /** Live files by key, and the row id that each data file had when it was first seen. */
  readonly live = new Map<string, DataFile>();
  readonly rowIds = new Map<string, bigint>();
  #count = 0;

  constructor(formatVersion: FormatVersion, properties: Record<string, string> = {}) {
    this.metadata = createTableMetadata({
      tableUuid: "0190c5e4-5ab1-7c2e-8a7b-1f2e3d4c5b6a",
      location: LOCATION,
      schema: { schemaId: 0, fields: [{ id: 1, name: "p", required: false, type: { kind: "long" } }] },
      spec: { specId: 0, fields: [{ fieldId: 0, sourceId: 1, name: "p", transform: { kind: "identity" } }] },
      formatVersion,
      properties,
      nowMs: 1000,
    });
  }

  next(): number {
    this.#count += 1;
    return this.#count;
  }

  /** A data file of the partition, put into the store. */
  dataFile(partition: number, rows = 10): DataFile {
    const path = `${LOCATION}/data/${this.next()}.parquet`;
    this.store.objects.set(path, new Uint8Array(1));
    return {
      content: "data",
      path,
      format: "parquet",
      specId: this.metadata.defaultSpecId,
      partition: this.metadata.defaultSpecId === 0 ? [BigInt(partition)] : [],
      recordCount: BigInt(rows),
      fileSizeBytes: 100n,
      valueCounts: new Map([[1, BigInt(rows)]]),
    };
  }

  /** A deletion vector (v3) or position delete file (v2) for one data file. */
  deleteFile(of: DataFile, puffin = `${LOCATION}/data/${this.next()}.puffin`, offset = 4): DataFile {
    this.store.objects.set(puffin, new Uint8Array(1));
    const file: DataFile = {
      content: "position-deletes",
      path: puffin,
      format: this.metadata.formatVersion === 3 ? "puffin" : "parquet",
      specId: of.specId,
      partition: of.partition,
      recordCount: 1n,
      fileSizeBytes: 50n,
      referencedDataFile: of.path,
    };
    return this.metadata.formatVersion === 3
      ? { ...file, contentOffset: BigInt(offset), contentSizeInBytes: 20n }
      : file;
  }

  async commit(change: Partial<StageRequest> & Pick<StageRequest, "operation">): Promise<Snapshot> {
    const journal: string[] = [];
    const nowMs = this.metadata.lastUpdatedMs + 1000;
    const staged = await stageSnapshot({
      metadata: this.metadata,
      store: this.store,
      snapshotId: (1n << 62n) + BigInt(this.next()),
      nowMs,
      onFile: (path) => {
        expect(this.store.objects.has(path)).toBe(false);
        journal.push(path);
      },
      ...change,
    });
    expect(staged.writtenFiles).toEqual(journal);
    checkRequirements(this.metadata, staged.requirements);
    this.metadata = parseMetadata(printMetadata(applyUpdates(this.metadata, staged.updates, nowMs)));
    const before = new Set(this.live.keys());
    for (const f of change.removeDataFiles ?? []) this.#remove(f);
    for (const f of change.removeDeleteFiles ?? []) this.live.delete(fileKey(f));
    for (const f of [...(change.addDataFiles ?? []), ...(change.addDeleteFiles ?? [])]) this.live.set(fileKey(f), f);
    const parent = this.metadata.snapshots.find((s) => s.snapshotId === staged.snapshot.parentSnapshotId);
    const diff = await changedFiles(this.metadata, parent, staged.snapshot, this.source);
    if (change.branch === undefined) {
      const keys = (entries: readonly ManifestEntry[]): Set<string> => new Set(entries.map((e) => fileKey(e.dataFile)));
      expect(keys(diff.added)).toEqual(new Set([...this.live.keys()].filter((key) => !before.has(key))));
      expect(keys(diff.removed)).toEqual(new Set([...before].filter((key) => !this.live.has(key))));
    }
    return staged.snapshot;
  }

  #remove(file: DataFile): void {
    this.live.delete(fileKey(file));
    for (const [key, other] of this.live) if (other.referencedDataFile === file.path) this.live.delete(key);
  }

  liveData(): DataFile[] {
    return [...this.live.values()].filter((f) => f.content === "data");
  }

  vectorOf(file: DataFile): DataFile | undefined {
    return [...this.live.values()].find((f) => f.referencedDataFile === file.path);
  }

  async entries(snapshot: Snapshot | undefined): Promise<ManifestEntry[]> {
    if (!snapshot) return [];
    const manifests = await this.source.manifests(snapshot);
    const all = await Promise.all(manifests.map((m) => this.source.entries(this.metadata, m)));
    return all.flat();
  }

  async check(): Promise<void> {
    const snapshot = currentSnapshot(this.metadata);
    const entries = (await this.entries(snapshot)).filter((e) => e.status !== "deleted");
    const sorted = (keys: Iterable<string>): string[] => [...keys].toSorted();
    expect(sorted(entries.map((e) => fileKey(e.dataFile)))).toEqual(sorted(this.live.keys()));
    for (const { dataFile, sequenceNumber } of entries) {
      const { firstRowId: _, ...plain } = dataFile;
      expect(plain).toEqual(this.live.get(fileKey(dataFile)));
      expect(sequenceNumber).toBeLessThanOrEqual(this.metadata.lastSequenceNumber);
    }
    this.#checkRowIds(entries);
    this.#checkSummary(snapshot, entries);
  }

  /** v3: every data file has a range of row ids of its own, below next-row-id, and keeps it. */
  #checkRowIds(entries: readonly ManifestEntry[]): void {
    if (this.metadata.formatVersion < 3) return;
    const data = entries.map((e) => e.dataFile).filter((f) => f.content === "data");
    const ranges = data.map((f) => ({ from: f.firstRowId ?? -1n, to: (f.firstRowId ?? -1n) + f.recordCount }));
    ranges.sort((a, b) => Number(a.from - b.from));
    ranges.forEach((range, i) => {
      expect(range.from).toBeGreaterThanOrEqual(i === 0 ? 0n : (ranges[i - 1]?.to ?? 0n));
      expect(range.to).toBeLessThanOrEqual(this.metadata.nextRowId);
    });
    for (const file of data) {
      const known = this.rowIds.get(file.path);
      if (known !== undefined) expect(file.firstRowId).toBe(known);
      this.rowIds.set(file.path, file.firstRowId ?? -1n);
    }
  }

  #checkSummary(snapshot: Snapshot | undefined, entries: readonly ManifestEntry[]): void {
    if (!snapshot) return;
    const data = entries.filter((e) => e.dataFile.content === "data");
    expect(snapshot.summary["total-data-files"]).toBe(String(data.length));
    expect(snapshot.summary["total-delete-files"]).toBe(String(entries.length - data.length));
    expect(snapshot.summary["total-records"]).toBe(String(data.reduce((n, e) => n + e.dataFile.recordCount, 0n)));
  }

  async expire(olderThanMs: number, minKeep = 1): Promise<string[]> {
    const before = this.metadata;
    const { updates } = stageExpire({ metadata: before, nowMs: before.lastUpdatedMs, olderThanMs, minKeep });
    this.metadata = applyUpdates(before, updates, before.lastUpdatedMs + 1);
    const doomed: string[] = [];
    for await (const path of unreferencedFiles(before, this.metadata, this.source)) doomed.push(path);
    return doomed;
  }

  /** Every file that the table's snapshots refer to, found by walking all of them. */
  async reachable(): Promise<Set<string>> {
    const paths = new Set<string>();
    for (const snapshot of this.metadata.snapshots) {
      paths.add(snapshot.manifestList);
      for (const manifest of await this.source.manifests(snapshot)) {
        paths.add(manifest.path);
        for (const e of await this.source.entries(this.metadata, manifest)) {
          if (e.status !== "deleted") paths.add(e.dataFile.path);
        }
      }
    }
    return paths;
  }
}

type Step = { readonly kind: "append" | "delta" | "drop" | "compact" | "expire" | "overwrite"; readonly n: number };

async function run(table: Table, { kind, n }: Step): Promise<void> {
  const data = table.liveData();
  const pick = data.filter((_, i) => i % 3 === n % 3);
  if (kind === "append")
    return void (await table.commit({ operation: "append", addDataFiles: [table.dataFile(n), table.dataFile(n + 1)] }));
  if (kind === "delta" && pick.length > 0) {
    const puffin = `${LOCATION}/data/${table.next()}.puffin`;
    const vectors = pick.map((f, i) =>
      table.deleteFile(f, table.metadata.formatVersion === 3 ? puffin : undefined, 4 + i * 20),
    );
    const old = table.metadata.formatVersion === 3 ? pick.flatMap((f) => table.vectorOf(f) ?? []) : [];
    const change = { addDataFiles: [table.dataFile(n)], addDeleteFiles: vectors, removeDeleteFiles: old };
    return void (await table.commit({ operation: "overwrite", ...change }));
  }
  if (kind === "drop" && pick.length > 0)
    return void (await table.commit({ operation: "delete", removeDataFiles: pick }));
  if (kind === "overwrite" && pick.length > 0) {
    return void (await table.commit({
      operation: "overwrite",
      removeDataFiles: pick,
      addDataFiles: [table.dataFile(n)],
    }));
  }
  if (kind === "compact" && pick.length > 1) {
    const rows = pick.reduce((sum, f) => sum + Number(f.recordCount), 0);
    const one = { ...table.dataFile(0, rows - 1), partition: pick[0]?.partition ?? [] };
    return void (await table.commit({ operation: "replace", removeDataFiles: pick, addDataFiles: [one] }));
  }
  if (kind === "expire") {
    const doomed = await table.expire(table.metadata.lastUpdatedMs - n * 700);
    expect(new Set(doomed).size).toBe(doomed.length);
    for (const path of doomed) expect(table.store.objects.has(path)).toBe(true);
    await table.store.delete(doomed);
    const reachable = await table.reachable();
    expect([...table.store.objects.keys()].filter((p) => !reachable.has(p))).toEqual([]);
    expect([...reachable].filter((p) => !table.store.objects.has(p))).toEqual([]);
  }
}

const step: fc.Arbitrary<Step> = fc.record({
  kind: fc.constantFrom("append", "append", "delta", "delta", "drop", "compact", "expire", "overwrite"),
  n: fc.integer({ min: 0, max: 5 }),
});

describe.each([2, 3] as const)("format version %d", (version) => {
  test("manifests agree with the model after any sequence of operations", { timeout: 60_000 }, async () => {
    const merge = fc.constantFrom("2", "4", "100");
    const property = fc.asyncProperty(fc.array(step, { maxLength: 14 }), merge, async (steps, minCount) => {
      const table = new Table(version, { "commit.manifest.min-count-to-merge": minCount });
      for (const s of steps) {
        await run(table, s);
        await table.check();
      }
    });
    await fc.assert(property, { numRuns: 60 });
  });
});

describe("staging", () => {
  test("manifests that hold nothing removed are reused as they are", async () => {
    const table = new Table(3);
    for (const p of [1, 2, 3]) await table.commit({ operation: "append", addDataFiles: [table.dataFile(p)] });
    const before = await table.source.manifests(currentSnapshot(table.metadata) as Snapshot);
    const second = table.liveData()[1] as DataFile;
    const reads: string[] = [];
    const source = {
      ...table.source,
      entries: (m: TableMetadata, f: (typeof before)[number]) => {
        reads.push(f.path);
        return table.source.entries(m, f);
      },
    };
    await table.commit({ operation: "delete", removeDataFiles: [second], source });
    const after = await table.source.manifests(currentSnapshot(table.metadata) as Snapshot);
    expect(reads).toHaveLength(1);
    expect(before.filter((m) => after.some((n) => n.path === m.path))).toHaveLength(2);
    await table.check();
  });

  test("a manifest with nothing but deleted entries lasts one snapshot", async () => {
    const table = new Table(2);
    await table.commit({ operation: "append", addDataFiles: [table.dataFile(1)] });
    await table.commit({ operation: "delete", removeDataFiles: table.liveData() });
    const entries = await table.entries(currentSnapshot(table.metadata));
    expect(entries.map((e) => e.status)).toEqual(["deleted"]);
    await table.commit({ operation: "append", addDataFiles: [table.dataFile(2)] });
    expect((await table.entries(currentSnapshot(table.metadata))).map((e) => e.status)).toEqual(["added"]);
  });

  test("a file that is gone is a conflict, and so is a second deletion vector", async () => {
    const table = new Table(3);
    const file = table.dataFile(1);
    await table.commit({ operation: "append", addDataFiles: [file] });
    await expect(table.commit({ operation: "delete", removeDataFiles: [table.dataFile(1)] })).rejects.toMatchObject({
      code: "lake_commit_conflict",
    });
    await table.commit({ operation: "delete", addDeleteFiles: [table.deleteFile(file)] });
    await expect(table.commit({ operation: "delete", addDeleteFiles: [table.deleteFile(file)] })).rejects.toMatchObject(
      {
        code: "lake_commit_conflict",
        message: expect.stringContaining("another deletion vector"),
      },
    );
  });

  test("what the format forbids is refused", async () => {
    const v2 = new Table(2);
    const v3 = new Table(3);
    const file = v2.dataFile(1);
    const code = { code: "lake_update_invalid" };
    await expect(v2.commit({ operation: "delete", addDeleteFiles: [v3.deleteFile(file)] })).rejects.toMatchObject(code);
    await expect(v3.commit({ operation: "delete", addDeleteFiles: [v2.deleteFile(file)] })).rejects.toMatchObject(code);
    const equality: DataFile = { ...v2.deleteFile(file), content: "equality-deletes", equalityIds: [1] };
    await expect(v2.commit({ operation: "delete", addDeleteFiles: [equality] })).rejects.toMatchObject(code);
    await expect(v2.commit({ operation: "append", addDataFiles: [file, file] })).rejects.toMatchObject(code);
    const wrong = { ...file, partition: [] };
    await expect(v2.commit({ operation: "append", addDataFiles: [wrong] })).rejects.toMatchObject(code);
  });

  test("two snapshots staged on one state: the second is a conflict", async () => {
    const table = new Table(3);
    const stage = (id: bigint) =>
      stageSnapshot({
        metadata: table.metadata,
        store: table.store,
        operation: "append",
        snapshotId: id,
        nowMs: 5000,
        addDataFiles: [table.dataFile(1)],
      });
    const [first, second] = [await stage(11n), await stage(12n)];
    const after = applyUpdates(table.metadata, first.updates, 5000);
    expect(() => checkRequirements(after, second.requirements)).toThrow(
      expect.objectContaining({ code: "lake_commit_conflict" }),
    );
    expect(() => applyUpdates(after, second.updates, 5000)).toThrow(
      expect.objectContaining({ code: "lake_commit_conflict" }),
    );
  });

  test("an upgraded table gives row ids to the files it had", async () => {
    const table = new Table(2);
    for (const p of [1, 2]) await table.commit({ operation: "append", addDataFiles: [table.dataFile(p)] });
    table.metadata = applyUpdates(table.metadata, [{ action: "upgrade-format-version", formatVersion: 3 }], 9000);
    const old = (await table.entries(currentSnapshot(table.metadata))).map((e) => e.dataFile.firstRowId);
    expect(old).toEqual([undefined, undefined]);
    const snapshot = await table.commit({ operation: "append", addDataFiles: [table.dataFile(3)] });
    expect(snapshot).toMatchObject({ firstRowId: 0n, addedRows: 30n });
    await table.check();
  });

  test("branches grow apart, tags hold their snapshot through expiry", async () => {
    const table = new Table(3);
    const first = await table.commit({ operation: "append", addDataFiles: [table.dataFile(1)] });
    const ref = { snapshotId: first.snapshotId, type: "tag" as const };
    const branch = { snapshotId: first.snapshotId, type: "branch" as const };
    const refs = [
      { action: "set-snapshot-ref" as const, refName: "v1", ref },
      { action: "set-snapshot-ref" as const, refName: "dev", ref: branch },
    ];
    table.metadata = applyUpdates(table.metadata, refs, 3000);
    const onDev = await table.commit({ operation: "append", addDataFiles: [table.dataFile(2)], branch: "dev" });
    expect(onDev.parentSnapshotId).toBe(first.snapshotId);
    expect(table.metadata.currentSnapshotId).toBe(first.snapshotId);
    await expect(table.commit({ operation: "append", branch: "v1" })).rejects.toThrow(/tag/);
    await table.commit({ operation: "append", addDataFiles: [table.dataFile(3)] });
    const doomed = await table.expire(Number.MAX_SAFE_INTEGER);
    expect(doomed).toEqual([]);
    expect(table.metadata.snapshots).toHaveLength(3);
  });

  test("new partitioning: manifests of each spec stay apart", async () => {
    const table = new Table(3, { "commit.manifest.min-count-to-merge": "2" });
    await table.commit({ operation: "append", addDataFiles: [table.dataFile(1)] });
    table.metadata = applyUpdates(
      table.metadata,
      [
        { action: "add-spec", spec: { specId: 9, fields: [] } },
        { action: "set-default-spec", specId: -1 },
      ],
      4000,
    );
    await table.commit({ operation: "append", addDataFiles: [table.dataFile(1)] });
    await table.commit({ operation: "append", addDataFiles: [table.dataFile(1)] });
    const manifests = await table.source.manifests(currentSnapshot(table.metadata) as Snapshot);
    expect(manifests.map((m) => m.partitionSpecId).toSorted()).toEqual([0, 1]);
    await table.check();
  });

  test("manifests roll at their target size", async () => {
    const table = new Table(3, { "commit.manifest.target-size-bytes": "4000" });
    const files = Array.from({ length: 4000 }, (_, i) => table.dataFile(i));
    await table.commit({ operation: "append", addDataFiles: files });
    const manifests = await table.source.manifests(currentSnapshot(table.metadata) as Snapshot);
    expect(manifests.length).toBeGreaterThan(3);
    await table.check();
  });
});

describe("expiry", () => {
  test("a run that was interrupted after any number of deletions can be repeated", async () => {
    const table = new Table(3);
    for (const p of [1, 2, 3]) await table.commit({ operation: "append", addDataFiles: [table.dataFile(p)] });
    await table.commit({ operation: "delete", removeDataFiles: table.liveData().slice(0, 2) });
    const before = table.metadata;
    const doomed = await table.expire(Number.MAX_SAFE_INTEGER);
    expect(doomed.length).toBeGreaterThan(4);
    for (let done = 0; done <= doomed.length; done += 1) {
      const rest = new Map(table.store.objects);
      await table.store.delete(doomed.slice(0, done));
      const again: string[] = [];
      for await (const path of unreferencedFiles(before, table.metadata, table.source)) again.push(path);
      for (const path of doomed.slice(done)) expect(again).toContain(path);
      table.store.objects.clear();
      for (const [path, bytes] of rest) table.store.objects.set(path, bytes);
    }
  });
});
