/**
 * A change of the primary, from the decision to the opening of the new one:
 *
 *   stop the old primary · choose a candidate (freezing the standbys first, unless one of them provably
 *   has everything) · wait for both proofs (`proof.ts`) · promote · open
 *
 * Until the promotion is given out, it can be called off: when no standby can take over and the old
 * primary's keeper is there, the old primary goes on.
 */
import { setGoal } from "./assign.ts";
import {
  chooseFrozen,
  choosePlanned,
  completeOnes,
  eligible,
  mayLead,
  newcomerOf,
  sameTimeline,
  whyNoCandidate,
} from "./election.ts";
import { isConfirmedOut, isFresh, isOnTimeline, isSilent, isStable, lsnOf, seenOf } from "./health.ts";
import { nodeOf, type Draft, type Failover, type NodeRow } from "./model.ts";
import { couldProveData, isSoleHolder, proveData, wasAsync, whyNotOut } from "./proof.ts";
import { openingSsn } from "./steer.ts";
import { forget } from "./rows.ts";
import { needsLease } from "./states.ts";

export function advanceFailover(d: Draft): void {
  const { failover, reign } = d.f;
  if (failover === null || reign === null) return;
  const promoted = reign.nodeId === failover.candidate ? nodeOf(d.f, reign.nodeId) : null;
  if (promoted !== null) return finish(d, failover, promoted);
  stopOld(d, failover);
  endMaintenance(d);
  reviewCandidate(d, failover);
  if (callOff(d, failover)) return;
  if (failover.candidate === null) elect(d, failover);
  promote(d, failover);
}

function stopOld(d: Draft, failover: Failover): void {
  const old = nodeOf(d.f, failover.oldPrimary);
  if (old === null || !needsLease(old.goal)) return;
  if (failover.kind === "drop" && old.nodeId === failover.from) return setGoal(d, old, "dropped", failover.reason);
  if (failover.kind === "maintenance" && old.nodeId === failover.from) {
    return setGoal(d, old, "prepare_maintenance", failover.reason);
  }
  setGoal(d, old, "draining", failover.reason);
}

/** A node that comes back from maintenance now finds no primary to follow: it takes part in the election. */
function endMaintenance(d: Draft): void {
  for (const node of d.f.nodes) {
    const away = node.goal === "maintenance" || node.goal === "wait_maintenance";
    if (away && !node.maintenance && isFresh(d, node)) setGoal(d, node, "report_lsn", "Its maintenance is over");
  }
}

/** Gives a candidate up that is gone, forked, or has not moved for too long. */
function reviewCandidate(d: Draft, failover: Failover): void {
  const node = nodeOf(d.f, failover.candidate);
  if (node === null) {
    failover.candidate = null;
    return;
  }
  const heldUp = whyNotOut(d, failover) !== null;
  const sinceMs = d.nowMs - (d.obs.goalSinceMs.get(node.nodeId) ?? d.obs.startedAtMs);
  const stuck = !heldUp && sinceMs >= d.limits.stuckMs;
  if (eligible(d, failover, node) && !stuck) return;
  failover.candidate = null;
  failover.source = null;
  setGoal(
    d,
    node,
    "report_lsn",
    stuck ? "It made no progress towards promotion" : "It was lost on its way to promotion",
  );
}

/** Nobody can take over, and the last primary is here, stopped, with everything: it goes on. */
function callOff(d: Draft, failover: Failover): boolean {
  const from = nodeOf(d.f, failover.from);
  if (from === null || failover.kind === "drop" || !isConfirmedOut(from) || !isFresh(d, from)) return false;
  if (failover.candidate !== null || from.goal === "maintenance" || from.goal === "catchingup") return false;
  if (failover.oldPrimary !== failover.from && whyNotOut(d, failover) !== null) return false;
  if (couldStillElect(d, failover)) return false;
  d.f.failover = null;
  d.f.ssn = openingSsn(d, from);
  if (d.f.reign !== null && d.f.reign.nodeId !== from.nodeId) {
    const promoted = nodeOf(d.f, d.f.reign.nodeId);
    d.f.reign = { ...d.f.reign, nodeId: from.nodeId, opened: true, terms: [] };
    if (promoted !== null && needsLease(promoted.goal)) setGoal(d, promoted, "demoted", "It never opened");
  }
  from.maintenance = false;
  setGoal(d, from, "wait_primary", "Nobody could take over: it goes on as the primary");
  return true;
}

/** Some standby that is here can be chosen now, or perhaps once all have reported their positions. */
function couldStillElect(d: Draft, failover: Failover): boolean {
  const standbys = d.f.nodes.filter((n) => eligible(d, failover, n));
  if (whyNoCandidate(d, failover) !== null) return false;
  const proof = proveData(d, failover, null);
  const arrived = standbys.every((n) => n.goal === "report_lsn" && isStable(n));
  if (!arrived) return typeof proof !== "string" || failover.allowDataLoss || couldProveData(d, standbys) === null;
  if (typeof proof === "string") return false;
  return typeof chooseFrozen(d, { ...failover, targetLsn: proof.targetLsn }, standbys) !== "string";
}

/** Chooses the candidate, or takes the step that must come before. */
function elect(d: Draft, failover: Failover): void {
  const old = nodeOf(d.f, failover.oldPrimary);
  const standbys = d.f.nodes.filter((n) => n !== old && eligible(d, failover, n));
  if (
    old !== null &&
    isFresh(d, old) &&
    failover.kind !== "automatic" &&
    isRunning(d, old) &&
    !failover.allowDataLoss
  ) {
    const planned = choosePlanned(d, failover, standbys);
    if (planned !== null) return appoint(d, failover, planned, "prepare_promotion");
  }
  const sole = standbys.length === 1 ? standbys[0] : undefined;
  if (sole !== undefined && hasAll(d, sole) && mayLead(d, failover, sole))
    return appoint(d, failover, sole, "prepare_promotion");
  for (const node of standbys) {
    if (node.goal !== "report_lsn") setGoal(d, node, "report_lsn", "An election: how far did each standby get?");
  }
  const proof = proveData(d, failover, null);
  if (typeof proof === "string") {
    d.blocked.push(proof);
    return;
  }
  failover.targetLsn = proof.targetLsn;
  const choice = chooseFrozen(d, failover, standbys);
  if (typeof choice === "string") {
    d.blocked.push(copyToNewcomer(d, failover, standbys) ?? choice);
    return;
  }
  failover.source = choice.source?.nodeId ?? null;
  appoint(d, failover, choice.node, choice.source === null ? "prepare_promotion" : "fast_forward");
}

/** No standby may be promoted, but a new node waits to be copied: it becomes a copy of the furthest of them. */
function copyToNewcomer(d: Draft, failover: Failover, standbys: readonly NodeRow[]): string | null {
  const newcomer = newcomerOf(d, failover);
  const source = completeOnes(d, failover, standbys)[0];
  if (newcomer === null || source === undefined || standbys.some((n) => mayLead(d, failover, n))) return null;
  failover.source = source.nodeId;
  setGoal(d, newcomer, "report_lsn", `No standby may be promoted: it copies ${source.name}`);
  return `${newcomer.name} copies ${source.name} first`;
}

function isRunning(d: Draft, node: NodeRow): boolean {
  const pg = seenOf(d, node)?.report.pg;
  return pg?.isRunning === true && pg.inRecovery === false;
}

/** Every acknowledged commit is on it, whatever the other standbys have, and it still follows. */
function hasAll(d: Draft, node: NodeRow): boolean {
  return node.goal === "secondary" && holdsEveryAck(d, node);
}

function holdsEveryAck(d: Draft, node: NodeRow): boolean {
  const ssn = d.f.reign?.ssn ?? [];
  return !wasAsync(ssn) && ssn.every((s) => isSoleHolder(s, node)) && isOnTimeline(d, node);
}

function appoint(d: Draft, failover: Failover, node: NodeRow, goal: "prepare_promotion" | "fast_forward"): void {
  failover.candidate = node.nodeId;
  const why = goal === "fast_forward" ? "Elected, but another standby has more" : `Elected: ${failover.reason}`;
  setGoal(d, node, goal, why);
}

/** Takes the candidate over the line, when both proofs are there. */
function promote(d: Draft, failover: Failover): void {
  const node = nodeOf(d.f, failover.candidate);
  if (node === null || !isStable(node)) return;
  if (node.goal === "fast_forward") {
    failover.source = null;
    return setGoal(d, node, "prepare_promotion", "It has everything that any standby had");
  }
  if (node.goal !== "prepare_promotion") return;
  const notOut = whyNotOut(d, failover);
  if (notOut !== null) {
    d.blocked.push(notOut);
    return;
  }
  const proof = proveData(d, failover, node);
  if (typeof proof === "string") return reelect(d, failover, node, proof);
  if (proof.targetLsn !== null) {
    failover.targetLsn = proof.targetLsn;
    const lsn = isFresh(d, node) ? seenOf(d, node)?.report.pg.lsn : null;
    const lacks = lsnOf(lsn) < lsnOf(proof.targetLsn);
    if (lacks && isCutShort(d, node)) {
      const from = nodeOf(d.f, failover.from);
      // The old primary has more than it and can go on: positions are compared, and it is called off.
      if (from !== null && isFresh(d, from) && failover.kind !== "drop") {
        return reelect(d, failover, node, `${node.name} did not get the old primary's last WAL`);
      }
      if (holdsEveryAck(d, node)) {
        failover.targetLsn = null;
        return enthrone(d, failover, node);
      }
    }
    if (lacks || awaitsCheckpoint(d, failover, node, lsn)) {
      d.blocked.push(`${node.name} is at ${lsn ?? "an unknown position"} and must reach ${proof.targetLsn} first`);
      return;
    }
  }
  if (!sameTimeline(d, failover, node) && !isOnTimeline(d, node)) {
    d.blocked.push(`${node.name} is not on the old primary's timeline`);
    return;
  }
  enthrone(d, failover, node);
}

/** How long a candidate that is not connected is given to connect to a primary that is stopping. */
const RECONNECT_MS = 1_000;

/** It was not connected when the old primary stopped: what it lacks will not come. */
function isCutShort(d: Draft, node: NodeRow): boolean {
  const sinceMs = d.nowMs - (d.obs.goalSinceMs.get(node.nodeId) ?? d.obs.startedAtMs);
  const streams = seenOf(d, node)?.report.upstream?.streaming === true;
  return node.frozen === null && sinceMs >= RECONNECT_MS && isFresh(d, node) && !streams;
}

/** How long a candidate is given to receive the old primary's shutdown checkpoint. */
const CHECKPOINT_MS = 700;

/**
 * The old primary reported where its shutdown checkpoint begins. A standby that has that record too would
 * have forked off from a candidate without it; it is on its way, so a moment's wait saves a rewind.
 */
function awaitsCheckpoint(d: Draft, failover: Failover, node: NodeRow, lsn: string | null | undefined): boolean {
  const stopped = nodeOf(d.f, failover.oldPrimary)?.stoppedAt;
  const sinceMs = d.nowMs - (d.obs.goalSinceMs.get(node.nodeId) ?? d.obs.startedAtMs);
  return stopped !== null && stopped?.lsn === lsn && sinceMs < CHECKPOINT_MS;
}

/** Appointed without a freeze, but then the old primary did not stop cleanly: count positions after all. */
function reelect(d: Draft, failover: Failover, node: NodeRow, why: string): void {
  d.blocked.push(why);
  if (node.frozen !== null) return;
  failover.candidate = null;
  setGoal(d, node, "report_lsn", "The old primary did not stop cleanly: positions must be compared");
}

/** The decision: from here on `node` is the one that may write. */
function enthrone(d: Draft, failover: Failover, node: NodeRow): void {
  const { reign } = d.f;
  if (reign === null) return;
  d.f.reign = { ...reign, nodeId: node.nodeId, opened: false, terms: [] };
  d.f.ssn = openingSsn(d, node);
  setGoal(d, node, "stop_replication", "The old primary is out: promote, not yet open for writes");
  for (const other of d.f.nodes) {
    if (other === node) continue;
    if (other.goal === "draining") setGoal(d, other, "demote_timeout", `${node.name} is being promoted`);
    if (other.goal === "report_lsn" && isStable(other)) setGoal(d, other, "join_secondary", `${node.name} was elected`);
    if (other.goal === "secondary") setGoal(d, other, "report_lsn", `${node.name} is being promoted`);
  }
}

/** Opens the promoted node, or gives it up. */
function finish(d: Draft, failover: Failover, node: NodeRow): void {
  const { reign } = d.f;
  if (reign === null) return;
  if (!isStable(node) || !isFresh(d, node)) {
    const sinceMs = d.nowMs - (d.obs.goalSinceMs.get(node.nodeId) ?? d.obs.startedAtMs);
    if (!isSilent(d, node) && sinceMs < d.limits.stuckMs) return;
    failover.oldPrimary = node.nodeId;
    failover.candidate = null;
    for (const other of d.f.nodes) {
      if (other.goal === "join_secondary") setGoal(d, other, "report_lsn", `${node.name} was lost in its promotion`);
    }
    return setGoal(d, node, "draining", "It was lost in its promotion");
  }
  reign.opened = true;
  reign.ssn = [];
  reign.timeline = seenOf(d, node)?.report.pg.tli ?? reign.timeline;
  setGoal(d, node, "wait_primary", failover.reason);
  for (const other of d.f.nodes) {
    if (other.goal === "prepare_maintenance") setGoal(d, other, "maintenance", `${node.name} is the primary now`);
  }
  d.f.failover = null;
  if (failover.forget) forget(d, failover.from);
}
