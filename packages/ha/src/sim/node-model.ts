/** A machine of the simulation: the keeper's real pure core and lease, and a model of the Postgres beside it. */
import { accept, complete, decideStep, fence, NEW_NODE, type KeeperCore } from "../fsm/keeper-core.ts";
import { needsLease } from "../fsm/states.ts";
import type { ActionName } from "../fsm/table.ts";
import { PrimaryLease, StandbyPromise } from "../protocol/lease.ts";
import type { Assignment, NodeReport, NodeResponse, PromiseAnswer, PromiseRequest } from "../protocol/messages.ts";
import { performAction } from "./node-actions.ts";
import { parseSsn, PostgresModel } from "./postgres-model.ts";
import type { World } from "./world.ts";

export interface Cluster {
  readonly world: World;
  readonly nodes: Map<number, NodeModel>;
  toMonitor(report: NodeReport, reply: (response: NodeResponse) => void): void;
  onAcked(node: NodeModel, upTo: number): void;
  onNoEdge(node: NodeModel, current: string, assigned: string): void;
  readonly mutant: string | null;
}

/** How long an action takes, ms. */
const SLOW: Partial<Record<ActionName, readonly [number, number]>> = {
  clone_standby: [200, 900],
  rejoin_standby: [200, 1500],
  freeze_lsn: [30, 400],
  promote_read_only: [50, 300],
};
const FENCE_MS = [5, 80] as const;
const RESTART_TRIES = 3;

export class NodeModel {
  readonly id: number;
  readonly pg = new PostgresModel();
  /** The keeper's persisted part. */
  core: KeeperCore = NEW_NODE;
  keeperUp = true;
  machineUp = true;
  stalledUntilMs = 0;
  resumedAtMs = -1e9;
  restartsLeft = RESTART_TRIES;
  restarting = false;
  readonly #c: Cluster;
  readonly #rate: number;
  readonly #offsetMs: number;
  #lease = new PrimaryLease();
  #promise: StandbyPromise;
  #boot = 0;
  #seq = 0;
  #running: { version: number; action: string } | null = null;
  #fencing = false;
  #watchdogMs = Number.POSITIVE_INFINITY;
  #deferred: (() => void)[] = [];
  #asked = new Map<number, number>();

  constructor(id: number, cluster: Cluster) {
    this.id = id;
    this.#c = cluster;
    this.#rate = cluster.world.between(0.95, 1.05);
    this.#offsetMs = cluster.world.between(0, 1e6);
    this.#promise = new StandbyPromise(this.clock(), 0);
    this.#loop();
    this.#watch();
  }

  /** This machine's monotonic clock. */
  clock(): number {
    return this.#offsetMs + this.#c.world.nowMs * this.#rate;
  }

  isStalled(): boolean {
    return this.#c.world.nowMs < this.stalledUntilMs;
  }

  /** Runs now, or when the machine comes out of its stall; never if it is down. */
  deliver(run: () => void): void {
    if (!this.machineUp) return;
    if (this.isStalled()) this.#deferred.push(run);
    else run();
  }

  stall(ms: number): void {
    const { world } = this.#c;
    this.stalledUntilMs = world.nowMs + ms;
    world.after(ms, () => {
      if (this.isStalled()) return;
      this.resumedAtMs = world.nowMs;
      for (const run of this.#deferred.splice(0)) this.deliver(run);
    });
  }

  killMachine(): void {
    this.machineUp = false;
    this.#deferred = [];
    this.pg.stop(false);
    this.killKeeper();
  }

  startMachine(): void {
    this.machineUp = true;
    this.stalledUntilMs = 0;
    this.startKeeper();
  }

  killKeeper(): void {
    this.keeperUp = false;
    this.#boot++;
    this.#running = null;
    this.#fencing = false;
    this.restarting = false;
  }

  startKeeper(): void {
    if (this.keeperUp || !this.machineUp) return;
    this.keeperUp = true;
    this.#boot++;
    this.#seq = 0;
    this.restartsLeft = RESTART_TRIES;
    this.#lease = new PrimaryLease();
    if (this.core.assignment !== null) this.#lease.setTerms(this.core.assignment.lease);
    this.#promise = new StandbyPromise(this.clock(), this.core.assignment?.timings.leaseTtlMs ?? 0);
    this.#watchdogMs = Math.min(this.#watchdogMs, this.clock() + 100);
  }

  killPostmaster(): void {
    this.pg.stop(false);
  }

  // ------------------------------------------------------------------ the loop

  #alive(): boolean {
    return this.machineUp && this.keeperUp;
  }

  #loop(): void {
    const { world } = this.#c;
    world.after(this.#heartbeatMs() * world.between(0.9, 1.1), () => {
      if (this.#alive()) this.deliver(() => this.#beat());
      this.#loop();
    });
  }

  #heartbeatMs(): number {
    return this.core.assignment?.timings.heartbeatMs ?? 300;
  }

  /** The watchdog and the keeper's own timer: out by the end of the lease, also when the keeper is dead. */
  #watch(): void {
    const { world } = this.#c;
    world.after(25, () => {
      if (this.machineUp) this.deliver(() => this.#checkLease());
      this.#watch();
    });
  }

  #checkLease(): void {
    if (this.#c.mutant === "no fence") return;
    if (!this.keeperUp) {
      if (this.pg.running && !this.pg.inRecovery && this.clock() >= this.#watchdogMs) this.pg.stop(false);
      return;
    }
    this.#watchdogMs = this.#lease.expiresAtMs();
    this.#step();
  }

  #beat(): void {
    if (!this.#alive()) return;
    this.#superviseRestart();
    this.#askVoters();
    this.#report();
    this.#step();
  }

  #report(): void {
    const report = this.#observe();
    const boot = this.#boot;
    this.#c.toMonitor(report, (response) => {
      this.deliver(() => {
        if (!this.#alive() || boot !== this.#boot) return;
        if (response.leaseTtlMs !== null) this.#lease.onGrant(response.sentAtMs, response.leaseTtlMs);
        this.#accept(response.assignment);
      });
    });
  }

  #accept(assignment: Assignment): void {
    const before = this.core;
    this.core = accept(this.core, assignment);
    if (this.core === before) return;
    if (!needsLease(assignment.goalState)) this.#lease.drop();
    this.#lease.setTerms(assignment.lease);
    this.#running = null;
    this.#step();
  }

  #step(): void {
    if (this.#fencing || this.isStalled()) return;
    const now = this.clock();
    const held = this.#c.mutant === "no fence" ? true : this.#lease.held(now);
    const mayWrite = this.pg.running && !this.pg.inRecovery;
    const step = decideStep(this.core, { leaseHeld: held, promiseBinds: this.#promise.binds(now), mayWrite });
    if (step.kind === "fence") return this.#fence();
    if (step.kind === "no_edge") return this.#c.onNoEdge(this, step.current, step.assigned);
    if (step.kind !== "act") return;
    if (this.#running?.version === step.assignment.version) return;
    this.#act(step.edge.action, step.assignment);
  }

  #fence(): void {
    this.#fencing = true;
    this.#running = null;
    const boot = this.#boot;
    this.#c.world.after(this.#c.world.between(...FENCE_MS), () =>
      this.deliver(() => {
        if (boot !== this.#boot) return;
        this.#c.world.log(`node ${this.id} fences itself`);
        this.pg.stop(false);
        this.core = fence(this.core);
        this.#fencing = false;
        this.#report();
      }),
    );
  }

  #superviseRestart(): void {
    const shouldRun = ["single", "wait_primary", "primary", "apply_settings", "secondary", "catchingup", "report_lsn"];
    if (this.pg.running || this.restarting || this.#running !== null || !shouldRun.includes(this.core.state)) return;
    if (this.restartsLeft === 0 || this.pg.broken) return;
    this.restartsLeft--;
    this.restarting = true;
    const boot = this.#boot;
    const state = this.core.state;
    this.#c.world.after(this.#c.world.between(100, 600), () =>
      this.deliver(() => {
        if (boot !== this.#boot) return;
        this.restarting = false;
        if (this.pg.running || this.core.state !== state || this.#running !== null || this.#fencing) return;
        if (needsLease(state)) {
          if (this.#lease.held(this.clock())) this.pg.startPrimary();
        } else {
          this.pg.startStandby();
          const primary = this.core.assignment?.primary;
          if (primary && state !== "report_lsn") this.pg.follow(primary.nodeId);
        }
      }),
    );
  }

  // ------------------------------------------------------------------ promises

  #askVoters(): void {
    const { assignment } = this.core;
    if (assignment === null || !needsLease(assignment.goalState)) return;
    const holding = needsLease(this.core.state) && this.#lease.held(this.clock());
    for (const to of assignment.lease.voters) {
      const seq = ++this.#seq;
      const sentAtMs = this.clock();
      this.#asked.set(seq, sentAtMs);
      if (this.#asked.size > 64) this.#asked.delete(this.#asked.keys().next().value ?? 0);
      const request: PromiseRequest = { protocol: 1, formation: "f", from: this.id, to, seq, holding };
      const boot = this.#boot;
      this.#c.world.send(this.id, to, () => {
        const peer = this.#c.nodes.get(to);
        peer?.deliver(() => peer.#answer(request, (answer) => boot === this.#boot && this.#onPromise(answer)));
      });
    }
  }

  #answer(request: PromiseRequest, reply: (answer: PromiseAnswer) => void): void {
    if (!this.#alive()) return;
    const own = { nodeId: this.id, state: this.core.state, assignment: this.core.assignment };
    let answer = this.#promise.answer(request, own, this.clock());
    if (this.#c.mutant === "always promises") answer = { ...answer, granted: true, ttlMs: 2500 };
    this.#c.world.send(this.id, request.from, () => this.#c.nodes.get(request.from)?.deliver(() => reply(answer)));
  }

  #onPromise(answer: PromiseAnswer): void {
    const sentAtMs = this.#asked.get(answer.seq);
    if (sentAtMs !== undefined) this.#lease.onPromise(answer, sentAtMs);
  }

  // ------------------------------------------------------------------ observing

  #observe(): NodeReport {
    const { pg, core } = this;
    const now = this.clock();
    const upstream = core.assignment?.primary ? this.#c.nodes.get(core.assignment.primary.nodeId) : undefined;
    const follows = upstream !== undefined && upstream.pg.running && !upstream.pg.inRecovery;
    return {
      protocol: 1,
      formation: "f",
      nodeId: this.id,
      boot: `${this.id}.${this.#boot}`,
      seq: ++this.#seq,
      sentAtMs: now,
      reportedState: core.state,
      seenVersion: core.assignment?.version ?? 0,
      appliedVersion: core.appliedVersion,
      pg: {
        isRunning: pg.running,
        restarting: this.restarting,
        restartsLeft: this.restartsLeft,
        inRecovery: pg.running ? pg.inRecovery : null,
        tli: pg.tli,
        lsn: pg.running || pg.clean ? pg.lsn() : null,
        systemIdentifier: "1",
        version: 150000,
        ssn: null,
        diverged: pg.forked || (follows && !this.#c.world.isCut(this.id, upstream.id) && !pg.isPrefixOf(upstream.pg)),
      },
      replication: this.#replication(),
      upstream: null,
      slots: { ready: true, logical: [], lost: [] },
      promise: this.#promise.report(now),
      lease: null,
      action: this.#running === null ? null : { name: this.#running.action, runningMs: 0, error: null },
    };
  }

  #replication(): NodeReport["replication"] {
    if (!this.pg.running || this.pg.inRecovery) return [];
    return [...this.pg.flushed].map(([nodeId, f]) => ({
      nodeId,
      state: "streaming",
      syncState: "quorum",
      flushLsn: null,
      replayLsn: null,
      replyAgeMs: this.#c.world.nowMs - f.atMs,
    }));
  }

  // ------------------------------------------------------------------ actions

  #act(action: ActionName, assignment: Assignment): void {
    const { world } = this.#c;
    this.#running = { version: assignment.version, action };
    const running = this.#running;
    const { id, pg } = this;
    const context = { id, pg, world, nodes: this.#c.nodes, setSsn: (text: string) => this.#setSsn(text) };
    const again = (): void => {
      const boot = this.#boot;
      const [low, high] = SLOW[action] ?? [5, 60];
      world.after(world.between(low, high), () =>
        this.deliver(() => {
          if (boot !== this.#boot || this.#running !== running || this.#fencing) return;
          if (needsLease(assignment.goalState) && !this.#lease.held(this.clock()) && this.#c.mutant !== "no fence") {
            this.#running = null;
            return;
          }
          if (!performAction(context, action, assignment)) return again();
          this.#running = null;
          const from = this.core.state;
          this.core = complete(this.core, assignment);
          if (from !== this.core.state) world.log(`node ${this.id} ${from} -> ${this.core.state}`);
          this.restartsLeft = RESTART_TRIES;
          this.#report();
        }),
      );
    };
    again();
  }

  #setSsn(text: string): boolean {
    this.pg.ssn = parseSsn(text);
    this.#c.onAcked(this, this.pg.wal.length);
    return true;
  }

  // ------------------------------------------------------------------ streaming

  /** One round of streaming from the upstream: data down, confirmation up, each with its own delay. */
  stream(): void {
    const { world, nodes } = this.#c;
    const { pg } = this;
    if (!this.machineUp || !pg.running || !pg.inRecovery || pg.upstream === null || this.isStalled()) return;
    const up = nodes.get(pg.upstream);
    if (up === undefined || !up.pg.running || up.pg.inRecovery || up.isStalled() || !up.machineUp) return;
    if (world.isCut(this.id, up.id) || world.isCut(up.id, this.id) || !pg.isPrefixOf(up.pg)) return;
    const connection = pg.connection;
    const sent = up.pg.wal.slice(pg.wal.length);
    const base = pg.wal.length;
    const { tli, incarnation } = up.pg;
    world.after(world.between(1, 10), () =>
      this.deliver(() => {
        if (pg.connection !== connection || !pg.running || pg.wal.length !== base) return;
        pg.wal.push(...sent);
        pg.tli = tli;
        const length = pg.wal.length;
        if (world.isCut(this.id, up.id)) return;
        world.after(world.between(1, 10), () =>
          up.deliver(() => {
            if (up.pg.incarnation !== incarnation) return;
            up.pg.flushed.set(this.id, { length, atMs: world.nowMs, connection });
            this.#c.onAcked(up, up.pg.wal.length);
          }),
        );
      }),
    );
  }

  /** Rows of pg_stat_replication whose connection is gone. */
  dropDeadRows(): void {
    for (const [id, row] of this.pg.flushed) {
      const peer = this.#c.nodes.get(id);
      if (peer === undefined || peer.pg.connection !== row.connection) this.pg.flushed.delete(id);
    }
  }
}
