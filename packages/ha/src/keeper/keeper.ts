/**
 * The agent beside one Postgres. It reports what is, is told what shall be, and does it; it holds the lease
 * and stops Postgres when that runs out; it starts a Postgres that died by itself. All decisions about the
 * formation are the monitor's; all decisions about its own next step are in `fsm/keeper-core.ts`.
 */
import type { Server } from "node:http";
import type { Clock } from "@spillway/base/clock";
import { messageOf } from "@spillway/base/errors";
import { randomHex } from "@spillway/base/ids";
import type { Logger } from "@spillway/base/log";
import type { Metrics } from "@spillway/base/metrics";
import { accept, complete, decideStep, fence, type KeeperCore } from "../fsm/keeper-core.ts";
import { isStopped, needsLease, type State } from "../fsm/states.ts";
import type { Binaries } from "../postgres/binaries.ts";
import type { Assignment, NodeReport, NodeResponse } from "../protocol/messages.ts";
import { Bell } from "./bell.ts";
import { Executor, type Outcome } from "./executor.ts";
import type { KeeperConfig, KeeperFiles } from "./files.ts";
import { RoleHooks } from "./hooks.ts";
import { HttpClient } from "./http-client.ts";
import { serveKeeper, type RoleFacts } from "./http-server.ts";
import { LeaseKeeper } from "./lease-keeper.ts";
import { keeperMetrics, type KeeperMetrics } from "./metrics.ts";
import { MonitorClient } from "./monitor-client.ts";
import { PgNode } from "./node.ts";
import { rebuildMarker } from "../postgres/rejoin.ts";
import { NOTHING, Observer, type Observation } from "./observe.ts";
import { buildReport, roleFacts, supersedes } from "./report.ts";
import { RestartBudget, Supervisor } from "./restart-budget.ts";
import { SlotKeeper } from "./slots.ts";
import { WatchdogLink } from "./watchdog-link.ts";

const TICK_MS = 50;
const WATCH_MS = 10_000;
const DEFAULT_HEARTBEAT_MS = 500;
/** A beat does not wait longer than this for Postgres to say how it is. */
const OBSERVE_WAIT_MS = 250;

export interface KeeperDeps {
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
}

export class Keeper {
  readonly #config: KeeperConfig;
  readonly #files: KeeperFiles;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #metrics: Metrics;
  readonly #counts: KeeperMetrics;
  readonly #node: PgNode;
  readonly #observer: Observer;
  readonly #slots: SlotKeeper;
  readonly #executor: Executor;
  readonly #http = new HttpClient();
  readonly #monitor: MonitorClient;
  readonly #watchdog: WatchdogLink;
  readonly #lease: LeaseKeeper;
  readonly #hooks: RoleHooks;
  readonly #budget = new RestartBudget();
  readonly #supervisor = new Supervisor();
  readonly #beatBell = new Bell();
  readonly #tickBell = new Bell();
  readonly #boot = randomHex(16);
  readonly #stopping = new AbortController();
  #core: KeeperCore;
  #observation: Observation = NOTHING;
  #observing: Promise<void> | null = null;
  #lastAnswerMs: number;
  #seq = 0;
  #heardMonitor = false;
  #lastNoEdge = "";
  #fencing = false;

  constructor(config: KeeperConfig, files: KeeperFiles, binaries: Binaries, deps: KeeperDeps) {
    this.#config = config;
    this.#files = files;
    this.#clock = deps.clock;
    this.#log = deps.log.with({ node: config.name });
    this.#metrics = deps.metrics;
    this.#counts = keeperMetrics(deps.metrics, { formation: config.formation, node: config.name });
    this.#core = files.readCore();
    this.#node = new PgNode(config, files, binaries, deps.clock, this.#log);
    this.#node.setPeers(this.#core.assignment?.peers ?? []);
    this.#observer = new Observer(this.#node);
    this.#slots = new SlotKeeper(this.#node);
    this.#executor = new Executor(this.#node);
    const { monitors, nodeToken, monitorFingerprint } = config;
    this.#monitor = new MonitorClient(this.#http, { monitors, token: nodeToken, fingerprint: monitorFingerprint });
    this.#watchdog = new WatchdogLink(files, config.pgdata, this.#log);
    this.#lease = new LeaseKeeper({
      config,
      clock: deps.clock,
      log: this.#log,
      http: this.#http,
      watchdog: this.#watchdog,
      core: () => this.#core,
    });
    this.#hooks = new RoleHooks(
      {
        program: config.onRoleChange,
        formation: config.formation,
        name: config.name,
        host: config.host,
        port: config.pgPort,
      },
      this.#log,
    );
    this.#lastAnswerMs = deps.clock.monotonicMs();
  }

  get state(): State {
    return this.#core.state;
  }

  /** Runs until `signal` (then Postgres is stopped in order), `handover` (it goes on), or until the node was dropped. */
  async run(signal: AbortSignal, handover: AbortSignal): Promise<"stopped" | "replaced" | "dropped"> {
    const { keeperListen, tlsCert, tlsKey, peerToken } = this.#config;
    this.#lease.resume(this.#files.path("beat"));
    const server = await serveKeeper(
      { listen: keeperListen, tlsCert, tlsKey },
      {
        peerToken,
        promise: (request) => this.#lease.answer(request),
        role: () => this.#role(),
        metrics: () => this.#metrics.render(),
      },
    );
    this.#node.postmaster.onExit((pid) => {
      this.#log.info("Postgres ended", { pid });
      this.#tickBell.ring();
      this.#beatBell.ring();
    });
    this.#hooks.onState(this.#core.state);
    this.#log.info("keeper started", { state: this.#core.state, pid: process.pid });
    const stop = (): void => this.#stopping.abort();
    if (signal.aborted || handover.aborted) stop();
    for (const s of [signal, handover]) s.addEventListener("abort", stop, { once: true });
    try {
      await Promise.all([this.#tickLoop(), this.#beatLoop(), this.#promiseLoop(), this.#watchLoop()]);
      if (this.#core.state === "dropped") return "dropped";
      await this.#idle();
      if (handover.aborted && !signal.aborted) return "replaced";
      await this.#standDown();
      return "stopped";
    } finally {
      signal.removeEventListener("abort", stop);
      await this.#close(server);
    }
  }

  get #heartbeatMs(): number {
    return this.#core.assignment?.timings.heartbeatMs ?? DEFAULT_HEARTBEAT_MS;
  }

  get #ending(): boolean {
    return this.#stopping.signal.aborted;
  }

  async #beatLoop(): Promise<void> {
    while (!this.#ending) {
      const startedMs = this.#clock.monotonicMs();
      await this.#observeBriefly();
      await this.#sendReport().catch((error: unknown) => this.#log.debug("no answer from the monitor", { error }));
      this.#tickBell.ring();
      await this.#beatBell.wait(this.#heartbeatMs - (this.#clock.monotonicMs() - startedMs));
    }
  }

  /** Observes, but a Postgres that is slow to answer does not hold up the beat. */
  async #observeBriefly(): Promise<void> {
    this.#observing ??= this.#observer
      .observe()
      .then((seen) => {
        this.#observation = seen;
        if (seen.answers || this.#node.postmaster.pid() === null) this.#lastAnswerMs = this.#clock.monotonicMs();
        this.#slots.maintain(seen, this.#core.assignment?.lease.voters ?? []);
      })
      .finally(() => (this.#observing = null));
    await Promise.race([this.#observing, this.#clock.sleep(OBSERVE_WAIT_MS)]);
  }

  async #sendReport(): Promise<void> {
    const report = this.#buildReport();
    const response = await this.#monitor.report(report, this.#heartbeatMs * 2);
    this.#slots.delivered(report.slots.lost);
    this.#onResponse(report, response);
  }

  #buildReport(): NodeReport {
    const left = this.#restartsLeft(this.#clock.monotonicMs());
    const seen = this.#observation;
    return buildReport({
      formation: this.#config.formation,
      nodeId: this.#config.nodeId,
      boot: this.#boot,
      seq: ++this.#seq,
      sentAtMs: this.#clock.monotonicMs(),
      core: this.#core,
      seen,
      // A server that died since the last look must not be reported as running.
      isRunning: seen.isRunning && this.#node.postmaster.pid() !== null,
      restartsLeft: left,
      mayRestart: (left > 0 || this.#executor.restarting) && this.#shouldRun(),
      diverged: this.#executor.diverged,
      slots: this.#slots.report(seen),
      promise: this.#lease.promiseReport(),
      lease: this.#lease.leaseReport(),
      action: this.#executor.report(),
    });
  }

  #onResponse(report: NodeReport, response: NodeResponse): void {
    if (response.boot !== report.boot || response.seq !== report.seq) return;
    this.#heardMonitor = true;
    const next = accept(this.#core, response.assignment);
    if (next !== this.#core) this.#accepted(next, response.assignment);
    if (response.leaseTtlMs !== null) this.#lease.onGrant(report.sentAtMs, response.leaseTtlMs);
  }

  #accepted(next: KeeperCore, assignment: Assignment): void {
    const before = this.#core.assignment;
    this.#persist(next);
    this.#lease.onAccepted(assignment);
    this.#node.setPeers(assignment.peers);
    if (before === null || before.goalState !== assignment.goalState) {
      const { goalState: goal, reason, version } = assignment;
      this.#log.info("assigned", { state: this.#core.state, goal, reason, version });
    }
    const running = this.#executor.assignment;
    if (running !== null && supersedes(running, assignment)) this.#executor.abort();
    if (before === null || supersedes(before, assignment)) this.#executor.forgetFailures();
    this.#tickBell.ring();
    // The monitor may be waiting to know that this version is in force.
    this.#beatBell.ring();
  }

  async #promiseLoop(): Promise<void> {
    while (!this.#ending) {
      const startedMs = this.#clock.monotonicMs();
      await this.#lease.askVoters();
      await this.#clock.sleep(this.#heartbeatMs - (this.#clock.monotonicMs() - startedMs), this.#stopping.signal);
    }
  }

  async #watchLoop(): Promise<void> {
    const { formation, nodeId } = this.#config;
    while (!this.#ending) {
      const version = this.#core.assignment?.version ?? 0;
      try {
        const seen = await this.#monitor.watch(formation, nodeId, version, WATCH_MS, this.#stopping.signal);
        if (seen !== version) this.#beatBell.ring();
        // Until the beat has brought the new version, asking again would return at once.
        if (seen !== version) await this.#clock.sleep(TICK_MS, this.#stopping.signal);
      } catch {
        await this.#clock.sleep(this.#heartbeatMs, this.#stopping.signal);
      }
    }
  }

  async #tickLoop(): Promise<void> {
    while (!this.#ending) {
      try {
        this.#tick();
      } catch (error) {
        this.#log.error("tick failed", { error: messageOf(error) });
      }
      await this.#tickBell.wait(TICK_MS);
    }
  }

  #tick(): void {
    this.#lease.beat(this.#isLimited());
    this.#counts.observe(this.#core.state, this.#observation, this.#lease.remainingMs());
    if (this.#fencing) return;
    const held = this.#lease.held();
    if (this.#executor.leased && !held) return void this.#fence("the lease ran out during an action");
    const mayWrite = this.#mayWrite();
    const step = decideStep(this.#core, { leaseHeld: held, promiseBinds: this.#lease.promiseBinds(), mayWrite });
    if (step.kind === "fence") return void this.#fence("the lease ran out");
    if (this.#executor.busy) return;
    if (step.kind === "no_edge") this.#sayNoEdge(step.current, step.assigned);
    if (step.kind === "act" && this.#executor.ready) {
      this.#executor.act(step.edge, step.assignment, (outcome) =>
        this.#acted(step.edge.action, step.assignment, outcome),
      );
      return;
    }
    this.#supervise();
  }

  /** Also between two tries of an action towards a leased goal: Postgres may have been started already. */
  #mayWrite(): boolean {
    const goal = this.#core.assignment?.goalState;
    if (this.#executor.leased || goal === undefined || !needsLease(goal)) return this.#executor.leased;
    return this.#node.isRunning() && this.#observation.inRecovery === false;
  }

  /** Postgres is writable, or may be in a moment. */
  #isLimited(): boolean {
    return needsLease(this.#core.state) || this.#executor.leased;
  }

  #acted(action: string, assignment: Assignment, outcome: Outcome): void {
    if (outcome.ok) {
      const from = this.#core.state;
      this.#persist(complete(this.#core, assignment));
      if (!needsLease(this.#core.state) && !needsLease(assignment.goalState)) this.#lease.drop();
      if (from !== this.#core.state) this.#log.info("state", { from, to: this.#core.state, reason: assignment.reason });
      if (this.#core.state === "dropped") void this.#leave();
    } else if (outcome.error !== null) {
      this.#log.warn("transition not done yet", { action, error: outcome.error });
    }
    // What is reported next must be what is now.
    const fresh = this.#observing ?? Promise.resolve();
    void fresh.then(() => {
      this.#beatBell.ring();
      this.#tickBell.ring();
    });
  }

  #persist(core: KeeperCore): void {
    const changed = core.state !== this.#core.state;
    this.#files.writeCore(core);
    this.#core = core;
    if (changed) this.#hooks.onState(core.state);
  }

  async #fence(reason: string): Promise<void> {
    this.#fencing = true;
    try {
      this.#log.error("fencing: Postgres is stopped at once", { reason, state: this.#core.state });
      this.#counts.fenced();
      const gone = await this.#executor.fence();
      if (!gone) return void this.#log.error("Postgres does not end: the watchdog goes on trying");
      this.#persist(fence(this.#core));
    } catch (error) {
      this.#log.error("fencing failed", { error: messageOf(error) });
    } finally {
      this.#fencing = false;
      this.#observation = NOTHING;
      this.#beatBell.ring();
    }
  }

  // ---------------------------------------------------------------- keeping it running

  /** States in which a server that is down was not stopped by anybody's will. */
  #shouldRun(): boolean {
    const { state, assignment } = this.#core;
    if (isStopped(state) || ["init", "wait_standby", "maintenance", "dropped"].includes(state)) return false;
    if (assignment !== null && isStopped(assignment.goalState)) return false;
    // A half-made directory is never started; the next transition makes it anew.
    return rebuildMarker(this.#files.dir) === null;
  }

  #restartsLeft(nowMs: number): number {
    const timings = this.#core.assignment?.timings;
    return this.#budget.left(nowMs, timings?.restartTries ?? 3, timings?.restartWindowMs ?? 20_000);
  }

  #supervise(): void {
    if (!this.#shouldRun() || !this.#executor.ready) return;
    const nowMs = this.#clock.monotonicMs();
    const leased = needsLease(this.#core.state);
    const what = this.#supervisor.decide({
      nowMs,
      isRunning: this.#node.isRunning(),
      answeredMs: this.#lastAnswerMs,
      restartsLeft: this.#restartsLeft(nowMs),
      replaceable: leased && (this.#core.assignment?.lease.voters.length ?? 0) > 0,
    });
    if (what === "fine" || what === "leave" || (leased && !this.#mayStartWritable())) return;
    if (what === "end") return void this.#endHung();
    this.#log.warn("Postgres is not running: restarting it on the spot", { left: this.#restartsLeft(nowMs) });
    this.#budget.spend(nowMs);
    this.#counts.restarted();
    this.#executor.restart(leased, (outcome) => {
      this.#lastAnswerMs = this.#clock.monotonicMs();
      if (outcome.error) this.#log.error("Postgres does not start", { error: outcome.error });
      this.#beatBell.ring();
    });
  }

  /** Never before the monitor, or every promising standby, has been heard in this life of the keeper. */
  #mayStartWritable(): boolean {
    return this.#lease.held() && (this.#heardMonitor || this.#core.assignment?.lease.required === true);
  }

  async #endHung(): Promise<void> {
    this.#fencing = true;
    this.#log.error("Postgres has not answered for too long: it is ended and started again");
    await this.#executor.fence().catch(() => false);
    this.#lastAnswerMs = this.#clock.monotonicMs();
    this.#fencing = false;
  }

  #sayNoEdge(current: State, assigned: State): void {
    const pair = `${current}>${assigned}`;
    if (pair === this.#lastNoEdge) return;
    this.#lastNoEdge = pair;
    this.#log.error("no transition between these states", { current, assigned });
  }

  // ---------------------------------------------------------------- roles and the end

  #role(): RoleFacts {
    const isRunning = this.#observation.answers && this.#node.postmaster.pid() !== null;
    return roleFacts(this.#core.state, this.#observation, isRunning, this.#lease.held());
  }

  async #idle(): Promise<void> {
    this.#executor.abort();
    while (this.#executor.busy) await this.#clock.sleep(TICK_MS);
  }

  /** SIGTERM: Postgres is stopped in order; a primary says that it is out, so that nobody waits for its lease. */
  async #standDown(): Promise<void> {
    this.#log.info("stopping", { state: this.#core.state });
    if (!isStopped(this.#core.state) && this.#core.state !== "maintenance") {
      await this.#node.stop("fast", 10_000).catch((error: unknown) => this.#log.error("stop failed", { error }));
      if (this.#core.assignment?.lease.required === true) this.#persist(fence(this.#core));
    }
    this.#lease.drop();
    this.#watchdog.stop();
    this.#observation = await this.#observer.observe();
    await this.#sendReport().catch(() => {});
  }

  /** Dropped: the monitor hears it once, then the keeper ends. */
  async #leave(): Promise<void> {
    await this.#sendReport().catch(() => {});
    this.#watchdog.stop();
    this.#stopping.abort();
    this.#beatBell.ring();
    this.#tickBell.ring();
  }

  async #close(server: Server): Promise<void> {
    this.#node.closeSession();
    this.#slots.close();
    this.#http.close();
    server.closeAllConnections();
    await new Promise<void>((resolve) => server.close(() => resolve()));
  }
}
