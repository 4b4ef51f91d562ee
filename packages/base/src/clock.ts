/**
 * Time, handed to whoever needs it. Only `roles/`, `cli/` and tests construct one.
 * Leases and timeouts use the monotonic clock; only what people read uses the wall clock.
 */
export interface Clock {
  /** Milliseconds since an arbitrary origin; never goes back. */
  monotonicMs(): number;
  /** Wall-clock milliseconds since 1970-01-01 UTC. May jump. */
  wallMs(): number;
  /** Resolves after `ms`, or at once (without throwing) when the signal is aborted. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

export const systemClock: Clock = {
  monotonicMs: () => performance.now(),
  wallMs: () => Date.now(),
  sleep: (ms, signal) =>
    new Promise((resolve) => {
      if (signal?.aborted) return resolve();
      const done = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", done);
        resolve();
      };
      const timer = setTimeout(done, ms);
      signal?.addEventListener("abort", done, { once: true });
    }),
};
