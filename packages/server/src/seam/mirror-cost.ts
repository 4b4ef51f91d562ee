/**
 * Heap or lake, by cost: what a read would take, in milliseconds, from what Postgres's planner expects of the heap's part (which
 * knows its indexes and statistics) and from the files that are left of the lake after pruning. Pure. The constants were
 * measured on the machine of docs/benchmarks.md; they have to be right in their order of magnitude only.
 */

export interface HeapEstimate {
  /** The planner's total cost: of reading the rows, filters and aggregates that run there included. */
  readonly cost: number;
  /** Rows that leave Postgres, and their width in bytes. */
  readonly rows: number;
  readonly width: number;
}

export interface LakeEstimate {
  readonly files: number;
  /** Of the columns that are read. */
  readonly bytes: number;
  readonly rows: number;
  /** Files that must be fetched first, as far as is known. */
  readonly remoteBytes: number;
}

/** A sequential page costs 1 and takes about this long when it is cached. */
const MS_PER_COST = 0.003;
const HEAP_START_MS = 1;
/** COPY out, decoded into columns and staged. */
const MS_PER_HEAP_ROW = 0.0011;
const MS_PER_HEAP_BYTE = 0.000006;

/** Metadata, manifests and deletes of a snapshot that was not met before. */
const LAKE_START_MS = 12;
const MS_PER_FILE = 0.15;
const MS_PER_LAKE_BYTE = 0.000004;
const MS_PER_LAKE_ROW = 0.000008;
const MS_PER_REMOTE_BYTE = 0.00002;
const REMOTE_START_MS = 40;

/** The lake must be better by so much: the heap is newer, and needs no guess. */
const MARGIN = 1.3;

export function heapMs({ cost, rows, width }: HeapEstimate): number {
  return HEAP_START_MS + cost * MS_PER_COST + rows * (MS_PER_HEAP_ROW + width * MS_PER_HEAP_BYTE);
}

export function lakeMs({ files, bytes, rows, remoteBytes }: LakeEstimate): number {
  const remote = remoteBytes === 0 ? 0 : REMOTE_START_MS + remoteBytes * MS_PER_REMOTE_BYTE;
  return LAKE_START_MS + files * MS_PER_FILE + bytes * MS_PER_LAKE_BYTE + rows * MS_PER_LAKE_ROW + remote;
}

/** The least that any read of the lake takes: when the heap takes less, nobody has to look at the lake. */
export const LEAST_LAKE_MS = LAKE_START_MS * MARGIN;

/** `waitMs`: what the lake would have to be waited for. */
export function isLakeCheaper(heap: number, lake: number, waitMs: number): boolean {
  return (lake + waitMs) * MARGIN < heap;
}

/** WAL that a pump gets through in a millisecond, at the least; and a flush. */
const WAL_BYTES_PER_MS = 20_000;
const FLUSH_MS = 250;

/** How long F will need to pass a position that is so many bytes ahead. */
export function expectedWaitMs(lagBytes: number): number {
  return lagBytes <= 0 ? 0 : FLUSH_MS + lagBytes / WAL_BYTES_PER_MS;
}
