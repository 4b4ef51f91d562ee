/**
 * From decisions to assignments: derives what each node is to be told from the formation, gives a new
 * version to what changed, and records every ssn and every lease terms *before* the primary can see them.
 */
import type { Assignment, Peer, Timings } from "../protocol/messages.ts";
import type { Draft, Formation, NodeRow } from "./model.ts";
import { nodeOf, primaryOf } from "./model.ts";
import { isAttached, isConfirmedOut, isOnTimeline, isStable } from "./health.ts";
import { renderSsn } from "./quorum.ts";
import { isPromoting, needsLease, type State } from "./states.ts";

export function peerOf(node: NodeRow): Peer {
  const { nodeId, name, host, pgPort, keeperUrl, keeperFingerprint } = node;
  return { nodeId, name, host, pgPort, keeperUrl, keeperFingerprint };
}

/** Sets a node's goal and leaves an event. Setting the goal that it has already changes nothing. */
export function setGoal(d: Draft, node: NodeRow, goal: State, reason: string): void {
  if (node.goal === goal) return;
  d.events.push({
    formation: d.f.name,
    nodeId: node.nodeId,
    node: node.name,
    kind: "assigned",
    from: node.goal,
    to: goal,
    reason,
  });
  node.goal = goal;
  node.reason = reason;
  d.obs.goalSinceMs.set(node.nodeId, d.nowMs);
  if (!isPromoting(goal)) node.frozen = null;
  if (needsLease(goal)) node.stoppedAt = null;
}

/**
 * A standby that could be promoted without the primary's consent, from the primary's point of view. One
 * that is a voter already stays one until it is given another goal; a new one must stream first.
 */
export function isVoter(d: Draft, node: NodeRow): boolean {
  if (node.goal !== "secondary" || node.candidatePriority === 0 || node.maintenance) return false;
  const before = d.f.reign?.terms.at(-1)?.voters.includes(node.nodeId) ?? false;
  return before || (isStable(node) && isAttached(d, node) && isOnTimeline(d, node));
}

interface Terms {
  readonly required: boolean;
  readonly voters: readonly number[];
}

/**
 * Nobody but a voter is promoted while the primary may hold a lease (see `proof.ts`), so without a voter
 * there is nothing to be leased against, unless promotion without the primary's consent is allowed.
 */
function termsOf(d: Draft, node: NodeRow): Terms {
  if (!needsLease(node.goal)) return { required: true, voters: [] };
  // Promoted but not opened: on the monitor's word alone, so that silence is enough to end it.
  if (node.goal === "stop_replication") return { required: true, voters: [] };
  const peers = d.f.nodes.filter((n) => n !== node && n.goal !== "dropped");
  const voters = peers.filter((n) => isVoter(d, n)).map((n) => n.nodeId);
  const required = voters.length > 0 || (peers.length > 0 && d.f.settings.failoverWhenAsync);
  return { required, voters: voters.toSorted((a, b) => a - b) };
}

function leads(node: NodeRow): boolean {
  return needsLease(node.goal) || node.goal === "prepare_promotion";
}

function sourceOf(f: Formation, node: NodeRow): NodeRow | null {
  const copies = node.goal === "fast_forward" || node.goal === "report_lsn";
  return copies ? nodeOf(f, f.failover?.source) : null;
}

function targetOf(f: Formation, node: NodeRow): string | null {
  return f.failover?.candidate === node.nodeId ? f.failover.targetLsn : null;
}

function promisesVoid(f: Formation, node: NodeRow): boolean {
  if (f.failover?.candidate !== node.nodeId) return false;
  const old = nodeOf(f, f.failover.oldPrimary);
  return f.failover.oldPrimary === 0 || (old !== null && isConfirmedOut(old));
}

function contentOf(d: Draft, node: NodeRow): Omit<Assignment, "version" | "reason"> {
  const { f } = d;
  const reigning = primaryOf(f);
  return {
    goalState: node.goal,
    ssn: leads(node) ? renderSsn(f.ssn) : "",
    primary: reigning === null || reigning === node ? null : peerOf(reigning),
    source: peerOrNull(sourceOf(f, node)),
    targetLsn: targetOf(f, node),
    lease: { ...termsOf(d, node), promisesVoid: promisesVoid(f, node) },
    peers: f.nodes.filter((n) => n !== node && n.goal !== "dropped").map(peerOf),
    candidatePriority: node.candidatePriority,
    replicationQuorum: node.replicationQuorum,
    timings: f.timings,
  };
}

function peerOrNull(node: NodeRow | null): Peer | null {
  return node === null ? null : peerOf(node);
}

/** What must be re-applied before the node counts as stable again. */
function essence(a: Omit<Assignment, "version" | "reason">): string {
  const follows = a.goalState === "secondary" || a.goalState === "catchingup";
  const primary = follows ? a.primary?.nodeId : null;
  return JSON.stringify([a.goalState, a.ssn, primary, a.source?.nodeId, a.targetLsn]);
}

/** Gives out new versions where something changed. The last step of every decision. */
export function publish(d: Draft): void {
  const ssn = renderSsn(d.f.ssn);
  for (const node of d.f.nodes) {
    const before = node.assignment;
    if (before !== null && isPublished(d, node, before, ssn)) continue;
    const content = contentOf(d, node);
    const version = ++d.f.version;
    if (before === null || essence(before) !== essence(content)) node.goalVersion = version;
    node.assignment = { version, reason: node.reason, ...content };
    record(d.f, node, version);
  }
}

/** Whether the assignment says all that it would say now. Called on every report, so it makes nothing. */
function isPublished(d: Draft, node: NodeRow, a: Assignment, ssn: string): boolean {
  const { f } = d;
  if (a.goalState !== node.goal || a.ssn !== (leads(node) ? ssn : "")) return false;
  if (a.candidatePriority !== node.candidatePriority || a.replicationQuorum !== node.replicationQuorum) return false;
  const reigning = primaryOf(f);
  if (!isPeer(a.primary, reigning === node ? null : reigning) || !isPeer(a.source, sourceOf(f, node))) return false;
  if (a.targetLsn !== targetOf(f, node) || a.lease.promisesVoid !== promisesVoid(f, node)) return false;
  const { required, voters } = termsOf(d, node);
  if (a.lease.required !== required || a.lease.voters.length !== voters.length) return false;
  if (!voters.every((id, i) => id === a.lease.voters[i]) || !sameTimings(a.timings, f.timings)) return false;
  let i = 0;
  for (const other of f.nodes) {
    if (other === node || other.goal === "dropped") continue;
    if (!isPeer(a.peers[i++] ?? null, other)) return false;
  }
  return i === a.peers.length;
}

function isPeer(peer: Peer | null, node: NodeRow | null): boolean {
  if (peer === null || node === null) return peer === null && node === null;
  return (
    peer.nodeId === node.nodeId &&
    peer.name === node.name &&
    peer.host === node.host &&
    peer.pgPort === node.pgPort &&
    peer.keeperUrl === node.keeperUrl &&
    peer.keeperFingerprint === node.keeperFingerprint
  );
}

function sameTimings(a: Timings, b: Timings): boolean {
  return a === b || (Object.keys(b) as (keyof Timings)[]).every((key) => a[key] === b[key]);
}

/** Before the reigning node can see it: what it may have in force from now on. */
function record(f: Formation, node: NodeRow, version: number): void {
  const { reign } = f;
  const { assignment } = node;
  if (reign === null || assignment === null || reign.nodeId !== node.nodeId || !needsLease(node.goal)) return;
  const { required, voters } = assignment.lease;
  const lastTerms = reign.terms.at(-1);
  const sameTerms =
    lastTerms && JSON.stringify([lastTerms.required, lastTerms.voters]) === JSON.stringify([required, voters]);
  if (!sameTerms) reign.terms.push({ version, required, voters: [...voters] });
  if (!reign.opened) return;
  const waits = node.goal === "primary" || node.goal === "apply_settings";
  const lastSsn = reign.ssn.at(-1);
  const sameSsn =
    lastSsn &&
    JSON.stringify([lastSsn.k, lastSsn.members, lastSsn.waits]) === JSON.stringify([f.ssn.k, f.ssn.members, waits]);
  if (!sameSsn) reign.ssn.push({ version, waits, k: f.ssn.k, members: [...f.ssn.members] });
}
