/**
 * The control plane as managers use it: what it says about users and databases, kept until it changes and no longer than
 * allowed while the control database is away.
 */
import type { Clock } from "@spillway/base/clock";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import { connect, endClient } from "@spillway/pg/connect";
import type { Conninfo } from "@spillway/pg/conninfo";
import { migrate, migrationState } from "@spillway/pg/migrate";
import { fromPgError, isConnectionError } from "@spillway/pg/pg-error";
import { Pool } from "@spillway/pg/pool";
import type pg from "pg";
import { bootstrap, type BootstrapOptions, type BootstrapResult } from "./bootstrap.ts";
import { CONTROL_MIGRATIONS, CONTROL_SCHEMA } from "./migrations.ts";
import {
  type AccessRules,
  findDatabase,
  loadRules,
  loadUser,
  loadUserById,
  loadUserBySubject,
  type LoginUser,
} from "./rules.ts";
import { findToken, tokenHash, type TokenOwner } from "./tokens.ts";
import { VersionWatch } from "./watch.ts";

export interface ControlOptions {
  readonly conninfo: Conninfo | string;
  readonly clock: Clock;
  readonly log: Logger;
  /** Connections. Default 4. */
  readonly poolSize?: number;
  /** How long the last state is good while the control database is away. Default 30 s. */
  readonly stalenessMs?: number;
  /** How long a read or change waits for the control database. Default 5 s. */
  readonly waitMs?: number;
}

interface Kept<T> {
  readonly version: bigint;
  readonly value: T;
}

const MAX_KEPT = 10_000;
/** The watch asks every second and waits two for its answer. */
const AWAY_MS = 3000;

export class Control {
  readonly pool: Pool;
  readonly #watch: VersionWatch;
  readonly #kept = new Map<string, Kept<unknown>>();
  readonly #loading = new Map<string, Promise<unknown>>();
  readonly #secrets = new Map<string, Buffer>();

  readonly #clock: Clock;

  private constructor(pool: Pool, watch: VersionWatch, clock: Clock) {
    this.#clock = clock;
    this.pool = pool;
    this.#watch = watch;
  }

  /** Connects to a control plane that `installControl` has made. Throws `control_not_ready`, and what `connect` throws. */
  static async open(options: ControlOptions): Promise<Control> {
    const { conninfo, clock, log } = options;
    const pool = new Pool({
      conninfo,
      size: options.poolSize ?? 4,
      waitMs: options.waitMs ?? 5000,
      connect: { applicationName: "spillway control", connectTimeoutMs: 2000, statementTimeoutMs: 10_000 },
      clock,
      log,
    });
    const watch = new VersionWatch({ conninfo, clock, log, stalenessMs: options.stalenessMs ?? 30_000 });
    const control = new Control(pool, watch, clock);
    try {
      await pool.withClient(requireControl);
      const { rows } = await pool.withClient((c) =>
        c.query<{ version: bigint }>("SELECT version FROM spillway_control.control_version"),
      );
      watch.saw(rows[0]?.version ?? 0n);
      watch.start();
      return control;
    } catch (error) {
      await control.close();
      throw error;
    }
  }

  /** Of the state that was last heard of. */
  get version(): bigint {
    return this.#watch.version;
  }

  /** Milliseconds since the control database last answered: for readiness. */
  get ageMs(): number {
    return this.#watch.ageMs;
  }

  get isAway(): boolean {
    return this.#watch.ageMs > AWAY_MS;
  }

  /** Throws `control_unavailable` when the last state is too old to decide by. */
  requireFresh(): void {
    this.#watch.requireFresh();
  }

  /** Calls when anything that decides who may what has changed, within a second. Returns how to stop. */
  onChange(listener: (version: bigint) => void): () => void {
    return this.#watch.onChange(listener);
  }

  /** What the user may in the database. Null when either does not exist. Throws `control_unavailable`. */
  rules(userId: string, databaseId: string): Promise<AccessRules | null> {
    return this.#keep(`rules ${userId} ${databaseId}`, (db) => loadRules(db, userId, databaseId));
  }

  async user(name: string): Promise<LoginUser | null> {
    // Whatever a client sends: no such name is asked for.
    if (!/^[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,62}$/.test(name)) return null;
    return this.#keep(`user ${name}`, (db) => loadUser(db, name));
  }

  userById(id: string): Promise<LoginUser | null> {
    return this.#keep(`user-id ${id}`, (db) => loadUserById(db, id));
  }

  userBySubject(issuer: string, subject: string): Promise<LoginUser | null> {
    return this.#keep(`subject ${issuer} ${subject}`, (db) => loadUserBySubject(db, issuer, subject));
  }

  /** The id of the database that a user means by a name. */
  async databaseId(name: string, tenantId: string | null): Promise<string | null> {
    if (!/^[A-Za-z0-9_.@+/-]{1,127}$/.test(name)) return null;
    return this.#keep(`database ${tenantId} ${name}`, (db) => findDatabase(db, name, tenantId));
  }

  /** Null for a token that is unknown, over or revoked. */
  async token(token: string): Promise<TokenOwner | null> {
    const now = (): number => this.#clock.monotonicMs();
    const kept = await this.#keep(`token ${tokenHash(token)}`, async (db) => {
      const owner = await findToken(db, token);
      return owner && { owner, endMs: owner.leftMs === null ? Infinity : now() + owner.leftMs };
    });
    return kept !== null && now() < kept.endMs ? kept.owner : null;
  }

  /** A key that the managers share. */
  async secret(name: "node-token" | "scram-decoy" | "ticket"): Promise<Buffer> {
    const known = this.#secrets.get(name);
    if (known) return known;
    const sql = "SELECT value FROM spillway_control.secret WHERE name = $1";
    const { rows } = await this.#ask((db) => db.query<{ value: Buffer }>(sql, [name]));
    if (rows[0] === undefined) throw new SpillwayError("control_not_ready", "the control plane was never bootstrapped");
    this.#secrets.set(name, rows[0].value);
    return rows[0].value;
  }

  /**
   * A change, in one transaction. Throws `control_unavailable` when the database cannot be reached in time; then nothing
   * was changed, unless `details.unknown` says that the outcome is not known.
   */
  async change<T>(work: (tx: pg.Client) => Promise<T>): Promise<T> {
    try {
      return await this.pool.transaction({}, work);
    } catch (error) {
      if (isSpillwayError(error, "pg_commit_unknown")) throw error;
      throw unavailable(error);
    }
  }

  async read<T>(work: (db: pg.Client) => Promise<T>): Promise<T> {
    return this.#ask(work);
  }

  async close(): Promise<void> {
    await this.#watch.close();
    await this.pool.end();
  }

  /**
   * The value at the current version. When the database is away, the last one while that is allowed. Nothing that is
   * absent is kept: it may be made any moment.
   */
  async #keep<T>(key: string, load: (db: pg.Client) => Promise<T | null>): Promise<T | null> {
    const kept = this.#kept.get(key) as Kept<T> | undefined;
    if (kept && kept.version === this.#watch.version && this.#isHeard()) return kept.value;
    // Known to be away: nobody waits for the next proof of it.
    if (kept && this.isAway) {
      this.#watch.requireFresh();
      return kept.value;
    }
    try {
      return await this.#load(key, load);
    } catch (error) {
      const typed = unavailable(error);
      if (!isSpillwayError(typed, "control_unavailable") || !kept) throw typed;
      this.#watch.requireFresh();
      return kept.value;
    }
  }

  /** The watch is answered every second; when it is not, a change may have been missed too. */
  #isHeard(): boolean {
    return this.#watch.ageMs < 1500;
  }

  /** Callers at the same moment share one read. */
  async #load<T>(key: string, load: (db: pg.Client) => Promise<T | null>): Promise<T | null> {
    const version = this.#watch.version;
    const shared = `${version} ${key}`;
    const running = this.#loading.get(shared) as Promise<T | null> | undefined;
    if (running) return running;
    const loading = this.pool.withClient(load).finally(() => this.#loading.delete(shared));
    this.#loading.set(shared, loading);
    const value = await loading;
    this.#kept.delete(key);
    // What was read is at least as new as the version of before; a change meanwhile makes it read again.
    if (value !== null) this.#kept.set(key, { version, value });
    for (const oldest of this.#kept.keys()) {
      if (this.#kept.size <= MAX_KEPT) break;
      this.#kept.delete(oldest);
    }
    return value;
  }

  async #ask<T>(work: (db: pg.Client) => Promise<T>): Promise<T> {
    try {
      return await this.pool.withClient(work);
    } catch (error) {
      throw unavailable(error);
    }
  }
}

/** Makes or brings up to date the control plane of a database, and what the first start needs. Again changes nothing. */
export async function installControl(
  options: Pick<ControlOptions, "conninfo" | "clock" | "log">,
  first: BootstrapOptions = {},
): Promise<BootstrapResult> {
  const client = await connect(options.conninfo, { applicationName: "spillway control install" });
  try {
    await migrate(client, {
      schema: CONTROL_SCHEMA,
      migrations: CONTROL_MIGRATIONS,
      log: options.log,
      clock: options.clock,
    });
    return await bootstrap(client, first);
  } finally {
    await endClient(client);
  }
}

async function requireControl(client: pg.Client): Promise<void> {
  const { current, pending } = await migrationState(client, CONTROL_SCHEMA, CONTROL_MIGRATIONS);
  if (current === 0) throw new SpillwayError("control_not_ready", "this database has no control plane yet");
  if (pending.length > 0) {
    throw new SpillwayError("control_not_ready", "the control plane of this database is older than this program");
  }
}

/** Trouble on the way to the control database under one code; everything else as it is. */
function unavailable(error: unknown): unknown {
  const typed = isSpillwayError(error) ? error : fromPgError(error, "the control database");
  const codes: readonly string[] = PASSING;
  // Whatever kept a connection from being made names the hosts.
  const passing = isConnectionError(typed) || codes.includes(typed.code) || typed.details["hosts"] !== undefined;
  if (!passing) return error;
  return new SpillwayError("control_unavailable", typed.message, { cause: error, details: { sqlstate: "57P03" } });
}

const PASSING = [
  "pg_unreachable",
  "pg_no_primary",
  "pg_pool_timeout",
  "pg_read_only",
  "pg_connection_lost",
  "pg_canceled",
  "pg_too_many_connections",
] as const;
