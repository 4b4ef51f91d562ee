/**
 * One seeded run: the real decision code of the monitor and of the keepers, on virtual clocks that drift,
 * over a network that loses, delays, doubles and partitions, with machines that die, stall and come back.
 * A client writes all the time to whatever accepts writes; three rules are checked on the way:
 *
 * 1. All acknowledged commits lie on one history: whoever acknowledges a commit has every commit that was
 *    acknowledged before it. That is both "none is lost" and "no two servers acknowledge on diverging
 *    timelines".
 * 2. No two servers that are awake accept writes at the same time.
 * 3. After the last fault is healed, the formation comes back: one primary, all others secondary.
 */
import { absorb } from "../fsm/absorb.ts";
import { decide, grantsLease, openDraft } from "../fsm/decide.ts";
import { DEFAULT_LIMITS, DEFAULT_TIMINGS, newObservations, nodeOf, type Draft, type Formation } from "../fsm/model.ts";
import { newFormation } from "../fsm/rows.ts";
import { perform, register, setFormation, setMaintenance, setNode } from "../fsm/operator.ts";
import { edgeOf } from "../fsm/table.ts";
import type { NodeReport, NodeResponse, Timings } from "../protocol/messages.ts";
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { NodeModel, type Cluster } from "./node-model.ts";
import { newRecord } from "./postgres-model.ts";
import { MONITOR, World } from "./world.ts";

export type Mutant =
  | "no fence"
  | "always promises"
  | "lease longer than the wait"
  | "promotes without quorum"
  | "forgets recorded ssn"
  | "promotes at once";

export type Fault =
  | "kill machine"
  | "kill postmaster"
  | "kill keeper"
  | "stall"
  | "isolate"
  | "cut"
  | "cut one way"
  | "monitor restart"
  | "switchover"
  | "promotion"
  | "maintenance"
  | "priority";

export interface SimOptions {
  readonly seed: number;
  readonly nodes?: number;
  readonly numberSync?: number;
  readonly faultMs?: number;
  readonly mutant?: Mutant;
  /** Only these kinds of faults. */
  readonly faults?: readonly Fault[];
}

export interface SimResult {
  readonly seed: number;
  readonly violations: readonly string[];
  readonly acked: number;
  readonly ackedSync: number;
  readonly promotions: number;
  readonly healMs: number | null;
  readonly trace: readonly string[];
  /** Every (reported, assigned) pair that was met. */
  readonly pairs: ReadonlySet<string>;
}

const MUTANT_TIMINGS: Readonly<Record<string, Partial<Timings>>> = {
  "lease longer than the wait": { leaseTtlMs: 8000, takeoverWaitMs: 3500 },
  "promotes at once": { leaseTtlMs: 8000, takeoverWaitMs: 9600 },
};

const NO_SECRETS = { peerToken: "", replicationUser: "", replicationPassword: "" };
const SETTLE_MS = 60_000;
const WAKE_GRACE_MS = 300;

export class Simulation implements Cluster {
  readonly world: World;
  readonly nodes = new Map<number, NodeModel>();
  readonly mutant: Mutant | null;
  readonly pairs = new Set<string>();
  #formation: Formation;
  #obs = newObservations(0);
  #monitorUp = true;
  readonly #monitorRate: number;
  readonly #violations: string[] = [];
  /** The one history that acknowledged commits may lie on. */
  readonly #truth: number[] = [];
  #acked = 0;
  #ackedSync = 0;
  #promotions = 0;
  readonly #options: SimOptions;

  constructor(options: SimOptions) {
    this.#options = options;
    this.world = new World(options.seed);
    this.mutant = options.mutant ?? null;
    this.#monitorRate = this.world.between(0.95, 1.05);
    this.#formation = newFormation("f", { ...DEFAULT_TIMINGS, ...MUTANT_TIMINGS[this.mutant ?? ""] }, NO_SECRETS);
  }

  /** What the monitor has decided. */
  get formation(): Formation {
    return this.#formation;
  }

  get violations(): readonly string[] {
    return this.#violations;
  }

  /** Number of acknowledged commits. */
  get acked(): number {
    return this.#acked;
  }

  node(id: number): NodeModel {
    return must(this.nodes.get(id), `node ${id}`);
  }

  /** Lets time pass. */
  advance(ms: number): void {
    this.world.runUntil(this.world.nowMs + ms);
  }

  /** An operator's command. Throws what the monitor refuses. */
  command(change: (d: Draft) => void): void {
    this.#decide(change);
  }

  stopMonitor(): void {
    this.#monitorUp = false;
  }

  /** Registers the nodes and lets the formation become synchronous. */
  boot(count: number, settleMs = 6_000): void {
    for (let id = 1; id <= count; id++) this.addNode(id);
    this.#every(100, () => this.#tick());
    this.#every(20, () => this.#streamAll());
    this.#every(40, () => this.#write());
    this.advance(settleMs);
  }

  /** The whole of a random run. */
  run(): SimResult {
    const { world } = this;
    const count = this.#options.nodes ?? 2 + Math.floor(world.random() * 2.6);
    this.boot(count, 3_500);
    this.#operate((d) => setFormation(d, { numberSync: this.#numberSync(count) }));
    this.advance(500);
    // Most runs are short and dense: what goes wrong does so within a few faults of each other.
    const faultMs = this.#options.faultMs ?? (world.chance(0.2) ? 25_000 : 9_000);
    this.#scheduleFaults(world.nowMs + faultMs);
    world.runUntil(world.nowMs + faultMs);
    this.#heal();
    const healMs = this.#settle();
    return {
      seed: this.#options.seed,
      violations: this.#violations,
      acked: this.#acked,
      ackedSync: this.#ackedSync,
      promotions: this.#promotions,
      healMs,
      trace: world.trace,
      pairs: this.pairs,
    };
  }

  #numberSync(count: number): number {
    return this.#options.numberSync ?? (count > 2 && this.world.chance(0.3) ? 1 : 0);
  }

  addNode(id: number): void {
    const node = new NodeModel(id, this);
    this.nodes.set(id, node);
    const request = {
      protocol: 1,
      formation: "f",
      name: `n${id}`,
      host: `h${id}`,
      pgPort: 5432,
      keeperUrl: "",
      keeperFingerprint: null,
      systemIdentifier: null,
      pgVersion: 150000,
      candidatePriority: 50,
      replicationQuorum: true,
      follows: false,
      secrets: null,
    } as const;
    this.#operate((d) => void register(d, request, ""));
  }

  #every(ms: number, run: () => void): void {
    this.world.after(ms, () => {
      run();
      this.#every(ms, run);
    });
  }

  // ------------------------------------------------------------------ the monitor

  #clock(): number {
    return this.world.nowMs * this.#monitorRate;
  }

  #decide(change: (d: Draft) => void): void {
    const d = openDraft(this.#formation, this.#obs, DEFAULT_LIMITS, this.#clock());
    change(d);
    const { formation, events } = decide(d);
    const reigned = this.#formation.reign?.nodeId;
    this.#formation = formation;
    for (const e of events)
      if (e.kind === "assigned") this.world.log(`  ${e.node}: ${e.from} => ${e.to} (${e.reason})`);
    if (reigned !== formation.reign?.nodeId) this.#promotions++;
    this.#sabotage();
  }

  #sabotage(): void {
    const { reign, failover } = this.#formation;
    if (reign !== null && this.mutant === "forgets recorded ssn") reign.ssn = reign.ssn.slice(-1);
    if (failover !== null && this.mutant === "promotes at once") failover.primaryIsDown = true;
    if (this.mutant === "promotes without quorum") {
      this.#formation.settings.failoverWhenAsync = true;
      if (failover !== null) failover.allowDataLoss = true;
    }
  }

  #operate(change: (d: Draft) => void): void {
    if (!this.#monitorUp) return;
    try {
      this.#decide(change);
    } catch (error) {
      if (!(error instanceof SpillwayError)) throw error;
    }
  }

  #tick(): void {
    if (this.#monitorUp) this.#decide(() => {});
    this.#checkWriters();
  }

  toMonitor(report: NodeReport, reply: (response: NodeResponse) => void): void {
    this.world.send(report.nodeId, MONITOR, () => {
      if (!this.#monitorUp) return;
      let fresh = false;
      this.#decide((d) => {
        const node = nodeOf(d.f, report.nodeId);
        if (node !== null) fresh = absorb(d, node, report);
      });
      const assignment = nodeOf(this.#formation, report.nodeId)?.assignment ?? null;
      if (!fresh || assignment === null) return;
      this.#notePair(report, assignment.goalState);
      const granted = grantsLease(this.#formation, report.nodeId);
      if (granted) this.#obs.grantedAtMs.set(report.nodeId, this.#clock());
      const { boot, seq, sentAtMs } = report;
      const leaseTtlMs = granted ? this.#formation.timings.leaseTtlMs : null;
      const response: NodeResponse = { protocol: 1, boot, seq, sentAtMs, assignment, leaseTtlMs };
      this.world.send(MONITOR, report.nodeId, () => reply(response));
    });
  }

  #notePair(report: NodeReport, goal: NodeResponse["assignment"]["goalState"]): void {
    this.pairs.add(`${report.reportedState}>${goal}`);
    if (edgeOf(report.reportedState, goal) === null) this.#violate(`no edge ${report.reportedState} > ${goal}`);
  }

  onNoEdge(node: NodeModel, current: string, assigned: string): void {
    this.#violate(`node ${node.id}: no edge ${current} > ${assigned}`);
  }

  // ------------------------------------------------------------------ clients and checks

  #streamAll(): void {
    for (const node of this.nodes.values()) {
      node.dropDeadRows();
      node.stream();
    }
  }

  #write(): void {
    for (const node of this.nodes.values()) {
      if (!node.machineUp || node.isStalled() || !node.pg.accepts()) continue;
      node.pg.wal.push(newRecord());
      node.pg.waiting.push(node.pg.wal.length);
      this.onAcked(node, node.pg.wal.length);
    }
  }

  /** Acknowledges what the quorum of the node has now. */
  onAcked(node: NodeModel, _upTo: number): void {
    const { pg } = node;
    if (!pg.accepts() || node.isStalled()) return;
    while (pg.waiting[0] !== undefined && pg.hasQuorum(pg.waiting[0])) {
      this.#ack(node, (pg.waiting.shift() as number) - 1);
    }
  }

  #ack(node: NodeModel, index: number): void {
    const { wal } = node.pg;
    const truth = this.#truth;
    if (index < truth.length ? truth[index] !== wal[index] : wal[truth.length - 1] !== truth.at(-1)) {
      this.#violate(`node ${node.id} acknowledges record ${index} on another history than was acknowledged before`);
    }
    for (let i = truth.length; i <= index; i++) truth.push(wal[i] as number);
    this.#acked++;
    if (node.pg.ssn.k > 0) this.#ackedSync++;
  }

  #checkWriters(): void {
    const now = this.world.nowMs;
    const awake = [...this.nodes.values()].filter(
      (n) => n.machineUp && n.pg.accepts() && !n.isStalled() && now - n.resumedAtMs > WAKE_GRACE_MS,
    );
    if (awake.length > 1) this.#violate(`two writable: ${awake.map((n) => n.id).join(" and ")}`);
  }

  #violate(text: string): void {
    if (this.#violations.length < 5) this.#violations.push(`at ${this.world.nowMs.toFixed(0)} ms: ${text}`);
    this.world.log(`VIOLATION ${text}`);
  }

  // ------------------------------------------------------------------ faults

  #scheduleFaults(endMs: number): void {
    const { world } = this;
    world.lossRate = world.chance(0.5) ? world.between(0, 0.1) : 0;
    world.lateRate = world.chance(0.5) ? world.between(0, 0.1) : 0;
    const longestMs = endMs - world.nowMs > 15_000 ? 6_000 : 3_000;
    const next = (): void => {
      world.after(world.between(200, longestMs), () => {
        if (world.nowMs >= endMs) return;
        this.#fault();
        next();
      });
    };
    next();
  }

  #fault(): void {
    const { world } = this;
    const ids = [...this.nodes.keys()];
    const anyone = this.nodes.get(ids[Math.floor(world.random() * ids.length)] ?? 1) as NodeModel;
    const primary = this.nodes.get(this.#formation.reign?.nodeId ?? 1) ?? anyone;
    const node = world.chance(0.5) ? primary : anyone;
    const other = [MONITOR, ...ids][Math.floor(world.random() * (ids.length + 1))] ?? MONITOR;
    const ms = world.between(100, 9000);
    const kinds: Record<Fault, () => void> = {
      "kill machine": () => {
        node.killMachine();
        world.after(ms, () => node.startMachine());
      },
      "kill postmaster": () => node.killPostmaster(),
      "kill keeper": () => {
        node.killKeeper();
        world.after(ms, () => node.startKeeper());
      },
      stall: () => node.stall(ms),
      isolate: () => {
        for (const id of [MONITOR, ...ids]) if (id !== node.id) world.cut(node.id, id);
        world.after(ms, () => world.healAll());
      },
      cut: () => {
        if (other !== node.id) world.cut(node.id, other);
        world.after(ms, () => world.healAll());
      },
      "cut one way": () => {
        if (other !== node.id) world.cutOneWay(node.id, other);
        world.after(ms, () => world.healAll());
      },
      "monitor restart": () => {
        this.#monitorUp = false;
        world.after(ms / 2, () => this.startMonitor());
      },
      switchover: () =>
        this.#operate((d) =>
          perform(d, { kind: "switchover", node: null, allowDataLoss: false, primaryIsDown: false }),
        ),
      promotion: () =>
        this.#operate((d) =>
          perform(d, { kind: "promotion", node: `n${node.id}`, allowDataLoss: false, primaryIsDown: false }),
        ),
      maintenance: () => {
        this.#operate((d) => setMaintenance(d, `n${node.id}`, true, true));
        world.after(ms, () => this.#operate((d) => setMaintenance(d, `n${node.id}`, false, false)));
      },
      priority: () =>
        this.#operate((d) => setNode(d, `n${node.id}`, { candidatePriority: Math.floor(world.random() * 3) * 50 })),
    };
    const names = this.#options.faults ?? (Object.keys(kinds) as Fault[]);
    const name = names[Math.floor(world.random() * names.length)] ?? "stall";
    world.log(`--- ${name} node ${node.id} (${ms.toFixed(0)} ms)`);
    kinds[name]();
  }

  startMonitor(): void {
    if (this.#monitorUp) return;
    this.#monitorUp = true;
    this.#obs = newObservations(this.#clock());
  }

  #heal(): void {
    const { world } = this;
    world.log("--- heal");
    world.healAll();
    world.lossRate = 0;
    world.lateRate = 0;
    this.startMonitor();
    for (const node of this.nodes.values()) {
      if (!node.machineUp) node.startMachine();
      node.startKeeper();
      this.#operate((d) => setMaintenance(d, `n${node.id}`, false, false));
      this.#operate((d) => setNode(d, `n${node.id}`, { candidatePriority: 50 }));
    }
  }

  /** ms until everybody is well again, or null. */
  #settle(): number | null {
    const { world } = this;
    const start = world.nowMs;
    while (world.nowMs < start + SETTLE_MS) {
      world.runUntil(world.nowMs + 250);
      for (const n of this.#formation.nodes) {
        if (n.maintenance) this.#operate((d) => setMaintenance(d, n.name, false, false));
      }
      if (this.isWell()) return world.nowMs - start;
    }
    const now = this.#formation.nodes.map((n) => `${n.name} ${n.reported.state}/${n.goal}`).join(", ");
    this.#violate(`not well ${SETTLE_MS} ms after the last heal: ${now}`);
    return null;
  }

  /** One primary, all others secondary, everybody where the monitor wants them. */
  isWell(): boolean {
    const states = this.#formation.nodes.map((n) => (n.reported.state === n.goal ? n.goal : "moving"));
    const primaries = states.filter((s) => s === "primary").length;
    return (
      this.#formation.failover === null &&
      primaries === 1 &&
      states.filter((s) => s === "secondary").length === states.length - 1
    );
  }
}

export function simulate(options: SimOptions): SimResult {
  return new Simulation(options).run();
}
