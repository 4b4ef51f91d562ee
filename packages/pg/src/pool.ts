/**
 * A bounded pool of connections to wherever the primary is. Waiting is bounded in time and in number. When a connection shows
 * that its server is gone, or writable no more, every connection of that age is dropped, and the next
 * ones look for the primary again.
 */
import type pg from "pg";
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import { connect, type ConnectOptions, destroyClient, endClient } from "./connect.ts";
import { type Conninfo, describeConninfo, parseConninfo } from "./conninfo.ts";
import { isHostError } from "./hosts.ts";
import { fromPgError, isConnectionError } from "./pg-error.ts";
import { runTransaction, type TransactionOptions } from "./transaction.ts";

export interface PoolOptions {
  readonly conninfo: Conninfo | string;
  /** Most connections at a time. */
  readonly size: number;
  /** How long `withClient` waits for a connection: a free one, and during a failover a primary. Default 30 s. */
  readonly waitMs?: number;
  /** Most callers that may wait; more are refused at once. Default 1000. */
  readonly maxWaiting?: number;
  /** An idle connection is closed after this. Default 60 s. */
  readonly idleMs?: number;
  readonly connect?: ConnectOptions;
  readonly clock: Clock;
  readonly log: Logger;
}

interface Pooled {
  readonly client: pg.Client;
  /** Connections of an older generation than the pool's are dropped. */
  readonly generation: number;
  idleSinceMs: number;
}

interface Waiter {
  /** Given a free connection, or null: the right to make one. */
  readonly resolve: (pooled: Pooled | null) => void;
  readonly reject: (error: SpillwayError) => void;
}

const DEFAULT_WAIT_MS = 30_000;
const DEFAULT_IDLE_MS = 60_000;
/** A transaction that forgot to end must not hold locks for ever. */
const DEFAULT_IDLE_IN_TRANSACTION_MS = 60_000;

export class Pool {
  readonly #info: Conninfo;
  readonly #options: PoolOptions;
  readonly #idle: Pooled[] = [];
  readonly #waiting: Waiter[] = [];
  readonly #closed = new AbortController();
  /** Connections that exist or are being made. */
  #count = 0;
  #generation = 0;

  constructor(options: PoolOptions) {
    this.#options = options;
    this.#info = typeof options.conninfo === "string" ? parseConninfo(options.conninfo) : options.conninfo;
  }

  get stats(): { readonly total: number; readonly idle: number; readonly waiting: number } {
    return { total: this.#count, idle: this.#idle.length, waiting: this.#waiting.length };
  }

  /**
   * Lends a connection. Throws pg_pool_timeout when none came free in time, and what `connect` throws when none could be
   * made. Errors of `work` come out unchanged. A transaction left open is rolled back.
   */
  async withClient<T>(work: (client: pg.Client) => Promise<T>): Promise<T> {
    const pooled = await this.#acquire();
    try {
      const result = await work(pooled.client);
      await this.#release(pooled, null);
      return result;
    } catch (error) {
      await this.#release(pooled, error);
      throw error;
    }
  }

  /**
   * One transaction. A serialization failure or deadlock runs `work` again, within the budget; a connection that ends
   * while COMMIT is on its way is `pg_commit_unknown`.
   */
  async transaction<T>(options: TransactionOptions, work: (client: pg.Client) => Promise<T>): Promise<T> {
    return runTransaction(options, this.#options.clock, (attempt) => this.withClient(attempt), work);
  }

  /** Refuses whoever waits, closes what is idle; connections in use are closed when they come back. */
  async end(): Promise<void> {
    this.#closed.abort();
    for (const waiter of this.#waiting.splice(0)) waiter.reject(closedError());
    await Promise.all(this.#idle.splice(0).map((pooled) => this.#drop(pooled)));
  }

  async #acquire(): Promise<Pooled> {
    if (this.#closed.signal.aborted) throw closedError();
    this.#dropOld();
    const free = this.#idle.pop();
    if (free) return free;
    const startMs = this.#options.clock.monotonicMs();
    if (this.#count < this.#options.size) {
      this.#count += 1;
      return this.#open(startMs);
    }
    return (await this.#wait()) ?? this.#open(startMs);
  }

  #wait(): Promise<Pooled | null> {
    const { size, maxWaiting = 1000, waitMs = DEFAULT_WAIT_MS, clock } = this.#options;
    if (this.#waiting.length >= maxWaiting) {
      throw new SpillwayError("pg_pool_timeout", `${maxWaiting} callers wait for ${size} connections already`);
    }
    return new Promise((resolve, reject) => {
      const done = new AbortController();
      const settle = <A>(act: (value: A) => void) => {
        return (value: A): void => {
          done.abort();
          act(value);
        };
      };
      const waiter: Waiter = { resolve: settle(resolve), reject: settle(reject) };
      this.#waiting.push(waiter);
      void clock.sleep(waitMs, done.signal).then(() => {
        const at = this.#waiting.indexOf(waiter);
        if (at < 0) return;
        this.#waiting.splice(at, 1);
        reject(new SpillwayError("pg_pool_timeout", `all ${size} connections were busy for ${waitMs} ms`));
      });
    });
  }

  /** Makes a connection; while no primary is to be found, tries until the caller's time is up. */
  async #open(startMs: number): Promise<Pooled> {
    const { clock, log, waitMs = DEFAULT_WAIT_MS } = this.#options;
    const options = { idleInTransactionTimeoutMs: DEFAULT_IDLE_IN_TRANSACTION_MS, ...this.#options.connect };
    for (let attempt = 1; ; attempt++) {
      const generation = this.#generation;
      try {
        const client = await connect(this.#info, options);
        const pooled = { client, generation, idleSinceMs: 0 };
        client.once("error", () => this.#forget(pooled));
        client.once("end", () => this.#forget(pooled));
        return pooled;
      } catch (error) {
        const delayMs = Math.min(1000, 50 * 2 ** attempt);
        const over = clock.monotonicMs() - startMs + delayMs > waitMs;
        if (over || !isHostError(error) || this.#closed.signal.aborted) {
          this.#freed();
          throw error;
        }
        if (attempt === 1) log.warn("pool.no_primary", { to: describeConninfo(this.#info), error });
        await clock.sleep(delayMs, this.#closed.signal);
      }
    }
  }

  async #release(pooled: Pooled, error: unknown): Promise<void> {
    if (error !== null && this.#isServerLost(error))
      this.#generation = Math.max(this.#generation, pooled.generation + 1);
    if (!this.#isUsable(pooled, error) || !(await leaveTransaction(pooled.client))) return this.#drop(pooled);
    if (pooled.generation < this.#generation || this.#closed.signal.aborted) return this.#drop(pooled);
    const waiter = this.#waiting.shift();
    if (waiter) return waiter.resolve(pooled);
    pooled.idleSinceMs = this.#options.clock.monotonicMs();
    this.#idle.push(pooled);
  }

  #isServerLost(error: unknown): boolean {
    const typed = fromPgError(error, "");
    return isConnectionError(typed) || typed.code === "pg_read_only";
  }

  #isUsable(pooled: Pooled, error: unknown): boolean {
    const { client } = pooled as unknown as { client: { _queryable?: boolean; _ending?: boolean } };
    const isOpen = client._queryable !== false && client._ending !== true;
    return isOpen && !(error !== null && isConnectionError(error));
  }

  /** Closes idle connections that are too old or from before a failover. */
  #dropOld(): void {
    const { clock, idleMs = DEFAULT_IDLE_MS } = this.#options;
    const nowMs = clock.monotonicMs();
    const keep = this.#idle.filter((p) => p.generation >= this.#generation && nowMs - p.idleSinceMs < idleMs);
    const drop = this.#idle.filter((p) => !keep.includes(p));
    this.#idle.splice(0, this.#idle.length, ...keep);
    for (const pooled of drop) void this.#drop(pooled);
  }

  /** An idle connection that ended by itself. */
  #forget(pooled: Pooled): void {
    const at = this.#idle.indexOf(pooled);
    if (at < 0) return;
    this.#idle.splice(at, 1);
    this.#generation = Math.max(this.#generation, pooled.generation + 1);
    destroyClient(pooled.client);
    this.#freed();
  }

  async #drop(pooled: Pooled): Promise<void> {
    this.#freed();
    await endClient(pooled.client, 200);
  }

  /** One connection fewer: whoever waits longest may make a new one. */
  #freed(): void {
    const waiter = this.#waiting.shift();
    if (waiter) waiter.resolve(null);
    else this.#count -= 1;
  }
}

/** Rolls back what was left open; false when the connection cannot be used again. */
async function leaveTransaction(client: pg.Client): Promise<boolean> {
  if (client.getTransactionStatus() === "I") return true;
  try {
    await client.query("ROLLBACK");
    return client.getTransactionStatus() === "I";
  } catch {
    return false;
  }
}

function closedError(): SpillwayError {
  return new SpillwayError("interrupted", "the connection pool was closed");
}
