/** Why nothing is moving, in words: the same judgements as the rules', said aloud. */
import { edgeOf } from "./table.ts";
import { isFresh, isServing, isStable, lostReason, primaryGoneReason, seenOf, silenceMs } from "./health.ts";
import { primaryOf, type Draft, type FailoverKind, type NodeRow } from "./model.ts";
import { wasAsync } from "./proof.ts";
import { needsLease } from "./states.ts";

/** Commits on the primary wait: fewer of the named standbys are attached than must confirm. */
export function writesBlocked(d: Draft): boolean {
  const primary = primaryOf(d.f);
  if (primary === null || d.f.ssn.k === 0) return false;
  const rows = seenOf(d, primary)?.report.replication ?? [];
  const here = d.f.ssn.members.filter((id) => rows.some((r) => r.nodeId === id && r.state === "streaming"));
  return here.length < d.f.ssn.k;
}

export function explain(d: Draft, blocked: readonly string[]): string[] {
  const { f } = d;
  if (f.nodes.length === 0) return ["The formation has no nodes: `spillway-ha create postgres` registers the first."];
  const lines = [...explainPrimary(d), ...explainFailover(d, blocked), ...f.nodes.flatMap((n) => explainNode(d, n))];
  return lines.length > 0 ? lines : ["Nothing is to be done: every node is where it should be."];
}

function explainPrimary(d: Draft): string[] {
  const primary = primaryOf(d.f);
  if (primary === null) return ["There is no primary."];
  const lines: string[] = [];
  const gone = primaryGoneReason(d, primary);
  if (gone !== null && d.f.failover === null) lines.push(`The primary ${primary.name} is gone: ${gone}.`);
  if (gone === null && silenceMs(d, primary) > d.limits.silentMs) {
    lines.push(
      `The primary ${primary.name} does not reach this monitor, but a standby hears from it: it is left alone.`,
    );
  }
  if (writesBlocked(d)) {
    const k = Math.max(1, d.f.settings.numberSync);
    lines.push(
      `Writes wait: ${d.f.ssn.k} of the synchronous standbys must confirm, fewer are attached (number-sync-standbys is ${d.f.settings.numberSync}; it takes ${k}). Bring a standby back, or lower number-sync-standbys.`,
    );
  }
  if (isServing(d, primary) && d.f.ssn.k === 0 && d.f.nodes.length > 1) {
    lines.push(
      "The formation is asynchronous: no automatic failover until a standby has caught up and is synchronous.",
    );
  }
  if (d.f.ssn.k > 0 && wasAsync(d.f.reign?.ssn ?? [])) {
    lines.push("Synchronous replication is being established; until the primary confirms it, no automatic failover.");
  }
  return lines;
}

const NAMES: Readonly<Record<FailoverKind, string>> = {
  automatic: "An automatic failover",
  failover: "A failover",
  switchover: "A switchover",
  promotion: "A promotion",
  maintenance: "A handover for maintenance",
  drop: "The replacement of a dropped primary",
};

function explainFailover(d: Draft, blocked: readonly string[]): string[] {
  const { failover } = d.f;
  const lines = blocked.map((b) => `${failover === null ? "No failover" : "The failover waits"}: ${b}.`);
  return failover === null ? lines : [`${NAMES[failover.kind]} is in progress: ${failover.reason}.`, ...lines];
}

function explainNode(d: Draft, node: NodeRow): string[] {
  const { name, goal, reported } = node;
  const report = seenOf(d, node)?.report;
  const foreign = d.obs.foreign.get(node.nodeId);
  if (foreign !== undefined) {
    const is = `its data directory has the system identifier ${foreign}, the formation's is ${d.f.systemIdentifier}`;
    return [`${name}: is ignored: ${is}. Bring the right directory back, or drop the node.`];
  }
  if (!isFresh(d, node)) {
    const since = `${(silenceMs(d, node) / 1000).toFixed(1)} s`;
    return [`${name}: its keeper has not reported for ${since}; it is assigned ${goal} (${node.reason}).`];
  }
  const lines: string[] = [];
  if (!isStable(node)) {
    const edge = edgeOf(reported.state, goal);
    const doing = report?.action
      ? `, busy with ${report.action.name} for ${Math.round(report.action.runningMs)} ms`
      : "";
    lines.push(
      edge === null
        ? `${name}: has no way from ${reported.state} to ${goal}; this is a bug, please report it.`
        : `${name}: on its way from ${reported.state} to ${goal} (${node.reason})${doing}.`,
    );
    if (report?.action?.error) lines.push(`${name}: ${report.action.name} fails: ${report.action.error}`);
  }
  if (needsLease(goal) && report?.lease?.held === false)
    lines.push(`${name}: has no lease and keeps Postgres stopped.`);
  if (goal === "catchingup" && isStable(node)) {
    const lost = lostReason(d, node);
    lines.push(`${name}: is catching up${lost === null ? "" : ` (${lost})`}.`);
  }
  if (goal === "maintenance") lines.push(`${name}: is in maintenance until \`spillway-ha disable maintenance\`.`);
  if (report && !report.slots.ready) {
    const slots = report.slots.logical.filter((s) => !s.ready).map((s) => `${s.name}: ${s.reason}`);
    lines.push(`${name}: slots are not ready${slots.length > 0 ? ` (${slots.join("; ")})` : ""}.`);
  }
  return lines;
}
