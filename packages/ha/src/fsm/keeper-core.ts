/**
 * The pure part of a keeper: which assignment counts, and what to do next. The real keeper and the
 * simulator run this same code; the keeper adds files, HTTP and Postgres around it.
 *
 * The loop of a keeper: observe Postgres → `decideStep` → run the action (abort it when a newer assignment
 * is accepted or the lease is lost) → `complete`, persist → report. `accept` and `fence` may come at any
 * time. Persist the core after every change, before reporting it.
 */
import type { Assignment } from "../protocol/messages.ts";
import { isWritable, needsLease, type State } from "./states.ts";
import { edgeOf, type Edge } from "./table.ts";

/** What a keeper persists. */
export interface KeeperCore {
  readonly state: State;
  /** The accepted assignment with the highest version, or null before the first. */
  readonly assignment: Assignment | null;
  /** Version of the assignment that `state` was reached (or refreshed) under. */
  readonly appliedVersion: number;
}

export const NEW_NODE: KeeperCore = { state: "init", assignment: null, appliedVersion: 0 };

export type KeeperStep =
  /** State, parameters and lease are as they should be. */
  | { readonly kind: "idle" }
  /** Run this action, then `complete`. */
  | { readonly kind: "act"; readonly edge: Edge; readonly assignment: Assignment }
  /** The goal needs a lease that is not held (yet): wait for one, do not act. */
  | { readonly kind: "wait_lease"; readonly edge: Edge }
  /** The own state (or a Postgres that may write) needs a lease and it ran out: stop Postgres now, then `fence`. */
  | { readonly kind: "fence" }
  /** A pair that the table does not have: report it, do nothing. */
  | { readonly kind: "no_edge"; readonly current: State; readonly assigned: State };

/** Takes an assignment if it is newer than what was accepted. Equal versions change nothing. */
export function accept(core: KeeperCore, assignment: Assignment): KeeperCore {
  if (core.assignment !== null && assignment.version <= core.assignment.version) return core;
  return { ...core, assignment };
}

export interface Situation {
  readonly leaseHeld: boolean;
  /** An own promise to the old primary is still in force. */
  readonly promiseBinds: boolean;
  /**
   * Postgres runs and is not in recovery, or may be so for all that is known. In the middle of an action
   * towards a leased goal it may write already, while the state is still that from before.
   */
  readonly mayWrite: boolean;
}

/** What to do now. */
export function decideStep(core: KeeperCore, now: Situation): KeeperStep {
  const { assignment } = core;
  // Also when the goal is to stop: an orderly stop that outlives the lease ends as a fence.
  if ((needsLease(core.state) || now.mayWrite) && !now.leaseHeld) return { kind: "fence" };
  if (assignment === null || core.appliedVersion >= assignment.version) {
    if (assignment === null || core.state === assignment.goalState) return { kind: "idle" };
  }
  const edge = edgeOf(core.state, assignment.goalState);
  if (edge === null) return { kind: "no_edge", current: core.state, assigned: assignment.goalState };
  if (needsLease(assignment.goalState) && !mayLead(core, assignment, now)) return { kind: "wait_lease", edge };
  return { kind: "act", edge, assignment };
}

function mayLead(core: KeeperCore, assignment: Assignment, now: Situation): boolean {
  if (!now.leaseHeld) return false;
  // A first node, and a primary that goes on, promised nothing to anybody that could still count.
  const promotes = !isWritable(core.state) && !["init", "dropped", "stop_replication"].includes(core.state);
  return !promotes || !now.promiseBinds || assignment.lease.promisesVoid;
}

/** The action of `assignment` succeeded. */
export function complete(core: KeeperCore, assignment: Assignment): KeeperCore {
  return { ...core, state: assignment.goalState, appliedVersion: assignment.version };
}

/** Postgres was stopped because the lease ran out (or the watchdog did it). */
export function fence(core: KeeperCore): KeeperCore {
  return needsLease(core.state) ? { ...core, state: "demote_timeout" } : core;
}
