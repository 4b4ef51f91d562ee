/**
 * `create postgres` and `run`: what the commands do, without their parsing and printing.
 * `create postgres` checks everything that can be checked before it tells anybody anything, registers, and
 * stores what it was told. It touches no data directory: that is the first transition's work, under `run`.
 */
import { lookup } from "node:dns/promises";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, openSync, closeSync, readFileSync, rmSync, writeSync } from "node:fs";
import { hostname as systemHostname, userInfo } from "node:os";
import { join, resolve } from "node:path";
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import { randomHex } from "@spillway/base/ids";
import type { Logger } from "@spillway/base/log";
import { Metrics } from "@spillway/base/metrics";
import { detectBinaries, versionNumber, type Binaries } from "../postgres/binaries.ts";
import { checkPortFree } from "../postgres/postmaster.ts";
import { isAlive, readStat } from "../postgres/processes.ts";
import {
  configuredValue,
  dataDirectoryMajor,
  inspectDataDirectory,
  makePrivateDirectory,
} from "../postgres/provision.ts";
import { PROTOCOL_VERSION, type RegisterResponse } from "../protocol/messages.ts";
import { capacityOf } from "./actions/primary.ts";
import { defaultStateDir, KeeperFiles, type KeeperConfig } from "./files.ts";
import { HttpClient } from "./http-client.ts";
import { parseListen } from "./http-server.ts";
import { Keeper } from "./keeper.ts";
import { MonitorClient } from "./monitor-client.ts";
import { certificateFingerprint, keeperUrlOf } from "./place.ts";
import { hasReplacement, takeReplacement } from "./replace-monitor.ts";

export interface CreatePostgresOptions {
  /** URLs of the monitors, at least one. */
  readonly monitors: readonly string[];
  readonly registrationToken: string;
  readonly monitorFingerprint?: string | null;
  readonly pgdata: string;
  readonly pgPort: number;
  readonly pgBin?: string | undefined;
  readonly hostname?: string | undefined;
  readonly name?: string | undefined;
  readonly formation?: string | undefined;
  readonly stateDir?: string | undefined;
  /** host:port; default: the host, Postgres's port + 1000. */
  readonly keeperListen?: string | undefined;
  /** What Postgres listens on; default: loopback only for a loopback host, else everything. */
  readonly pgListen?: readonly string[] | undefined;
  readonly clients?: readonly string[] | undefined;
  readonly candidatePriority?: number | undefined;
  readonly replicationQuorum?: boolean | undefined;
  readonly onRoleChange?: string | undefined;
  readonly tlsCert?: string | undefined;
  readonly tlsKey?: string | undefined;
  readonly sslmode?: string | undefined;
}

export interface KeeperProcessDeps {
  readonly clock: Clock;
  readonly log: Logger;
}

const REGISTER_TIMEOUT_MS = 10_000;
const REPLACEMENT_POLL_MS = 500;
const LEAST_WAL_SENDERS = 16;
const LEAST_SLOTS = 32;
const SOCKET_PATH_LIMIT = 100;

/** Postgres refuses root, and so does the keeper: one clear line instead of the failure of a program. */
export function refuseRoot(): void {
  if (process.getuid?.() !== 0) return;
  throw new SpillwayError("ha_run_as_root", "the keeper was started as root, and Postgres never runs as root");
}

/** `--user`: gives up root for good before anything else is done. */
export function dropPrivileges(user: string): void {
  if (process.getuid?.() !== 0) return;
  try {
    (process as { initgroups?: (user: string, group: string) => void }).initgroups?.(user, user);
    process.setgid?.(user);
    process.setuid?.(user);
  } catch (cause) {
    throw new SpillwayError("usage", `there is no user and group ${JSON.stringify(user)} to run as`, { cause });
  }
  process.env["HOME"] = userInfo().homedir;
}

/** Registers a node and stores its configuration. Run again after a failure, or with the same name, it repeats itself. */
export async function createPostgres(options: CreatePostgresOptions, deps: KeeperProcessDeps): Promise<KeeperConfig> {
  refuseRoot();
  const pgdata = resolve(options.pgdata);
  const host = options.hostname ?? systemHostname();
  await warnUnresolvable(host, deps.log);
  const binaries = await detectBinaries({ pgBin: options.pgBin, wantMajor: dataDirectoryMajor(pgdata) ?? undefined });
  warnNoRewind(binaries, deps.log);
  const stateDir = resolve(options.stateDir ?? defaultStateDir(pgdata));
  const files = new KeeperFiles(stateDir);
  refuseRunningKeeper(files);
  const found = await inspectDataDirectory(pgdata);
  const pgListen = options.pgListen ?? (isLoopback(host) ? [host] : ["*"]);
  const keeperListen = options.keeperListen ?? `${isLoopback(host) ? host : "0.0.0.0"}:${options.pgPort + 1000}`;
  const keeperAt = parseListen(keeperListen);
  await checkPortFree(options.pgPort, pgListen);
  await checkPortFree(keeperAt.port, [keeperAt.host]);
  makePrivateDirectory(stateDir);
  const tlsCert = options.tlsCert === undefined ? null : resolve(options.tlsCert);
  const fingerprint = certificateFingerprint(tlsCert);
  const name = options.name ?? `${host.split(".")[0]?.toLowerCase() ?? "node"}-${options.pgPort}`;
  const formation = options.formation ?? "default";
  const registered = await register(options, {
    protocol: PROTOCOL_VERSION,
    formation,
    name,
    host,
    pgPort: options.pgPort,
    keeperUrl: keeperUrlOf({ host, keeperListen, tlsCert }),
    keeperFingerprint: fingerprint,
    follows: false,
    secrets: null,
    systemIdentifier: found.kind === "cluster" ? found.control.systemId : null,
    pgVersion: versionNumber(binaries),
    candidatePriority: options.candidatePriority ?? 50,
    replicationQuorum: options.replicationQuorum ?? true,
  });
  const before = files.exists() ? files.readConfig() : null;
  const config: KeeperConfig = {
    formation,
    name,
    nodeId: registered.nodeId,
    nodeToken: registered.nodeToken,
    peerToken: registered.peerToken,
    monitors: options.monitors,
    monitorFingerprint: options.monitorFingerprint ?? null,
    pgdata,
    pgBin: binaries.dir,
    pgPort: options.pgPort,
    host,
    listen: pgListen,
    socketDirs: await socketDirectories(binaries, pgdata, files, found.kind === "cluster"),
    superuser: "postgres",
    // Run again, the cluster has it already.
    superuserPassword: before?.superuserPassword ?? randomHex(32),
    replicationUser: registered.replicationUser,
    replicationPassword: registered.replicationPassword,
    sslmode: options.sslmode ?? "prefer",
    keeperListen,
    tlsCert,
    tlsKey: options.tlsKey === undefined ? null : resolve(options.tlsKey),
    clients: options.clients ?? [],
    onRoleChange: options.onRoleChange ?? null,
    maxWalSenders: await capacityOf({ binaries, pgdata }, "max_wal_senders", LEAST_WAL_SENDERS),
    maxReplicationSlots: await capacityOf({ binaries, pgdata }, "max_replication_slots", LEAST_SLOTS),
  };
  files.writeConfig(config);
  const core = files.readCore();
  // Another peer token is another formation, of a monitor that has lost its store: what the node was is over.
  const isNewMonitor = before !== null && before.peerToken !== registered.peerToken;
  if (isNewMonitor) deps.log.warn("this monitor does not know the node: it begins anew", { was: core.state });
  if (core.assignment === null || isNewMonitor) {
    files.writeCore({ state: "init", assignment: registered.assignment, appliedVersion: 0 });
  }
  deps.log.info("registered", { formation, node: name, id: config.nodeId, goal: registered.assignment.goalState });
  return config;
}

async function register(
  options: CreatePostgresOptions,
  request: Parameters<MonitorClient["register"]>[0],
): Promise<RegisterResponse> {
  const http = new HttpClient();
  try {
    const { monitors, registrationToken: token, monitorFingerprint } = options;
    const client = new MonitorClient(http, { monitors, token, fingerprint: monitorFingerprint ?? null });
    return await client.register(request, REGISTER_TIMEOUT_MS);
  } finally {
    http.close();
  }
}

/** Runs the keeper of a data directory until `signal`, or until its node was dropped. */
export async function runKeeper(
  options: { readonly pgdata: string; readonly stateDir?: string | undefined },
  deps: KeeperProcessDeps & { readonly signal: AbortSignal },
): Promise<"stopped" | "dropped"> {
  refuseRoot();
  const files = new KeeperFiles(resolve(options.stateDir ?? defaultStateDir(options.pgdata)));
  files.readConfig();
  const lock = lockKeeper(files);
  try {
    for (;;) {
      takeReplacement(files);
      const config = files.readConfig();
      const wantMajor = dataDirectoryMajor(config.pgdata) ?? undefined;
      const binaries = await detectBinaries({ pgBin: config.pgBin, wantMajor });
      const keeper = new Keeper(config, files, binaries, { clock: deps.clock, log: deps.log, metrics: new Metrics() });
      const handover = new AbortController();
      const ended = new AbortController();
      const watching = awaitReplacement(files, deps.clock, ended.signal, handover);
      const end = await keeper.run(deps.signal, handover.signal).finally(() => ended.abort());
      await watching;
      if (end === "replaced") continue;
      if (end === "dropped") rmSync(files.path("keeper.json"), { force: true });
      return end;
    }
  } finally {
    lock();
  }
}

/** Ends the present keeper, and leaves Postgres alone, when another monitor was given. */
async function awaitReplacement(
  files: KeeperFiles,
  clock: Clock,
  ended: AbortSignal,
  handover: AbortController,
): Promise<void> {
  while (!ended.aborted) {
    if (hasReplacement(files)) return handover.abort();
    await clock.sleep(REPLACEMENT_POLL_MS, ended);
  }
}

// ---------------------------------------------------------------- checks

async function warnUnresolvable(host: string, log: Logger): Promise<void> {
  await lookup(host).catch(() => {
    log.warn("the host name cannot be resolved here; the other nodes must be able to", { host });
  });
}

function warnNoRewind(binaries: Binaries, log: Logger): void {
  if (binaries.hasRewind) return;
  log.warn("there is no pg_rewind here: a former primary rejoins by a whole base backup", { dir: binaries.dir });
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || host.startsWith("127.");
}

/** Where Postgres puts its sockets: where it did before, and last in a private folder for the keeper. */
async function socketDirectories(
  binaries: Binaries,
  pgdata: string,
  files: KeeperFiles,
  exists: boolean,
): Promise<string[]> {
  let own = files.path("run");
  if (own.length > SOCKET_PATH_LIMIT - ".s.PGSQL.65535".length) {
    own = join("/tmp", `spillway-ha-${createHash("sha256").update(own).digest("hex").slice(0, 16)}`);
  }
  mkdirSync(own, { recursive: true, mode: 0o700 });
  if (!exists) return [own];
  const value = await configuredValue(binaries, pgdata, "unix_socket_directories").catch(() => "");
  const before = value.split(",").map((dir) => dir.trim().replaceAll('"', ""));
  return [...before.filter((dir) => dir !== "" && dir !== own && existsSync(dir)), own];
}

function refuseRunningKeeper(files: KeeperFiles): void {
  const pid = runningKeeper(files);
  if (pid !== null) throw new SpillwayError("ha_keeper_running", `the keeper with pid ${pid} runs in ${files.dir}`);
}

function runningKeeper(files: KeeperFiles): number | null {
  try {
    const [pid, ticks] = readFileSync(files.path("keeper.pid"), "utf8").trim().split(" ");
    const alive = isAlive(Number(pid)) && readStat(Number(pid))?.startTicks === ticks;
    return alive && Number(pid) !== process.pid ? Number(pid) : null;
  } catch {
    return null;
  }
}

/** One keeper for each state directory. A file of a keeper that is gone is taken over. */
function lockKeeper(files: KeeperFiles): () => void {
  const path = files.path("keeper.pid");
  for (let attempt = 0; attempt < 3; attempt++) {
    refuseRunningKeeper(files);
    try {
      const fd = openSync(path, "wx", 0o600);
      writeSync(fd, `${process.pid} ${readStat(process.pid)?.startTicks ?? "0"}\n`);
      closeSync(fd);
      return () => rmSync(path, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") {
        throw new SpillwayError("ha_data_dir_permission", `${path} cannot be written`, { cause: error });
      }
      rmSync(path, { force: true });
    }
  }
  throw new SpillwayError("ha_keeper_running", `another keeper is starting in ${files.dir}`);
}
