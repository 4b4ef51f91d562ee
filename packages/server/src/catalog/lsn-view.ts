/**
 * A mirrored table's lake as of a WAL position: as the last flush at or before it left it, and so the same moment for all tables.
 * Every flush writes its position into the snapshot's summary (docs/internals/mirror.md §7). Snapshots thin out, so a position
 * between two kept ones is answered only where it is sure that none was taken away between them.
 */
import { SpillwayError } from "@spillway/base/errors";
import { formatLsn, type Lsn, parseLsn } from "@spillway/base/lsn";
import type { Snapshot, TableMetadata } from "@spillway/lake/model";

/** Keys of a snapshot's summary. */
export const LSN_KEY = "spillway.lsn";
const CARRIED_KEYS = [LSN_KEY, "spillway.timeline", "spillway.commit-time"];

type Snapshots = Pick<TableMetadata, "snapshots">;

export type AtLsn =
  | { readonly kind: "snapshot"; readonly snapshot: Snapshot }
  /** The lake has not got so far. */
  | { readonly kind: "ahead" }
  /** It was taken away, or is older than the copy. The positions around it that can be read. */
  | { readonly kind: "gone"; readonly before: Lsn | null; readonly after: Lsn | null };

interface Positioned {
  readonly snapshot: Snapshot;
  /** Of the last flush that it contains; null when that is not known any more. */
  readonly lsn: Lsn | null;
}

/** Pure. `frontier`: F, up to which the newest snapshot holds everything. */
export function snapshotAtLsn(metadata: Snapshots, lsn: Lsn, frontier: Lsn): AtLsn {
  if (lsn > frontier) return { kind: "ahead" };
  const line = positionsOf(metadata);
  const at = line.findLastIndex((p) => p.lsn !== null && p.lsn <= lsn);
  const [found, next] = [line[at], line[at + 1]];
  const isExact = found !== undefined && (found.lsn === lsn || next === undefined || follows(next, found));
  if (found && isExact) return { kind: "snapshot", snapshot: found.snapshot };
  const after = line.slice(at + 1).find((p) => p.lsn !== null);
  return { kind: "gone", before: found?.lsn ?? null, after: after?.lsn ?? null };
}

/** The same, or an error that says why not: `as_of_lsn_ahead`, `as_of_lsn_gone`. `table`: for its text. */
export function requireSnapshotAtLsn(metadata: Snapshots, lsn: Lsn, frontier: Lsn, table: string): Snapshot {
  const found = snapshotAtLsn(metadata, lsn, frontier);
  if (found.kind === "snapshot") return found.snapshot;
  if (found.kind === "ahead") {
    throw new SpillwayError(
      "as_of_lsn_ahead",
      `the lake of ${table} has everything up to ${formatLsn(frontier)}, not up to ${formatLsn(lsn)}`,
    );
  }
  const near = [found.before, found.after].flatMap((p) => (p === null ? [] : formatLsn(p)));
  const kept = near.length === 0 ? "" : `; kept nearby: ${near.join(" and ")}`;
  throw new SpillwayError("as_of_lsn_gone", `the lake of ${table} is not kept as of ${formatLsn(lsn)}${kept}`);
}

/** What a snapshot that changes no row takes over from the one before it, so that its position stays known. */
export function carriedPosition(metadata: TableMetadata): Record<string, string> {
  const current = metadata.snapshots.find((s) => s.snapshotId === metadata.currentSnapshotId);
  return Object.fromEntries(
    CARRIED_KEYS.flatMap((key) => {
      const value = current?.summary[key];
      return value === undefined ? [] : [[key, value]];
    }),
  );
}

/** Oldest first. One without a position of its own changes no row: it has its parent's. */
function positionsOf(metadata: Snapshots): Positioned[] {
  const known = new Map<bigint, Lsn | null>();
  const sorted = metadata.snapshots.toSorted((a, b) => (a.sequenceNumber < b.sequenceNumber ? -1 : 1));
  return sorted.map((snapshot) => {
    const own = snapshot.summary[LSN_KEY];
    const parent = snapshot.parentSnapshotId;
    const lsn = own !== undefined ? parseLsn(own) : parent === undefined ? null : (known.get(parent) ?? null);
    known.set(snapshot.snapshotId, lsn);
    return { snapshot, lsn };
  });
}

/** Nothing lay between them, and what came last was a flush of changes: not a copy, which tells nothing of the time before it. */
function follows({ snapshot }: Positioned, before: Positioned): boolean {
  return snapshot.parentSnapshotId === before.snapshot.snapshotId && snapshot.summary[COPIED_KEY] === undefined;
}

/** In the summary of the snapshot by which a copy joins the stream. */
export const COPIED_KEY = "spillway.copied";
