/** Row lineage (v3): the first row id of each data manifest that has none yet (spec, first row id assignment). */
import type { WrittenManifest } from "../manifest.ts";
import type { ManifestFile, TableMetadata } from "../model.ts";

/**
 * Gives ids from `next-row-id` on, in list order. New manifests take exactly the rows that will
 * inherit; an old manifest of an upgraded table, whose files are not known here, as many as it has.
 */
export function assignRowIds(
  metadata: TableMetadata,
  items: readonly (WrittenManifest | ManifestFile)[],
): { manifests: ManifestFile[]; addedRows: bigint } {
  const plain = items.map((item) => ("manifest" in item ? item.manifest : item));
  if (metadata.formatVersion < 3) return { manifests: plain, addedRows: 0n };
  let next = metadata.nextRowId;
  const manifests = items.map((item) => {
    const manifest = "manifest" in item ? item.manifest : item;
    if (manifest.content !== "data" || manifest.firstRowId !== undefined) return manifest;
    const firstRowId = next;
    next += "manifest" in item ? item.unassignedRows : manifest.addedRowsCount + manifest.existingRowsCount;
    return withFirstRowId(manifest, firstRowId);
  });
  return { manifests, addedRows: next - metadata.nextRowId };
}

function withFirstRowId(manifest: ManifestFile, firstRowId: bigint): ManifestFile {
  return { ...manifest, firstRowId };
}
