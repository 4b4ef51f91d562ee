/** Control of a real Postgres: start, stop, promotion, orphans, base backup by both ways, rewind, bad input. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import { freePort } from "@spillway/testkit/host";
import { pgBinaries, type PgMajor } from "@spillway/testkit/binaries";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { dropPrivileges } from "../keeper/commands.ts";
import { detectBinaries, type Binaries } from "./binaries.ts";
import {
  ensureInclude,
  setStandbySignal,
  writeAccess,
  writeConf,
  writePassfile,
  type Upstream,
} from "./config-files.ts";
import { readControlData } from "./control-file.ts";
import { Postmaster } from "./postmaster.ts";
import { fencePostgres, isAlive, serverProcesses } from "./processes.ts";
import { initCluster, inspectDataDirectory } from "./provision.ts";
import { baseBackup, clearRebuildMarker, rebuildMarker, rewind, type RebuildOptions } from "./rejoin.ts";
import { identifySystem } from "./remote.ts";
import { localTarget, Session } from "./sql.ts";
import { streamBaseBackup } from "./stream-backup.ts";
import { lineage } from "./timeline.ts";

const PASSWORD = "replication-secret";
let root: string;
let bins: Record<PgMajor, Binaries>;
const servers: Server[] = [];

beforeAll(async () => {
  const dirs = { 15: pgBinaries(15).binDir, 18: pgBinaries(18).binDir };
  dropPrivileges("postgres");
  root = mkdtempSync(join(tmpdir(), "spillway-ha-pg-"));
  bins = {
    15: await detectBinaries({ pgBin: dirs[15] }),
    18: await detectBinaries({ pgBin: dirs[18] }),
  } as Record<PgMajor, Binaries>;
});

afterAll(async () => {
  for (const server of servers) await fencePostgres(server.pgdata, (ms) => systemClock.sleep(ms));
  rmSync(root, { recursive: true, force: true });
});

/** One server with the keeper's files, without a keeper. */
class Server {
  readonly pgdata: string;
  readonly stateDir: string;
  readonly port: number;
  readonly binaries: Binaries;
  readonly postmaster: Postmaster;
  readonly sql: Session;

  private constructor(name: string, port: number, binaries: Binaries) {
    this.pgdata = join(root, name);
    this.stateDir = join(root, `${name}.ha`);
    this.port = port;
    this.binaries = binaries;
    mkdirSync(this.stateDir, { recursive: true, mode: 0o700 });
    const logFile = join(this.stateDir, "postgres.log");
    const { pgdata } = this;
    this.postmaster = new Postmaster({ binaries, pgdata, logFile, clock: systemClock, port, listen: ["127.0.0.1"] });
    this.sql = new Session(localTarget({ socketDir: this.stateDir, port, user: "postgres" }));
    servers.push(this);
  }

  static async make(name: string, major: PgMajor): Promise<Server> {
    return new Server(name, await freePort(), bins[major]);
  }

  configure(upstream: Upstream | null = null): void {
    writeConf(this.pgdata, {
      major: this.binaries.major,
      port: this.port,
      listen: ["127.0.0.1"],
      socketDirs: [this.stateDir],
      clusterName: "test",
      synchronousStandbyNames: "",
      readOnly: false,
      upstream,
      synchronizedStandbySlots: [],
      maxWalSenders: 16,
      maxReplicationSlots: 16,
      syncfs: false,
    });
    ensureInclude(this.pgdata);
    writeAccess(this.pgdata, {
      superuser: "postgres",
      osUser: "postgres",
      replicationUser: "spillway_repl",
      peers: ["127.0.0.1"],
      clients: [],
    });
    writePassfile(join(this.stateDir, "pgpass"), "spillway_repl", PASSWORD);
  }

  async init(): Promise<void> {
    const { binaries, pgdata, stateDir } = this;
    await initCluster(binaries, pgdata, { superuser: "postgres", superuserPassword: "pw", stateDir });
    this.configure();
    await this.postmaster.start(20_000);
    await this.sql.query(`CREATE ROLE spillway_repl LOGIN REPLICATION PASSWORD '${PASSWORD}'`);
    for (const f of [
      "pg_ls_dir(text, boolean, boolean)",
      "pg_stat_file(text, boolean)",
      "pg_read_binary_file(text)",
      "pg_read_binary_file(text, bigint, bigint, boolean)",
    ])
      await this.sql.query(`GRANT EXECUTE ON FUNCTION pg_catalog.${f} TO spillway_repl`);
  }

  upstreamFor(standby: Server, slot: string): Upstream {
    return {
      host: "127.0.0.1",
      port: this.port,
      user: "spillway_repl",
      passfile: join(standby.stateDir, "pgpass"),
      slot,
      applicationName: "standby",
      sslmode: "prefer",
    };
  }

  rebuild(from: Server, slot: string): RebuildOptions {
    return {
      binaries: this.binaries,
      pgdata: this.pgdata,
      stateDir: this.stateDir,
      upstream: from.upstreamFor(this, slot),
      signal: new AbortController().signal,
      streamBackup: (up, pgdata, signal) => streamBaseBackup(up, { password: PASSWORD }, pgdata, signal),
    };
  }

  async standbyOf(from: Server, slot: string): Promise<void> {
    writePassfile(join(this.stateDir, "pgpass"), "spillway_repl", PASSWORD);
    await from.sql.query(`SELECT pg_create_physical_replication_slot('${slot}', true)`);
    await baseBackup(this.rebuild(from, slot));
    setStandbySignal(this.pgdata, true);
    this.configure(from.upstreamFor(this, slot));
    clearRebuildMarker(this.stateDir);
    await this.postmaster.start(20_000);
  }

  async rows(): Promise<number> {
    return Number((await this.sql.query("SELECT count(*) AS n FROM t"))[0]?.["n"]);
  }
}

async function until(what: string, check: () => Promise<boolean>): Promise<void> {
  for (let i = 0; i < 400; i++) {
    if (await check().catch(() => false)) return;
    await systemClock.sleep(25);
  }
  throw new Error(`waited in vain for ${what}`);
}

async function codeOf(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return "none";
  } catch (error) {
    if (error instanceof SpillwayError) return error.code;
    throw error;
  }
}

describe.each([15, 18] as const)("Postgres %i", (major) => {
  test("clone, follow, promote, rejoin", async () => {
    const a = await Server.make(`a${major}`, major);
    const b = await Server.make(`b${major}`, major);
    await a.init();
    expect(a.postmaster.status()).toBe("ready");
    await a.sql.query("CREATE TABLE t AS SELECT generate_series(1, 1000) AS id");
    await b.standbyOf(a, "b");
    expect(b.postmaster.status()).toBe("standby");
    await until("the stream", async () => (await b.rows()) === 1000);

    await a.sql.query("INSERT INTO t SELECT generate_series(1001, 1500)");
    await until("the rows", async () => (await b.rows()) === 1500);
    await b.postmaster.promote(10_000);
    await b.sql.query("CHECKPOINT", 20_000);
    // A fork: both write now.
    await a.sql.query("INSERT INTO t VALUES (-1)");
    await b.sql.query("INSERT INTO t SELECT generate_series(1501, 1600)");
    const facts = await identifySystem(b.upstreamFor(a, ""), { password: PASSWORD });
    expect(facts.timeline).toBe(2);
    await a.postmaster.stop("immediate", 1000);
    const control = await readControlData(a.pgdata);
    expect(control.systemId).toBe(facts.systemId);
    expect(lineage(1, facts.lsn, 2, facts.history).kind).toBe("forked");
    expect(lineage(1, 0n, 2, facts.history).kind).toBe("ancestor");

    await b.sql.query("SELECT pg_create_physical_replication_slot('a', true)");
    if (a.binaries.hasRewind) await rewind(a.rebuild(b, ""));
    else expect(await codeOf(rewind(a.rebuild(b, "")))).toBe("ha_rewind_missing");
    expect(rebuildMarker(a.stateDir)).toBe(a.binaries.hasRewind ? "rewind" : null);
    if (!a.binaries.hasRewind) await baseBackup(a.rebuild(b, "a"));
    setStandbySignal(a.pgdata, true);
    a.configure(b.upstreamFor(a, "a"));
    clearRebuildMarker(a.stateDir);
    await a.postmaster.start(20_000);
    await until("the rejoined node", async () => (await a.rows()) === 1600);
    expect(Number((await a.sql.query("SELECT count(*) AS n FROM t WHERE id = -1"))[0]?.["n"])).toBe(0);
    await a.postmaster.stop("fast", 5000);
    await b.postmaster.stop("fast", 5000);
  });

  test("the base backup of our own equals the source", async () => {
    const a = await Server.make(`c${major}`, major);
    const b = await Server.make(`d${major}`, major);
    await a.init();
    await a.sql.query("CREATE TABLE t AS SELECT g AS id, repeat('x', g % 500) AS pad FROM generate_series(1, 20000) g");
    writePassfile(join(b.stateDir, "pgpass"), "spillway_repl", PASSWORD);
    mkdirSync(b.pgdata, { mode: 0o700 });
    await streamBaseBackup(a.upstreamFor(b, ""), { password: PASSWORD }, b.pgdata, new AbortController().signal);
    setStandbySignal(b.pgdata, true);
    b.configure(a.upstreamFor(b, ""));
    await b.postmaster.start(20_000);
    const sum = "SELECT md5(string_agg(id || pad, ',' ORDER BY id)) AS sum FROM t";
    await until("the standby", async () => (await b.rows()) === 20_000);
    expect(await b.sql.query(sum)).toEqual(await a.sql.query(sum));
    await a.postmaster.stop("immediate", 1000);
    await b.postmaster.stop("immediate", 1000);
  });

  test("a killed postmaster's children are ended before the restart; a stopped server is fenced by force", async () => {
    const a = await Server.make(`e${major}`, major);
    await a.init();
    const busy = new Session(localTarget({ socketDir: a.stateDir, port: a.port, user: "postgres" }));
    const sleeping = busy.query("SELECT pg_sleep(60)", 60_000).catch(() => "ended");
    await until("the sleeper", async () => serverProcesses(a.pgdata).length > 5);
    const pid = a.postmaster.pid() ?? 0;
    const ended = new Promise((resolve) => a.postmaster.onExit(resolve));
    // A stopped child cannot notice that its postmaster died: the orphan that would block the restart.
    const stopped = serverProcesses(a.pgdata).find((p) => p.pid !== pid)?.pid ?? 0;
    process.kill(stopped, "SIGSTOP");
    process.kill(pid, "SIGKILL");
    expect(await ended).toBe(pid);
    expect(isAlive(pid)).toBe(false);
    expect(a.postmaster.status()).toBe("stopped");
    await a.postmaster.start(20_000);
    expect(isAlive(stopped)).toBe(false);
    expect(await sleeping).toBe("ended");
    expect((await a.sql.query("SELECT 1 AS one"))[0]).toEqual({ one: "1" });

    for (const p of serverProcesses(a.pgdata)) process.kill(p.pid, "SIGSTOP");
    const before = performance.now();
    expect(await fencePostgres(a.pgdata, (ms) => systemClock.sleep(ms))).toBe(true);
    expect(performance.now() - before).toBeLessThan(1500);
  });
});

describe("bad input is one typed line", () => {
  test("port taken, also by something that is no Postgres", async () => {
    const a = await Server.make("port", 15);
    await a.init();
    await a.postmaster.stop("fast", 5000);
    const other = createServer();
    await new Promise<void>((resolve) => other.listen(a.port, "127.0.0.1", resolve));
    expect(await codeOf(a.postmaster.start(5000))).toBe("ha_port_taken");
    await new Promise((resolve) => other.close(resolve));
  });

  test("what the server says in its log becomes the code", async () => {
    const a = await Server.make("broken", 15);
    await a.init();
    await a.postmaster.stop("fast", 5000);
    writeFileSync(join(a.pgdata, "postgresql.conf"), "this is no setting\n", { flag: "a" });
    const error = await a.postmaster.start(5000).catch((e: unknown) => e);
    expect(error).toMatchObject({ code: "ha_postgres_start_failed" });
    expect((error as Error).message).toMatch(/syntax error|unrecognized/);
  });

  test("data directories that cannot be used", async () => {
    const a = await Server.make("dirs", 15);
    await a.init();
    expect(await codeOf(inspectDataDirectory(a.pgdata))).toBe("ha_data_dir_in_use");
    const full = join(root, "not-empty");
    mkdirSync(full);
    writeFileSync(join(full, "file"), "");
    expect(await codeOf(inspectDataDirectory(full))).toBe("ha_data_dir_invalid");
    expect(await codeOf(inspectDataDirectory("/proc/nowhere"))).toBe("ha_data_dir_permission");
    expect(await codeOf(inspectDataDirectory("/etc/ssl"))).toBe("ha_data_dir_permission");
    expect(await inspectDataDirectory(join(root, "new"))).toEqual({ kind: "absent" });
    await a.postmaster.stop("immediate", 1000);
    expect(await inspectDataDirectory(a.pgdata)).toMatchObject({ kind: "cluster", major: 15 });
    expect(await codeOf(detectBinaries({ pgBin: bins[18].dir, wantMajor: 15 }))).toBe("ha_version_mismatch");
    expect(await codeOf(detectBinaries({ pgBin: "/bin" }))).toBe("ha_binaries_missing");
  });

  test("a failed initdb leaves nothing", async () => {
    const a = await Server.make("half", 15);
    const { stateDir, pgdata } = a;
    const options = { superuser: "pg_reserved", superuserPassword: "x", stateDir };
    expect(await codeOf(initCluster(bins[15], pgdata, options))).toBe("ha_program_failed");
    expect(await inspectDataDirectory(pgdata)).toEqual({ kind: "absent" });
    expect(() => readFileSync(join(stateDir, "initdb.password"))).toThrow();
  });
});
