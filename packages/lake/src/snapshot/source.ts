/** Reading the metadata tree of a snapshot. A cache of manifests can stand in for the store. */
import type { ManifestEntry, ManifestFile, Snapshot, TableMetadata } from "../model.ts";
import { readManifest } from "../manifest.ts";
import { readManifestList } from "../manifest-list.ts";
import { partitionTypesOf, specById } from "../partition.ts";
import type { ObjectStore } from "../store/store.ts";

export interface ManifestSource {
  /** The manifests of a snapshot. */
  manifests(snapshot: Snapshot): Promise<readonly ManifestFile[]>;
  /** Every entry of a manifest, deleted ones too, inherited values filled in. */
  entries(metadata: TableMetadata, manifest: ManifestFile): Promise<readonly ManifestEntry[]>;
}

/** Straight from the store, nothing kept. */
export function storeSource(store: ObjectStore): ManifestSource {
  return {
    manifests: async (snapshot) => readManifestList(await store.get(snapshot.manifestList)),
    entries: async (metadata, manifest) => {
      const specId = manifest.partitionSpecId;
      const context = { spec: specById(metadata, specId), partitionTypes: partitionTypesOf(metadata, specId) };
      return readManifest(await store.get(manifest.path), manifest, context);
    },
  };
}

/** Whether any entry of the manifest may be live. */
export function hasLiveFiles(manifest: ManifestFile): boolean {
  return manifest.addedFilesCount > 0 || manifest.existingFilesCount > 0;
}
