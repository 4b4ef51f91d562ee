/**
 * What a token keeps at this manager: a main session, whose SET, USE and BEGIN last; further ones for statements at the same
 * time; and one for each transaction that was begun by an action. Bounded in number, ended when idle.
 */
import { randomBytes } from "node:crypto";
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import type { Principal, ServeSession, Sessions, WireParam } from "../../session/session.ts";

export interface ConnectionLimits {
  /** Sessions of one token beside the main one, transactions included. */
  readonly sessions: number;
  readonly connections: number;
  /** Prepared statements with parameters bound, of one token. */
  readonly bound: number;
  /** After so long without a call a token's sessions end. */
  readonly idleMs: number;
}

export const CONNECTION_LIMITS: ConnectionLimits = {
  sessions: 16,
  connections: 10_000,
  bound: 1000,
  idleMs: 3_600_000,
};

export interface ConnectionOptions {
  readonly sessions: Sessions;
  readonly principal: Principal;
  readonly database: string;
  readonly application: string;
  readonly address: string;
  readonly limits: ConnectionLimits;
}

/** A session that is one call's until `release`. */
export interface Lent {
  readonly session: ServeSession;
  release(): void;
}

class Slot {
  readonly session: ServeSession;
  readonly waiting: (() => void)[] = [];
  busy = false;

  constructor(session: ServeSession) {
    this.session = session;
  }
}

const WAITERS = 64;

export class FlightConnection {
  readonly #options: ConnectionOptions;
  readonly #transactions = new Map<string, Slot>();
  readonly #extra: Slot[] = [];
  readonly #bound = new Map<string, readonly (readonly WireParam[])[]>();
  #main: Promise<Slot> | null = null;
  #parameters: Readonly<Record<string, string>> = {};
  #calls = 0;
  usedAtMs: number;

  constructor(options: ConnectionOptions, nowMs: number) {
    this.#options = options;
    this.usedAtMs = nowMs;
  }

  get principal(): Principal {
    return this.#options.principal;
  }

  get isBusy(): boolean {
    return this.#calls > 0;
  }

  /** Of a transaction's hex id; else the main session when `sticky`, or whichever is free. */
  async lend(transaction: string | null, sticky: boolean, signal: AbortSignal): Promise<Lent> {
    if (transaction !== null) return this.#take(this.#transaction(transaction), signal);
    const main = await (this.#main ??= this.#openMain());
    if (sticky || !main.busy || main.session.status !== "idle") return this.#take(main, signal);
    const free = this.#extra.find((slot) => !slot.busy);
    if (free) return this.#take(free, signal);
    if (this.#extra.length + this.#transactions.size >= this.#options.limits.sessions) return this.#take(main, signal);
    const slot = new Slot(await this.#open());
    this.#extra.push(slot);
    return this.#take(slot, signal);
  }

  async begin(): Promise<string> {
    if (this.#extra.length + this.#transactions.size >= this.#options.limits.sessions) {
      const idle = this.#extra.findIndex((slot) => !slot.busy);
      if (idle < 0) throw new SpillwayError("flight_busy", "The connection has too many open transactions.");
      await this.#extra.splice(idle, 1)[0]?.session.close();
    }
    const session = await this.#open();
    try {
      await runText(session, "BEGIN");
    } catch (error) {
      await session.close();
      throw error;
    }
    const id = randomBytes(16).toString("hex");
    this.#transactions.set(id, new Slot(session));
    return id;
  }

  /** COMMIT or ROLLBACK; the transaction's session is over either way. */
  async end(transaction: string, sql: "COMMIT" | "ROLLBACK", signal: AbortSignal): Promise<void> {
    const slot = this.#transaction(transaction);
    const { session, release } = await this.#take(slot, signal);
    this.#transactions.delete(transaction);
    try {
      await runText(session, sql);
    } finally {
      release();
      await session.close();
    }
  }

  bind(handle: string, rows: readonly (readonly WireParam[])[]): void {
    if (this.#bound.size >= this.#options.limits.bound) {
      const [oldest] = this.#bound.keys();
      if (oldest !== undefined) this.#bound.delete(oldest);
    }
    this.#bound.delete(handle);
    this.#bound.set(handle, rows);
  }

  boundTo(handle: string): readonly (readonly WireParam[])[] | null {
    return this.#bound.get(handle) ?? null;
  }

  unbind(handle: string): void {
    this.#bound.delete(handle);
  }

  /** What further sessions begin with: as the main session's was set. */
  remember(parameters: Readonly<Record<string, string>>): void {
    this.#parameters = { ...this.#parameters, ...parameters };
    for (const slot of this.#extra.splice(0)) void slot.session.close().catch(() => {});
  }

  async close(): Promise<void> {
    const main = await this.#main?.catch(() => null);
    const slots = [...(main ? [main] : []), ...this.#extra.splice(0), ...this.#transactions.values()];
    this.#main = null;
    this.#transactions.clear();
    await Promise.allSettled(
      slots.map(async ({ session, busy }) => {
        if (busy) session.cancel("killed");
        await session.close();
      }),
    );
  }

  #transaction(id: string): Slot {
    const slot = this.#transactions.get(id);
    if (!slot) throw new SpillwayError("flight_handle_invalid", "The transaction is not open at this manager.");
    return slot;
  }

  async #openMain(): Promise<Slot> {
    try {
      return new Slot(await this.#open());
    } catch (error) {
      this.#main = null;
      throw error;
    }
  }

  #open(): Promise<ServeSession> {
    const { sessions, principal, database, application, address } = this.#options;
    return sessions.open(principal, {
      protocol: "flight",
      application,
      address,
      database,
      parameters: this.#parameters,
    });
  }

  async #take(slot: Slot, signal: AbortSignal): Promise<Lent> {
    if (slot.busy) {
      if (slot.waiting.length >= WAITERS) throw new SpillwayError("flight_busy", "Too many statements wait.");
      await new Promise<void>((resolve, reject) => {
        const gone = (): void => {
          const at = slot.waiting.indexOf(go);
          if (at >= 0) slot.waiting.splice(at, 1);
          reject(new SpillwayError("interrupted", "The client went away."));
        };
        const go = (): void => {
          signal.removeEventListener("abort", gone);
          resolve();
        };
        slot.waiting.push(go);
        signal.addEventListener("abort", gone, { once: true });
      });
    }
    slot.busy = true;
    this.#calls += 1;
    let released = false;
    return {
      session: slot.session,
      release: () => {
        if (released) return;
        released = true;
        this.#calls -= 1;
        const next = slot.waiting.shift();
        if (next) next();
        else slot.busy = false;
      },
    };
  }
}

/** Runs a statement whose rows nobody wants. */
export async function runText(session: ServeSession, sql: string): Promise<number> {
  const result = await session.run(await session.prepare(sql));
  try {
    if (result.columns !== null) for await (const _ of result.messages());
    return await result.rowCount;
  } finally {
    await result.close();
  }
}

/** By token. */
export class FlightConnections {
  readonly #connections = new Map<string, FlightConnection>();
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #limits: ConnectionLimits;

  constructor(clock: Clock, log: Logger, limits: ConnectionLimits = CONNECTION_LIMITS) {
    this.#clock = clock;
    this.#log = log;
    this.#limits = limits;
  }

  get size(): number {
    return this.#connections.size;
  }

  get(key: string, make: () => Omit<ConnectionOptions, "limits">): FlightConnection {
    const nowMs = this.#clock.monotonicMs();
    let found = this.#connections.get(key);
    if (!found) {
      if (this.#connections.size >= this.#limits.connections) {
        throw new SpillwayError("flight_busy", `More than ${this.#limits.connections} Flight connections are open.`);
      }
      found = new FlightConnection({ ...make(), limits: this.#limits }, nowMs);
      this.#connections.set(key, found);
    }
    found.usedAtMs = nowMs;
    return found;
  }

  async drop(key: string): Promise<void> {
    const found = this.#connections.get(key);
    this.#connections.delete(key);
    await found?.close();
  }

  /** Ends what nobody has used for long. */
  async sweep(): Promise<void> {
    const before = this.#clock.monotonicMs() - this.#limits.idleMs;
    for (const [key, connection] of this.#connections) {
      if (connection.isBusy || connection.usedAtMs > before) continue;
      this.#log.debug("flight.connection_idle", { user: connection.principal.userName });
      await this.drop(key);
    }
  }

  async close(): Promise<void> {
    await Promise.all([...this.#connections.keys()].map((key) => this.drop(key)));
  }
}
