/** What `show …` sees of a formation. */
import { parseLsn } from "@spillway/base/lsn";
import { writesBlocked } from "../fsm/explain.ts";
import { isHealthy, isSilent, seenOf } from "../fsm/health.ts";
import { primaryOf, type Draft, type NodeRow } from "../fsm/model.ts";
import { renderSsn } from "../fsm/quorum.ts";
import { wasAsync } from "../fsm/proof.ts";
import type { NodeView, SettingsView, StateView } from "../protocol/commands.ts";

export function stateOf(d: Draft): StateView {
  const { f } = d;
  return {
    formation: f.name,
    ssn: renderSsn(f.ssn),
    synchronous: f.ssn.k > 0 && !wasAsync(f.reign?.ssn ?? []),
    writesBlocked: writesBlocked(d),
    failover: f.failover === null ? null : `${f.failover.kind}: ${f.failover.reason}`,
    nodes: f.nodes.map((n) => viewOf(d, n)),
  };
}

function viewOf(d: Draft, node: NodeRow): NodeView {
  const primary = primaryOf(d.f);
  const seen = seenOf(d, node);
  const report = seen?.report;
  const row = primary && seenOf(d, primary)?.report.replication.find((r) => r.nodeId === node.nodeId);
  const ahead = primary ? seenOf(d, primary)?.report.pg.lsn : null;
  const lsn = report?.pg.lsn ?? null;
  const lag = ahead && lsn && node !== primary ? parseLsn(ahead) - parseLsn(lsn) : null;
  return {
    nodeId: node.nodeId,
    name: node.name,
    host: node.host,
    pgPort: node.pgPort,
    reported: node.reported.state,
    assigned: node.goal,
    reason: node.reason,
    isPrimary: node === primary,
    running: isSilent(d, node) ? null : (report?.pg.isRunning ?? null),
    syncState: row?.syncState ?? "",
    tli: report?.pg.tli ?? null,
    lsn,
    lagBytes: lag === null ? null : Math.max(0, Number(lag)),
    lastContactMs: seen === null ? null : Math.max(0, d.nowMs - seen.atMs),
    slotsReady: report?.slots.ready ?? null,
    healthy: isHealthy(d, node),
    candidatePriority: node.candidatePriority,
    replicationQuorum: node.replicationQuorum,
    maintenance: node.maintenance,
    action: report?.action ? `${report.action.name}${report.action.error ? `: ${report.action.error}` : ""}` : null,
  };
}

export function settingsOf(d: Draft): SettingsView {
  const { name, settings, timings, nodes } = d.f;
  return {
    formation: name,
    numberSyncStandbys: settings.numberSync,
    failoverWhenAsync: settings.failoverWhenAsync,
    requireSlots: settings.requireSlots,
    heartbeatMs: timings.heartbeatMs,
    leaseTtlMs: timings.leaseTtlMs,
    takeoverWaitMs: timings.takeoverWaitMs,
    nodes: nodes.map(({ name, candidatePriority, replicationQuorum }) => ({
      name,
      candidatePriority,
      replicationQuorum,
    })),
  };
}

/** All hosts in one URI: libpq goes through them until one takes writes. */
export function uriOf(d: Draft): string {
  const hosts = d.f.nodes
    .filter((n) => n.goal !== "dropped")
    .map((n) => `${n.host.includes(":") ? `[${n.host}]` : n.host}:${n.pgPort}`);
  return `postgres://${hosts.join(",")}/postgres?target_session_attrs=read-write`;
}
