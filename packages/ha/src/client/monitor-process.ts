/** The monitor of a formation under test: started, asked, killed, started again. */
import { spawn, type ChildProcess } from "node:child_process";
import { X509Certificate } from "node:crypto";
import { closeSync, openSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Clock } from "@spillway/base/clock";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { AdminClient } from "../commands/client.ts";
import { HttpClient } from "../keeper/http-client.ts";
import { fingerprintOf } from "../monitor/certificate.ts";
import {
  eventsView,
  explainView,
  settingsView,
  stateView,
  type EventView,
  type NodeView,
  type StateView,
} from "../protocol/commands.ts";
import { MONITOR_PATHS } from "../protocol/http.ts";
import { isAlive, sendSignal } from "../postgres/processes.ts";
import { haProgram } from "./program.ts";

export interface MonitorOptions {
  /** Its directory; not there yet. */
  readonly dir: string;
  /** host:port */
  readonly listen: string;
  readonly runAs: { uid: number; gid: number } | null;
  readonly clock: Clock;
  /** Settings by their flag's name, e.g. `ha-restart-tries`. */
  readonly settings: Readonly<Record<string, string>>;
  readonly tls?: boolean;
  /** Endpoints of an etcd cluster instead of the embedded store. */
  readonly etcd?: readonly string[];
}

const FORMATION = "default";
const START_TIMEOUT_MS = 20_000;

export class MonitorProcess {
  readonly url: string;
  readonly #options: MonitorOptions;
  #child: ChildProcess | null = null;
  #admin: AdminClient | null = null;

  private constructor(options: MonitorOptions) {
    this.#options = options;
    this.url = `${options.tls ? "https" : "http"}://${options.listen}`;
  }

  static async start(options: MonitorOptions): Promise<MonitorProcess> {
    const monitor = new MonitorProcess(options);
    const etcd = options.etcd ? ["--etcd", options.etcd.join(",")] : [];
    await monitor.#spawn(
      [
        "create",
        "monitor",
        "--dir",
        options.dir,
        "--listen",
        options.listen,
        ...etcd,
        ...(options.tls ? ["--tls"] : []),
      ],
      true,
    );
    await monitor.run();
    return monitor;
  }

  /** SHA-256 of its certificate; null without TLS. */
  get fingerprint(): string | null {
    if (!this.#options.tls) return null;
    return fingerprintOf(new X509Certificate(readFileSync(join(this.#options.dir, "tls.crt"))).raw);
  }

  /** As `create postgres --monitor` takes it. */
  get address(): string {
    return this.fingerprint === null ? this.url : `${this.url}/?fingerprint=${this.fingerprint}`;
  }

  get registrationToken(): string {
    return readFileSync(join(this.#options.dir, "registration-token"), "utf8").trim();
  }

  get pid(): number | null {
    const pid = this.#child?.pid;
    return pid !== undefined && isAlive(pid) ? pid : null;
  }

  /** Starts the process and waits until it answers. */
  async run(): Promise<void> {
    const { clock, dir, settings } = this.#options;
    const flags = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, value]);
    await this.#spawn(["run", "--dir", dir, ...flags], false);
    const deadline = clock.monotonicMs() + START_TIMEOUT_MS;
    for (;;) {
      const up = await this.metrics().then(
        () => true,
        () => false,
      );
      if (up) break;
      if (clock.monotonicMs() > deadline)
        throw new SpillwayError("ha_unreachable", `the monitor does not start: ${this.log()}`);
      await clock.sleep(25);
    }
    const token = readFileSync(join(dir, "admin-token"), "utf8").trim();
    this.#admin = new AdminClient({ urls: [this.url], token, fingerprint: this.fingerprint }, clock, 2_000);
  }

  async #spawn(args: readonly string[], wait: boolean): Promise<void> {
    const log = openSync(this.logFile, "a");
    const [program = "", ...first] = haProgram();
    const child = spawn(program, [...first, ...args], {
      stdio: ["ignore", log, log],
      cwd: "/",
      detached: true,
      ...this.#options.runAs,
    });
    closeSync(log);
    if (wait) {
      const code = await new Promise<number | null>((resolve) => child.on("close", resolve));
      if (code !== 0) throw new SpillwayError("ha_program_failed", `create monitor failed: ${this.log()}`);
      return;
    }
    child.unref();
    this.#child = child;
  }

  get logFile(): string {
    return `${this.#options.dir}.log`;
  }

  log(): string {
    try {
      return readFileSync(this.logFile, "utf8").slice(-4000);
    } catch (error) {
      return messageOf(error);
    }
  }

  #client(): AdminClient {
    if (this.#admin === null) throw new SpillwayError("ha_unreachable", "the monitor was not started");
    return this.#admin;
  }

  /** What `/metrics` says. Throws while it does not answer. */
  async metrics(): Promise<string> {
    const call = { method: "GET", url: `${this.url}${MONITOR_PATHS.metrics}`, token: "", timeoutMs: 2_000 } as const;
    const http = new HttpClient();
    try {
      return (await http.call({ ...call, fingerprint: this.fingerprint })).body;
    } finally {
      http.close();
    }
  }

  state(): Promise<StateView> {
    return this.#client().get(MONITOR_PATHS.state, { formation: FORMATION }, stateView);
  }

  async nodes(): Promise<readonly NodeView[]> {
    return (await this.state()).nodes;
  }

  async events(limit = 100): Promise<readonly EventView[]> {
    return (await this.#client().get(MONITOR_PATHS.events, { formation: FORMATION, limit: String(limit) }, eventsView))
      .events;
  }

  async explain(): Promise<readonly string[]> {
    const view = await this.#client().get(MONITOR_PATHS.explain, { formation: FORMATION }, explainView);
    return view.lines;
  }

  async perform(
    kind: "switchover" | "failover" | "promotion",
    node: string | null = null,
    primaryIsDown = false,
  ): Promise<void> {
    const body = { formation: FORMATION, kind, node, allowDataLoss: false, primaryIsDown };
    await this.#client().post(MONITOR_PATHS.perform, body, stateView);
  }

  async maintenance(node: string, on: boolean): Promise<void> {
    const body = { formation: FORMATION, node, on, allowFailover: true };
    await this.#client().post(MONITOR_PATHS.maintenance, body, stateView);
  }

  async drop(node: string): Promise<void> {
    await this.#client().post(MONITOR_PATHS.drop, { formation: FORMATION, node, force: false }, stateView);
  }

  async set(change: Readonly<Record<string, unknown>>): Promise<void> {
    const nothing = {
      node: null,
      candidatePriority: null,
      replicationQuorum: null,
      numberSyncStandbys: null,
      failoverWhenAsync: null,
      requireSlots: null,
    };
    await this.#client().post(MONITOR_PATHS.settings, { formation: FORMATION, ...nothing, ...change }, settingsView);
  }

  signal(signal: NodeJS.Signals): void {
    if (this.pid !== null) sendSignal(this.pid, signal);
  }

  async kill(): Promise<void> {
    this.signal("SIGKILL");
    for (let i = 0; i < 100 && this.pid !== null; i++) await this.#options.clock.sleep(10);
  }

  close(): void {
    this.#admin?.close();
  }
}
