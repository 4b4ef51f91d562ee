/**
 * What keepers, monitor and commands say to each other: JSON over HTTP(S), version 1. This file is the
 * contract; `http.ts` has paths, tokens and status codes, `lease.ts` the lease, `../fsm/table.ts` the
 * actions.
 *
 * The conversation
 * 1. `register` (once): the monitor answers with the node's id, its token, and the formation's secrets.
 *    The keeper stores them with mode 0600 before it does anything else. Registering again with the same
 *    `name`, `host` and `pgPort` and the registration token answers the same id (an answer may be lost).
 * 2. `node_active` (each `heartbeatMs`, at once after an action ended or Postgres changed, and at once
 *    when `watch` returns): report → assignment + lease grant. Time-outs: `2 × heartbeatMs`, at most one
 *    in flight; a report that failed is not repeated, the next one says all.
 * 3. `watch` (long poll): returns when the node's assignment has another version than the one given, or
 *    after `timeoutMs`. It only says "report now".
 * 4. `promise` (keeper to keeper): the primary's keeper asks each of `lease.voters`; see `lease.ts`.
 *
 * Order. Messages may be late, lost or doubled. `boot` (random per keeper process) and `seq` (counting up)
 * order the reports; the monitor drops one with a lower seq of the same boot. `assignment.version` counts
 * up per formation; a keeper ignores an assignment with a lower version than the highest it has accepted,
 * across restarts (it persists the assignment before acting on it).
 *
 * "Stable" in the monitor's rules means: reported state = goal, and appliedVersion >= the version in which
 * goal, ssn, primary, source or target last changed.
 */
import { STATES } from "../fsm/states.ts";
import {
  bool,
  hostText,
  int,
  list,
  lsnText,
  nameText,
  nullable,
  number,
  object,
  oneOf,
  optional,
  text,
  type Infer,
  type Validator,
} from "./validate.ts";

export const PROTOCOL_VERSION = 1;

const protocol: Validator<typeof PROTOCOL_VERSION> = (v, path) => int(PROTOCOL_VERSION, PROTOCOL_VERSION)(v, path) as 1;
const nodeId = int(1, 1_000_000);
const nodeIds = list(nodeId, 64);
const state = oneOf(STATES);

/** Postgres's `application_name` and physical slot of a standby: both from the node id, both a plain identifier. */
export function applicationName(id: number): string {
  return `spillway_node_${id}`;
}

/** The node id in an application name or slot name of ours, or null. */
export function nodeIdOf(name: string): number | null {
  const match = /^spillway_node_(\d{1,7})$/.exec(name);
  return match ? Number(match[1]) : null;
}

// ---------------------------------------------------------------- the keeper's report

/** A row of the primary's pg_stat_replication that belongs to a node of ours. */
export const replicationRow = object({
  nodeId,
  /** startup, catchup, streaming, backup, stopping */
  state: text(32),
  /** async, potential, sync, quorum */
  syncState: text(32),
  flushLsn: nullable(lsnText),
  replayLsn: nullable(lsnText),
  /** ms (keeper's monotonic clock) since reply_time or an LSN of this row was last seen to change. */
  replyAgeMs: number(),
});

const logicalSlot = object({ name: text(63), ready: bool, reason: text(512) });

export const nodeReport = object({
  protocol,
  formation: nameText,
  nodeId,
  /** Random per keeper process; orders reports together with `seq`. */
  boot: text(64),
  seq: int(),
  /** The keeper's monotonic clock when it sent this; echoed, and the moment from which a grant counts. */
  sentAtMs: number(),
  reportedState: state,
  /** Highest assignment version accepted and persisted: its lease section is in force. 0 = none yet. */
  seenVersion: int(),
  /** Version of the assignment whose action last completed. */
  appliedVersion: int(),
  pg: object({
    isRunning: bool,
    /** Not running (or not answering), but the keeper is restarting it within its budget: no failover. */
    restarting: bool,
    restartsLeft: int(),
    /** null when not known (Postgres down). */
    inRecovery: nullable(bool),
    /** Timeline of the last WAL written or received; when stopped, from the control file. */
    tli: nullable(int(1, 0xffffffff)),
    /** Primary: pg_current_wal_flush_lsn. Standby: the flushed received LSN, or the replayed one if higher. Stopped: `Latest checkpoint location` of the control file after a clean shutdown, else null. */
    lsn: nullable(lsnText),
    systemIdentifier: nullable(text(32)),
    /** server_version_num, e.g. 150018 */
    version: nullable(int()),
    /** synchronous_standby_names in force (primary). */
    ssn: nullable(text(8192)),
    /** Timeline history says that the own WAL forked off from the primary's. */
    diverged: bool,
  }),
  /** Primary: one row per attached node. */
  replication: list(replicationRow, 64),
  /** Standby: its walreceiver. */
  upstream: nullable(object({ nodeId: nullable(nodeId), streaming: bool, lastMessageAgeMs: number() })),
  slots: object({
    /** Physical slots for all peers (primary), and every logical failover slot, present and usable here. */
    ready: bool,
    logical: list(logicalSlot, 256),
    /** Names of logical slots found lost since the last report: each becomes an event. */
    lost: list(text(63), 256),
  }),
  /** Standby: its promise to the primary. `remainingMs` 0 = none in force. See `lease.ts`. */
  promise: object({
    to: nullable(nodeId),
    /** ms since the primary last asked while it held its lease; null = never. Evidence that it lives. */
    askedAgeMs: nullable(number()),
    remainingMs: number(),
  }),
  /** Primary: its lease. */
  lease: nullable(object({ held: bool, remainingMs: nullable(number()), source: oneOf(["monitor", "peers", "none"]) })),
  /** The action in progress, for `explain`; `error` is the last failure of it, one line. */
  action: nullable(object({ name: text(64), runningMs: number(), error: nullable(text(2048)) })),
});
export type NodeReport = Infer<typeof nodeReport>;
export type ReplicationRow = Infer<typeof replicationRow>;

// ---------------------------------------------------------------- the monitor's answer

/** Another node of the formation. Every registered node is in `peers`: pg_hba, slots, conninfo. */
export const peer = object({
  nodeId,
  name: nameText,
  host: hostText,
  pgPort: int(1, 65535),
  /** Base URL of its keeper, for `promise` and role checks: `http(s)://host:port`. */
  keeperUrl: text(512),
  /** SHA-256 of its keeper's certificate in hex, or null without TLS. */
  keeperFingerprint: nullable(text(64)),
});
export type Peer = Infer<typeof peer>;

/** Durations in ms. The same for all nodes of a formation, so that lease and wait always fit. */
export const timings = object({
  heartbeatMs: number(10, 60_000),
  leaseTtlMs: number(50, 600_000),
  takeoverWaitMs: number(50, 600_000),
  /** Postmaster restarts on the spot before `restarting` goes false: so many within the window. */
  restartTries: int(0, 1000),
  restartWindowMs: number(0, 3_600_000),
});
export type Timings = Infer<typeof timings>;

export const assignment = object({
  /** Counts up per formation; see "Order" above. */
  version: int(1),
  goalState: state,
  /** Why, in words. */
  reason: text(2048),
  /** Writable goals and promotion: the exact value for synchronous_standby_names; '' = asynchronous. */
  ssn: text(8192),
  /** Standby goals: the node to stream from, rewind to or copy. */
  primary: nullable(peer),
  /** fast_forward and init→report_lsn: the most advanced standby. */
  source: nullable(peer),
  /** prepare_promotion, stop_replication, fast_forward: WAL that must be there before promotion. */
  targetLsn: nullable(lsnText),
  lease: object({
    /** false: no peer could be promoted behind this node's back; it needs no lease. */
    required: bool,
    /** The promotable standbys: a lease from peers needs a promise from *every* one. Empty = monitor only. */
    voters: nodeIds,
    /** Promotion goals: the old primary confirmed that it is stopped, so own promises to it are void. */
    promisesVoid: bool,
  }),
  peers: list(peer, 64),
  candidatePriority: int(0, 100),
  replicationQuorum: bool,
  timings,
});
export type Assignment = Infer<typeof assignment>;

export const nodeResponse = object({
  protocol,
  /** Echo of the report: an answer that matches no report in flight is dropped. */
  boot: text(64),
  seq: int(),
  sentAtMs: number(),
  assignment,
  /** Granted to a node whose *goal* needs a lease; counts from the report's `sentAtMs`. */
  leaseTtlMs: nullable(number()),
});
export type NodeResponse = Infer<typeof nodeResponse>;

// ---------------------------------------------------------------- registration

export const registerRequest = object({
  protocol,
  formation: nameText,
  name: nameText,
  host: hostText,
  pgPort: int(1, 65535),
  keeperUrl: text(512),
  keeperFingerprint: nullable(text(64)),
  /** null: no data directory yet. Must equal the formation's, if both are known. */
  systemIdentifier: nullable(text(32)),
  /** server_version_num of the binaries; the major must equal the formation's. */
  pgVersion: int(100000),
  candidatePriority: optional(int(0, 100), 50),
  replicationQuorum: optional(bool, true),
  /** Its data directory is a standby's: it cannot be the first node. */
  follows: optional(bool, false),
  /** Of a formation whose monitor was lost: the first node brings them along. */
  secrets: nullable(object({ peerToken: text(256), replicationUser: text(63), replicationPassword: text(256) })),
});
export type RegisterRequest = Infer<typeof registerRequest>;

export const registerResponse = object({
  protocol,
  nodeId,
  /** Bearer token of this node for node_active, watch and unregister. */
  nodeToken: text(256),
  /** Bearer token for `promise` between the formation's keepers. */
  peerToken: text(256),
  /** Replication role of the formation (SCRAM): created by the first node, used by all. */
  replicationUser: text(63),
  replicationPassword: text(256),
  assignment,
});
export type RegisterResponse = Infer<typeof registerResponse>;

// ---------------------------------------------------------------- keeper to keeper

export const promiseRequest = object({
  protocol,
  formation: nameText,
  /** The primary that asks, and the node that is asked. */
  from: nodeId,
  to: nodeId,
  /** Matches the answer to the moment at which the question was sent. */
  seq: int(),
  /** The asker holds its lease now (false: it fenced itself and would like to go on). */
  holding: bool,
});
export type PromiseRequest = Infer<typeof promiseRequest>;

export const promiseAnswer = object({
  protocol,
  from: nodeId,
  to: nodeId,
  seq: int(),
  granted: bool,
  /** From the moment at which the question was *sent*. 0 when not granted. */
  ttlMs: number(),
  reason: text(256),
});
export type PromiseAnswer = Infer<typeof promiseAnswer>;
