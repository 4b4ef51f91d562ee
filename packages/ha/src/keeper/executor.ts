/**
 * Doing: one thing at a time to one Postgres. Either the action of a transition, or the restart of a server
 * that died by itself, or the fence, which interrupts both.
 */
import { isSpillwayError, messageOf, SpillwayError } from "@spillway/base/errors";
import type { Edge } from "../fsm/table.ts";
import { needsLease } from "../fsm/states.ts";
import type { Assignment, NodeReport } from "../protocol/messages.ts";
import { endRebuildPrograms, fencePostgres } from "../postgres/processes.ts";
import { ACTIONS } from "./actions/actions.ts";
import type { PgNode } from "./node.ts";

const WAITING_RETRY_MS = 150;
const FIRST_RETRY_MS = 500;
const MAX_RETRY_MS = 5_000;
const RESTART = "restart";
/** How long a restarted server may take to answer its first question. */
const SETTLE_MS = 2_000;

interface Running {
  readonly name: string;
  readonly assignment: Assignment | null;
  /** What is being done may leave a writable server. */
  readonly leased: boolean;
  readonly startedMs: number;
  readonly controller: AbortController;
  settled: Promise<void>;
}

export interface Outcome {
  readonly ok: boolean;
  readonly error: SpillwayError | null;
}

export class Executor {
  readonly #node: PgNode;
  #running: Running | null = null;
  #fencing: Promise<boolean> | null = null;
  #error: string | null = null;
  #lastName = "";
  #failures = 0;
  #retryAtMs = Number.NEGATIVE_INFINITY;
  #settledAtMs = Number.NEGATIVE_INFINITY;
  #cleared = false;
  diverged = false;

  constructor(node: PgNode) {
    this.#node = node;
  }

  get busy(): boolean {
    return this.#running !== null || this.#fencing !== null;
  }

  /** The running action may make, or keep, Postgres writable. */
  get leased(): boolean {
    return this.#running?.leased ?? false;
  }

  /**
   * A restart on the spot is under way: the last one of the budget counts until it has failed. One that just succeeded
   * counts as well, until the server had the time to be looked at: it must not be reported as down for good.
   */
  get restarting(): boolean {
    if (this.#running?.name === RESTART) return true;
    return this.#node.clock.monotonicMs() < this.#settledAtMs && this.#node.postmaster.pid() !== null;
  }

  get assignment(): Assignment | null {
    return this.#running?.assignment ?? null;
  }

  /** False while the last failure is too fresh. */
  get ready(): boolean {
    return !this.busy && this.#node.clock.monotonicMs() >= this.#retryAtMs;
  }

  report(): NodeReport["action"] {
    const running = this.#running;
    if (running === null && this.#error === null) return null;
    const nowMs = this.#node.clock.monotonicMs();
    return {
      name: (running?.name ?? this.#lastName).slice(0, 64),
      runningMs: running === null ? 0 : nowMs - running.startedMs,
      error: this.#error === null ? null : this.#error.slice(0, 2048),
    };
  }

  /** Another assignment has come: what failed under the old one may be tried again at once. */
  forgetFailures(): void {
    this.#failures = 0;
    this.#retryAtMs = Number.NEGATIVE_INFINITY;
    this.#error = null;
  }

  abort(): void {
    this.#running?.controller.abort();
  }

  /** Runs the action of an edge. `done` is called once, after the executor is free again. */
  act(edge: Edge, assignment: Assignment, done: (outcome: Outcome) => void): void {
    this.#start(edge.action, assignment, needsLease(assignment.goalState), done, async (signal) => {
      const node = this.#node;
      const setDiverged = (diverged: boolean): void => {
        this.diverged = diverged;
      };
      await this.#endLeftovers();
      await ACTIONS[edge.action]({ node, assignment, signal, setDiverged });
      if (signal.aborted) throw new SpillwayError("interrupted", "another assignment came");
    });
  }

  /**
   * Once in a keeper's life, before its first action: what a killed keeper was running on the directory outlives it,
   * and would go on writing into what is made or started now.
   */
  async #endLeftovers(): Promise<void> {
    if (this.#cleared) return;
    const { pgdata, clock } = this.#node;
    if (!(await endRebuildPrograms(pgdata, (ms) => clock.sleep(ms)))) {
      throw new SpillwayError("ha_postgres_stop_failed", `programs of an earlier keeper still work on ${pgdata}`);
    }
    this.#cleared = true;
  }

  /** Starts the server again as it was. */
  restart(leased: boolean, done: (outcome: Outcome) => void): void {
    this.#start(RESTART, null, leased, done, async () => {
      await this.#endLeftovers();
      await this.#node.restart();
    });
  }

  #start(
    name: string,
    assignment: Assignment | null,
    leased: boolean,
    done: (outcome: Outcome) => void,
    work: (signal: AbortSignal) => Promise<void>,
  ): void {
    const controller = new AbortController();
    const running: Running = {
      name,
      assignment,
      leased,
      startedMs: this.#node.clock.monotonicMs(),
      controller,
      settled: Promise.resolve(),
    };
    this.#running = running;
    this.#lastName = name;
    running.settled = work(controller.signal).then(
      () => this.#finish(null, done),
      (error: unknown) => this.#finish(error, done),
    );
  }

  #finish(error: unknown, done: (outcome: Outcome) => void): void {
    const aborted = this.#running?.controller.signal.aborted ?? false;
    if (this.#running?.name === RESTART) this.#settledAtMs = this.#node.clock.monotonicMs() + SETTLE_MS;
    this.#running = null;
    if (error === null) {
      this.#failures = 0;
      this.#error = null;
      this.#retryAtMs = Number.NEGATIVE_INFINITY;
      return done({ ok: true, error: null });
    }
    const known =
      error instanceof SpillwayError
        ? error
        : new SpillwayError("ha_program_failed", messageOf(error), { cause: error });
    if (!aborted) {
      this.#error = known.toLine();
      this.#failures += 1;
      this.#retryAtMs = this.#node.clock.monotonicMs() + this.#delayMs(known);
    }
    done({ ok: false, error: aborted ? null : known });
  }

  #delayMs(error: SpillwayError): number {
    if (isSpillwayError(error, "ha_action_waiting", "ha_not_recovered", "ha_unreachable", "ha_sql_failed"))
      return WAITING_RETRY_MS;
    return Math.min(MAX_RETRY_MS, FIRST_RETRY_MS * 2 ** Math.min(6, this.#failures - 1));
  }

  /** Stops Postgres at once, whatever is being done to it. Resolves with whether it is gone. */
  fence(): Promise<boolean> {
    this.#fencing ??= this.#fence().finally(() => (this.#fencing = null));
    return this.#fencing;
  }

  async #fence(): Promise<boolean> {
    const { pgdata, clock } = this.#node;
    const sleep = (ms: number): Promise<void> => clock.sleep(ms);
    this.#running?.controller.abort();
    this.#node.closeSession();
    await fencePostgres(pgdata, sleep);
    // What was running may just have started the server again.
    while (this.#running !== null) {
      await Promise.race([this.#running.settled, clock.sleep(100)]);
      await fencePostgres(pgdata, sleep);
    }
    return fencePostgres(pgdata, sleep);
  }
}
