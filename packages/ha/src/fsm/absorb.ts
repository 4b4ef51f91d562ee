/** Takes a keeper's report into what the monitor knows. Pure but for the draft that it is given. */
import type { NodeReport } from "../protocol/messages.ts";
import { hasCeased, isAttached, isStable } from "./health.ts";
import { primaryOf, type Draft, type NodeRow, type Reign } from "./model.ts";
import { isStopped, isWritable } from "./states.ts";

/** Boots remembered per node. */
const MAX_BOOTS = 8;

/** False for a late or doubled report (or one of a keeper that lost its state), which changes nothing (and gets no lease). */
export function absorb(d: Draft, node: NodeRow, report: NodeReport): boolean {
  if (isForeign(d, node, report) || !isInOrder(d, node, report)) return false;
  d.obs.seen.set(node.nodeId, { report, atMs: d.nowMs });
  if (!report.pg.isRunning) d.obs.pgDownAtMs.set(node.nodeId, d.nowMs);
  noteState(d, node, report);
  notePromise(d, node, report.promise.remainingMs);
  notePosition(node, report);
  for (const slot of report.slots.lost) note(d, node, `logical slot ${slot} is lost: its consumer must copy anew`);
  if (d.f.reign?.nodeId === node.nodeId) noteReign(d, d.f.reign, report);
  d.f.systemIdentifier ??= report.pg.systemIdentifier;
  return true;
}

/** A data directory of another cluster stands where the node's was: nothing that it says counts, and it gets no lease. */
function isForeign(d: Draft, node: NodeRow, report: NodeReport): boolean {
  const { systemIdentifier } = report.pg;
  const known = d.f.systemIdentifier;
  const foreign = systemIdentifier !== null && known !== null && systemIdentifier !== known;
  if (!foreign) d.obs.foreign.delete(node.nodeId);
  else if (d.obs.foreign.get(node.nodeId) !== systemIdentifier) {
    d.obs.foreign.set(node.nodeId, systemIdentifier);
    note(d, node, `its data directory is of another cluster: system identifier ${systemIdentifier}, not ${known}`);
  }
  return foreign;
}

/**
 * The versions are durable here, so an old report is known as such also after a restart of the monitor.
 * Which of two boots is the younger one cannot be told then: a straggler of the older may count once, for
 * one heartbeat, but never shuts the younger one out.
 */
function isInOrder(d: Draft, node: NodeRow, report: NodeReport): boolean {
  const { seenVersion, appliedVersion } = node.reported;
  if (report.seenVersion < seenVersion || report.appliedVersion < appliedVersion) return false;
  const boots = d.obs.sequences.get(node.nodeId) ?? new Map<string, number>();
  if (report.seq <= (boots.get(report.boot) ?? Number.NEGATIVE_INFINITY)) return false;
  const others = [...boots].filter(([boot]) => boot !== report.boot);
  d.obs.sequences.set(node.nodeId, new Map([...others, [report.boot, report.seq] as const].slice(-MAX_BOOTS)));
  return true;
}

function noteState(d: Draft, node: NodeRow, report: NodeReport): void {
  const before = node.reported.state;
  node.reported = {
    state: report.reportedState,
    seenVersion: report.seenVersion,
    appliedVersion: report.appliedVersion,
  };
  if (before === report.reportedState) return;
  const reason = report.reportedState === node.goal ? node.reason : selfReason(node, report);
  d.events.push({
    formation: d.f.name,
    nodeId: node.nodeId,
    node: node.name,
    kind: "reported",
    from: before,
    to: report.reportedState,
    reason,
  });
}

function selfReason(node: NodeRow, report: NodeReport): string {
  const fenced = report.reportedState === "demote_timeout" && isWritable(node.goal);
  return fenced ? "It lost its lease and stopped itself" : `On its way to ${node.goal}`;
}

/** Once a node has ceased to promise, what it said first about its last promise stays true. */
function notePromise(d: Draft, node: NodeRow, remainingMs: number): void {
  const ceased = hasCeased(node);
  const before = d.obs.promisedUntil.get(node.nodeId);
  if (ceased && before?.last === true && remainingMs === 0) return;
  d.obs.promisedUntil.set(node.nodeId, { ms: d.nowMs + remainingMs, last: ceased });
}

/** Frozen and stopped positions are facts that outlive the node. */
function notePosition(node: NodeRow, report: NodeReport): void {
  const { lsn, tli } = report.pg;
  if (lsn === null || tli === null || !isStable(node)) return;
  if (node.goal === "report_lsn" || node.goal === "fast_forward") {
    node.frozen = report.pg.diverged ? null : { lsn, tli };
  }
  if (isStopped(node.goal) && !report.pg.isRunning) node.stoppedAt = { lsn, tli };
}

/** What the primary has confirmed may be forgotten; what it may still have in force may not. */
function noteReign(d: Draft, reign: Reign, report: NodeReport): void {
  const seen = reign.terms.findLastIndex((t) => t.version <= report.seenVersion);
  if (seen > 0) reign.terms.splice(0, seen);
  if (!reign.opened || !isWritable(report.reportedState)) return;
  if (report.pg.isRunning && report.pg.inRecovery === false && report.pg.tli !== null) reign.timeline = report.pg.tli;
  const applied = reign.ssn.findLastIndex((s) => s.version <= report.appliedVersion);
  const entry = reign.ssn[applied];
  if (applied > 0 && entry !== undefined && (entry.k === 0 || entry.waits)) reign.ssn.splice(0, applied);
  const primary = primaryOf(d.f);
  if (primary === null) return;
  for (const standby of d.f.nodes) {
    if (standby !== primary && isAttached(d, standby)) d.obs.attachedAtMs.set(standby.nodeId, d.nowMs);
  }
}

function note(d: Draft, node: NodeRow, reason: string): void {
  const { nodeId, name } = node;
  d.events.push({ formation: d.f.name, nodeId, node: name, kind: "note", from: "", to: "", reason });
}
