/** The counters of a snapshot's summary, under the names that every engine uses (spec, appendix F). */
import type { DataFile, Snapshot } from "../model.ts";
import { partitionKey } from "./removals.ts";

interface Counts {
  dataFiles: bigint;
  deleteFiles: bigint;
  positionDeleteFiles: bigint;
  vectors: bigint;
  records: bigint;
  positionDeletes: bigint;
  equalityDeletes: bigint;
  size: bigint;
}

function count(files: readonly DataFile[]): Counts {
  const counts: Counts = {
    dataFiles: 0n,
    deleteFiles: 0n,
    positionDeleteFiles: 0n,
    vectors: 0n,
    records: 0n,
    positionDeletes: 0n,
    equalityDeletes: 0n,
    size: 0n,
  };
  for (const file of files) {
    // Of a Puffin file only the vector's own bytes: several vectors share it.
    counts.size += file.contentSizeInBytes ?? file.fileSizeBytes;
    if (file.content === "data") {
      counts.dataFiles += 1n;
      counts.records += file.recordCount;
      continue;
    }
    counts.deleteFiles += 1n;
    if (file.content === "equality-deletes") counts.equalityDeletes += file.recordCount;
    else {
      counts.positionDeletes += file.recordCount;
      if (file.format === "puffin") counts.vectors += 1n;
      else counts.positionDeleteFiles += 1n;
    }
  }
  return counts;
}

export interface SummaryInput {
  readonly parent: Snapshot | undefined;
  readonly added: readonly DataFile[];
  readonly removed: readonly DataFile[];
  readonly extra?: Readonly<Record<string, string>> | undefined;
}

/** Counters of the change (left out where zero), totals after it, and the caller's properties. */
export function summarize({ parent, added, removed, extra }: SummaryInput): Record<string, string> {
  const plus = count(added);
  const minus = count(removed);
  const changes: [string, bigint][] = [
    ["added-data-files", plus.dataFiles],
    ["deleted-data-files", minus.dataFiles],
    ["added-delete-files", plus.deleteFiles],
    ["removed-delete-files", minus.deleteFiles],
    ["added-position-delete-files", plus.positionDeleteFiles],
    ["removed-position-delete-files", minus.positionDeleteFiles],
    ["added-dvs", plus.vectors],
    ["removed-dvs", minus.vectors],
    ["added-records", plus.records],
    ["deleted-records", minus.records],
    ["added-files-size", plus.size],
    ["removed-files-size", minus.size],
    ["added-position-deletes", plus.positionDeletes],
    ["removed-position-deletes", minus.positionDeletes],
    ["removed-equality-deletes", minus.equalityDeletes],
  ];
  const partitions = new Set([...added, ...removed].map(partitionKey));
  const totals: [string, bigint | undefined][] = [
    ["total-records", total(parent, "total-records", plus.records - minus.records)],
    ["total-files-size", total(parent, "total-files-size", plus.size - minus.size)],
    ["total-data-files", total(parent, "total-data-files", plus.dataFiles - minus.dataFiles)],
    ["total-delete-files", total(parent, "total-delete-files", plus.deleteFiles - minus.deleteFiles)],
    ["total-position-deletes", total(parent, "total-position-deletes", plus.positionDeletes - minus.positionDeletes)],
    ["total-equality-deletes", total(parent, "total-equality-deletes", -minus.equalityDeletes)],
  ];
  return {
    ...Object.fromEntries(changes.filter(([, n]) => n > 0n).map(([key, n]) => [key, String(n)])),
    "changed-partition-count": String(partitions.size),
    ...Object.fromEntries(totals.filter(([, n]) => n !== undefined).map(([key, n]) => [key, String(n)])),
    ...extra,
  };
}

/** The parent's total and the change; unknown when the parent does not say, or says nonsense. */
function total(parent: Snapshot | undefined, key: string, change: bigint): bigint | undefined {
  const text = parent === undefined ? "0" : parent.summary[key];
  if (text === undefined || !/^\d+$/.test(text)) return undefined;
  const value = BigInt(text) + change;
  return value < 0n ? undefined : value;
}
