/** Pure judgements over what nodes reported and when. */
import { parseLsn, type Lsn } from "@spillway/base/lsn";
import type { Draft, NodeRow, Seen } from "./model.ts";
import { primaryOf } from "./model.ts";
import { isPromising, isWritable, needsLease } from "./states.ts";

export function seenOf(d: Draft, node: NodeRow): Seen | null {
  return d.obs.seen.get(node.nodeId) ?? null;
}

/** ms since the last report, or since this monitor began to decide. */
export function silenceMs(d: Draft, node: NodeRow): number {
  return d.nowMs - (seenOf(d, node)?.atMs ?? d.obs.startedAtMs);
}

export function isSilent(d: Draft, node: NodeRow): boolean {
  return silenceMs(d, node) >= d.limits.silentMs;
}

/** The keeper reported just now: it can be told something. */
export function isFresh(d: Draft, node: NodeRow): boolean {
  return seenOf(d, node) !== null && silenceMs(d, node) <= d.limits.freshMs;
}

/** Keeper heard from within the silence limit, and Postgres runs, or the keeper is busy with it. */
export function isHealthy(d: Draft, node: NodeRow): boolean {
  const seen = seenOf(d, node);
  if (seen === null || isSilent(d, node)) return false;
  const { pg, action } = seen.report;
  return pg.isRunning || pg.restarting || (action !== null && action.error === null);
}

/** Reported = goal, under the assignment in which the goal's parameters last changed. */
export function isStable(node: NodeRow): boolean {
  return node.reported.state === node.goal && node.reported.appliedVersion >= node.goalVersion;
}

/** The node accepted its present goal (perhaps without having arrived). */
export function hasSeenGoal(node: NodeRow): boolean {
  return node.reported.seenVersion >= node.goalVersion;
}

/** It accepted a goal under which it promises nothing any more. */
export function hasCeased(node: NodeRow): boolean {
  return !isPromising(node.goal) && hasSeenGoal(node);
}

/** It was told a goal that needs no lease, and arrived: it will not write again unless told to. */
export function isConfirmedOut(node: NodeRow): boolean {
  return !needsLease(node.goal) && isStable(node);
}

/** The primary accepts connections: standbys may follow it. */
export function isServing(d: Draft, node: NodeRow | null): node is NodeRow {
  if (node === null || !isWritable(node.goal) || !isFresh(d, node)) return false;
  const report = seenOf(d, node)?.report;
  return report !== undefined && report.pg.isRunning && report.pg.inRecovery === false;
}

export function lsnOf(text: string | null | undefined): Lsn {
  return text === null || text === undefined ? 0n : parseLsn(text);
}

/** The primary's last report shows this standby streaming, with a reply of late. */
export function isAttached(d: Draft, standby: NodeRow): boolean {
  const primary = primaryOf(d.f);
  const report = primary && seenOf(d, primary)?.report;
  const row = report?.replication.find((r) => r.nodeId === standby.nodeId);
  return row !== undefined && row.state === "streaming" && row.replyAgeMs <= d.limits.stallMs;
}

/** On the primary's timeline, as far as both have said. */
export function isOnTimeline(d: Draft, standby: NodeRow): boolean {
  const pg = seenOf(d, standby)?.report.pg;
  return pg !== undefined && !pg.diverged && pg.tli !== null && pg.tli === d.f.reign?.timeline;
}

/**
 * A standby that synchronous commits cannot count on any more, with the reason in words; null = fine.
 * Judged only while the primary itself reports: when both are gone, nothing is relaxed.
 */
export function lostReason(d: Draft, standby: NodeRow): string | null {
  const primary = primaryOf(d.f);
  if (!isServing(d, primary)) return null;
  if (isSilent(d, standby)) return `no report for ${(silenceMs(d, standby) / 1000).toFixed(1)} s`;
  // This monitor has just begun and has not heard from it yet: that says nothing against it.
  if (seenOf(d, standby) === null) return null;
  const pg = seenOf(d, standby)?.report.pg;
  if (pg?.diverged) return "its timeline forked off from the primary's";
  const sinceGoalMs = d.nowMs - (d.obs.goalSinceMs.get(standby.nodeId) ?? d.obs.startedAtMs);
  if (sinceGoalMs < d.limits.reconnectMs && !isStable(standby)) return null;
  if (!isHealthy(d, standby)) return "its Postgres does not run";
  if (isAttached(d, standby)) return null;
  return isDetached(d, standby, primary, pg?.restarting ?? false) ? "it does not stream from the primary" : null;
}

/** For longer than a reconnection takes; more patience after either end has just started. */
function isDetached(d: Draft, standby: NodeRow, primary: NodeRow, restarting: boolean): boolean {
  const { detachedMs, reconnectMs } = d.limits;
  const attachedMs = d.obs.attachedAtMs.get(standby.nodeId) ?? d.obs.startedAtMs;
  const goalMs = d.obs.goalSinceMs.get(standby.nodeId) ?? d.obs.startedAtMs;
  const primaryDownMs = d.obs.pgDownAtMs.get(primary.nodeId) ?? Number.NEGATIVE_INFINITY;
  if (d.nowMs - Math.max(goalMs, primaryDownMs) < reconnectMs) return false;
  return d.nowMs - attachedMs >= (restarting ? 2 : 1) * detachedMs;
}

/** Why the primary counts as gone, or null while it is there, may be there, or is being restarted. */
export function primaryGoneReason(d: Draft, primary: NodeRow): string | null {
  const seen = seenOf(d, primary);
  if (!isSilent(d, primary)) {
    if (seen === null || seen.report.pg.isRunning || seen.report.pg.restarting) return null;
    // Fenced by itself, or between two tries: it will be back.
    if (seen.report.pg.restartsLeft > 0) return null;
    return "its Postgres is down and its restarts are used up";
  }
  const witness = d.f.nodes.find((n) => n !== primary && hearsFrom(d, n, primary));
  return witness === undefined
    ? `no report for ${(silenceMs(d, primary) / 1000).toFixed(1)} s, from it or of it`
    : null;
}

/** A standby whose promise the primary asked for of late, while it held its lease. */
export function hearsFrom(d: Draft, standby: NodeRow, primary: NodeRow): boolean {
  const seen = seenOf(d, standby);
  if (seen === null || seen.report.promise.to !== primary.nodeId || seen.report.promise.askedAgeMs === null)
    return false;
  return seen.report.promise.askedAgeMs + (d.nowMs - seen.atMs) < d.limits.silentMs;
}
