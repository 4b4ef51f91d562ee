/**
 * Where a monitor keeps what it must not forget, and how it knows that it is the one that decides.
 * Two implementations pass the same suite (`store-suite.ts`): `log-store.ts` (a file) and `etcd-store.ts`.
 */
import type { Formation, HaEvent } from "../fsm/model.ts";

export interface StoredEvent extends HaEvent {
  /** Counts up per store. */
  readonly seq: number;
  /** Wall clock of the monitor that wrote it, ms since 1970. */
  readonly atMs: number;
}

export interface StoredState {
  readonly formations: readonly Formation[];
  /** The youngest ones, oldest first. */
  readonly events: readonly StoredEvent[];
}

/** One step: all of it becomes durable, or nothing. */
export interface Commit {
  /** The new value of one formation. */
  readonly formation: Formation;
  readonly events: readonly StoredEvent[];
}

export interface MonitorStore {
  /**
   * Waits until this monitor leads, then returns what is stored. A store with one possible writer leads at
   * once. Throws `ha_store`, or `interrupted` when the signal is aborted.
   */
  lead(signal: AbortSignal): Promise<StoredState>;
  /** Whether the lead is certain at this moment (of the handed-in monotonic clock). No lead, no lease grant. */
  leads(): boolean;
  /** Durable when it resolves. Throws `ha_not_leader` when the lead was lost: nothing was written then. */
  commit(commit: Commit): Promise<void>;
  /** URL under which the leader said it can be reached, if it is somebody else. */
  leaderUrl(): string | null;
  close(): Promise<void>;
}

/** Events kept, in all. */
export const MAX_EVENTS = 2000;
