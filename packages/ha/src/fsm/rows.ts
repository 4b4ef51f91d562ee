/** How formations and changes of the primary begin, and how rows go. */
import type { Timings } from "../protocol/messages.ts";
import type { Draft, Failover, Formation } from "./model.ts";

/** Takes the row out, whatever it was. The caller knows that the node is out, or says so. */
export function forget(d: Draft, nodeId: number): void {
  const { f } = d;
  f.nodes = f.nodes.filter((n) => n.nodeId !== nodeId);
  if (f.failover?.oldPrimary === nodeId) f.failover.oldPrimary = 0;
  if (f.failover?.from === nodeId) f.failover.from = 0;
  const quorumStandbys = f.nodes.filter((n) => n.replicationQuorum && n.nodeId !== f.reign?.nodeId).length;
  f.settings.numberSync = Math.max(0, Math.min(f.settings.numberSync, quorumStandbys - 1));
  if (f.nodes.length > 0) return;
  f.reign = null;
  f.failover = null;
  f.systemIdentifier = null;
  f.ssn = { k: 0, members: [] };
}

export function newFailover(kind: Failover["kind"], reason: string, from: number): Failover {
  return {
    kind,
    reason,
    from,
    oldPrimary: from,
    wanted: null,
    candidate: null,
    source: null,
    targetLsn: null,
    allowDataLoss: false,
    primaryIsDown: false,
    forget: false,
  };
}

export function newFormation(name: string, timings: Timings, secrets: Formation["secrets"]): Formation {
  return {
    name,
    version: 0,
    nextNodeId: 1,
    systemIdentifier: null,
    pgMajor: null,
    settings: { numberSync: 0, failoverWhenAsync: false, requireSlots: false },
    timings,
    nodes: [],
    ssn: { k: 0, members: [] },
    reign: null,
    failover: null,
    secrets,
  };
}
