/**
 * Real Postgres servers for tests, started in well under a second, each on a port and in directories of its own,
 * none left behind (`reaper.ts`).
 */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import pg from "pg";
import { quoteIdent, quoteLiteral } from "@spillway/pg/quote";
import { defaultMajor, type PgBinaries, pgBinaries, type PgMajor } from "./binaries.ts";
import { appendSettings, createCluster, TEST_SETTINGS, writeHba } from "./cluster.ts";
import { freePort, giveToPostgres, postgresUser, scratchDir } from "./host.ts";
import { childrenOf, type Guard, guardPostmaster, isAlive } from "./reaper.ts";
import { sleep, waitFor } from "./wait.ts";

export interface StartOptions {
  /** Default: `SPILLWAY_TEST_PG_MAJOR`, else 15. */
  readonly major?: PgMajor;
  /** Added to `postgresql.conf`, over the test defaults. */
  readonly settings?: Readonly<Record<string, string>>;
  /** A data directory that the caller keeps; made a cluster when it is none. Default: a scratch one. */
  readonly dataDir?: string;
  readonly port?: number;
  /** How loopback connections authenticate. With scram, user `postgres` has the password `PASSWORD`. */
  readonly auth?: "trust" | "scram-sha-256";
}

export interface UrlOptions {
  readonly user?: string;
  readonly password?: string;
  /** Through the Unix socket instead of loopback. */
  readonly socket?: boolean;
  /** Query parameters of the URL. */
  readonly params?: Readonly<Record<string, string>>;
}

export type StopMode = "smart" | "fast" | "immediate";

export const PASSWORD = "test-password";
const STOP_SIGNAL: Record<StopMode, NodeJS.Signals> = { smart: "SIGTERM", fast: "SIGINT", immediate: "SIGQUIT" };

/** Starts a server and waits until it accepts connections. */
export async function startPostgres(options: StartOptions = {}): Promise<PgInstance> {
  const binaries = pgBinaries(options.major ?? defaultMajor());
  const auth = options.auth ?? "trust";
  for (let attempt = 1; ; attempt++) {
    const home = scratchDir("pg", { forPostgres: true });
    const dataDir = options.dataDir ?? join(home, "data");
    const isNew = !existsSync(join(dataDir, "PG_VERSION"));
    createCluster(binaries, dataDir);
    if (isNew) writeHba(dataDir, auth);
    const port = options.port ?? (await freePort());
    appendSettings(dataDir, {
      ...(isNew ? TEST_SETTINGS : {}),
      listen_addresses: "127.0.0.1",
      port: String(port),
      unix_socket_directories: home,
      ...options.settings,
    });
    const instance = new PgInstance(binaries, home, dataDir, port, auth);
    try {
      await instance.start();
    } catch (error) {
      // Another process may have taken the port since it was seen free.
      if (attempt < 4 && options.port === undefined && /could not bind/.test(instance.logTail())) continue;
      throw error;
    }
    if (isNew && auth !== "trust") await instance.setPassword(PASSWORD);
    return instance;
  }
}

/** One server: running, stopped or killed, and startable again on the same data and port. */
export class PgInstance {
  readonly host = "127.0.0.1";
  readonly port: number;
  /** Holds the Unix socket `.s.PGSQL.<port>`. */
  readonly socketDir: string;
  readonly dataDir: string;
  readonly majorVersion: PgMajor;
  readonly binaries: PgBinaries;
  /** The server's standard error, appended to by every start. */
  readonly logPath: string;
  readonly #auth: "trust" | "scram-sha-256";
  #child: ChildProcess | null = null;
  #guard: Guard | null = null;

  constructor(binaries: PgBinaries, home: string, dataDir: string, port: number, auth: "trust" | "scram-sha-256") {
    this.binaries = binaries;
    this.majorVersion = binaries.major;
    this.socketDir = home;
    this.dataDir = dataDir;
    this.port = port;
    this.logPath = join(home, "server.log");
    this.#auth = auth;
  }

  /** The postmaster's pid. */
  get pid(): number {
    if (!this.#child?.pid) throw new Error("this server does not run");
    return this.#child.pid;
  }

  get isRunning(): boolean {
    return this.#child !== null;
  }

  /** Starts the postmaster and waits until `postmaster.pid` says `ready` (or `standby`). */
  async start(timeoutMs = 20_000): Promise<void> {
    if (this.#child) throw new Error("this server runs already");
    mkdirSync(dirname(this.logPath), { recursive: true });
    const log = openSync(this.logPath, "a", 0o644);
    giveToPostgres(this.logPath);
    const child = spawn(join(this.binaries.binDir, "postgres"), ["-D", this.dataDir], {
      ...postgresUser(),
      cwd: "/",
      env: { PATH: "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" },
      stdio: ["ignore", log, log],
      detached: true,
    });
    closeSync(log);
    child.unref();
    child.once("error", () => {});
    child.once("exit", () => {
      if (this.#child === child) this.#ended();
    });
    if (child.pid === undefined) throw new Error(`could not run ${this.binaries.binDir}/postgres`);
    this.#child = child;
    this.#guard = guardPostmaster(child.pid);
    await waitFor(`Postgres at port ${this.port}`, () => this.#isReady(child), { timeoutMs, everyMs: 5 });
  }

  #isReady(child: ChildProcess): boolean {
    if (this.#child !== child) throw new Error(`Postgres did not start:\n${this.logTail()}`);
    const path = join(this.dataDir, "postmaster.pid");
    // The file of a killed predecessor stays until it is overwritten: line 1 is the pid, line 8 the status.
    const lines = existsSync(path) ? readFileSync(path, "latin1").split("\n") : [];
    const status = lines[7]?.trim();
    return Number(lines[0]) === child.pid && (status === "ready" || status === "standby");
  }

  #ended(): void {
    this.#child = null;
    this.#guard?.release();
    this.#guard = null;
  }

  /** Shuts down in order; nothing when it does not run. The data stay until this process ends. */
  async stop(mode: StopMode = "fast"): Promise<void> {
    if (this.#child) await this.kill(STOP_SIGNAL[mode]);
  }

  /**
   * Sends a signal to the postmaster, and for one that ends it waits until it and its children are gone.
   * SIGSTOP and SIGCONT reach the postmaster only: open sessions go on (`signalAll` for the whole server).
   */
  async kill(signal: NodeJS.Signals): Promise<void> {
    const { pid } = this;
    const children = childrenOf(pid);
    process.kill(pid, signal);
    if (signal === "SIGSTOP" || signal === "SIGCONT" || signal === "SIGHUP") return;
    await waitFor(`the postmaster ${pid} to end after ${signal}`, () => !isAlive(pid) && !this.#child, {
      timeoutMs: 60_000,
    });
    // Children notice a killed postmaster by themselves, but the data directory is theirs until they have.
    for (let i = 0; i < 100 && children.some(isAlive); i++) await sleep(10);
    for (const child of children.filter(isAlive)) signalIfThere(child, "SIGKILL");
  }

  /** Signals the postmaster and every child: with SIGSTOP the server hangs, its sockets stay open. */
  signalAll(signal: NodeJS.Signals): void {
    for (const pid of [this.pid, ...childrenOf(this.pid)]) signalIfThere(pid, signal);
  }

  async restart(mode: StopMode = "fast"): Promise<void> {
    await this.stop(mode);
    await this.start();
  }

  /** Ends the server at once and removes its files (a data directory of the caller's stays). */
  async destroy(): Promise<void> {
    if (this.#child) {
      // Not SIGKILL: a postmaster that ends by itself gives its shared memory back.
      this.signalAll("SIGCONT");
      await this.kill("SIGQUIT");
    }
    rmSync(this.socketDir, { recursive: true, force: true });
  }

  url(database = "postgres", options: UrlOptions = {}): string {
    const user = encodeURIComponent(options.user ?? "postgres");
    const password = options.password ?? (this.#auth === "trust" ? undefined : PASSWORD);
    const login = password === undefined ? user : `${user}:${encodeURIComponent(password)}`;
    const host = options.socket ? encodeURIComponent(this.socketDir) : this.host;
    const query = new URLSearchParams(options.params).toString().replaceAll("+", "%20");
    return `postgres://${login}@${host}:${this.port}/${encodeURIComponent(database)}${query && `?${query}`}`;
  }

  /** A connected client of plain node-postgres, as user `postgres` over loopback unless told otherwise. */
  async connect(database = "postgres", options: UrlOptions = {}): Promise<pg.Client> {
    const client = new pg.Client({
      host: options.socket ? this.socketDir : this.host,
      port: this.port,
      user: options.user ?? "postgres",
      database,
      password: options.password ?? PASSWORD,
    });
    // A server that a test kills ends this connection too; that must not end the test's process.
    client.on("error", () => {});
    await client.connect();
    return client;
  }

  async withClient<T>(database: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
    const client = await this.connect(database, { socket: true });
    try {
      return await work(client);
    } finally {
      await client.end().catch(() => {});
    }
  }

  async createDatabase(name: string, template = "template1"): Promise<void> {
    await this.withClient("postgres", (c) =>
      c.query(`CREATE DATABASE ${quoteIdent(name)} TEMPLATE ${quoteIdent(template)}`),
    );
  }

  /** Drops a database with its sessions and its replication slots; nothing when there is none. */
  async dropDatabase(name: string): Promise<void> {
    await this.withClient("postgres", async (c) => {
      const slots = await c.query<{ slot_name: string; active_pid: number | null }>(
        "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = $1",
        [name],
      );
      for (const slot of slots.rows) {
        if (slot.active_pid !== null) await c.query("SELECT pg_terminate_backend($1, 5000)", [slot.active_pid]);
        await c.query("SELECT pg_drop_replication_slot($1)", [slot.slot_name]);
      }
      await c.query(`DROP DATABASE IF EXISTS ${quoteIdent(name)} WITH (FORCE)`);
    });
  }

  async setPassword(password: string, user = "postgres"): Promise<void> {
    await this.withClient("postgres", (c) =>
      c.query(`ALTER ROLE ${quoteIdent(user)} PASSWORD ${quoteLiteral(password)}`),
    );
  }

  /** The last lines of the server's log, for messages of failed tests. */
  logTail(lines = 20): string {
    if (!existsSync(this.logPath)) return "";
    return readFileSync(this.logPath, "utf8").trimEnd().split("\n").slice(-lines).join("\n");
  }
}

/** A child of the server may end by itself between the look at the list and the signal: an autovacuum worker does. */
function signalIfThere(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}
