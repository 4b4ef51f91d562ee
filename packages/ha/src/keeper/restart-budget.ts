/** How often a Postgres that died by itself may be started again on the spot: so many times in a sliding window. */
export class RestartBudget {
  #starts: number[] = [];

  /** Restarts that are left at this moment. */
  left(nowMs: number, tries: number, windowMs: number): number {
    this.#starts = this.#starts.filter((at) => nowMs - at < windowMs);
    return Math.max(0, tries - this.#starts.length);
  }

  /** Only the newest are kept, so that a server that dies for ever does not grow the list. */
  spend(nowMs: number): void {
    this.#starts = [...this.#starts.slice(-999), nowMs];
  }
}

/** A server that has not answered for so long, although its process is there, counts as dead. */
const HUNG_MS = 10_000;
/** A primary whose budget is spent leaves the decision to the monitor for so long. */
const SPENT_PAUSE_MS = 15_000;

export interface Vitals {
  readonly nowMs: number;
  readonly isRunning: boolean;
  /** When it last answered, or was started. */
  readonly answeredMs: number;
  readonly restartsLeft: number;
  /** It takes writes when it runs, and somebody else could take over. */
  readonly replaceable: boolean;
}

/** Decides what a keeper does about a server that should run. */
export class Supervisor {
  #spentAtMs: number | null = null;

  decide(v: Vitals): "fine" | "restart" | "end" | "leave" {
    const hung = v.isRunning && v.nowMs - v.answeredMs > HUNG_MS;
    if (v.isRunning && !hung) {
      this.#spentAtMs = null;
      return "fine";
    }
    if (v.replaceable && v.restartsLeft === 0 && !this.#waitedLongEnough(v.nowMs)) return "leave";
    return hung ? "end" : "restart";
  }

  /** With a monitor that does not decide, trying again is better than nothing. */
  #waitedLongEnough(nowMs: number): boolean {
    this.#spentAtMs ??= nowMs;
    if (nowMs - this.#spentAtMs < SPENT_PAUSE_MS) return false;
    this.#spentAtMs = nowMs;
    return true;
  }
}
