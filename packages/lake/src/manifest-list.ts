/** Manifest lists: one line for each manifest of a snapshot. */
import { readAvro, writeAvro } from "./avro/container.ts";
import { MANIFEST_FILE_SHAPE, manifestFileSchema } from "./manifest-schema.ts";
import type { FieldSummary, FormatVersion, ManifestFile } from "./model.ts";

/** Reads a manifest list of any format version; what version 1 lacks reads as 0. */
export function readManifestList(bytes: Uint8Array): ManifestFile[] {
  return readAvro(bytes, () => MANIFEST_FILE_SHAPE).records.map(manifestOf);
}

function manifestOf(slots: readonly unknown[]): ManifestFile {
  const summaries = slots[13] as readonly (readonly unknown[])[] | null | undefined;
  return {
    path: slots[0] as string,
    length: slots[1] as bigint,
    partitionSpecId: (slots[2] ?? 0) as number,
    content: slots[3] === 1 ? "deletes" : "data",
    sequenceNumber: (slots[4] ?? 0n) as bigint,
    minSequenceNumber: (slots[5] ?? 0n) as bigint,
    addedSnapshotId: (slots[6] ?? 0n) as bigint,
    // An unknown count is assumed to be non-zero (spec, manifest lists).
    addedFilesCount: (slots[7] ?? 1) as number,
    existingFilesCount: (slots[8] ?? 1) as number,
    deletedFilesCount: (slots[9] ?? 1) as number,
    addedRowsCount: (slots[10] ?? 1n) as bigint,
    existingRowsCount: (slots[11] ?? 1n) as bigint,
    deletedRowsCount: (slots[12] ?? 1n) as bigint,
    partitions: summaries?.map(summaryOf),
    firstRowId: (slots[14] ?? undefined) as bigint | undefined,
  };
}

function summaryOf(slots: readonly unknown[]): FieldSummary {
  return {
    containsNull: slots[0] as boolean,
    containsNan: (slots[1] ?? undefined) as boolean | undefined,
    lowerBound: (slots[2] ?? undefined) as Uint8Array | undefined,
    upperBound: (slots[3] ?? undefined) as Uint8Array | undefined,
  };
}

export interface ManifestListHeader {
  readonly formatVersion: FormatVersion;
  readonly snapshotId: bigint;
  readonly parentSnapshotId?: bigint | undefined;
  readonly sequenceNumber: bigint;
  /** v3. */
  readonly firstRowId?: bigint | undefined;
}

export function writeManifestList(manifests: readonly ManifestFile[], header: ManifestListHeader): Uint8Array {
  const { formatVersion } = header;
  return writeAvro(
    manifestFileSchema(formatVersion),
    manifests.map((m) => recordOf(m, formatVersion)),
    {
      metadata: {
        "snapshot-id": String(header.snapshotId),
        "parent-snapshot-id": header.parentSnapshotId === undefined ? "null" : String(header.parentSnapshotId),
        "sequence-number": String(header.sequenceNumber),
        ...(formatVersion >= 3 ? { "first-row-id": String(header.firstRowId ?? 0n) } : {}),
        "format-version": String(formatVersion),
      },
    },
  );
}

function recordOf(manifest: ManifestFile, formatVersion: FormatVersion): unknown[] {
  const record: unknown[] = [
    manifest.path,
    manifest.length,
    manifest.partitionSpecId,
    manifest.content === "deletes" ? 1 : 0,
    manifest.sequenceNumber,
    manifest.minSequenceNumber,
    manifest.addedSnapshotId,
    manifest.addedFilesCount,
    manifest.existingFilesCount,
    manifest.deletedFilesCount,
    manifest.addedRowsCount,
    manifest.existingRowsCount,
    manifest.deletedRowsCount,
    manifest.partitions?.map((s) => [s.containsNull, s.containsNan, s.lowerBound, s.upperBound]),
    null,
  ];
  if (formatVersion >= 3) record.push(manifest.content === "data" ? manifest.firstRowId : null);
  return record;
}
