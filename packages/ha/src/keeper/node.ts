/**
 * The Postgres of one keeper with everything that is known about it: programs, directory, configuration,
 * session. Actions are written in its terms.
 */
import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { userInfo } from "node:os";
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import type { Binaries } from "../postgres/binaries.ts";
import {
  cleanAutoConf,
  ensureInclude,
  setStandbySignal,
  writeAccess,
  writeConf,
  writePassfile,
  type HaConf,
  type Upstream,
} from "../postgres/config-files.ts";
import { Postmaster } from "../postgres/postmaster.ts";
import { rebuildMarker } from "../postgres/rejoin.ts";
import { localTarget, Session, type Row, type Sql } from "../postgres/sql.ts";
import { applicationName, type Assignment, type Peer } from "../protocol/messages.ts";
import type { DesiredConf, KeeperConfig, KeeperFiles } from "./files.ts";

/** How long one start may take before the keeper looks at the state of the formation again. */
const START_TIMEOUT_MS = 30_000;

export class PgNode {
  readonly config: KeeperConfig;
  readonly files: KeeperFiles;
  readonly binaries: Binaries;
  readonly postmaster: Postmaster;
  readonly clock: Clock;
  readonly log: Logger;
  readonly #session: Session;
  #conf: DesiredConf;
  #peers: readonly Peer[] = [];

  constructor(config: KeeperConfig, files: KeeperFiles, binaries: Binaries, clock: Clock, log: Logger) {
    this.config = config;
    this.files = files;
    this.binaries = binaries;
    this.clock = clock;
    this.log = log;
    this.#conf = files.readConf();
    this.postmaster = new Postmaster({
      binaries,
      pgdata: config.pgdata,
      logFile: files.postgresLog,
      clock,
      port: config.pgPort,
      listen: config.listen,
    });
    const socketDir = config.socketDirs.at(-1) ?? files.dir;
    this.#session = new Session(localTarget({ socketDir, port: config.pgPort, user: config.superuser }));
  }

  get pgdata(): string {
    return this.config.pgdata;
  }

  get conf(): DesiredConf {
    return this.#conf;
  }

  get ownName(): string {
    return applicationName(this.config.nodeId);
  }

  /** A statement as superuser in the database `postgres`. */
  sql(text: string, timeoutMs?: number): Promise<Row[]> {
    return this.#session.query(text, timeoutMs);
  }

  /** A long statement on a connection of its own, so that the beats' queries do not wait behind it. */
  async aside(text: string, timeoutMs: number): Promise<Row[]> {
    const session = this.sessionIn("postgres");
    try {
      return await session.query(text, timeoutMs);
    } finally {
      session.close();
    }
  }

  /** A session in another database, for logical slots. The caller closes it. */
  sessionIn(database: string): Sql {
    const socketDir = this.config.socketDirs.at(-1) ?? this.files.dir;
    const target = localTarget({ socketDir, port: this.config.pgPort, user: this.config.superuser });
    return new Session({ ...target, database });
  }

  closeSession(): void {
    this.#session.close();
  }

  hasCluster(): boolean {
    return existsSync(join(this.pgdata, "PG_VERSION"));
  }

  /** The other nodes, as the accepted assignment names them. */
  setPeers(peers: readonly Peer[]): void {
    this.#peers = peers;
  }

  get peers(): readonly Peer[] {
    return this.#peers.filter((p) => p.nodeId !== this.config.nodeId);
  }

  /** How a standby here reaches another node. */
  upstreamOf(target: Pick<Peer, "host" | "pgPort">, useSlot: boolean): Upstream {
    return {
      host: target.host,
      port: target.pgPort,
      user: this.config.replicationUser,
      passfile: this.files.passfile,
      slot: useSlot ? this.ownName : "",
      applicationName: this.ownName,
      sslmode: this.config.sslmode,
    };
  }

  /**
   * Sets what changes in the configuration, writes every file that differs, and lets a running server read
   * them again. Returns whether anything changed.
   */
  configure(change: Partial<DesiredConf>): boolean {
    const next = { ...this.#conf, ...change };
    if (JSON.stringify(next) !== JSON.stringify(this.#conf)) {
      this.files.writeConf(next);
      this.#conf = next;
    }
    writePassfile(this.files.passfile, this.config.replicationUser, this.config.replicationPassword);
    if (!this.hasCluster()) return false;
    const changed = [writeConf(this.pgdata, this.#haConf()), ensureInclude(this.pgdata), this.writeAccess()].some(
      Boolean,
    );
    const removed = cleanAutoConf(this.pgdata);
    if (removed.length > 0) this.log.warn("settings of ALTER SYSTEM that the keeper decides were removed", { removed });
    if (changed || removed.length > 0) this.postmaster.reload();
    return changed;
  }

  writeAccess(): boolean {
    return writeAccess(this.pgdata, {
      superuser: this.config.superuser,
      osUser: userInfo().username,
      replicationUser: this.config.replicationUser,
      peers: [this.config.host, ...this.#peers.map((p) => p.host)],
      clients: this.config.clients,
    });
  }

  #haConf(): HaConf {
    const { upstream } = this.#conf;
    return {
      major: this.binaries.major,
      port: this.config.pgPort,
      listen: this.config.listen,
      socketDirs: this.config.socketDirs,
      clusterName: `${this.config.formation}/${this.config.name}`,
      synchronousStandbyNames: this.#conf.ssn,
      readOnly: this.#conf.readOnly,
      upstream: upstream ? this.upstreamOf({ host: upstream.host, pgPort: upstream.port }, upstream.useSlot) : null,
      synchronizedStandbySlots: this.#conf.syncSlots,
      maxWalSenders: this.config.maxWalSenders,
      maxReplicationSlots: this.config.maxReplicationSlots,
      syncfs: this.binaries.hasSyncfs,
    };
  }

  /** The configuration's value of `upstream` for a peer. */
  static upstreamConf(target: Peer, useSlot = true): NonNullable<DesiredConf["upstream"]> {
    return { nodeId: target.nodeId, host: target.host, port: target.pgPort, useSlot };
  }

  isRunning(): boolean {
    const status = this.postmaster.status();
    return status === "ready" || status === "standby";
  }

  /** Whether the directory would start, or runs, as a standby. */
  isStandbyDirectory(): boolean {
    return existsSync(join(this.pgdata, "standby.signal"));
  }

  /** Starts as a standby (or lets it run). Refuses a directory that a rebuild left unfinished. */
  async startStandby(change: Partial<DesiredConf>): Promise<void> {
    this.refuseUnfinished();
    const runsWritable = this.postmaster.status() === "ready";
    if (runsWritable)
      throw new SpillwayError("ha_action_waiting", "Postgres runs as a primary and has to be stopped first");
    setStandbySignal(this.pgdata, true);
    this.configure({ ssn: "", readOnly: false, syncSlots: [], ...change });
    await this.postmaster.start(START_TIMEOUT_MS);
  }

  /** Starts as a primary, without promotion. */
  async startPrimary(change: Partial<DesiredConf>): Promise<void> {
    this.refuseUnfinished();
    if (this.isStandbyDirectory()) throw new SpillwayError("ha_action_waiting", "the data directory is a standby's");
    this.configure({ upstream: null, ...change });
    await this.postmaster.start(START_TIMEOUT_MS);
  }

  /** What `startPrimary` and `startStandby` do after a crash: the same server again, nothing changed. */
  async restart(): Promise<void> {
    this.refuseUnfinished();
    this.configure({});
    await this.postmaster.start(START_TIMEOUT_MS);
  }

  refuseUnfinished(): void {
    const marker = rebuildMarker(this.files.dir);
    if (marker === null) return;
    const what = marker === "rewind" ? "rewind" : "base backup";
    throw new SpillwayError(
      "ha_action_waiting",
      `a ${what} of ${this.pgdata} was cut short: only a base backup will do`,
    );
  }

  async stop(mode: "fast" | "immediate", timeoutMs = 1_000): Promise<void> {
    this.closeSession();
    await this.postmaster.stop(mode, timeoutMs);
  }

  /** Throws when the directory is not there or not this user's. */
  requireDirectory(): void {
    try {
      statSync(this.pgdata);
    } catch (cause) {
      throw new SpillwayError("ha_data_dir_invalid", `${this.pgdata} is not there`, { cause });
    }
  }
}

/** What an action is given. */
export interface ActionContext {
  readonly node: PgNode;
  readonly assignment: Assignment;
  /** Aborted when a newer assignment makes the action pointless, or the node is fenced. */
  readonly signal: AbortSignal;
  /** Tells the report that the own WAL forked off from the primary's. */
  readonly setDiverged: (diverged: boolean) => void;
}
