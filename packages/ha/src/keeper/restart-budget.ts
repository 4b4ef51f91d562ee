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
