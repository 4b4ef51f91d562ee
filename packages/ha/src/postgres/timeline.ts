/**
 * Timelines: a history is the list of switch points from timeline 1 to now. Two nodes share a past up
 * to the earlier of the points at which their histories part.
 * Source: https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES
 */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { parseLsn, type Lsn } from "@spillway/base/lsn";

export interface TimelineSwitch {
  readonly timeline: number;
  /** Where this timeline ended and its child began. */
  readonly endLsn: Lsn;
}

/** Parses a `.history` file: lines of timeline, switch point, reason. Comments and blanks are skipped. */
export function parseHistory(text: string): TimelineSwitch[] {
  return text.split("\n").flatMap((line) => {
    const match = /^\s*(\d+)\s+([0-9A-Fa-f]+\/[0-9A-Fa-f]+)/.exec(line);
    return match ? [{ timeline: Number(match[1]), endLsn: parseLsn(match[2] ?? "") }] : [];
  });
}

export function historyFileName(timeline: number): string {
  return `${timeline.toString(16).toUpperCase().padStart(8, "0")}.history`;
}

/** The history of a timeline as this data directory knows it; timeline 1 has none, nor has an unknown one. */
export async function readHistory(pgdata: string, timeline: number): Promise<TimelineSwitch[]> {
  const text = await readFile(join(pgdata, "pg_wal", historyFileName(timeline)), "utf8").catch(() => "");
  return parseHistory(text);
}

/** The newest timeline whose history file lies in pg_wal, at least 1. */
export async function newestTimeline(pgdata: string): Promise<number> {
  const names = await readdir(join(pgdata, "pg_wal")).catch(() => [] as string[]);
  const timelines = names.flatMap((n) =>
    /^[0-9A-F]{8}\.history$/.test(n) ? [Number.parseInt(n.slice(0, 8), 16)] : [],
  );
  return Math.max(1, ...timelines);
}

export type Lineage =
  /** The other's history goes through this node's position: it can simply stream on. */
  | { readonly kind: "ancestor" }
  /** This node holds WAL that the other's history never had, from this position on. */
  | { readonly kind: "forked"; readonly atLsn: Lsn }
  /** The other is on an older timeline: it is behind, not this node. */
  | { readonly kind: "behind" };

/**
 * Whether a node that ended at `lsn` on `timeline` can follow a primary that is on `target` with `history`.
 * `lsn` is the end of the node's WAL (received, not only replayed).
 */
export function lineage(timeline: number, lsn: Lsn, target: number, history: readonly TimelineSwitch[]): Lineage {
  if (timeline === target) return { kind: "ancestor" };
  if (timeline > target) return { kind: "behind" };
  const left = history.find((h) => h.timeline === timeline);
  if (!left) return { kind: "forked", atLsn: 0n };
  return lsn <= left.endLsn ? { kind: "ancestor" } : { kind: "forked", atLsn: left.endLsn };
}
