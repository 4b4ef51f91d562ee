/** When a leader counts as silent: the decision, apart from the queries that feed it. */

/** The leader's row and session as one statement of the server saw them; ages by the server's clock. */
export interface LeaderView {
  readonly epoch: bigint;
  readonly holder: string | null;
  readonly backendPid: number | null;
  /** As text, exact. */
  readonly backendStart: string | null;
  readonly intervalMs: number | null;
  /** The heartbeat itself, as text: to see whether it moves. */
  readonly heartbeatAt: string | null;
  /** Since the heartbeat; negative when it is in the future; null when there never was one. */
  readonly heartbeatAgeMs: number | null;
  /**
   * Since the recorded session last began or ended a statement; null when there is no such session, or it may not be seen.
   * A leader whose heartbeat waits for a lock is alive: its session shows it.
   */
  readonly sessionAgeMs: number | null;
}

/** The last heartbeat that was seen to be new, and when, by the local monotonic clock. */
export interface Sighting {
  readonly mark: string;
  readonly atMs: number;
}

/**
 * How long the leader has been silent. By the server's clock; but a clock that was set back makes a heartbeat lie in
 * the future for long, so one that has not moved counts from when it was first seen as well.
 */
export function missedMs(
  view: LeaderView | null,
  last: Sighting | null,
  nowMs: number,
): { readonly ms: number; readonly sighting: Sighting | null } {
  if (view === null) return { ms: 0, sighting: null };
  const mark = `${view.epoch} ${view.heartbeatAt}`;
  const sighting = last !== null && last.mark === mark ? last : { mark, atMs: nowMs };
  const unmovedMs = nowMs - sighting.atMs;
  const ageMs = view.heartbeatAgeMs;
  const silentMs = ageMs === null || ageMs < 0 ? unmovedMs : ageMs;
  const sessionMs = view.sessionAgeMs === null || view.sessionAgeMs < 0 ? Number.POSITIVE_INFINITY : view.sessionAgeMs;
  return { ms: Math.min(silentMs, sessionMs), sighting };
}
