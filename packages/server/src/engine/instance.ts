/**
 * One embedded DuckDB: in memory, bounded, offline, in UTC. It executes resolved plans and decides
 * nothing. Spill goes to a private directory that is removed at close.
 *
 * Each running statement holds one thread of libuv's pool (4 unless `UV_THREADPOOL_SIZE` says
 * otherwise, read once when the process starts). Whoever starts a process that runs several
 * statements at a time sets it in the environment first.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import duckdb, { type Connection, type Database } from "./bindings.ts";
import { engineError } from "./errors.ts";
import { checkLockdown, lockDown, type Lockdown } from "./lockdown.ts";
import { duckLiteral } from "./quote.ts";
import { EngineSession } from "./session.ts";

export interface EngineOptions {
  /** Bytes of buffers, the bound of one instance (not of the process). */
  readonly memoryBytes: number;
  readonly threads: number;
  /** The folder below which the private spill folder is made; default: the system's temporary one. */
  readonly tempDirectory?: string;
  /** Bytes that may be spilled. Default 90 % of what is free. */
  readonly maxTempBytes?: number;
  /** For statements of others. */
  readonly lockdown?: Lockdown;
}

export class Engine {
  readonly #database: Database;
  readonly #spill: string;
  readonly #idle: EngineSession[] = [];
  readonly #open = new Set<EngineSession>();
  #closed = false;
  #counter = 0;
  /** Then what sessions set is set for all. */
  #isLocked = false;

  private constructor(database: Database, spill: string) {
    this.#database = database;
    this.#spill = spill;
  }

  static async open(options: EngineOptions): Promise<Engine> {
    const spill = mkdtempSync(join(options.tempDirectory ?? tmpdir(), "spillway-engine-"));
    try {
      const database = await duckdb.open(":memory:", configOf(options, spill));
      const engine = new Engine(database, spill);
      const { lockdown } = options;
      if (lockdown) await engine.use((session) => lockDown(session, lockdown));
      engine.#isLocked = lockdown !== undefined;
      await engine.use((session) => (lockdown ? checkLockdown(session, lockdown) : session.run("SELECT 1")));
      return engine;
    } catch (error) {
      rmSync(spill, { recursive: true, force: true });
      throw engineError(error);
    }
  }

  /** A folder of this instance alone, removed with all that it holds when it is closed. */
  get scratchDir(): string {
    return this.#spill;
  }

  /** A session of its own: temporary tables and views are seen by nobody else. */
  async session(): Promise<EngineSession> {
    const kept = this.#idle.pop();
    if (kept) return kept;
    const connection: Connection = await duckdb.connect(this.#database);
    const session = new EngineSession(connection, `s${(this.#counter += 1)}`);
    if (!this.#isLocked) await session.run("SET TimeZone = 'UTC'; SET enable_progress_bar = false");
    this.#open.add(session);
    return session;
  }

  /** Gives a session back. `clean` says that it holds no temporary table (views by which nothing is named may stay), so that it may be used again. */
  release(session: EngineSession, clean: boolean): void {
    if (clean && !this.#closed && !session.broken && this.#idle.length < 8) {
      this.#idle.push(session);
      return;
    }
    this.#open.delete(session);
    session.close();
  }

  /** Runs `work` with a session, which must leave nothing behind in it. */
  async use<T>(work: (session: EngineSession) => Promise<T>): Promise<T> {
    const session = await this.session();
    let clean = false;
    try {
      const value = await work(session);
      clean = true;
      return value;
    } finally {
      this.release(session, clean);
    }
  }

  /** A name for a table that no other statement of this instance uses. */
  freshName(prefix: string): string {
    return `${prefix}_${(this.#counter += 1)}`;
  }

  /** Interrupts what runs, closes every handle and removes the spill folder. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const session of this.#open) {
      session.interrupt();
      session.close();
    }
    this.#open.clear();
    this.#idle.length = 0;
    duckdb.close_sync(this.#database);
    rmSync(this.#spill, { recursive: true, force: true });
  }
}

function configOf(options: EngineOptions, spill: string): ReturnType<typeof duckdb.create_config> {
  const settings: Record<string, string> = {
    memory_limit: `${Math.max(64, Math.floor(options.memoryBytes / 2 ** 20))}MiB`,
    threads: String(Math.max(1, options.threads)),
    temp_directory: spill,
    autoinstall_known_extensions: "false",
    autoload_known_extensions: "false",
    allow_community_extensions: "false",
    preserve_insertion_order: "true",
    TimeZone: "UTC",
  };
  if (options.maxTempBytes !== undefined) {
    settings["max_temp_directory_size"] = `${Math.floor(options.maxTempBytes / 2 ** 20)}MiB`;
  }
  const config = duckdb.create_config();
  for (const [name, value] of Object.entries(settings)) {
    if (name !== "TimeZone") duckdb.set_config(config, name, value);
  }
  return config;
}

/** `SET` of the session's own settings, checked by the caller to be a known name. */
export function setStatement(name: string, value: string): string {
  return `SET ${name} = ${duckLiteral(value)}`;
}
