/**
 * Synchronous quorums. A commit that was acknowledged under `ANY k (N members)` is on at least k of the N.
 * So among any N-k+1 of them at least one holds it: R + W > N. The same text is what Postgres gets.
 * Source: https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-SYNCHRONOUS-STANDBY-NAMES
 */
import { applicationName } from "../protocol/messages.ts";
import { ASYNC, type Quorum } from "./model.ts";

export function quorum(k: number, members: readonly number[]): Quorum {
  return k === 0 || members.length === 0 ? ASYNC : { k, members: members.toSorted((a, b) => a - b) };
}

export function renderSsn(q: Quorum): string {
  return q.k === 0 ? "" : `ANY ${q.k} (${q.members.map(applicationName).join(", ")})`;
}

export function sameQuorum(a: Quorum, b: Quorum): boolean {
  return a.k === b.k && a.members.length === b.members.length && a.members.every((m, i) => m === b.members[i]);
}

/** How many of the members must have stopped before their furthest position covers every acknowledged commit. */
export function neededFrozen(q: Quorum): number {
  return Math.max(1, q.members.length - q.k + 1);
}
