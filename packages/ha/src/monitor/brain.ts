/**
 * The monitor without its sockets: takes reports and commands, decides (also on a timer), makes the
 * decision durable, and only then answers. One formation is decided on by one step at a time.
 */
import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import type { Clock } from "@spillway/base/clock";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import { absorb } from "../fsm/absorb.ts";
import { decide, grantsLease, openDraft } from "../fsm/decide.ts";
import {
  newObservations,
  nodeOf,
  type Draft,
  type Formation,
  type HaEvent,
  type Limits,
  type Observations,
} from "../fsm/model.ts";
import { register } from "../fsm/operator.ts";
import { newFormation } from "../fsm/rows.ts";
import type { NodeReport, NodeResponse, RegisterRequest, RegisterResponse, Timings } from "../protocol/messages.ts";
import { MAX_EVENTS, type MonitorStore, type StoredEvent } from "./store.ts";

const TICK_MS = 100;
const MAX_FORMATIONS = 64;
const MAX_WATCHERS = 64;
const RELEAD_MS = 200;
/** A timer this late means that the whole process did not run. */
const STALL_MS = 1500;

export interface BrainOptions {
  readonly store: MonitorStore;
  readonly clock: Clock;
  readonly log: Logger;
  readonly timings: Timings;
  readonly limits: Limits;
}

/** One formation as the leading monitor holds it. */
export interface Live {
  formation: Formation;
  obs: Observations;
  blocked: readonly string[];
  /** Steps of one formation queue up here. */
  turn: Promise<unknown>;
}

export class Brain {
  readonly #o: BrainOptions;
  readonly #live = new Map<string, Live>();
  readonly #watchers = new Set<() => void>();
  #events: StoredEvent[] = [];
  #leading = false;
  #lastTickMs = 0;

  constructor(options: BrainOptions) {
    this.#o = options;
  }

  get leading(): boolean {
    return this.#leading && this.#o.store.leads();
  }

  get leaderUrl(): string | null {
    return this.#o.store.leaderUrl();
  }

  /** Leads whenever the store lets it, until the signal. Throws what makes the store unusable. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        await this.#lead(signal);
      } catch (error) {
        if (signal.aborted || isSpillwayError(error, "interrupted")) break;
        if (!isSpillwayError(error, "ha_not_leader")) throw error;
        this.#o.log.warn("lead lost", { error });
      } finally {
        this.#resign();
      }
      await this.#o.clock.sleep(RELEAD_MS, signal);
    }
  }

  async #lead(signal: AbortSignal): Promise<void> {
    const { store, clock, log } = this.#o;
    const state = await store.lead(signal);
    const nowMs = clock.monotonicMs();
    this.#events = [...state.events];
    for (const formation of state.formations) this.#live.set(formation.name, newLive(formation, nowMs));
    this.#leading = true;
    this.#lastTickMs = nowMs;
    log.info("monitor decides", { formations: this.#live.size });
    for (const live of this.#live.values()) await this.#adoptTimings(live);
    while (!signal.aborted) {
      const beforeMs = clock.monotonicMs();
      await clock.sleep(TICK_MS, signal);
      if (!store.leads()) throw new SpillwayError("ha_not_leader", "another monitor took over");
      this.#noteOwnStall(beforeMs, clock.monotonicMs());
      await Promise.all([...this.#live.values()].map((live) => this.#step(live, () => {})));
    }
  }

  /** A monitor that was stopped itself must not take its own absence for the nodes' silence. */
  #noteOwnStall(beforeMs: number, nowMs: number): void {
    const gapMs = nowMs - beforeMs;
    this.#lastTickMs = nowMs;
    if (gapMs < STALL_MS) return;
    this.#o.log.warn("this monitor stood still: it counts silences anew", { ms: Math.round(gapMs) });
    for (const live of this.#live.values()) live.obs = newObservations(nowMs);
  }

  #resign(): void {
    this.#leading = false;
    this.#live.clear();
    this.#wake();
  }

  /** New timings count at once; what was granted under longer ones runs out while observations are new. */
  async #adoptTimings(live: Live): Promise<void> {
    const before = live.formation.timings;
    if (JSON.stringify(before) === JSON.stringify(this.#o.timings)) return;
    await this.#o.clock.sleep(Math.max(0, before.takeoverWaitMs - this.#o.timings.takeoverWaitMs));
    await this.#step(live, (d) => {
      d.f.timings = this.#o.timings;
    });
  }

  // ------------------------------------------------------------------ questions

  formations(): readonly Live[] {
    this.#mustLead();
    return [...this.#live.values()];
  }

  formation(name: string): Live {
    this.#mustLead();
    const live = this.#live.get(name);
    if (live) return live;
    const known = [...this.#live.keys()].join(", ") || "none";
    throw new SpillwayError("ha_not_found", `there is no formation ${JSON.stringify(name)} (there is: ${known})`);
  }

  events(formation: string, limit: number): readonly StoredEvent[] {
    this.formation(formation);
    return this.#events.filter((e) => e.formation === formation).slice(-limit);
  }

  /** ms since the timer last ran: grows when the store hangs. */
  lagMs(): number {
    return this.#leading ? Math.max(0, this.#o.clock.monotonicMs() - this.#lastTickMs - TICK_MS) : 0;
  }

  /** A draft for reading only: views and explanations look at the same facts as decisions do. */
  look(live: Live): Draft {
    return openDraft(live.formation, live.obs, this.#o.limits, this.#o.clock.monotonicMs());
  }

  // ------------------------------------------------------------------ steps

  async nodeActive(report: NodeReport, token: string): Promise<NodeResponse> {
    const live = this.formation(report.formation);
    checkNodeToken(live.formation, report.nodeId, token);
    let fresh = false;
    await this.#step(live, (d) => {
      const node = nodeOf(d.f, report.nodeId);
      if (node !== null) fresh = absorb(d, node, report);
    });
    const node = nodeOf(live.formation, report.nodeId);
    const { boot, seq, sentAtMs } = report;
    if (node === null || node.assignment === null) return this.#farewell(live, report);
    const granted = fresh && this.leading && grantsLease(live.formation, report.nodeId);
    if (granted) live.obs.grantedAtMs.set(report.nodeId, this.#o.clock.monotonicMs());
    const leaseTtlMs = granted ? live.formation.timings.leaseTtlMs : null;
    return { protocol: 1, boot, seq, sentAtMs, assignment: node.assignment, leaseTtlMs };
  }

  /** The row went with this very report, which confirmed the drop: the keeper hears that it arrived. */
  #farewell(live: Live, report: NodeReport): NodeResponse {
    throw new SpillwayError("ha_not_found", `formation ${live.formation.name} has no node ${report.nodeId} any more`);
  }

  async register(request: RegisterRequest): Promise<RegisterResponse> {
    this.#mustLead();
    const live = this.#live.get(request.formation) ?? this.#newFormation(request.formation);
    const nodeToken = randomBytes(24).toString("base64url");
    let nodeId = 0;
    await this.#step(live, (d) => {
      nodeId = register(d, request, hashToken(nodeToken)).nodeId;
    });
    const assignment = nodeOf(live.formation, nodeId)?.assignment;
    if (!assignment) throw new SpillwayError("ha_not_found", "the node was dropped while it registered");
    this.#live.set(request.formation, live);
    const { peerToken, replicationUser, replicationPassword } = live.formation.secrets;
    return { protocol: 1, nodeId, nodeToken, peerToken, replicationUser, replicationPassword, assignment };
  }

  /** Makes a formation known before its first node: to set its rules. */
  async createFormation(name: string): Promise<Live> {
    this.#mustLead();
    const known = this.#live.get(name);
    if (known) throw new SpillwayError("ha_refused", `there is a formation ${name} already`);
    const live = this.#newFormation(name);
    await this.#step(live, () => {}, true);
    this.#live.set(name, live);
    return live;
  }

  #newFormation(name: string): Live {
    if (this.#live.size >= MAX_FORMATIONS) {
      throw new SpillwayError("limit_exceeded", `a monitor keeps at most ${MAX_FORMATIONS} formations`);
    }
    return newLive(newFormation(name, this.#o.timings, newSecrets()), this.#o.clock.monotonicMs());
  }

  /** A command: changes the draft or throws; what it led to is durable when this resolves. */
  async operate(formation: string, change: (d: Draft) => void): Promise<Live> {
    const live = this.formation(formation);
    await this.#step(live, change);
    return live;
  }

  /** Resolves when the node's assignment has another version than the given one, or after the timeout. */
  async watch(formation: string, nodeId: number, token: string, version: number, timeoutMs: number): Promise<number> {
    checkNodeToken(this.formation(formation).formation, nodeId, token);
    const endMs = this.#o.clock.monotonicMs() + timeoutMs;
    for (;;) {
      const now = nodeOf(this.formation(formation).formation, nodeId)?.assignment?.version ?? 0;
      const leftMs = endMs - this.#o.clock.monotonicMs();
      if (now !== version || leftMs <= 0) return now;
      await this.#changed(leftMs);
    }
  }

  async #changed(timeoutMs: number): Promise<void> {
    if (this.#watchers.size >= MAX_WATCHERS * MAX_FORMATIONS) {
      throw new SpillwayError("limit_exceeded", "too many long polls are open");
    }
    const controller = new AbortController();
    const wake = (): void => controller.abort();
    this.#watchers.add(wake);
    await this.#o.clock.sleep(timeoutMs, controller.signal);
    this.#watchers.delete(wake);
  }

  #wake(): void {
    for (const wake of this.#watchers) wake();
  }

  /** One decision: alone on its formation, durable before it is in force. */
  #step(live: Live, change: (d: Draft) => void, force = false): Promise<void> {
    const work = live.turn.then(() => this.#decide(live, change, force));
    live.turn = work.catch(() => {});
    return work;
  }

  async #decide(live: Live, change: (d: Draft) => void, force: boolean): Promise<void> {
    this.#mustLead();
    const d = openDraft(live.formation, live.obs, this.#o.limits, this.#o.clock.monotonicMs());
    change(d);
    const { formation, events, blocked } = decide(d);
    live.blocked = blocked;
    if (!force && events.length === 0 && JSON.stringify(formation) === JSON.stringify(live.formation)) return;
    const stored = this.#stamp(events);
    await this.#o.store.commit({ formation, events: stored });
    const moved = formation.version !== live.formation.version;
    live.formation = formation;
    for (const event of events) this.#say(event);
    if (moved) this.#wake();
  }

  #stamp(events: readonly HaEvent[]): readonly StoredEvent[] {
    const atMs = this.#o.clock.wallMs();
    const stored: StoredEvent[] = [];
    for (const event of events) {
      const last = this.#events.at(-1)?.seq ?? 0;
      const item = { ...event, atMs, seq: last + 1 };
      this.#events.push(item);
      stored.push(item);
    }
    if (this.#events.length > 2 * MAX_EVENTS) this.#events = this.#events.slice(-MAX_EVENTS);
    return stored;
  }

  #say(event: HaEvent): void {
    const { formation, node, kind, from, to, reason } = event;
    const fields = { formation, node, from, to, reason };
    if (kind === "note") this.#o.log.warn("note", { formation, node, reason });
    else this.#o.log.info(kind === "assigned" ? "goal" : "state", fields);
  }

  #mustLead(): void {
    if (this.leading) return;
    const leader = this.leaderUrl;
    const hint = leader === null ? "this monitor does not lead" : `this monitor does not lead, ${leader} does`;
    throw new SpillwayError("ha_not_leader", hint, { details: { leader } });
  }
}

function newLive(formation: Formation, nowMs: number): Live {
  return { formation, obs: newObservations(nowMs), blocked: [], turn: Promise.resolve() };
}

function newSecrets(): Formation["secrets"] {
  return {
    peerToken: randomBytes(24).toString("base64url"),
    replicationUser: "spillway_replicator",
    replicationPassword: randomBytes(24).toString("base64url"),
  };
}

export function hashToken(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}

function checkNodeToken(formation: Formation, nodeId: number, token: string): void {
  const node = nodeOf(formation, nodeId);
  if (node === null) throw new SpillwayError("ha_not_found", `formation ${formation.name} has no node ${nodeId}`);
  if (!sameText(node.tokenHash, hashToken(token))) {
    throw new SpillwayError("ha_unauthorized", `this is not the token of node ${node.name}`);
  }
}

/** Compares in a time that does not depend on where the two differ. */
export function sameText(a: string, b: string): boolean {
  const x = createHash("sha256").update(a).digest();
  const y = createHash("sha256").update(b).digest();
  return timingSafeEqual(x, y);
}
