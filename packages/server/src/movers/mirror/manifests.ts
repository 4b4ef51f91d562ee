/** Manifests that are staged upon again and again, kept for a while: a flush a second reads the same ones. */
import type { ManifestEntry, ManifestFile, Snapshot, TableMetadata } from "@spillway/lake/model";
import { type ManifestSource, storeSource } from "@spillway/lake/snapshot/source";
import type { ObjectStore } from "@spillway/lake/store/store";

/** Entries in all. */
const MAX_ENTRIES = 50_000;
const MAX_LISTS = 200;

export class CachedManifests implements ManifestSource {
  readonly #source: ManifestSource;
  readonly #lists = new Map<string, Promise<readonly ManifestFile[]>>();
  readonly #manifests = new Map<string, readonly ManifestEntry[]>();
  #entries = 0;

  constructor(store: ObjectStore) {
    this.#source = storeSource(store);
  }

  manifests(snapshot: Snapshot): Promise<readonly ManifestFile[]> {
    const found = this.#lists.get(snapshot.manifestList);
    if (found) return found;
    const read = this.#source.manifests(snapshot);
    this.#lists.set(snapshot.manifestList, read);
    read.catch(() => this.#lists.delete(snapshot.manifestList));
    for (const path of this.#lists.keys()) {
      if (this.#lists.size <= MAX_LISTS) break;
      this.#lists.delete(path);
    }
    return read;
  }

  async entries(metadata: TableMetadata, manifest: ManifestFile): Promise<readonly ManifestEntry[]> {
    const found = this.#manifests.get(manifest.path);
    if (found) {
      this.#manifests.delete(manifest.path);
      this.#manifests.set(manifest.path, found);
      return found;
    }
    const entries = await this.#source.entries(metadata, manifest);
    this.#manifests.set(manifest.path, entries);
    this.#entries += entries.length;
    for (const [path, old] of this.#manifests) {
      if (this.#entries <= MAX_ENTRIES || path === manifest.path) break;
      this.#manifests.delete(path);
      this.#entries -= old.length;
    }
    return entries;
  }
}
