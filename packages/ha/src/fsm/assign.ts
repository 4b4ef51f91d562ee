/**
 * From decisions to assignments: derives what each node is to be told from the formation, gives a new
 * version to what changed, and records every ssn and every lease terms *before* the primary can see them.
 */
import type { Assignment, Peer } from "../protocol/messages.ts";
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

function contentOf(d: Draft, node: NodeRow): Omit<Assignment, "version" | "reason"> {
  const { f } = d;
  const reigning = primaryOf(f);
  const candidate = f.failover?.candidate === node.nodeId;
  const old = nodeOf(f, f.failover?.oldPrimary);
  const fastForward = node.goal === "fast_forward" || node.goal === "report_lsn";
  const leads = needsLease(node.goal) || node.goal === "prepare_promotion";
  return {
    goalState: node.goal,
    ssn: leads ? renderSsn(f.ssn) : "",
    primary: reigning === null || reigning === node ? null : peerOf(reigning),
    source: fastForward ? peerOrNull(nodeOf(f, f.failover?.source)) : null,
    targetLsn: candidate ? (f.failover?.targetLsn ?? null) : null,
    lease: {
      ...termsOf(d, node),
      promisesVoid: candidate && (f.failover?.oldPrimary === 0 || (old !== null && isConfirmedOut(old))),
    },
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
  for (const node of d.f.nodes) {
    const content = contentOf(d, node);
    const before = node.assignment;
    if (before !== null && includes(before, content)) continue;
    const version = ++d.f.version;
    if (before === null || essence(before) !== essence(content)) node.goalVersion = version;
    node.assignment = { version, reason: node.reason, ...content };
    record(d.f, node, version);
  }
}

/** Every field of `content` is the same in `whole`, however deep. */
function includes(whole: unknown, content: unknown): boolean {
  if (typeof content !== "object" || content === null || typeof whole !== "object" || whole === null) {
    return whole === content;
  }
  if (Array.isArray(content) && (!Array.isArray(whole) || whole.length !== content.length)) return false;
  for (const key in content) {
    if (!includes(whole[key as keyof typeof whole], content[key as keyof typeof content])) return false;
  }
  return true;
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
