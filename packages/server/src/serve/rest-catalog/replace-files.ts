/** Which files a foreign snapshot exchanges, and that it leaves the others, with their deletes, as they are. */
import { must } from "@spillway/base/assert";
import { DeleteLoader } from "@spillway/lake/deletes/deletes";
import { currentSnapshot } from "@spillway/lake/metadata";
import type { DataFile, ManifestEntry, ManifestFile, TableMetadata } from "@spillway/lake/model";
import { planScan, type ScanTask } from "@spillway/lake/scan/scan";
import { fileKey } from "@spillway/lake/snapshot/removals";
import { hasLiveFiles, type ManifestSource, storeSource } from "@spillway/lake/snapshot/source";
import type { PositionSet } from "@spillway/lake/puffin/position-set";
import type { ObjectStore } from "@spillway/lake/store/store";
import { refuse, requireWithin } from "./replace-rules.ts";

/** A data file with the positions that are deleted in it. */
export interface FileRows {
  readonly file: DataFile;
  /** The file's data sequence number. */
  readonly sequenceNumber: bigint;
  readonly deletes: PositionSet | null;
}

export interface FileChanges {
  readonly removed: readonly FileRows[];
  /** With the metrics that their manifests declare. */
  readonly added: readonly FileRows[];
  /** Manifests, list and data files that the foreign engine wrote. */
  readonly foreignFiles: readonly string[];
}

/** Throws `foreign_replace_refused`. */
export async function fileChanges(store: ObjectStore, base: TableMetadata, next: TableMetadata): Promise<FileChanges> {
  const source = storeSource(store);
  const [from, to] = [must(currentSnapshot(base), "snapshot"), must(currentSnapshot(next), "snapshot")];
  const [before, after] = [await source.manifests(from), await source.manifests(to)];
  const old = await liveEntries(base, without(before, after), source);
  const now = await liveEntries(next, without(after, before), source);
  const newManifests = without(after, before).map((m) => m.path);
  for (const path of newManifests) requireWithin(next, path);
  const added = [...now].filter(([key]) => !old.has(key)).map(([, entry]) => entry);
  for (const entry of added) requireNewFile(next, entry);
  for (const [key, entry] of now) requireSame(entry, old.get(key));
  const rows = await rowsOf(store, base, next);
  const addedByPath = new Map(added.map((e) => [e.dataFile.path, e]));
  return {
    removed: rows.removed,
    added: rows.added.map((r) => ({
      ...r,
      file: addedByPath.get(r.file.path)?.dataFile ?? refuse(`${r.file.path} is no new file`),
    })),
    foreignFiles: [to.manifestList, ...newManifests, ...addedByPath.keys()],
  };
}

function without(a: readonly ManifestFile[], b: readonly ManifestFile[]): ManifestFile[] {
  const shared = new Set(b.map((m) => m.path));
  return a.filter((m) => !shared.has(m.path));
}

async function liveEntries(
  metadata: TableMetadata,
  manifests: readonly ManifestFile[],
  source: ManifestSource,
): Promise<Map<string, ManifestEntry>> {
  const live = new Map<string, ManifestEntry>();
  for (const manifest of manifests.filter(hasLiveFiles)) {
    for (const entry of await source.entries(metadata, manifest)) {
      if (entry.status !== "deleted") live.set(fileKey(entry.dataFile), entry);
    }
  }
  return live;
}

function requireNewFile(metadata: TableMetadata, { dataFile }: ManifestEntry): void {
  if (dataFile.content !== "data") refuse("the replace adds delete files");
  if (dataFile.format !== "parquet") refuse(`the file ${dataFile.path} is not Parquet`);
  requireWithin(metadata, dataFile.path);
}

/** A file that stays in a rewritten manifest: what reads rely on is as it was; statistics may be left out. */
function requireSame({ dataFile, sequenceNumber }: ManifestEntry, old: ManifestEntry | undefined): void {
  if (old === undefined) return;
  const was = old.dataFile;
  const isSame =
    sequenceNumber === old.sequenceNumber &&
    dataFile.recordCount === was.recordCount &&
    dataFile.fileSizeBytes === was.fileSizeBytes &&
    dataFile.specId === was.specId &&
    dataFile.firstRowId === was.firstRowId &&
    textOf(dataFile.partition) === textOf(was.partition) &&
    METRICS.every((key) => isSubset(dataFile[key], was[key]));
  if (!isSame) refuse(`the replace changes what is known of the file ${dataFile.path}`);
}

const METRICS = ["valueCounts", "nullValueCounts", "nanValueCounts", "lowerBounds", "upperBounds"] as const;

type Metric = ReadonlyMap<number, bigint | Uint8Array> | undefined;

function isSubset(now: Metric, was: Metric): boolean {
  return [...(now ?? [])].every(([id, value]) => textOf(was?.get(id)) === textOf(value));
}

function textOf(value: unknown): string {
  return JSON.stringify(value, (_key, v: unknown) => {
    if (typeof v === "bigint") return `${v}n`;
    return v instanceof Uint8Array ? Buffer.from(v).toString("hex") : v;
  });
}

/** By planning both snapshots: the deletes are then those that every reader applies. */
async function rowsOf(
  store: ObjectStore,
  base: TableMetadata,
  next: TableMetadata,
): Promise<{ removed: FileRows[]; added: FileRows[] }> {
  const [before, after] = [await planScan({ store, metadata: base }), await planScan({ store, metadata: next })];
  const old = new Map(before.tasks.map((t) => [t.dataFile.path, t]));
  const now = new Map(after.tasks.map((t) => [t.dataFile.path, t]));
  if (now.size !== after.tasks.length) refuse("the replace names a data file twice");
  const loader = new DeleteLoader(store);
  for (const [path, task] of now) {
    const was = old.get(path);
    if (was !== undefined) await requireSameDeletes(loader, was, task);
  }
  const load = async (task: ScanTask): Promise<FileRows> => ({
    file: task.dataFile,
    sequenceNumber: task.sequenceNumber,
    deletes: await deletesOf(loader, task),
  });
  const removed: FileRows[] = [];
  for (const [path, task] of old) if (!now.has(path)) removed.push(await load(task));
  const added: FileRows[] = [];
  for (const [path, task] of now) if (!old.has(path)) added.push(await load(task));
  return { removed, added };
}

async function deletesOf(loader: DeleteLoader, task: ScanTask): Promise<PositionSet | null> {
  if (task.deletes.length === 0) return null;
  const found = await loader.load(task.deletes, new Set([task.dataFile.path]));
  return found.get(task.dataFile.path) ?? null;
}

/** A delete file that is gone while its data file stays would bring rows back. */
async function requireSameDeletes(loader: DeleteLoader, was: ScanTask, now: ScanTask): Promise<void> {
  const keys = (task: ScanTask): string => task.deletes.map(fileKey).toSorted().join("\n");
  if (keys(was) === keys(now)) return;
  const [a, b] = [await deletesOf(loader, was), await deletesOf(loader, now)];
  const isSame =
    (a?.cardinality ?? 0) === (b?.cardinality ?? 0) && (!a || !b || a.union(b).cardinality === a.cardinality);
  if (!isSame) refuse(`the replace changes which rows of ${now.dataFile.path} are deleted`);
}
