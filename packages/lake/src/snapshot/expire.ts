/**
 * Expiry: which snapshots go, and which files nothing refers to afterwards. Files are computed from
 * manifests of both states, never guessed from names, times or listings.
 */
import { isSpillwayError } from "@spillway/base/errors";
import type { TableUpdate } from "../commit.ts";
import { ancestorsOf, MAIN_BRANCH } from "../metadata.ts";
import type { ManifestEntry, ManifestFile, Snapshot, SnapshotRef, TableMetadata } from "../model.ts";
import { hasLiveFiles, type ManifestSource } from "./source.ts";

export interface ExpireRequest {
  readonly metadata: TableMetadata;
  readonly nowMs: number;
  /** Snapshots from this time on stay. */
  readonly olderThanMs: number;
  /** How many snapshots of each branch stay at least, its head included. Default 1. */
  readonly minKeep?: number;
  /** Pinned: they stay whatever their age. */
  readonly protectedSnapshotIds?: ReadonlySet<bigint>;
  /** A further reason to stay, for example one snapshot a minute. */
  readonly keep?: (snapshot: Snapshot) => boolean;
}

export interface ExpirePlan {
  readonly updates: readonly TableUpdate[];
  readonly removedSnapshotIds: readonly bigint[];
  readonly removedRefs: readonly string[];
}

/** Decides by the spec's retention policy; a ref's own limits come before the request's. */
export function stageExpire(request: ExpireRequest): ExpirePlan {
  const { metadata, olderThanMs, protectedSnapshotIds = new Set<bigint>(), keep = () => false } = request;
  const refs = Object.entries(metadata.refs);
  const removedRefs = refs.filter(([name, ref]) => isRefExpired(request, name, ref)).map(([name]) => name);
  const gone = new Set(removedRefs);
  const retained = new Set(protectedSnapshotIds);
  for (const [name, ref] of refs) {
    if (gone.has(name)) continue;
    retained.add(ref.snapshotId);
    if (ref.type === "branch") retainOfBranch(request, ref, retained);
  }
  const removedSnapshotIds = metadata.snapshots
    .filter((s) => !retained.has(s.snapshotId) && s.timestampMs < olderThanMs && !keep(s))
    .map((s) => s.snapshotId);
  const updates: TableUpdate[] = removedRefs.map((refName) => ({ action: "remove-snapshot-ref", refName }));
  if (removedSnapshotIds.length > 0) updates.push({ action: "remove-snapshots", snapshotIds: removedSnapshotIds });
  return { updates, removedSnapshotIds, removedRefs };
}

function isRefExpired(request: ExpireRequest, name: string, ref: SnapshotRef): boolean {
  if (name === MAIN_BRANCH || ref.maxRefAgeMs === undefined) return false;
  const snapshot = request.metadata.snapshots.find((s) => s.snapshotId === ref.snapshotId);
  return snapshot !== undefined && snapshot.timestampMs < request.nowMs - ref.maxRefAgeMs;
}

function retainOfBranch(request: ExpireRequest, ref: SnapshotRef, retained: Set<bigint>): void {
  const minKeep = Math.max(1, ref.minSnapshotsToKeep ?? request.minKeep ?? 1);
  const cut = ref.maxSnapshotAgeMs === undefined ? request.olderThanMs : request.nowMs - ref.maxSnapshotAgeMs;
  let kept = 0;
  for (const snapshot of ancestorsOf(request.metadata, ref.snapshotId)) {
    if (kept >= minKeep && snapshot.timestampMs < cut) return;
    retained.add(snapshot.snapshotId);
    kept += 1;
  }
}

/**
 * Every file that `before` refers to and `after` does not: data and delete files first, then
 * manifests, manifest lists, statistics and metadata files. Deleting in this order, an interrupted
 * run can be repeated: what a manifest names is gone before the manifest is.
 *
 * Memory: the paths in manifests that only `before` has, and the paths of manifests.
 */
export async function* unreferencedFiles(
  before: TableMetadata,
  after: TableMetadata,
  source: ManifestSource,
): AsyncIterable<string> {
  const keptIds = new Set(after.snapshots.map((s) => s.snapshotId));
  const removed = before.snapshots.filter((s) => !keptIds.has(s.snapshotId));
  const kept = await manifestsOf(after.snapshots, source, false);
  const doomed = new Map([...(await manifestsOf(removed, source, true))].filter(([path]) => !kept.has(path)));

  const candidates = new Set<string>();
  for (const manifest of doomed.values()) {
    for (const entry of await entriesOrNone(before, manifest, source)) candidates.add(entry.dataFile.path);
  }
  if (candidates.size > 0) await subtractLive(candidates, after, kept.values(), source);
  yield* candidates;
  yield* doomed.keys();
  const lists = new Set(after.snapshots.map((s) => s.manifestList));
  for (const { manifestList } of removed) if (!lists.has(manifestList)) yield manifestList;
  yield* difference(statisticsOf(before), statisticsOf(after));
  yield* difference(logOf(before), logOf(after));
}

/** Takes away what a kept snapshot still reads. Stops as soon as nothing is left. */
async function subtractLive(
  candidates: Set<string>,
  after: TableMetadata,
  manifests: Iterable<ManifestFile>,
  source: ManifestSource,
): Promise<void> {
  for (const manifest of manifests) {
    if (candidates.size === 0) return;
    if (!hasLiveFiles(manifest)) continue;
    for (const entry of await source.entries(after, manifest)) {
      if (entry.status !== "deleted") candidates.delete(entry.dataFile.path);
    }
  }
}

async function manifestsOf(
  snapshots: readonly Snapshot[],
  source: ManifestSource,
  mayBeGone: boolean,
): Promise<Map<string, ManifestFile>> {
  const byPath = new Map<string, ManifestFile>();
  for (const snapshot of snapshots) {
    const manifests = mayBeGone ? await orNone(() => source.manifests(snapshot)) : await source.manifests(snapshot);
    for (const manifest of manifests) byPath.set(manifest.path, manifest);
  }
  return byPath;
}

async function entriesOrNone(
  metadata: TableMetadata,
  manifest: ManifestFile,
  source: ManifestSource,
): Promise<readonly ManifestEntry[]> {
  return orNone(() => source.entries(metadata, manifest));
}

/** A doomed file that an interrupted run deleted already names nothing that is left. */
async function orNone<T>(read: () => Promise<readonly T[]>): Promise<readonly T[]> {
  try {
    return await read();
  } catch (error) {
    if (isSpillwayError(error, "store_not_found")) return [];
    throw error;
  }
}

function statisticsOf(metadata: TableMetadata): string[] {
  return [...metadata.statistics, ...metadata.partitionStatistics].map((s) => s.statisticsPath);
}

function logOf(metadata: TableMetadata): string[] {
  return metadata.metadataLog.map((e) => e.metadataFile);
}

function difference(before: readonly string[], after: readonly string[]): Set<string> {
  const kept = new Set(after);
  return new Set(before.filter((path) => !kept.has(path)));
}
