/** Who may be promoted, and who of them is. */
import { isAttached, isFresh, isHealthy, isOnTimeline, isStable, lsnOf, seenOf } from "./health.ts";
import type { Draft, Failover, NodeRow } from "./model.ts";

/** States in which a standby may take part, as goal and as reported: it has data and is no former primary. */
const RUNNING: ReadonlySet<string> = new Set([
  "join_secondary",
  "secondary",
  "catchingup",
  "report_lsn",
  "fast_forward",
  "prepare_promotion",
]);

/** A standby that takes part in this election: here, not forked, not in maintenance. */
export function eligible(d: Draft, failover: Failover, node: NodeRow): boolean {
  if (node.nodeId === failover.oldPrimary || node.nodeId === failover.from || node.maintenance) return false;
  if (!RUNNING.has(node.goal) || !RUNNING.has(node.reported.state) || !isHealthy(d, node)) return false;
  const pg = seenOf(d, node)?.report.pg;
  return pg !== undefined && !pg.diverged && !(pg.isRunning && pg.inRecovery === false);
}

/** May it be the one? (Others still help to prove what was committed.) */
export function mayLead(d: Draft, failover: Failover, node: NodeRow): boolean {
  if (failover.wanted !== null) return failover.wanted === node.nodeId;
  if (node.candidatePriority === 0) return false;
  return !d.f.settings.requireSlots || seenOf(d, node)?.report.slots.ready === true;
}

/** Why no standby could be promoted at all, or null. */
export function whyNoCandidate(d: Draft, failover: Failover): string | null {
  const here = d.f.nodes.filter((n) => eligible(d, failover, n));
  if (here.length === 0) return "no healthy standby";
  if (failover.wanted !== null && !here.some((n) => n.nodeId === failover.wanted))
    return "the named node is not healthy";
  if (here.some((n) => mayLead(d, failover, n)) || newcomerOf(d, failover) !== null) return null;
  return here.every((n) => n.candidatePriority === 0)
    ? "every healthy standby has candidate-priority 0"
    : "no healthy standby has its slots ready";
}

/**
 * A new node that waits to be copied and may lead, when the operator says that the primary is off: it can be made
 * from a standby that may not lead (candidate-priority 0). Such a standby is no voter, so nobody else can know.
 */
export function newcomerOf(d: Draft, failover: Failover): NodeRow | null {
  if (failover.wanted !== null || d.f.settings.requireSlots || !failover.primaryIsDown) return null;
  const waits = (n: NodeRow): boolean =>
    n.reported.state === "wait_standby" && (n.goal === "wait_standby" || n.goal === "report_lsn");
  return d.f.nodes.find((n) => waits(n) && isFresh(d, n) && n.candidatePriority > 0 && !n.maintenance) ?? null;
}

/** The primary is there and will hand over in order: the best standby that streams. */
export function choosePlanned(d: Draft, failover: Failover, standbys: readonly NodeRow[]): NodeRow | null {
  const able = standbys.filter(
    (n) => n.goal === "secondary" && isStable(n) && isAttached(d, n) && isOnTimeline(d, n) && mayLead(d, failover, n),
  );
  return able.toSorted((a, b) => rank(d, b, a))[0] ?? null;
}

function rank(d: Draft, a: NodeRow, b: NodeRow): number {
  const lsn = (n: NodeRow): bigint => lsnOf(n.frozen?.lsn ?? seenOf(d, n)?.report.pg.lsn);
  const slots = (n: NodeRow): number => (seenOf(d, n)?.report.slots.ready === true ? 1 : 0);
  if (a.candidatePriority !== b.candidatePriority) return a.candidatePriority - b.candidatePriority;
  // WAL can be fetched from another standby, a logical slot cannot.
  if (slots(a) !== slots(b)) return slots(a) - slots(b);
  return lsn(a) === lsn(b) ? b.nodeId - a.nodeId : lsn(a) > lsn(b) ? 1 : -1;
}

export interface Choice {
  readonly node: NodeRow;
  /** Another standby that must hand over WAL first, or null. */
  readonly source: NodeRow | null;
}

/** Positions are known and proven: highest priority, then with its slots, then furthest; behind the target means fast-forward. */
export function chooseFrozen(d: Draft, failover: Failover, standbys: readonly NodeRow[]): Choice | string {
  const frozen = frozenOnes(d, failover, standbys);
  const complete = completeOnes(d, failover, standbys);
  const source = complete[0] ?? null;
  const able = frozen.filter((n) => mayLead(d, failover, n)).toSorted((a, b) => rank(d, b, a));
  for (const node of able) {
    if (complete.includes(node)) return { node, source: null };
    if (source !== null) return { node, source };
  }
  if (able.length === 0) return whyNoCandidate(d, failover) ?? "waiting for the standbys to report their positions";
  return `no standby that is here has everything up to ${failover.targetLsn}`;
}

function frozenOnes(d: Draft, failover: Failover, standbys: readonly NodeRow[]): NodeRow[] {
  return standbys.filter((n) => n.frozen !== null && isStable(n) && sameTimeline(d, failover, n));
}

/** Those that have everything up to the target. */
export function completeOnes(d: Draft, failover: Failover, standbys: readonly NodeRow[]): NodeRow[] {
  const target = lsnOf(failover.targetLsn);
  return frozenOnes(d, failover, standbys).filter((n) => lsnOf(n.frozen?.lsn) >= target);
}

export function sameTimeline(d: Draft, failover: Failover, node: NodeRow): boolean {
  return failover.allowDataLoss || d.f.settings.failoverWhenAsync || node.frozen?.tli === d.f.reign?.timeline;
}
