import type { Clock } from "./clock.ts";

/** Bounded by attempts *and* by time; the delay doubles, with full jitter. */
export interface RetryBudget {
  readonly attempts: number;
  readonly totalMs: number;
  readonly firstDelayMs: number;
  readonly maxDelayMs: number;
}

export interface RetryOptions extends RetryBudget {
  readonly clock: Clock;
  readonly random: () => number;
  /** Whether this failure is worth another try. */
  readonly retryable: (error: unknown) => boolean;
  readonly signal?: AbortSignal;
  readonly onRetry?: (error: unknown, attempt: number, delayMs: number) => void;
}

/** Runs `work` until it succeeds, fails for good, or the budget is used up; then throws the last error. */
export async function retry<T>(options: RetryOptions, work: (attempt: number) => Promise<T>): Promise<T> {
  const start = options.clock.monotonicMs();
  for (let attempt = 1; ; attempt++) {
    try {
      return await work(attempt);
    } catch (error) {
      const spentMs = options.clock.monotonicMs() - start;
      const ceiling = Math.min(options.maxDelayMs, options.firstDelayMs * 2 ** (attempt - 1));
      const delayMs = Math.ceil(ceiling * (0.5 + options.random() / 2));
      const over = attempt >= options.attempts || spentMs + delayMs > options.totalMs;
      if (over || options.signal?.aborted || !options.retryable(error)) throw error;
      options.onRetry?.(error, attempt, delayMs);
      await options.clock.sleep(delayMs, options.signal);
      if (options.signal?.aborted) throw error;
    }
  }
}
