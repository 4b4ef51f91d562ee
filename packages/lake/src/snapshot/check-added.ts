/** What a table can take: the rules for files that a snapshot adds. */
import { SpillwayError } from "@spillway/base/errors";
import type { DataFile, TableMetadata } from "../model.ts";
import { fileKey } from "./removals.ts";

function refuse(message: string): never {
  throw new SpillwayError("lake_update_invalid", message);
}

/** Throws `lake_update_invalid` naming the first file that cannot be added. */
export function checkAddedFiles(
  metadata: TableMetadata,
  dataFiles: readonly DataFile[],
  deleteFiles: readonly DataFile[],
): void {
  const keys = new Set<string>();
  const covered = new Set<string>();
  for (const file of [...dataFiles, ...deleteFiles]) {
    const key = fileKey(file);
    if (keys.has(key)) refuse(`${key} is added twice`);
    keys.add(key);
    checkPartition(metadata, file);
    if (file.recordCount < 0n || file.fileSizeBytes <= 0n) refuse(`${file.path} has no size`);
  }
  for (const file of dataFiles) {
    if (file.content !== "data") refuse(`${file.path} is not a data file`);
  }
  for (const file of deleteFiles) {
    checkDeleteFile(metadata, file);
    if (file.format !== "puffin" || file.referencedDataFile === undefined) continue;
    if (covered.has(file.referencedDataFile)) refuse(`${file.referencedDataFile} would have two deletion vectors`);
    covered.add(file.referencedDataFile);
  }
  checkSameCommitPartitions(dataFiles, deleteFiles);
}

function checkPartition(metadata: TableMetadata, file: DataFile): void {
  const spec = metadata.partitionSpecs.find((s) => s.specId === file.specId);
  if (!spec) refuse(`${file.path} belongs to the partition spec ${file.specId}, which the table has not`);
  if (spec.fields.length !== file.partition.length) refuse(`${file.path} has a partition of the wrong length`);
  const unknown = spec.fields.find((f) => f.transform.kind === "unknown");
  if (unknown) refuse(`the partition field ${unknown.name} has a transform that cannot be written`);
}

function checkDeleteFile(metadata: TableMetadata, file: DataFile): void {
  if (file.content !== "position-deletes") refuse(`${file.path} does not hold position deletes`);
  const isVector = file.format === "puffin";
  if (metadata.formatVersion < 3) {
    if (isVector) refuse("format version 2 has no deletion vectors");
    return;
  }
  if (!isVector) refuse("format version 3 takes no new position delete files, only deletion vectors");
  const { referencedDataFile, contentOffset, contentSizeInBytes } = file;
  if (referencedDataFile === undefined || contentOffset === undefined || contentSizeInBytes === undefined) {
    refuse(`the deletion vector in ${file.path} lacks its data file, offset or size`);
  }
}

/** A deletion vector has the partition of its data file; checked where both are at hand. */
function checkSameCommitPartitions(dataFiles: readonly DataFile[], deleteFiles: readonly DataFile[]): void {
  if (deleteFiles.length === 0) return;
  const specs = new Map(dataFiles.map((f) => [f.path, f.specId]));
  for (const file of deleteFiles) {
    const specId = file.referencedDataFile === undefined ? undefined : specs.get(file.referencedDataFile);
    if (specId !== undefined && specId !== file.specId) refuse(`${file.path} has another partition than its data file`);
  }
}
