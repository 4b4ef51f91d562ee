/**
 * The keeper's half of the state machine: one table, state × assignment → action.
 *
 * The contract of an action:
 * - The keeper looks up (current state, assigned state), runs the action until it succeeds, and only then
 *   persists the assigned state as its current one and reports it with `appliedVersion` = the version of
 *   the assignment that it ran under. A failed or interrupted action leaves the current state as it was.
 * - Every action is idempotent and may be started again after any interruption, including a kill of the
 *   keeper in its middle and a new assignment that supersedes it (the running action's `signal` is aborted
 *   and the keeper looks up the new pair). An action must therefore look at what Postgres really is
 *   (stopped, in recovery, promoted, half-copied) and not trust the name of the current state.
 * - An action that leads to a state in `LEASED` may start (or go on) only while the lease is held; when the
 *   lease runs out in the middle, the keeper fences (see `protocol/lease.ts`) and the state is
 *   `demote_timeout`.
 * - A pair with current = assigned means that only parameters changed: the action applies them.
 */
import { STATES, WRITABLE, type State } from "./states.ts";

/** What the keeper implements: `actions: Record<ActionName, (ctx) => Promise<void>>`. */
export const ACTIONS = {
  none: "Nothing to do to Postgres: only the state is persisted and reported.",
  init_primary:
    "initdb, or adopt the data directory; configuration, roles, pg_hba; start read-write with ssn from the assignment.",
  init_from_standby:
    "Base backup from `source` (the most advanced standby; there is no primary); start frozen: standby mode without primary_conninfo.",
  clone_standby:
    "Base backup from `primary` unless the data directory is a usable standby of it already; conninfo, own slot; start streaming.",
  rejoin_standby:
    "Stop; let a crashed server recover; pg_rewind from `primary`, else a fresh base backup (also when a marker says that a rewind or a backup was cut short); conninfo, slot; drop own leftover slots; start streaming.",
  follow_primary:
    "Set primary_conninfo to `primary` and reload, starting or restarting only if needed; check that the own timeline is an ancestor of its, else fail with diverged = true in the report; create slots for peers.",
  freeze_lsn:
    "Standby without primary_conninfo: the walreceiver is gone and the received LSN does not move any more. If Postgres was promoted already (not in recovery), stop it and report diverged = true instead.",
  fast_forward: "Stream from `source` until the received and flushed LSN is at `targetLsn`, then freeze again.",
  stop_promising: "Nothing to do to Postgres: accepting the assignment already ended the promises; streaming goes on.",
  promote_read_only:
    "Wait until WAL up to `targetLsn` (if given) is replayed; default_transaction_read_only = on; promote; ssn from the assignment; checkpoint. Stopped: start first; promoted already: only the settings.",
  open_writes: "ssn from the assignment; default_transaction_read_only = off; slots for peers.",
  promote_and_open: "promote_read_only followed by open_writes; from a stopped standby: start it first.",
  start_writable:
    "Start the stopped primary again (crash recovery if needed, no promotion when it is no standby) with ssn from the assignment already in place before it accepts connections.",
  set_ssn:
    "synchronous_standby_names from the assignment, reload. Waits for nothing. Starts Postgres first if it is stopped.",
  set_ssn_and_wait:
    "synchronous_standby_names from the assignment, reload, then (if it is not empty) wait until a quorum of it has flushed the LSN that was current after the reload. Starts Postgres first if it is stopped (as start_writable); standbys reattach while this waits.",
  stop_postgres:
    "Stop with -m fast (clients end, standbys receive everything); keep it stopped. `pg.lsn` of the report then is the shutdown checkpoint's location from the control file. When the lease runs out first, the keeper fences: immediate stop, and no lsn.",
  drain_for_maintenance: "Two checkpoints, then as stop_postgres.",
  prepare_join: "Checkpoint (restartpoint) and stop, so that following the new primary starts quickly.",
  wait_maintenance: "Nothing to do to Postgres; the primary is told to do without this standby.",
  enter_maintenance:
    "Write the standby's configuration (a former primary too), then stop supervising: the operator may stop Postgres.",
  drop_node: "Stop Postgres, remove own registration data; the keeper ends.",
} as const;

export type ActionName = keyof typeof ACTIONS;

export interface Edge {
  readonly current: State;
  readonly assigned: State;
  readonly action: ActionName;
  /** Why this edge exists, for the generated diagram and `explain`. */
  readonly comment: string;
}

function edges(current: readonly State[], assigned: readonly State[], action: ActionName, comment: string): Edge[] {
  return current.flatMap((from) => assigned.map((to) => ({ current: from, assigned: to, action, comment })));
}

const STANDBY: readonly State[] = ["catchingup", "secondary"];
const OFF: readonly State[] = ["draining", "demote_timeout", "demoted"];
const LEAVING: readonly State[] = ["draining", "demote_timeout", "demoted"];
const FROZEN: readonly State[] = ["report_lsn", "fast_forward"];
const PROMOTION: readonly State[] = [...FROZEN, "prepare_promotion", "stop_replication", "join_secondary"];
const MAINTENANCE: readonly State[] = ["prepare_maintenance", "wait_maintenance", "maintenance"];
const SERVING: readonly State[] = WRITABLE.filter((s) => s !== "single" && s !== "join_primary");

/** A later row of the same pair never exists: the test proves that the table is a function. */
export const TABLE: readonly Edge[] = [
  // A node comes into being.
  ...edges(["init", "dropped"], ["single"], "init_primary", "First node of the formation"),
  ...edges(["init", "dropped"], ["wait_standby"], "none", "A primary exists: wait until it lets us in"),
  ...edges(["init", "dropped"], ["report_lsn"], "init_from_standby", "No primary: copy the most advanced standby"),
  ...edges(["wait_standby", "init", "dropped"], ["catchingup"], "clone_standby", "The primary is ready for us"),
  ...edges(["wait_standby"], ["report_lsn"], "init_from_standby", "The primary went before we were copied"),
  ...edges(["wait_standby"], ["single"], "init_primary", "Alone before the copy began"),

  // A standby's life.
  ...edges(["catchingup"], ["secondary"], "follow_primary", "Caught up with the primary, eligible for promotion"),
  ...edges(["secondary"], ["catchingup"], "follow_primary", "Lost to the primary for a while, not eligible"),
  ...edges(STANDBY, ["wait_standby"], "none", "A new monitor does not know us yet"),
  ...edges(
    ["report_lsn", "fast_forward", "join_secondary"],
    ["secondary"],
    "follow_primary",
    "A primary is there again",
  ),
  ...edges(["prepare_promotion"], ["secondary"], "follow_primary", "The promotion was called off"),
  ...edges([...OFF, ...MAINTENANCE], ["catchingup"], "rejoin_standby", "Rejoin by rewind, else by base backup"),
  ...edges(PROMOTION, ["catchingup"], "rejoin_standby", "Not on the primary's timeline, or not known to be"),
  ...edges(SERVING, ["catchingup"], "rejoin_standby", "Was the primary once; another one is there"),
  ...edges(["single", "join_primary"], ["catchingup"], "rejoin_standby", "Was the primary once; another one is there"),

  // A primary's life.
  ...edges(["single"], ["wait_primary"], "set_ssn", "A standby is joining"),
  ...edges(
    ["single", "wait_primary", "apply_settings", "join_primary"],
    ["primary"],
    "set_ssn_and_wait",
    "A healthy standby appeared",
  ),
  ...edges(["primary", "apply_settings", "join_primary"], ["wait_primary"], "set_ssn", "No healthy standby is left"),
  ...edges(
    ["primary", "wait_primary", "single", "join_primary"],
    ["apply_settings"],
    "set_ssn_and_wait",
    "The set of synchronous standbys changes",
  ),
  ...edges(["primary", "wait_primary"], ["join_primary"], "none", "Kept for old state files"),
  ...edges(SERVING, ["single"], "set_ssn", "The last standby was dropped"),
  ...edges(["join_primary"], ["single"], "set_ssn", "The last standby was dropped"),
  ...edges(WRITABLE, LEAVING, "stop_postgres", "Stop before somebody else is promoted"),
  ...edges(["draining"], ["demote_timeout", "demoted"], "stop_postgres", "Stays stopped"),
  ...edges(["demote_timeout"], ["draining", "demoted"], "stop_postgres", "Stays stopped"),
  ...edges(["demoted"], ["draining", "demote_timeout"], "stop_postgres", "Stays stopped"),
  ...edges(
    [...OFF, "prepare_maintenance"],
    ["wait_primary", "join_primary"],
    "start_writable",
    "Nobody was promoted: go on as the primary",
  ),
  ...edges(
    [...OFF, "prepare_maintenance"],
    ["primary", "apply_settings"],
    "set_ssn_and_wait",
    "Nobody was promoted: go on as the primary",
  ),
  ...edges(OFF, ["single"], "start_writable", "The only node left"),

  // A standby becomes the primary.
  ...edges(
    [...STANDBY, "join_secondary", ...MAINTENANCE],
    ["report_lsn"],
    "freeze_lsn",
    "An election: report how far we are",
  ),
  ...edges(["fast_forward", "prepare_promotion", "stop_replication"], ["report_lsn"], "freeze_lsn", "A new election"),
  ...edges(OFF, ["report_lsn"], "freeze_lsn", "A former primary takes part in the election"),
  ...edges(["report_lsn"], ["fast_forward"], "fast_forward", "Elected, but another standby has more: fetch it first"),
  ...edges(
    [...STANDBY, ...FROZEN],
    ["prepare_promotion"],
    "stop_promising",
    "Elected: wait until the old primary is out",
  ),
  ...edges(
    ["prepare_promotion"],
    ["stop_replication"],
    "promote_read_only",
    "The old primary is out: prevent split brain",
  ),
  ...edges(["demote_timeout"], ["stop_replication"], "promote_read_only", "Fenced in its promotion, and still elected"),
  ...edges(["stop_replication"], ["wait_primary", "primary"], "open_writes", "Confirmed promotion with the monitor"),
  ...edges(["prepare_promotion"], ["wait_primary"], "promote_and_open", "The old primary was dropped"),
  ...edges(["report_lsn", "fast_forward"], ["join_secondary"], "prepare_join", "Another standby was promoted"),
  ...edges(
    [...STANDBY, ...PROMOTION, "wait_maintenance", "maintenance", "prepare_maintenance"],
    ["single"],
    "promote_and_open",
    "The only node left",
  ),

  // A node that was on its way up, or a standby, is told to stand down.
  ...edges(
    [...STANDBY, ...PROMOTION, ...MAINTENANCE],
    LEAVING,
    "stop_postgres",
    "Another primary exists, or the lease ran out",
  ),
  ...edges(["wait_standby", "init"], LEAVING, "stop_postgres", "Stand down"),

  // Maintenance.
  ...edges(
    [...WRITABLE],
    ["prepare_maintenance", "maintenance"],
    "drain_for_maintenance",
    "The primary goes into maintenance: a standby takes over",
  ),
  ...edges(OFF, ["prepare_maintenance"], "stop_postgres", "Already stopped"),
  ...edges(
    [...OFF, "maintenance", "prepare_maintenance"],
    ["wait_maintenance"],
    "wait_maintenance",
    "Maintenance again, before it was back",
  ),
  ...edges(
    [...STANDBY, ...FROZEN, "prepare_promotion", "join_secondary"],
    ["wait_maintenance"],
    "wait_maintenance",
    "The primary is told first",
  ),
  ...edges(
    [...STANDBY, ...FROZEN, "join_secondary", "wait_maintenance", "prepare_maintenance"],
    ["maintenance"],
    "enter_maintenance",
    "Hands off Postgres",
  ),
  ...edges(OFF, ["maintenance"], "enter_maintenance", "Hands off Postgres"),
  ...edges(["wait_maintenance"], ["secondary"], "follow_primary", "The maintenance was called off"),

  // Anything may be dropped, and may be told the parameters of its own state anew.
  ...edges(
    STATES.filter((s) => s !== "dropped"),
    ["dropped"],
    "drop_node",
    "The operator dropped the node",
  ),
  ...edges(["single", "wait_primary", "join_primary"], ["single"], "set_ssn", "New parameters").filter(
    (e) => e.current === e.assigned,
  ),
  ...edges(["wait_primary"], ["wait_primary"], "set_ssn", "New parameters"),
  ...edges(["primary"], ["primary"], "set_ssn_and_wait", "New parameters"),
  ...edges(["apply_settings"], ["apply_settings"], "set_ssn_and_wait", "New parameters"),
  ...edges(["secondary"], ["secondary"], "follow_primary", "New parameters"),
  ...edges(["catchingup"], ["catchingup"], "follow_primary", "New parameters"),
  ...edges(["fast_forward"], ["fast_forward"], "fast_forward", "Another source"),
  ...STATES.filter(
    (s) =>
      !["single", "wait_primary", "primary", "apply_settings", "secondary", "catchingup", "fast_forward"].includes(s),
  ).map((s): Edge => ({ current: s, assigned: s, action: "none", comment: "New parameters" })),
];

const INDEX: ReadonlyMap<string, Edge> = new Map(TABLE.map((e) => [`${e.current}>${e.assigned}`, e]));

/** The edge of a pair, or null: then the keeper reports `no_edge` in `action.error` and does nothing. */
export function edgeOf(current: State, assigned: State): Edge | null {
  return INDEX.get(`${current}>${assigned}`) ?? null;
}
