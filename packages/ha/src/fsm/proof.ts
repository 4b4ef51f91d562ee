/**
 * The two proofs that a promotion needs. Both look only at what is durable or counted conservatively.
 *
 * 1. The old primary is out. Either it confirmed a goal that needs no lease, or every lease that it may
 *    hold has run out: the monitor's last grant is older than the takeover wait, and for *each* terms
 *    that it may be applying, one of the voters has stopped promising and its last promise has run out
 *    (a lease from peers needs all voters). Terms without a lease can only be ended by confirmation.
 * 2. The candidate holds every acknowledged commit. Either the old primary stopped cleanly and said where
 *    its WAL ends; or for *each* ssn that it may have had in force, N-k+1 of the members are frozen, and
 *    the candidate is as far as the furthest of them; or every such ssn makes each single member hold
 *    everything (k = N) and the candidate is a member.
 */
import { formatLsn, maxLsn } from "@spillway/base/lsn";
import { hasCeased, isConfirmedOut, isHealthy, lsnOf } from "./health.ts";
import { nodeOf, type Draft, type Failover, type NodeRow, type RecordedSsn } from "./model.ts";
import { neededFrozen } from "./quorum.ts";

/** null when the old primary is provably out, else what is missing, in words. */
export function whyNotOut(d: Draft, failover: Failover): string | null {
  const { oldPrimary } = failover;
  if (oldPrimary === 0) return null;
  const node = nodeOf(d.f, oldPrimary);
  if (node !== null && isConfirmedOut(node)) return null;
  const { reign, timings } = d.f;
  const grantedMs = d.obs.grantedAtMs.get(oldPrimary) ?? d.obs.startedAtMs;
  const graceMs = timings.takeoverWaitMs - timings.leaseTtlMs;
  const leftMs = grantedMs + timings.takeoverWaitMs - d.nowMs;
  if (failover.primaryIsDown) return null;
  if (leftMs > 0) return `the old primary's lease may hold for another ${Math.ceil(leftMs)} ms`;
  for (const terms of reign?.nodeId === oldPrimary ? reign.terms : []) {
    if (!terms.required) {
      return "the old primary may be running without a lease (it had no standby to be promoted) and has not confirmed that it stopped";
    }
    const ceased = terms.voters.some((id) => {
      const voter = nodeOf(d.f, id);
      return voter !== null && promiseEndMs(d, voter) + graceMs <= d.nowMs;
    });
    if (terms.voters.length > 0 && !ceased) return "no standby has let its promise to the old primary run out yet";
  }
  return null;
}

/** The end of its last promise, once it has ceased and said so to this monitor; else never. */
function promiseEndMs(d: Draft, voter: NodeRow): number {
  const until = d.obs.promisedUntil.get(voter.nodeId);
  return hasCeased(voter) && until?.last === true ? until.ms : Number.POSITIVE_INFINITY;
}

export interface DataProof {
  /** WAL up to here has every acknowledged commit; null: the candidate has them as it stands. */
  readonly targetLsn: string | null;
}

/** The proof for this candidate (null: for whoever comes), or what is missing, in words. */
export function proveData(d: Draft, failover: Failover, candidate: NodeRow | null): DataProof | string {
  const old = nodeOf(d.f, failover.oldPrimary);
  if (failover.targetLsn !== null) return { targetLsn: failover.targetLsn };
  if (old !== null && d.f.reign?.opened && isConfirmedOut(old) && old.stoppedAt !== null) {
    return { targetLsn: old.stoppedAt.lsn };
  }
  const ssn = d.f.reign?.ssn ?? [];
  const async = wasAsync(ssn);
  if (candidate !== null && !async && ssn.every((s) => isSoleHolder(s, candidate))) return { targetLsn: null };
  if (async || failover.allowDataLoss) {
    const lossAllowed = failover.allowDataLoss || d.f.settings.failoverWhenAsync;
    return lossAllowed ? furthestOfAll(d) : "the formation was asynchronous: commits may be on the old primary only";
  }
  for (const s of ssn) {
    const frozen = s.members.filter((id) => frozenOnTimeline(d, nodeOf(d.f, id)));
    const missing = neededFrozen(s) - frozen.length;
    if (missing > 0) {
      const others = s.members.filter((id) => !frozen.includes(id)).map((id) => nameOf(d, id));
      return `of the synchronous standbys, ${neededFrozen(s)} must report their position, ${frozen.length} did; missing: ${others.join(", ")}`;
    }
  }
  return { targetLsn: furthest(d.f.nodes.filter((n) => frozenOnTimeline(d, n))) };
}

/** Whether the standbys that are here could give the proof of data, once they are frozen. */
export function couldProveData(d: Draft, candidates: readonly NodeRow[]): string | null {
  const ssn = d.f.reign?.ssn ?? [];
  if (wasAsync(ssn)) {
    return d.f.settings.failoverWhenAsync
      ? null
      : "the formation was asynchronous: commits may be on the old primary only";
  }
  for (const s of ssn) {
    const here = s.members.filter((id) => candidates.some((n) => n.nodeId === id));
    if (here.length < neededFrozen(s)) {
      const gone = s.members.filter((id) => !here.includes(id)).map((id) => nameOf(d, id));
      return `of the synchronous standbys ${neededFrozen(s)} are needed and ${here.length} are here; missing: ${gone.join(", ")}`;
    }
  }
  return null;
}

/**
 * Whether a commit may have been acknowledged without a standby, or be older than what the quorum was
 * proven to hold (its first value was set without waiting for the standbys to have everything).
 */
export function wasAsync(ssn: readonly RecordedSsn[]): boolean {
  return ssn[0] === undefined || !ssn[0].waits || ssn.some((s) => s.k === 0);
}

export function isSoleHolder(s: RecordedSsn, candidate: NodeRow): boolean {
  return s.k >= s.members.length && s.members.includes(candidate.nodeId);
}

export function frozenOnTimeline(d: Draft, node: NodeRow | null): node is NodeRow {
  return node !== null && node.frozen !== null && node.frozen.tli === d.f.reign?.timeline;
}

/** With loss allowed: every standby that is here must have frozen, then the furthest counts. */
function furthestOfAll(d: Draft): DataProof | string {
  const here = d.f.nodes.filter(
    (n) => n.goal === "report_lsn" || n.goal === "fast_forward" || n.goal === "prepare_promotion",
  );
  const pending = here.filter((n) => n.frozen === null && isHealthy(d, n));
  if (pending.length > 0) return `waiting for the position of ${pending.map((n) => n.name).join(", ")}`;
  const frozen = here.filter((n) => n.frozen !== null);
  const known = frozen.filter((n) => frozenOnTimeline(d, n));
  const best = known.length > 0 ? known : frozen;
  return best.length === 0 ? "no standby has reported its position" : { targetLsn: furthest(best) };
}

function furthest(nodes: readonly NodeRow[]): string {
  return formatLsn(nodes.map((n) => lsnOf(n.frozen?.lsn)).reduce(maxLsn, 0n));
}

function nameOf(d: Draft, id: number): string {
  return nodeOf(d.f, id)?.name ?? `node ${id}`;
}
