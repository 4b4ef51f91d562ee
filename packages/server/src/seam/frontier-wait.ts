/**
 * Waiting for F to pass a position. All statements of a process that wait share one look at the catalog, and ask the pump
 * for a flush together: each flush is a snapshot of every table that changed, so it must not become one per statement.
 */
import type { Clock } from "@spillway/base/clock";
import { messageOf } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import { type Lsn, parseLsn } from "@spillway/base/lsn";
import type { Source } from "./source.ts";

export interface FrontierWaitOptions {
  readonly source: Source;
  readonly clock: Clock;
  readonly log: Logger;
}

interface Waiter {
  readonly lsn: Lsn;
  readonly untilMs: number;
  readonly signal: AbortSignal | undefined;
  readonly done: (inTime: boolean) => void;
}

const LOOK_EVERY_MS = 15;
const ASK_EVERY_MS = 200;
const QUERY_MS = 2_000;

/** A message of a transaction: its commit is flushed at once, so that the pump sees it on an idle server too. */
const ASK = "SELECT pg_catalog.pg_logical_emit_message(true, 'spillway.flush', '')";
const LOOK = `SELECT min(s.f_lsn) FROM spillway.seam s JOIN spillway.mirror_table m USING (relation_id) WHERE m.phase = 'live'`;

export class FrontierWait {
  readonly #options: FrontierWaitOptions;
  #waiters: Waiter[] = [];
  #isRunning = false;
  #askedMs = Number.NEGATIVE_INFINITY;

  constructor(options: FrontierWaitOptions) {
    this.#options = options;
  }

  /** Whether F of the live tables passed the position in time. False at once when the signal says so. */
  until(lsn: Lsn, timeoutMs: number, signal?: AbortSignal): Promise<boolean> {
    const untilMs = this.#options.clock.monotonicMs() + timeoutMs;
    return new Promise((done) => {
      this.#waiters.push({ lsn, untilMs, signal, done });
      if (!this.#isRunning) void this.#run();
    });
  }

  async #run(): Promise<void> {
    this.#isRunning = true;
    const { source, clock } = this.#options;
    while (this.#waiters.length > 0) {
      let frontier: Lsn | null = null;
      try {
        const nowMs = clock.monotonicMs();
        const asks = nowMs - this.#askedMs >= ASK_EVERY_MS;
        if (asks) this.#askedMs = nowMs;
        frontier = await source.use(async (connection) => {
          if (asks) await connection.query(ASK, { timeoutMs: QUERY_MS }).catch((error: unknown) => this.#said(error));
          const [found] = await connection.query(LOOK, { timeoutMs: QUERY_MS });
          const text = found?.rows[0]?.[0];
          return text === null || text === undefined ? null : parseLsn(text);
        });
      } catch (error) {
        // Whoever waits falls back on the heap, and meets the fault there if it is still one.
        this.#said(error);
      }
      this.#settle(frontier);
      if (this.#waiters.length > 0) await clock.sleep(LOOK_EVERY_MS);
    }
    // At once, not in a later turn: whoever waits now needs a loop of its own.
    this.#isRunning = false;
  }

  #said(error: unknown): void {
    this.#options.log.debug("frontier.look_failed", { error: messageOf(error) });
  }

  #settle(frontier: Lsn | null): void {
    const nowMs = this.#options.clock.monotonicMs();
    const left: Waiter[] = [];
    for (const waiter of this.#waiters) {
      const passed = frontier !== null && frontier >= waiter.lsn;
      if (passed || nowMs >= waiter.untilMs || waiter.signal?.aborted) waiter.done(passed);
      else left.push(waiter);
    }
    this.#waiters = left;
  }
}
