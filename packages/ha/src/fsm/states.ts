/**
 * The states of a node, named as operators of Postgres failover know them. A node has two: the one that
 * its keeper reports (what is), and the goal that the monitor assigned (what shall be). "Stable" means
 * that the two agree for the latest assignment.
 */
export const STATES = [
  "init",
  "single",
  "wait_primary",
  "primary",
  "apply_settings",
  "join_primary",
  "wait_standby",
  "catchingup",
  "secondary",
  "report_lsn",
  "fast_forward",
  "prepare_promotion",
  "stop_replication",
  "join_secondary",
  "draining",
  "demote_timeout",
  "demoted",
  "prepare_maintenance",
  "wait_maintenance",
  "maintenance",
  "dropped",
] as const;

export type State = (typeof STATES)[number];

/** Postgres accepts writes. `wait_primary` is asynchronous unless its assignment carries an ssn. */
export const WRITABLE = ["single", "wait_primary", "primary", "apply_settings", "join_primary"] as const;

/**
 * A node may be in one of these only while it holds its lease. `stop_replication` is in the list because
 * Postgres is promoted there, and read-only is only a default that a session can lift.
 */
export const LEASED = [...WRITABLE, "stop_replication"] as const satisfies readonly State[];

/** Postgres is stopped, and kept stopped, by the keeper. */
export const STOPPED = [
  "draining",
  "demote_timeout",
  "demoted",
  "prepare_maintenance",
  "join_secondary",
  "dropped",
] as const satisfies readonly State[];

/** The goals under which a standby's keeper goes on promising its primary not to be promoted. */
export const PROMISING = [
  "wait_standby",
  "catchingup",
  "secondary",
  "wait_maintenance",
  "maintenance",
] as const satisfies readonly State[];

/** On the way to being the primary; from the first of them on, a standby promises nothing any more. */
export const PROMOTING = [
  "report_lsn",
  "fast_forward",
  "prepare_promotion",
  "stop_replication",
] as const satisfies readonly State[];

export function isState(text: unknown): text is State {
  return (STATES as readonly unknown[]).includes(text);
}

export function isWritable(state: State): boolean {
  return (WRITABLE as readonly State[]).includes(state);
}

export function needsLease(state: State): boolean {
  return (LEASED as readonly State[]).includes(state);
}

export function isStopped(state: State): boolean {
  return (STOPPED as readonly State[]).includes(state);
}

export function isPromising(state: State): boolean {
  return (PROMISING as readonly State[]).includes(state);
}

export function isPromoting(state: State): boolean {
  return (PROMOTING as readonly State[]).includes(state);
}
