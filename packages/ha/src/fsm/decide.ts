/**
 * The monitor's decision: what it knows and the time → what each node is told, and why. Pure but for the
 * draft; called on every report, on every command and on a timer, so silence alone makes progress.
 */
import { assert } from "@spillway/base/assert";
import { publish } from "./assign.ts";
import { eligible, mayLead, whyNoCandidate } from "./election.ts";
import { advanceFailover } from "./failover.ts";
import { isConfirmedOut, isStable, primaryGoneReason } from "./health.ts";
import {
  nodeOf,
  primaryOf,
  type Draft,
  type Formation,
  type HaEvent,
  type Limits,
  type Observations,
} from "./model.ts";
import { couldProveData } from "./proof.ts";
import { forget, newFailover } from "./rows.ts";
import { isWritable, needsLease } from "./states.ts";
import { steerPrimary, steerStandbys } from "./steer.ts";

/** A decision settles in a few rounds; more means two rules fight, which is a bug. */
const MAX_ROUNDS = 12;

export function openDraft(f: Formation, obs: Observations, limits: Limits, nowMs: number): Draft {
  return { f: copyOf(f), obs, limits, nowMs, events: [], blocked: [] };
}

/** As deep as the rules write; assignments are never changed, only replaced. */
function copyOf(f: Formation): Formation {
  const { reign, failover } = f;
  return {
    ...f,
    settings: { ...f.settings },
    nodes: f.nodes.map((n) => ({ ...n })),
    reign: reign === null ? null : { ...reign, ssn: [...reign.ssn], terms: [...reign.terms] },
    failover: failover === null ? null : { ...failover },
  };
}

export interface Decision {
  readonly formation: Formation;
  readonly events: readonly HaEvent[];
  /** Why nothing more moves, in words. */
  readonly blocked: readonly string[];
}

export function decide(d: Draft): Decision {
  let before = "";
  for (let round = 0; ; round++) {
    const now = fingerprint(d.f);
    if (now === before) break;
    assert(round < MAX_ROUNDS, () => `the rules do not settle: ${now}`);
    before = now;
    d.blocked.length = 0;
    applyRules(d);
  }
  publish(d);
  checkOneWriter(d.f);
  return { formation: d.f, events: d.events, blocked: d.blocked };
}

function applyRules(d: Draft): void {
  removeDropped(d);
  if (d.f.failover === null) considerFailover(d);
  if (d.f.failover !== null) return advanceFailover(d);
  steerStandbys(d);
  steerPrimary(d);
}

/** What the rules change, in one short text. */
function fingerprint(f: Formation): string {
  const { failover, reign, ssn } = f;
  let text = `${reign?.nodeId} ${reign?.opened} ${ssn.k}:${ssn.members.join()}`;
  for (const n of f.nodes) text += ` ${n.nodeId}${n.goal}${n.maintenance ? "!" : ""}`;
  return failover === null ? text : text + JSON.stringify(failover);
}

/** A row goes when its keeper confirmed that it dropped the node. */
function removeDropped(d: Draft): void {
  for (const node of d.f.nodes.filter((n) => n.goal === "dropped" && isStable(n))) {
    const { failover, reign } = d.f;
    const wrote = failover?.oldPrimary === node.nodeId && reign?.nodeId === node.nodeId && reign.opened;
    if (wrote && node.stoppedAt !== null) failover.targetLsn ??= node.stoppedAt.lsn;
    forget(d, node.nodeId);
  }
}

/** Starts one when the primary is gone, and a standby is there that could provably take over. */
function considerFailover(d: Draft): void {
  const primary = primaryOf(d.f);
  if (primary === null || !isWritable(primary.goal)) return;
  const gone = primaryGoneReason(d, primary);
  if (gone === null) return;
  const failover = newFailover("automatic", `The primary ${primary.name} is gone: ${gone}`, primary.nodeId);
  const lack =
    whyNoCandidate(d, failover) ??
    couldProveData(
      d,
      d.f.nodes.filter((n) => eligible(d, failover, n)),
    );
  if (lack !== null) {
    d.blocked.push(`${failover.reason}; no failover: ${lack}`);
    return;
  }
  const able = d.f.nodes.some((n) => n.goal === "secondary" && eligible(d, failover, n) && mayLead(d, failover, n));
  if (!able && !d.f.settings.failoverWhenAsync) {
    d.blocked.push(`${failover.reason}; no failover: no standby had caught up`);
    return;
  }
  d.f.failover = failover;
}

/** The invariant of the whole: at most one node is told to write, and everybody else is told not to. */
function checkOneWriter(f: Formation): void {
  const leased = f.nodes.filter((n) => needsLease(n.goal));
  assert(leased.length <= 1, () => `two nodes may write: ${leased.map((n) => n.name).join(", ")}`);
  const [node] = leased;
  assert(node === undefined || f.reign?.nodeId === node.nodeId, () => `${node?.name} writes without reigning`);
}

/** Whether a report of this node is answered with a lease. Judged after the decision that it led to. */
export function grantsLease(f: Formation, nodeId: number): boolean {
  const node = nodeOf(f, nodeId);
  return node !== null && needsLease(node.goal) && f.reign?.nodeId === nodeId && !isConfirmedOut(node);
}
