/** The report to the monitor, put together from what the keeper knows; and what of an assignment matters to actions. */
import type { KeeperCore } from "../fsm/keeper-core.ts";
import { PROTOCOL_VERSION, type Assignment, type NodeReport } from "../protocol/messages.ts";
import { isWritable, type State } from "../fsm/states.ts";
import type { RoleFacts } from "./http-server.ts";
import type { Observation } from "./observe.ts";

export interface ReportFacts {
  readonly formation: string;
  readonly nodeId: number;
  readonly boot: string;
  readonly seq: number;
  readonly sentAtMs: number;
  readonly core: KeeperCore;
  readonly seen: Observation;
  readonly isRunning: boolean;
  readonly restartsLeft: number;
  /** Should it be down, the keeper will start it again by itself. */
  readonly mayRestart: boolean;
  readonly diverged: boolean;
  readonly slots: NodeReport["slots"];
  readonly promise: NodeReport["promise"];
  readonly lease: NodeReport["lease"];
  readonly action: NodeReport["action"];
}

export function buildReport(facts: ReportFacts): NodeReport {
  const { core, seen, isRunning } = facts;
  return {
    protocol: PROTOCOL_VERSION,
    formation: facts.formation,
    nodeId: facts.nodeId,
    boot: facts.boot,
    seq: facts.seq,
    sentAtMs: facts.sentAtMs,
    reportedState: core.state,
    seenVersion: core.assignment?.version ?? 0,
    appliedVersion: core.appliedVersion,
    pg: {
      isRunning,
      restarting: !isRunning && facts.mayRestart,
      restartsLeft: facts.restartsLeft,
      inRecovery: isRunning ? seen.inRecovery : null,
      tli: seen.tli,
      lsn: seen.lsn,
      systemIdentifier: seen.systemIdentifier,
      version: seen.version,
      ssn: seen.ssn,
      diverged: facts.diverged,
    },
    replication: isRunning ? seen.replication : [],
    upstream: isRunning ? seen.upstream : null,
    slots: facts.slots,
    promise: facts.promise,
    lease: facts.lease,
    action: facts.action,
  };
}

/** What the node is for a client that asks this keeper. */
export function roleFacts(state: State, seen: Observation, isRunning: boolean, leaseHeld: boolean): RoleFacts {
  return {
    isPrimary: isRunning && isWritable(state) && seen.inRecovery === false && leaseHeld,
    isStandby: isRunning && seen.inRecovery === true && seen.upstream?.streaming === true,
    state,
    isRunning,
  };
}

/** Whether an action that runs under `before` is pointless, or wrong, under `after`. */
export function supersedes(before: Assignment, after: Assignment): boolean {
  const key = (a: Assignment): string =>
    JSON.stringify([a.goalState, a.ssn, a.targetLsn, place(a.primary), place(a.source)]);
  return key(before) !== key(after);
}

function place(peer: Assignment["primary"]): string {
  return peer === null ? "" : `${peer.nodeId} ${peer.host}:${peer.pgPort}`;
}
