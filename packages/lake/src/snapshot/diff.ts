/** What changed between two snapshots, from the manifests that they do not share. */
import type { ManifestEntry, ManifestFile, Snapshot, TableMetadata } from "../model.ts";
import { fileKey } from "./removals.ts";
import { hasLiveFiles, type ManifestSource } from "./source.ts";

export interface ChangedFiles {
  /** Live in `to` and not in `from`: data files, delete files and deletion vectors. */
  readonly added: readonly ManifestEntry[];
  /** Live in `from` and not in `to`. */
  readonly removed: readonly ManifestEntry[];
}

/**
 * The files that came and went between two snapshots, which need not be neighbours; undefined
 * stands for the empty table. Manifests of both are not read. Memory: the entries of the others.
 */
export async function changedFiles(
  metadata: TableMetadata,
  from: Snapshot | undefined,
  to: Snapshot | undefined,
  source: ManifestSource,
): Promise<ChangedFiles> {
  const [before, after] = [await manifestsByPath(from, source), await manifestsByPath(to, source)];
  const old = await liveEntries(metadata, without(before, after), source);
  const now = await liveEntries(metadata, without(after, before), source);
  return {
    added: [...now].filter(([key]) => !old.has(key)).map(([, entry]) => entry),
    removed: [...old].filter(([key]) => !now.has(key)).map(([, entry]) => entry),
  };
}

async function manifestsByPath(
  snapshot: Snapshot | undefined,
  source: ManifestSource,
): Promise<ReadonlyMap<string, ManifestFile>> {
  const manifests = snapshot ? await source.manifests(snapshot) : [];
  return new Map(manifests.map((m) => [m.path, m]));
}

function without(a: ReadonlyMap<string, ManifestFile>, b: ReadonlyMap<string, ManifestFile>): ManifestFile[] {
  return [...a.values()].filter((m) => !b.has(m.path) && hasLiveFiles(m));
}

async function liveEntries(
  metadata: TableMetadata,
  manifests: readonly ManifestFile[],
  source: ManifestSource,
): Promise<Map<string, ManifestEntry>> {
  const live = new Map<string, ManifestEntry>();
  for (const manifest of manifests) {
    for (const entry of await source.entries(metadata, manifest)) {
      if (entry.status !== "deleted") live.set(fileKey(entry.dataFile), entry);
    }
  }
  return live;
}
