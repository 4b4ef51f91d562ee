/**
 * A whole formation of real processes on this machine: monitor, keepers, watchdogs, Postgres; and everything
 * that can happen to one. For tests, benches, chaos and the demo.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { chownSync, closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import {
  isAlive,
  isServerProcess,
  postmasterPid,
  rebuildPrograms,
  sendSignal,
  serverProcesses,
} from "../postgres/processes.ts";
import { RawConnection } from "@spillway/pg/wire/connection";
import { createTableSql } from "./writer.ts";
import { MonitorProcess } from "./monitor-process.ts";
import { NetLab, type NetNode } from "./netns.ts";
import { haProgram } from "./program.ts";

export interface FormationOptions {
  readonly clock: Clock;
  readonly nodes: number;
  readonly pgBin: string;
  readonly namespaces: boolean;
  /** `number-sync-standbys`. */
  readonly numberSync?: number;
  /** The monitor's settings by their flag's name, e.g. `ha-restart-tries`. */
  readonly settings?: Readonly<Record<string, string>>;
  /** Between keepers and monitor; the keepers' own certificate is among `create`. */
  readonly tls?: boolean;
  /** Further flags of `create postgres`, for every node. */
  readonly create?: Readonly<Record<string, string>>;
  readonly say?: ((text: string) => void) | undefined;
}

/** What of a node's view matters here. */
export interface NodeStates {
  readonly name: string;
  readonly reported: string;
  readonly assigned: string;
  readonly healthy: boolean;
}

const APP_USER = "app";
const APP_PASSWORD = "app-secret";
const UP_TIMEOUT_MS = 60_000;

/** As root, everything of Postgres belongs to the user `postgres`. */
function postgresIds(): { uid: number; gid: number } | null {
  if (process.getuid?.() !== 0) return null;
  const line = readFileSync("/etc/passwd", "utf8")
    .split("\n")
    .find((l) => l.startsWith("postgres:"));
  const [, , uid, gid] = (line ?? "").split(":");
  if (uid === undefined || gid === undefined) {
    throw new SpillwayError("usage", "as root this needs a system user postgres to run the servers as");
  }
  return { uid: Number(uid), gid: Number(gid) };
}

/** One node: its places, and its processes. */
export class FormationNode {
  readonly name: string;
  readonly host: string;
  readonly pgPort: number;
  readonly keeperPort: number;
  readonly pgdata: string;
  readonly net: NetNode | null;
  readonly #formation: Formation;
  #keeper: ChildProcess | null = null;

  constructor(formation: Formation, index: number, host: string, ports: [number, number], net: NetNode | null) {
    this.#formation = formation;
    this.name = `node${index + 1}`;
    this.host = host;
    [this.pgPort, this.keeperPort] = ports;
    this.pgdata = join(formation.dir, this.name);
    this.net = net;
  }

  get stateDir(): string {
    return `${this.pgdata}.ha`;
  }

  get logFile(): string {
    return join(this.#formation.dir, `${this.name}.log`);
  }

  get keeperPid(): number | null {
    const pid = this.#keeper?.pid;
    return pid !== undefined && isAlive(pid) ? pid : null;
  }

  get postmasterPid(): number | null {
    const pid = postmasterPid(this.pgdata);
    return pid !== null && isServerProcess(pid, this.pgdata) ? pid : null;
  }

  get watchdogPid(): number | null {
    try {
      const pid = Number.parseInt(readFileSync(join(this.stateDir, "watchdog.pid"), "utf8"), 10);
      return isAlive(pid) ? pid : null;
    } catch {
      return null;
    }
  }

  /** Creates the node at its first start. */
  startKeeper(): void {
    const exists = existsSync(join(this.stateDir, "keeper.json"));
    const user = this.#formation.runAs === null ? [] : ["--user", "postgres"];
    const args = exists ? ["run", "--pgdata", this.pgdata] : this.#createArgs();
    const command = [...NetLab.enter(this.net), ...haProgram(), ...args, ...user];
    const log = openSync(this.logFile, "a");
    this.#keeper = spawn(command[0] ?? "", command.slice(1), {
      stdio: ["ignore", log, log],
      cwd: "/",
      detached: true,
      env: { ...process.env, SPILLWAY_HA_TOKEN: this.#formation.monitor.registrationToken },
    });
    closeSync(log);
    this.#keeper.unref();
  }

  #createArgs(): string[] {
    const { monitor, options, clientNetwork } = this.#formation;
    const flags: Record<string, string> = {
      monitor: monitor.address,
      pgdata: this.pgdata,
      pgport: String(this.pgPort),
      "pg-bin": options.pgBin,
      hostname: this.host,
      name: this.name,
      "keeper-listen": `${this.host}:${this.keeperPort}`,
      "pg-listen": this.host,
      client: clientNetwork,
      ...options.create,
    };
    return ["create", "postgres", "--run", ...Object.entries(flags).flatMap(([name, value]) => [`--${name}`, value])];
  }

  /** kill -9 of the postmaster alone. */
  killPostmaster(): void {
    const pid = this.postmasterPid;
    if (pid !== null) sendSignal(pid, "SIGKILL");
  }

  killKeeper(signal: NodeJS.Signals = "SIGKILL"): void {
    if (this.keeperPid !== null) sendSignal(this.keeperPid, signal);
  }

  /** The machine is gone: keeper, watchdog and every server process, at once. */
  killNode(): void {
    this.#all().forEach((pid) => sendSignal(pid, "SIGKILL"));
    // Whatever was being forked meanwhile.
    serverProcesses(this.pgdata).forEach(({ pid }) => sendSignal(pid, "SIGKILL"));
  }

  /** The machine stands still: SIGSTOP of keeper and Postgres (and, if asked, of the watchdog too). */
  stall(withWatchdog = false): void {
    this.#all(withWatchdog).forEach((pid) => sendSignal(pid, "SIGSTOP"));
  }

  resume(): void {
    this.#all().forEach((pid) => sendSignal(pid, "SIGCONT"));
  }

  #all(withWatchdog = true): number[] {
    const pids = [...serverProcesses(this.pgdata).map((p) => p.pid), ...rebuildPrograms(this.pgdata)];
    if (this.keeperPid !== null) pids.unshift(this.keeperPid);
    if (withWatchdog && this.watchdogPid !== null) pids.unshift(this.watchdogPid);
    return pids;
  }

  cut(): void {
    if (this.net) this.#formation.lab?.cut(this.net);
  }

  heal(): void {
    if (this.net) this.#formation.lab?.heal(this.net);
  }

  /** One statement as superuser, over the network as an administrator would; the rows as text. */
  async sql(text: string, database = "postgres"): Promise<readonly (readonly (string | null)[])[]> {
    const connection = await RawConnection.open({
      host: this.host,
      port: this.pgPort,
      user: "postgres",
      password: this.#formation.superuserPassword,
      database,
      connectTimeoutMs: 2_000,
    });
    try {
      return (await connection.query(text, { timeoutMs: 20_000 })).at(-1)?.rows ?? [];
    } finally {
      connection.destroy();
    }
  }

  log(): string {
    return existsSync(this.logFile) ? readFileSync(this.logFile, "utf8") : "";
  }
}

export class Formation {
  readonly options: FormationOptions;
  readonly dir: string;
  readonly runAs: { uid: number; gid: number } | null;
  readonly lab: NetLab | null;
  nodes: readonly FormationNode[] = [];
  #monitor: MonitorProcess | null = null;

  private constructor(options: FormationOptions) {
    this.options = options;
    this.runAs = postgresIds();
    this.dir = mkdtempSync(join(tmpdir(), "spillway-ha-"));
    if (this.runAs) chownSync(this.dir, this.runAs.uid, this.runAs.gid);
    this.lab = options.namespaces ? NetLab.create(options.nodes) : null;
  }

  get monitor(): MonitorProcess {
    if (this.#monitor === null) throw new SpillwayError("usage", "the formation has no monitor yet");
    return this.#monitor;
  }

  get clientNetwork(): string {
    return this.lab ? `${this.lab.hostAddress}/24` : "127.0.0.1/32";
  }

  /** Starts everything and waits for a synchronous primary (or a single one). On failure nothing is left. */
  static async start(options: FormationOptions): Promise<Formation> {
    const formation = new Formation(options);
    try {
      await formation.#start();
      return formation;
    } catch (error) {
      const logs = formation.nodes.map((n) => n.log().split("\n").slice(-8).join("\n")).join("\n");
      await formation.destroy();
      throw new SpillwayError("deadline_exceeded", `the formation did not come up: ${String(error)}\n${logs}`, {
        cause: error,
      });
    }
  }

  async #start(): Promise<void> {
    const { options } = this;
    const say = options.say ?? ((): void => {});
    await this.startMonitor("monitor");
    say(`monitor at ${this.monitor.url}`);
    for (let i = 0; i < options.nodes; i++) {
      const node = await this.addNode();
      if (i === 0) await this.waitFor("the first node", async () => (await this.viewOf(node)) === "single");
    }
    if (options.numberSync !== undefined) await this.monitor.set({ numberSyncStandbys: options.numberSync });
    await this.waitStable();
    const primary = await this.primary();
    await primary.sql(`CREATE ROLE ${APP_USER} LOGIN PASSWORD '${APP_PASSWORD}'`);
    await primary.sql("GRANT ALL ON SCHEMA public TO app");
    await primary.sql(`SET ROLE ${APP_USER}; ${createTableSql()}`);
    say(`${options.nodes} nodes, primary ${primary.name}`);
  }

  /** A new monitor in a directory of its own, in the place of the one before (which is left as it is). */
  async startMonitor(name: string): Promise<void> {
    const { clock, settings = {}, tls = false } = this.options;
    const host = this.lab?.hostAddress ?? "127.0.0.1";
    const listen = `${host}:${await freePort(host)}`;
    this.#monitor?.close();
    const { runAs } = this;
    this.#monitor = await MonitorProcess.start({ dir: join(this.dir, name), listen, runAs, clock, settings, tls });
  }

  /** One more node, created and started. */
  async addNode(): Promise<FormationNode> {
    const i = this.nodes.length;
    const net = this.lab?.nodes[i] ?? null;
    const host = net?.address ?? "127.0.0.1";
    const ports: [number, number] = net ? [5432, 6432] : [await freePort(host), await freePort(host)];
    const node = new FormationNode(this, i, host, ports, net);
    this.nodes = [...this.nodes, node];
    node.startKeeper();
    return node;
  }

  /** The URI that an application uses: every node, in the order of their creation. */
  get uri(): string {
    const hosts = this.nodes.map((n) => `${n.host}:${n.pgPort}`).join(",");
    return `postgres://${APP_USER}:${APP_PASSWORD}@${hosts}/postgres?target_session_attrs=read-write&sslmode=disable`;
  }

  /** The first node's initdb set it for the cluster. */
  get superuserPassword(): string {
    const path = join(this.nodes[0]?.stateDir ?? "", "keeper.json");
    return (JSON.parse(readFileSync(path, "utf8")) as { superuserPassword: string }).superuserPassword;
  }

  node(name: string): FormationNode {
    const found = this.nodes.find((n) => n.name === name);
    if (!found) throw new SpillwayError("usage", `no node ${name}`);
    return found;
  }

  view(): Promise<readonly NodeStates[]> {
    return this.monitor.nodes();
  }

  async viewOf(node: FormationNode): Promise<string> {
    const row = (await this.view()).find((n) => n.name === node.name);
    return row && row.reported === row.assigned ? row.reported : `${row?.reported}>${row?.assigned}`;
  }

  async primary(): Promise<FormationNode> {
    const rows = await this.view();
    const row = rows.find((n) => ["primary", "wait_primary", "single", "apply_settings"].includes(n.assigned));
    if (!row) throw new SpillwayError("ha_action_waiting", "there is no primary now");
    return this.node(row.name);
  }

  async standbys(): Promise<FormationNode[]> {
    const primary = await this.primary();
    return this.nodes.filter((n) => n !== primary);
  }

  /** Every node stable: one primary (synchronous when there are standbys), the others secondary. */
  async waitStable(timeoutMs = UP_TIMEOUT_MS): Promise<number> {
    const startedMs = this.options.clock.monotonicMs();
    await this.waitFor("a stable formation", async () => isSettled(await this.view(), this.nodes.length), timeoutMs);
    return this.options.clock.monotonicMs() - startedMs;
  }

  async waitFor(what: string, check: () => Promise<boolean>, timeoutMs = UP_TIMEOUT_MS): Promise<void> {
    const { clock } = this.options;
    const deadline = clock.monotonicMs() + timeoutMs;
    while (!(await check().catch(() => false))) {
      if (clock.monotonicMs() > deadline) {
        const rows = await this.view().catch(() => []);
        const shown = rows.map((r) => `${r.name} ${r.reported}>${r.assigned}`).join(", ");
        throw new SpillwayError("deadline_exceeded", `waited ${timeoutMs} ms in vain for ${what} (${shown})`);
      }
      await clock.sleep(50);
    }
  }

  /** Ends every process that was started here, and removes every file. */
  async destroy(): Promise<void> {
    for (const node of this.nodes) node.killNode();
    await this.#monitor?.kill();
    this.#monitor?.close();
    for (const node of this.nodes) node.killNode();
    await this.options.clock.sleep(100);
    this.lab?.destroy();
    rmSync(this.dir, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
  }
}

export function isSettled(rows: readonly NodeStates[], count: number): boolean {
  if (rows.length !== count || rows.some((r) => r.reported !== r.assigned || !r.healthy)) return false;
  const primaries = rows.filter((r) => r.reported === (count === 1 ? "single" : "primary"));
  return primaries.length === 1 && rows.filter((r) => r.reported === "secondary").length === count - 1;
}

const handedOut = new Set<number>();

/** A free port of an address, below the range that the kernel gives to outgoing connections. */
export async function freePort(host: string): Promise<number> {
  for (let attempt = 0; attempt < 100; attempt++) {
    const port = 15_000 + Math.floor(Math.random() * 17_000);
    if (handedOut.has(port)) continue;
    const free = await new Promise<boolean>((resolve) => {
      const server = createServer();
      server.once("error", () => resolve(false));
      server.listen(port, host, () => server.close(() => resolve(true)));
    });
    if (free) {
      handedOut.add(port);
      return port;
    }
  }
  throw new SpillwayError("ha_port_taken", `no free port at ${host} for ${userInfo().username}`);
}
