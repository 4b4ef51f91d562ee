/**
 * Rules for quiet times (no change of the primary in progress): which standbys the primary waits for, and
 * how standbys come, catch up, get lost, go into maintenance and leave.
 */
import { setGoal } from "./assign.ts";
import {
  isAttached,
  isFresh,
  isHealthy,
  isOnTimeline,
  isServing,
  isStable,
  lostReason,
  lsnOf,
  seenOf,
} from "./health.ts";
import { ASYNC, primaryOf, type Draft, type NodeRow, type Quorum } from "./model.ts";
import { quorum, sameQuorum } from "./quorum.ts";
import { isWritable, type State } from "./states.ts";
import { edgeOf } from "./table.ts";

/** The standbys that the next ssn names. A member stays one until it is lost; a new one must stream. */
export function syncMembers(d: Draft): NodeRow[] {
  return d.f.nodes.filter((n) => {
    if (!n.replicationQuorum || n.maintenance || n.goal !== "secondary") return false;
    if (d.f.ssn.members.includes(n.nodeId)) return true;
    return isStable(n) && isAttached(d, n) && isOnTimeline(d, n);
  });
}

/** All standbys that count for the quorum, present or not: what a blocked primary waits for. */
export function quorumOfAll(d: Draft, primary: NodeRow): Quorum {
  const all = d.f.nodes.filter((n) => n !== primary && n.replicationQuorum && n.goal !== "dropped");
  return quorum(
    Math.max(1, d.f.settings.numberSync),
    all.map((n) => n.nodeId),
  );
}

/** What a primary opens with while no standby has been proven to follow: nothing, or a wall. */
export function openingSsn(d: Draft, primary: NodeRow): Quorum {
  return d.f.settings.numberSync === 0 ? ASYNC : quorumOfAll(d, primary);
}

/** Chooses goal and ssn of the primary. */
export function steerPrimary(d: Draft): void {
  const primary = primaryOf(d.f);
  if (primary === null || !isWritable(primary.goal) || !isFresh(d, primary)) return;
  // It has just been told to begin: let it arrive.
  if ((primary.goal === "single" || primary.reported.state === "stop_replication") && !isStable(primary)) return;
  const peers = d.f.nodes.filter((n) => n !== primary && n.goal !== "dropped");
  if (peers.length === 0) return toAsync(d, primary, "single", "No other node is registered");
  const members = syncMembers(d);
  const k = Math.max(1, d.f.settings.numberSync);
  if (members.length >= k)
    return toSync(
      d,
      primary,
      quorum(
        k,
        members.map((n) => n.nodeId),
      ),
    );
  if (d.f.settings.numberSync > 0) {
    if (d.f.ssn.k > 0) return;
    d.f.ssn = quorumOfAll(d, primary);
    return setGoal(d, primary, "wait_primary", `number-sync-standbys is ${k} and too few standbys follow: writes wait`);
  }
  const others = d.f.nodes.some((n) => n.goal === "secondary" && !n.replicationQuorum && isStable(n));
  if (others && !peers.some((n) => n.replicationQuorum)) {
    return toAsync(d, primary, "primary", "No standby takes part in the replication quorum");
  }
  const why = primary.goal === "single" ? "A standby is joining" : "No healthy standby is left to wait for";
  toAsync(d, primary, "wait_primary", why);
}

function toAsync(d: Draft, primary: NodeRow, goal: State, why: string): void {
  d.f.ssn = ASYNC;
  setGoal(d, primary, goal, why);
}

/** single, wait_primary → primary; a primary changes its ssn by way of apply_settings. */
function toSync(d: Draft, primary: NodeRow, want: Quorum): void {
  const same = sameQuorum(want, d.f.ssn);
  d.f.ssn = want;
  if (primary.goal !== "primary" && primary.goal !== "apply_settings") {
    return setGoal(d, primary, "primary", "A healthy standby appeared");
  }
  if (primary.goal === "primary" && !same) {
    return setGoal(d, primary, "apply_settings", "The set of synchronous standbys changed");
  }
  if (primary.goal === "apply_settings" && same && isStable(primary)) {
    setGoal(d, primary, "primary", "The new synchronous standbys have everything");
  }
}

/** Moves every node that is not the primary. */
export function steerStandbys(d: Draft): void {
  const primary = primaryOf(d.f);
  for (const node of d.f.nodes) {
    if (node === primary || node.goal === "dropped") continue;
    if (steerMaintenance(d, node)) continue;
    if (isServing(d, primary)) steerStandby(d, node, primary);
  }
}

function steerStandby(d: Draft, node: NodeRow, primary: NodeRow): void {
  switch (node.goal) {
    case "wait_standby":
      if (isStable(node) && primary.reported.state !== "single" && primary.goal !== "single" && isFresh(d, node)) {
        setGoal(d, node, "catchingup", "The primary is ready for it");
      }
      return;
    case "catchingup":
      // From any other state the way to catchingup is a rejoin, which mends a fork.
      if (["catchingup", "secondary"].includes(node.reported.state) && forked(d, node))
        return setGoal(d, node, "demoted", "Its timeline forked off: it must be rewound");
      if (hasCaughtUp(d, node, primary)) setGoal(d, node, "secondary", "It streams and has caught up");
      return;
    case "secondary": {
      if (forked(d, node)) return setGoal(d, node, "demoted", "Its timeline forked off: it must be rewound");
      const lost = lostReason(d, node);
      if (lost !== null) setGoal(d, node, "catchingup", `Lost as a standby: ${lost}`);
      return;
    }
    case "report_lsn":
    case "fast_forward":
    case "join_secondary":
    case "prepare_promotion":
    case "stop_replication":
      if (!isFresh(d, node)) return;
      if (forked(d, node)) return setGoal(d, node, "demoted", "Its timeline forked off: it must be rewound");
      // It may not have come as far as its goal: from elsewhere the way back is a rejoin.
      if (edgeOf(node.reported.state, "secondary") === null) {
        return setGoal(d, node, "catchingup", `Rejoin ${primary.name}, the primary`);
      }
      return setGoal(d, node, "secondary", `Follow ${primary.name}, the primary`);
    case "draining":
      return setGoal(d, node, "demote_timeout", `${primary.name} is the primary now`);
    case "demote_timeout":
      // It says so itself before it is told more, so that what happened is on record the same way each time.
      if (isStable(node) && isFresh(d, node)) setGoal(d, node, "demoted", `${primary.name} is the primary now`);
      return;
    case "demoted":
    case "prepare_maintenance":
      if (isStable(node) && isFresh(d, node)) setGoal(d, node, "catchingup", `Rejoin ${primary.name}, the primary`);
      return;
    default:
      return;
  }
}

/** Promoted some time ago, or on a timeline that is not the primary's past. */
function forked(d: Draft, node: NodeRow): boolean {
  const pg = seenOf(d, node)?.report.pg;
  return pg !== undefined && isFresh(d, node) && (pg.diverged || (pg.isRunning && pg.inRecovery === false));
}

function hasCaughtUp(d: Draft, node: NodeRow, primary: NodeRow): boolean {
  if (!isStable(node) || !isHealthy(d, node) || !isAttached(d, node) || !isOnTimeline(d, node)) return false;
  if (seenOf(d, node)?.report.pg.isRunning !== true) return false;
  const behind = lsnOf(seenOf(d, primary)?.report.pg.lsn) - lsnOf(seenOf(d, node)?.report.pg.lsn);
  return behind <= BigInt(d.limits.catchupBytes);
}

/** True when maintenance is what rules the node now. The primary's is a failover (`failover.ts`). */
function steerMaintenance(d: Draft, node: NodeRow): boolean {
  if (!node.maintenance) {
    if (node.goal === "maintenance" || node.goal === "wait_maintenance") {
      if (isServing(d, primaryOf(d.f))) setGoal(d, node, "catchingup", "The maintenance is over");
      return true;
    }
    return false;
  }
  if (node.goal === "maintenance") return true;
  if (node.goal !== "wait_maintenance") {
    if (["wait_standby", "init", "draining", "demote_timeout", "demoted"].includes(node.goal)) return false;
    if (edgeOf(node.reported.state, "wait_maintenance") === null && node.goal !== "prepare_maintenance") return false;
    if (node.goal === "prepare_maintenance") setGoal(d, node, "maintenance", "The operator enabled maintenance");
    else setGoal(d, node, "wait_maintenance", "The operator enabled maintenance");
    return true;
  }
  const { reign } = d.f;
  const counted = reign?.ssn.some((s) => s.members.includes(node.nodeId)) ?? false;
  const votes = reign?.terms.some((t) => t.voters.includes(node.nodeId)) ?? false;
  if (isStable(node) && !counted && !votes) setGoal(d, node, "maintenance", "The primary does without it");
  return true;
}
