/**
 * What the monitor knows. `Formation` is durable: it is written (and synced) before any answer that
 * depends on it leaves the monitor. `Observations` are volatile: after a restart, or when another monitor
 * takes the lead, they start empty and the rules count every silence and every possible grant from then.
 */
import type { Assignment, NodeReport, Timings } from "../protocol/messages.ts";
import type { State } from "./states.ts";

/** `ANY k (members)` over node ids; k = 0 is the empty setting: asynchronous. */
export interface Quorum {
  readonly k: number;
  readonly members: readonly number[];
}

export const ASYNC: Quorum = { k: 0, members: [] };

export interface NodeRow {
  nodeId: number;
  name: string;
  host: string;
  pgPort: number;
  keeperUrl: string;
  keeperFingerprint: string | null;
  /** SHA-256 of the node's token, hex. */
  tokenHash: string;
  candidatePriority: number;
  replicationQuorum: boolean;
  pgVersion: number;
  goal: State;
  reason: string;
  /** The version at which goal, ssn, primary, source or target last changed. */
  goalVersion: number;
  assignment: Assignment | null;
  /** From its reports; monotone in the versions. */
  reported: { state: State; seenVersion: number; appliedVersion: number };
  /** The operator asked for maintenance. */
  maintenance: boolean;
  /** Position at which the node froze for the election in progress. */
  frozen: Position | null;
  /** Clean end of WAL that a stopped primary reported. */
  stoppedAt: Position | null;
}

export interface Position {
  readonly lsn: string;
  readonly tli: number;
}

/** A value of synchronous_standby_names that may be in force on the primary. */
export interface RecordedSsn extends Quorum {
  readonly version: number;
  /** Its action waits until the quorum has everything that was there before. */
  readonly waits: boolean;
}

/** Terms of a lease that the primary may be applying. */
export interface RecordedTerms {
  readonly version: number;
  readonly required: boolean;
  readonly voters: readonly number[];
}

/** Who may write, and under what. */
export interface Reign {
  nodeId: number;
  /** False between `stop_replication` and `wait_primary`: promoted, but it never accepted a write. */
  opened: boolean;
  /** Timeline of the last primary that accepted writes; null before its first report. */
  timeline: number | null;
  /** Every ssn that may be in force, oldest first; of the last *opened* primary. */
  ssn: RecordedSsn[];
  /** Every terms that `nodeId` may be applying, oldest first. */
  terms: RecordedTerms[];
}

export type FailoverKind = "automatic" | "failover" | "switchover" | "promotion" | "maintenance" | "drop";

/** A change of the primary in progress. */
export interface Failover {
  kind: FailoverKind;
  reason: string;
  /** The last node that accepted writes: it may go on when nobody can take over. 0 = dropped. */
  from: number;
  /** The node that must be out: `from`, or one promoted since that never opened. 0 = out and dropped. */
  oldPrimary: number;
  wanted: number | null;
  candidate: number | null;
  /** fast_forward copies from here. */
  source: number | null;
  /** WAL up to here holds every acknowledged commit: proven, see `proof.ts`. */
  targetLsn: string | null;
  /** The operator accepts that commits may be lost. */
  allowDataLoss: boolean;
  /** The operator vouches that the old primary is off. */
  primaryIsDown: boolean;
  /** `drop --force`: the old primary's row goes without its word, once another one is open. */
  forget: boolean;
}

export interface FormationSettings {
  numberSync: number;
  /** Promote automatically also while the formation is asynchronous: commits may be lost. */
  failoverWhenAsync: boolean;
  /** Promote only a node whose logical slots are ready. */
  requireSlots: boolean;
}

export interface Formation {
  name: string;
  /** The last assignment version given out. */
  version: number;
  nextNodeId: number;
  systemIdentifier: string | null;
  pgMajor: number | null;
  settings: FormationSettings;
  timings: Timings;
  nodes: NodeRow[];
  /** The ssn that the primary is meant to have. */
  ssn: Quorum;
  reign: Reign | null;
  failover: Failover | null;
  /** For keepers; stored like a password. */
  secrets: { peerToken: string; replicationUser: string; replicationPassword: string };
}

export interface Seen {
  readonly report: NodeReport;
  readonly atMs: number;
}

/** All times: the deciding monitor's monotonic clock. */
export interface Observations {
  /** When this monitor began to decide. */
  readonly startedAtMs: number;
  /** Last report per node. */
  readonly seen: Map<number, Seen>;
  /** Per node, the last sequence number of each of its latest boots: late and doubled reports are dropped. */
  readonly sequences: Map<number, ReadonlyMap<string, number>>;
  /** Nodes whose data directory is of another cluster, with its system identifier. */
  readonly foreign: Map<number, string>;
  /** Last lease grant per node. */
  readonly grantedAtMs: Map<number, number>;
  /** Until when a node's last promise binds; `last`: it had ceased to promise when it said so. */
  readonly promisedUntil: Map<number, { readonly ms: number; readonly last: boolean }>;
  /** When the primary last reported this standby as attached. */
  readonly attachedAtMs: Map<number, number>;
  /** When a node's Postgres was last reported as not running. */
  readonly pgDownAtMs: Map<number, number>;
  /** When the goal of a node last changed. */
  readonly goalSinceMs: Map<number, number>;
}

export function newObservations(startedAtMs: number): Observations {
  return {
    startedAtMs,
    seen: new Map(),
    sequences: new Map(),
    foreign: new Map(),
    grantedAtMs: new Map(),
    promisedUntil: new Map(),
    attachedAtMs: new Map(),
    pgDownAtMs: new Map(),
    goalSinceMs: new Map(),
  };
}

/** Thresholds in ms unless named otherwise. */
export interface Limits {
  /** No report for so long: the node is lost. */
  readonly silentMs: number;
  /** A report younger than this is the present. */
  readonly freshMs: number;
  /** A standby that does not stream for so long is lost. */
  readonly detachedMs: number;
  /** After the primary's Postgres came back, standbys have so long to reconnect. */
  readonly reconnectMs: number;
  /** A replication connection without a reply for so long does not stream. */
  readonly stallMs: number;
  /** A candidate that makes no progress for so long is given up. */
  readonly stuckMs: number;
  /** A standby within so much WAL of the primary has caught up. */
  readonly catchupBytes: number;
}

export const DEFAULT_LIMITS: Limits = {
  silentMs: 2500,
  freshMs: 1500,
  detachedMs: 1000,
  reconnectMs: 4000,
  stallMs: 2500,
  stuckMs: 10_000,
  catchupBytes: 16 * 1024 * 1024,
};

export const DEFAULT_TIMINGS: Timings = {
  heartbeatMs: 500,
  leaseTtlMs: 2500,
  takeoverWaitMs: 3500,
  restartTries: 3,
  restartWindowMs: 20_000,
};

export interface HaEvent {
  readonly formation: string;
  readonly nodeId: number | null;
  readonly node: string | null;
  /** assigned: a decision; reported: a keeper arrived in a state; note: anything else worth knowing. */
  readonly kind: "assigned" | "reported" | "note";
  readonly from: string;
  readonly to: string;
  readonly reason: string;
}

/** What one decision works on: a private copy of the formation, the observations, the clock, and events. */
export interface Draft {
  readonly f: Formation;
  readonly obs: Observations;
  readonly limits: Limits;
  readonly nowMs: number;
  readonly events: HaEvent[];
  /** Why nothing moves, per decision; for `explain`. */
  readonly blocked: string[];
}

export function nodeOf(f: Formation, id: number | null | undefined): NodeRow | null {
  return f.nodes.find((n) => n.nodeId === id) ?? null;
}

export function primaryOf(f: Formation): NodeRow | null {
  return nodeOf(f, f.reign?.nodeId);
}
