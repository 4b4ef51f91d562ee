/**
 * The leader's lease. One session of the leader holds an advisory lock and renews a heartbeat in `spillway.leader`; every
 * commit to the catalog checks the epoch under a row lock (`assertEpoch`), last and briefly.
 *
 * A leader that dies loses its session and with it the lock: a standby, which asks every half interval, has it within one.
 * A leader that is stopped or cut off keeps its session. A standby that sees three missed heartbeats ends the recorded
 * backend (pid and start must match), takes the lock and raises the epoch: the old leader, waking up, can commit
 * nothing, because its epoch is over. The lock alone would not be enough, and neither would the row: the lock elects
 * one candidate, the epoch fences the others.
 */
import type pg from "pg";
import { assert } from "@spillway/base/assert";
import type { Clock } from "@spillway/base/clock";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import { connect, type ConnectOptions, destroyClient, endClient } from "./connect.ts";
import { type Conninfo, parseConninfo, withConninfo } from "./conninfo.ts";
import { type LeaderView, missedMs, type Sighting } from "./lease-rules.ts";
import { endOldLeader, heartbeat, raiseEpoch, readLeader, stepDown, tryLock } from "./lease-sql.ts";
import { fromPgError, sqlstateOf } from "./pg-error.ts";

export interface CampaignOptions {
  readonly conninfo: Conninfo | string;
  /** The advisory lock: one number for each role that is held by one process of a database. */
  readonly key: bigint;
  /** Names this candidate and no other, ever: host, pid and something random. At most 63 bytes. */
  readonly holder: string;
  readonly intervalMs: number;
  readonly clock: Clock;
  readonly log: Logger;
  /** Ends the campaign. */
  readonly signal?: AbortSignal;
  /** Called once when the lease is lost: stop at once whatever stands on it. Not called by `release`. */
  readonly onLost?: (reason: SpillwayError) => void;
}

/** Missed heartbeats after which a leader is ended, and after which a leader that cannot renew gives up. */
export const MISSED_LIMIT = 3;

/**
 * Campaigns until this process leads. Passing failures (no primary, lost connections) are waited out; throws what
 * waiting cannot heal (a missing privilege, a wrong password), and `interrupted` when the signal ends it.
 */
export async function campaign(options: CampaignOptions): Promise<Lease> {
  assert(Buffer.byteLength(options.holder) <= 63, "a lease's holder is an application_name: at most 63 bytes");
  let said = "";
  while (!options.signal?.aborted) {
    try {
      const lease = await campaignOnce(options);
      if (lease !== null) return lease;
    } catch (error) {
      const typed = fromPgError(error, "campaigning for the lease");
      if (typed.kind !== "retry") throw typed;
      // The same trouble every interval is said once.
      if (typed.message !== said) options.log.warn("lease.campaign_failed", { error: typed });
      said = typed.message;
      await options.clock.sleep(options.intervalMs / 2, options.signal);
    }
  }
  throw new SpillwayError("interrupted", "the campaign for the lease was ended");
}

/** One connection's campaign: null when the signal ended it; throws when the connection did. */
async function campaignOnce(options: CampaignOptions): Promise<Lease | null> {
  const client = await connect(leaseConninfo(options.conninfo), sessionOptions(options));
  const session = new LeaseSession(client, options);
  try {
    const epoch = await elect(session, options);
    if (epoch !== null) return new Lease(session, epoch, options);
    await endClient(client);
    return null;
  } catch (error) {
    destroyClient(client);
    throw error;
  }
}

/** The lease lives where writes go, whatever else the string may be good for. */
function leaseConninfo(conninfo: Conninfo | string): Conninfo {
  const info = typeof conninfo === "string" ? parseConninfo(conninfo) : conninfo;
  return withConninfo(info, { targetSessionAttrs: "read-write", applicationName: null });
}

function sessionOptions(options: CampaignOptions): ConnectOptions {
  const { intervalMs } = options;
  return {
    applicationName: options.holder,
    connectTimeoutMs: Math.max(1000, intervalMs),
    statementTimeoutMs: Math.ceil(intervalMs),
    lockTimeoutMs: Math.ceil(intervalMs / 2),
    idleInTransactionTimeoutMs: Math.ceil(intervalMs),
    tcpUserTimeoutMs: Math.ceil(intervalMs * MISSED_LIMIT),
    // A heartbeat need not outlive a failover; waiting for a standby that is down must not cost the lease.
    settings: { synchronous_commit: "local" },
  };
}

/** Statements on the one session, each bounded on this side too: a black hole answers nothing, not even a timeout. */
class LeaseSession {
  readonly client: pg.Client;
  readonly #limitMs: number;
  readonly #clock: Clock;

  constructor(client: pg.Client, options: CampaignOptions) {
    this.client = client;
    this.#limitMs = options.intervalMs * 1.5;
    this.#clock = options.clock;
  }

  async run<T>(work: (client: pg.Client) => Promise<T>): Promise<T> {
    const done = new AbortController();
    const late = this.#clock.sleep(this.#limitMs, done.signal).then(() => {
      if (done.signal.aborted) return new Promise<never>(() => {});
      destroyClient(this.client);
      throw new SpillwayError("pg_connection_lost", `the lease's session did not answer within ${this.#limitMs} ms`);
    });
    try {
      return await Promise.race([work(this.client), late]);
    } finally {
      done.abort();
    }
  }
}

/** Polls for the lock; gives the new epoch, or null when the signal came. */
async function elect(session: LeaseSession, options: CampaignOptions): Promise<bigint | null> {
  let sighting: Sighting | null = null;
  while (!options.signal?.aborted) {
    if (await session.run((c) => tryLock(c, options.key))) return raise(session, options);
    const view: LeaderView | null = await session.run((c) => readLeader(c));
    const missed = missedMs(view, sighting, options.clock.monotonicMs());
    sighting = missed.sighting;
    const limitMs = MISSED_LIMIT * (view?.intervalMs ?? options.intervalMs);
    if (view !== null && missed.ms > limitMs) {
      options.log.warn("lease.leader_silent", {
        holder: view.holder,
        epoch: view.epoch,
        silent_ms: Math.round(missed.ms),
      });
      const ended = await session.run((c) => endOldLeader(c, options.key, view, limitMs));
      options.log.warn("lease.leader_ended", { holder: view.holder, sessions: ended });
      // The lock falls when the backend has ended: a matter of milliseconds.
      await options.clock.sleep(Math.min(50, options.intervalMs / 4), options.signal);
    } else {
      await options.clock.sleep(options.intervalMs / 2, options.signal);
    }
  }
  return null;
}

/**
 * Raises the epoch, with the lock in hand. The row may be locked by a commit of the last leader that does not end: its
 * lease is over, so after a first wait its sessions are ended.
 */
async function raise(session: LeaseSession, options: CampaignOptions): Promise<bigint> {
  const { holder, intervalMs } = options;
  for (let attempt = 1; ; attempt++) {
    try {
      return await session.run((c) => raiseEpoch(c, holder, intervalMs));
    } catch (error) {
      if (sqlstateOf(error) !== "55P03" || attempt === 3) throw error;
      const view = await session.run((c) => readLeader(c));
      if (view === null) throw error;
      const ended = await session.run((c) => endOldLeader(c, options.key, view, intervalMs));
      options.log.warn("lease.leader_ended", { holder: view.holder, sessions: ended });
    }
  }
}

/** Names one term of one leader. */
export interface EpochToken {
  readonly epoch: bigint;
}

/** A term of leadership: held from `campaign` until it is lost or released. */
export class Lease implements EpochToken {
  readonly epoch: bigint;
  /** Also the `application_name` that the leader's other sessions should carry: a successor ends those too. */
  readonly holder: string;
  readonly #session: LeaseSession;
  readonly #options: CampaignOptions;
  readonly #ended = new AbortController();
  readonly #renewing: Promise<void>;
  #renewedAtMs: number;
  #state: "held" | "lost" | "released" = "held";

  /** Made by `campaign` only. */
  constructor(session: LeaseSession, epoch: bigint, options: CampaignOptions) {
    this.epoch = epoch;
    this.holder = options.holder;
    this.#session = session;
    this.#options = options;
    this.#renewedAtMs = options.clock.monotonicMs();
    const ended = (): void => this.#lose("the lease's session ended");
    session.client.once("end", ended);
    session.client.once("error", ended);
    options.log.info("lease.taken", { epoch, holder: options.holder });
    this.#renewing = this.#renew();
  }

  /** Aborted when the lease is lost or released: hand it to whatever stands on the lease. */
  get signal(): AbortSignal {
    return this.#ended.signal;
  }

  /**
   * Whether this process may still begin a step. A hint, by the local clock: it becomes false no later than a
   * successor may have raised the epoch, but only `assertEpoch` inside the commit decides.
   */
  isHeld(): boolean {
    return this.#state === "held" && this.#silentMs() < MISSED_LIMIT * this.#options.intervalMs;
  }

  /** Steps down in order: the next leader need not wait for anything. */
  async release(): Promise<void> {
    if (this.#state !== "held") return;
    this.#state = "released";
    this.#ended.abort();
    await this.#renewing;
    const { key, holder, log } = this.#options;
    try {
      await this.#session.run((c) => stepDown(c, key, this.epoch, holder));
    } catch (error) {
      log.warn("lease.release_failed", { error: fromPgError(error, "releasing the lease") });
    }
    await endClient(this.#session.client);
    log.info("lease.released", { epoch: this.epoch });
  }

  async #renew(): Promise<void> {
    const { clock, intervalMs, holder } = this.#options;
    for (;;) {
      await clock.sleep(intervalMs, this.#ended.signal);
      if (this.#state !== "held") return;
      if (this.#silentMs() >= MISSED_LIMIT * intervalMs) return this.#lose("this process was silent for too long");
      // Counted from before the statement: the server's stamp is not earlier than this.
      const askedAtMs = clock.monotonicMs();
      try {
        const isOurs = await this.#session.run((c) => heartbeat(c, this.epoch, holder));
        if (!isOurs) return this.#lose("another leader has raised the epoch");
        this.#renewedAtMs = askedAtMs;
      } catch (error) {
        return this.#lose("the heartbeat failed", error);
      }
    }
  }

  #silentMs(): number {
    return this.#options.clock.monotonicMs() - this.#renewedAtMs;
  }

  #lose(why: string, cause?: unknown): void {
    if (this.#state !== "held") return;
    this.#state = "lost";
    this.#ended.abort();
    destroyClient(this.#session.client);
    const reason = new SpillwayError("leader_lost", `epoch ${this.epoch} is over: ${why}`, { cause });
    this.#options.log.warn("lease.lost", { epoch: this.epoch, reason: why, ...(cause === undefined ? {} : { cause }) });
    this.#options.onLost?.(reason);
  }
}

/** What a query needs: clients, and the pool's. */
interface Queryable {
  query(text: string, values: unknown[]): Promise<{ rows: unknown[] }>;
}

/**
 * The fence: the last statement before COMMIT of everything that only the leader may do. Locks the leader's row FOR
 * SHARE, which a successor's raise of the epoch waits for, so keep what follows short. Throws `leader_lost`.
 * Under REPEATABLE READ a heartbeat since the snapshot makes it a 40001: commit under READ COMMITTED.
 */
export async function assertEpoch(client: Queryable, token: EpochToken): Promise<void> {
  const text = "SELECT 1 FROM spillway.leader WHERE epoch = $1 FOR SHARE";
  const { rows } = await client.query(text, [token.epoch.toString()]);
  if (rows.length === 0) throw new SpillwayError("leader_lost", `epoch ${token.epoch} is over: another worker leads`);
}

/** True for the error of a leader whose term is over. */
export function isLeaseLost(error: unknown): boolean {
  return isSpillwayError(error, "leader_lost");
}
