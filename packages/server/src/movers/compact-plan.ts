/** Which data files are worth rewriting, partition by partition. Pure. */
import type { ScanTask } from "@spillway/lake/scan/scan";
import { partitionKey } from "@spillway/lake/snapshot/removals";
import type { Policy } from "./policy.ts";

/** How the engine's writer ends a file: rows, or bytes in memory. */
export const FILE_ROWS = 1 << 20;
export const FILE_BYTES = 64 << 20;

export interface CompactionRules {
  /** Null: the pass is off. */
  readonly deletes: { readonly minRows: number; readonly minRatio: number } | null;
  readonly small: { readonly belowBytes: number; readonly minFiles: number } | null;
  /** Bytes of a row in memory: measured at the last compaction, else guessed from the files' sizes. */
  readonly bytesPerRow: number | null;
}

export interface CompactionUnit {
  /** In the order in which their rows are written anew. */
  readonly tasks: readonly ScanTask[];
  readonly reason: "deletes" | "small";
}

/** Bounds of one unit, and so of what a lost commit costs. */
const UNIT_FILES = 500;
const UNIT_BYTES = 1024 * (1 << 20);
/** Parquet takes about a quarter of what rows take in memory. */
const GUESSED_EXPANSION = 4;

export function rulesOf(policy: Policy, bytesPerRow: number | null): CompactionRules {
  return {
    deletes: policy.on("delete_compaction_enabled")
      ? {
          minRows: policy.number("delete_compaction_min_deletes"),
          minRatio: policy.number("delete_compaction_min_ratio"),
        }
      : null,
    small: policy.on("rewrite_enabled")
      ? { belowBytes: policy.number("rewrite_target_bytes"), minFiles: policy.number("rewrite_min_input_files") }
      : null,
    bytesPerRow,
  };
}

/** `deleted`: how many rows of a file are. Files of one unit are of one partition. */
export function planCompaction(
  tasks: readonly ScanTask[],
  deleted: (task: ScanTask) => number,
  rules: CompactionRules,
): CompactionUnit[] {
  const byPartition = new Map<string, ScanTask[]>();
  for (const task of tasks) {
    const key = partitionKey(task.dataFile);
    byPartition.set(key, [...(byPartition.get(key) ?? []), task]);
  }
  return [...byPartition.values()].flatMap((group) => planPartition(group.toSorted(inOrder), deleted, rules));
}

function planPartition(
  tasks: readonly ScanTask[],
  deleted: (task: ScanTask) => number,
  rules: CompactionRules,
): CompactionUnit[] {
  const hasDebt = (task: ScanTask): boolean => {
    const rows = deleted(task);
    const { deletes } = rules;
    return (
      deletes !== null &&
      rows > 0 &&
      rows >= deletes.minRows &&
      rows >= Number(task.dataFile.recordCount) * deletes.minRatio
    );
  };
  const debts = tasks.filter(hasDebt);
  const { small } = rules;
  const smalls =
    small === null ? [] : tasks.filter((t) => Number(t.dataFile.fileSizeBytes) < small.belowBytes && !hasDebt(t));
  // Packing must make clearly fewer files of them, or it would be done again and again for nothing.
  const worthPacking = (group: readonly ScanTask[]): boolean =>
    small !== null &&
    group.length >= small.minFiles &&
    outputsOf(group, deleted, rules.bytesPerRow) * 2 <= group.length;
  const units = cut(debts).map((group): CompactionUnit => ({ tasks: group, reason: "deletes" }));
  for (const group of cut(smalls)) if (worthPacking(group)) units.push({ tasks: group, reason: "small" });
  return units;
}

/** How many files the live rows of these will fill. */
function outputsOf(
  tasks: readonly ScanTask[],
  deleted: (task: ScanTask) => number,
  bytesPerRow: number | null,
): number {
  const rows = tasks.reduce((sum, t) => sum + Number(t.dataFile.recordCount) - deleted(t), 0);
  const all = tasks.reduce((sum, t) => sum + Number(t.dataFile.recordCount), 0);
  const bytes = tasks.reduce((sum, t) => sum + Number(t.dataFile.fileSizeBytes), 0);
  const width = bytesPerRow ?? (bytes / Math.max(1, all)) * GUESSED_EXPANSION;
  return Math.max(1, Math.ceil(rows / FILE_ROWS), Math.ceil((rows * width) / FILE_BYTES));
}

function cut(tasks: readonly ScanTask[]): ScanTask[][] {
  const groups: ScanTask[][] = [];
  let bytes = 0;
  for (const task of tasks) {
    const size = Number(task.dataFile.fileSizeBytes);
    const last = groups.at(-1);
    if (!last || last.length >= UNIT_FILES || bytes + size > UNIT_BYTES) {
      groups.push([task]);
      bytes = size;
    } else {
      last.push(task);
      bytes += size;
    }
  }
  return groups;
}

/** Oldest first: the order in which the rows came. */
function inOrder(a: ScanTask, b: ScanTask): number {
  if (a.sequenceNumber !== b.sequenceNumber) return a.sequenceNumber < b.sequenceNumber ? -1 : 1;
  const [x, y] = [a.dataFile.firstRowId ?? 0n, b.dataFile.firstRowId ?? 0n];
  if (x !== y) return x < y ? -1 : 1;
  return a.dataFile.path < b.dataFile.path ? -1 : 1;
}
