/**
 * The nodes of one pool on this host: desired against real, and which of them runs a statement. A manager that starts finds the
 * nodes of the one before it; who may start and end nodes is decided by a lease, so two managers make each node once.
 */
import type { Clock } from "@spillway/base/clock";
import { isSpillwayError, messageOf, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import { NodeClient } from "../node/node-client.ts";
import type { NodeRequest, NodeResult, Runner, RunnerOptions } from "../node/request.ts";
import { accepts, type NodeRole, pickNode } from "../route/route.ts";
import type { NodeBackend } from "./backend.ts";
import { Member } from "./member.ts";
import { FairQueue } from "./queue.ts";
import type { NodeRow, NodeStore } from "./store.ts";

export interface PoolSpec {
  readonly id: string;
  readonly name: string;
  readonly nodes: Readonly<Record<NodeRole, number>>;
  readonly concurrency: number;
  readonly queueLimit: number;
  readonly queueTimeoutMs: number;
  readonly drainTimeoutMs: number;
}

export interface PoolOptions<Config> {
  readonly spec: PoolSpec;
  readonly store: NodeStore;
  readonly backend: NodeBackend<Config>;
  readonly managerId: string;
  readonly build: string;
  readonly clock: Clock;
  readonly log: Logger;
  /** What a node of the pool is started with. */
  readonly configOf: (node: NodeRow, token: string, place: { socketPath: string; cacheDir: string }) => Promise<Config>;
}

const RECONCILE_MS = 1000;
/** A node that is not ready by then is replaced. */
const START_MS = 60_000;
/** How long the first node of a pool is started by itself. */
const ALONE_MS = 3000;
const MISSED_BEFORE_KILL = 5;
const READ_ATTEMPTS = 4;
const ROLES: readonly NodeRole[] = ["READONLY", "WRITEONLY", "DUAL"];
const READS = new Set(["query", "describe", "describe-dml", "explain", "outcome"]);

export class Pool<Config> implements Runner {
  readonly #options: PoolOptions<Config>;
  readonly #members = new Map<string, Member>();
  readonly #rows = new Map<string, NodeRow>();
  readonly #pinned = new Map<string, Member>();
  readonly #queue = new FairQueue<Member>();
  readonly #stop = new AbortController();
  #spec: PoolSpec;
  #loop: Promise<void> = Promise.resolve();
  #wake: (() => void) | null = null;
  #draining = false;
  /** The first look at what is there was done. */
  isReconciled = false;

  constructor(options: PoolOptions<Config>) {
    this.#options = options;
    this.#spec = options.spec;
  }

  start(): void {
    this.#loop = this.#reconcileLoop();
  }

  /** Another size or other limits; nodes that are too many are drained. */
  set spec(spec: PoolSpec) {
    this.#spec = spec;
    this.#kick();
  }

  get members(): readonly Member[] {
    return [...this.#members.values()];
  }

  get queued(): number {
    return this.#queue.length;
  }

  async run(request: NodeRequest, options: RunnerOptions): Promise<NodeResult> {
    const { transaction, action } = request;
    if (transaction !== null && action !== "begin") return this.#runPinned(request, transaction, options);
    if (this.#draining) {
      throw new SpillwayError("pool_draining", "The manager is being shut down.", { details: { sqlstate: "57P01" } });
    }
    if (transaction !== null) return this.#begin(request, transaction, options);
    if (READS.has(action)) return this.#runRead(request, options);
    // A write that may have reached its node is never sent again.
    const member = await this.#acquire(options, new Set());
    return member.run(request, options.signal);
  }

  /** Ends with every statement that runs, or at the deadline. */
  async drain(): Promise<void> {
    const { clock } = this.#options;
    this.#draining = true;
    const endMs = clock.monotonicMs() + this.#spec.drainTimeoutMs;
    while (clock.monotonicMs() < endMs && this.members.some((m) => !m.isIdle)) await clock.sleep(50);
  }

  /** Lets go of the nodes; with `end` they are ended too. */
  async close({ end }: { readonly end: boolean }): Promise<void> {
    this.#draining = true;
    this.#stop.abort();
    this.#kick();
    await this.#loop;
    for (const member of this.members) member.close();
    if (!end) return;
    await Promise.all([...this.#rows.values()].map((row) => this.#end(row)));
  }

  async #begin(request: NodeRequest, transaction: string, options: RunnerOptions): Promise<NodeResult> {
    for (let attempt = 1, avoid = new Set<string>(); ; attempt++) {
      const member = await this.#acquire(options, avoid);
      member.transactions += 1;
      this.#pinned.set(transaction, member);
      try {
        return await member.run(request, options.signal);
      } catch (error) {
        this.#unpin(transaction);
        // Nothing was done in it yet.
        if (!isSpillwayError(error, "node_lost") || attempt >= READ_ATTEMPTS) throw error;
        avoid = new Set([...avoid, member.id]);
      }
    }
  }

  async #runPinned(request: NodeRequest, transaction: string, { signal }: RunnerOptions): Promise<NodeResult> {
    const member = this.#pinned.get(transaction);
    const isEnd = request.action === "commit" || request.action === "rollback";
    try {
      if (!member) throw lostInTransaction(null);
      const result = await member.run(request, signal);
      return { ...result, messages: () => inTransaction(result.messages()) };
    } catch (error) {
      throw isSpillwayError(error, "node_lost") ? lostInTransaction(error) : error;
    } finally {
      if (isEnd) this.#unpin(transaction);
    }
  }

  #unpin(transaction: string): void {
    const member = this.#pinned.get(transaction);
    this.#pinned.delete(transaction);
    if (member) member.transactions -= 1;
    this.#offer();
  }

  /** A read is run again elsewhere as long as nothing of its answer was given. */
  async #runRead(request: NodeRequest, options: RunnerOptions): Promise<NodeResult> {
    const avoid = new Set<string>();
    const attempt = async (): Promise<NodeResult> => {
      for (;;) {
        const member = await this.#acquire(options, avoid);
        try {
          return await member.run(request, options.signal);
        } catch (error) {
          if (!isSpillwayError(error, "node_lost") || avoid.size + 1 >= READ_ATTEMPTS) throw error;
          avoid.add(member.id);
          this.#kick();
        }
      }
    };
    let current = await attempt();
    async function* messages(): AsyncIterable<Buffer> {
      for (;;) {
        let given = false;
        try {
          for await (const message of current.messages()) {
            given = true;
            yield message;
          }
          return;
        } catch (error) {
          if (given || !isSpillwayError(error, "node_lost") || avoid.size + 1 >= READ_ATTEMPTS) throw error;
          const again = await attempt();
          if (!sameSchema(current, again)) {
            await again.close();
            throw error;
          }
          current = again;
        }
      }
    }
    return { ...current, messages, stats: () => current.stats(), close: () => current.close() };
  }

  /** A node with room, at once or after a wait. */
  async #acquire(options: RunnerOptions, avoid: ReadonlySet<string>): Promise<Member> {
    const { writes, signal, onQueued, user } = options;
    const roles = ROLES.filter((role) => accepts(role, writes));
    if (!roles.some((role) => this.#spec.nodes[role] > 0) && !this.members.some((m) => accepts(m.role, writes))) {
      throw new SpillwayError(
        "no_node",
        `The pool ${this.#spec.name} has no node for ${writes ? "writes" : "reads"}.`,
        {
          details: { sqlstate: "57P03" },
        },
      );
    }
    const now = this.#queue.length === 0 ? pickNode(this.members, writes, avoid) : null;
    if (now) return now;
    const waiting = this.#queue.wait(
      { user: user ?? "", writes, signal, ...(onQueued ? { onQueued } : {}) },
      { limit: this.#spec.queueLimit, timeoutMs: this.#spec.queueTimeoutMs },
    );
    this.#offer();
    return waiting;
  }

  #offer(): void {
    // One that was given a node has not yet reached it: it counts as long as this turn lasts.
    const promised = new Map<string, number>();
    this.#queue.serve((writes) => {
      const nodes = this.members.map((m) => ({
        id: m.id,
        role: m.role,
        isReady: m.isReady,
        inFlight: m.inFlight + (promised.get(m.id) ?? 0),
        limit: m.limit,
        ewmaMs: m.ewmaMs,
      }));
      const picked = pickNode(nodes, writes);
      if (!picked) return null;
      promised.set(picked.id, (promised.get(picked.id) ?? 0) + 1);
      return this.#members.get(picked.id) ?? null;
    });
  }

  async #reconcileLoop(): Promise<void> {
    const { clock, log } = this.#options;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      const woken = new Promise<void>((resolve) => (this.#wake = resolve));
      try {
        await this.#reconcile();
        this.isReconciled = true;
      } catch (error) {
        // Without the control database the nodes that are known go on.
        log.warn("pool.reconcile_failed", { pool: this.#spec.name, error: messageOf(error) });
      }
      const timer = new AbortController();
      const either = AbortSignal.any([timer.signal, signal]);
      await Promise.race([clock.sleep(RECONCILE_MS, either), woken]);
      timer.abort();
    }
  }

  #kick(): void {
    this.#wake?.();
  }

  async #reconcile(): Promise<void> {
    const { store, backend, log } = this.#options;
    const leads = await store.lead(this.#spec.id);
    const rows = await store.list(this.#spec.id);
    for (const row of rows) this.#rows.set(row.id, row);
    for (const id of this.#rows.keys()) if (!rows.some((r) => r.id === id)) this.#forget(id);
    const live: NodeRow[] = [];
    for (const row of rows) {
      const process = processOf(row);
      if (process && backend.isAlive(process) && !this.#isHopeless(row)) {
        if (row.state !== "draining") live.push(row);
        this.#adopt(row);
      } else if (leads && (process || this.#isStale(row))) {
        log.warn("node.lost", { pool: this.#spec.name, node: row.id, pid: row.pid });
        if (process) backend.end(process, "SIGKILL");
        this.#forget(row.id);
        await store.remove(row.id);
      } else if (!process) live.push(row);
    }
    if (!leads || this.#stop.signal.aborted) return;
    for (const manager of await store.lapsedManagers()) for (const member of this.members) member.evict(manager);
    const wanted: NodeRole[] = [];
    for (const role of ROLES) {
      const have = live.filter((r) => r.role === role);
      for (let n = have.length; n < this.#spec.nodes[role]; n++) wanted.push(role);
      for (const row of have.slice(this.#spec.nodes[role])) void this.#retire(row);
    }
    await Promise.all(this.#startsNow(wanted).map((role) => this.#startNode(role)));
  }

  /** While no node is ready, one is started by itself: several at once would all be late, and whoever waits needs one. */
  #startsNow(wanted: readonly NodeRole[]): readonly NodeRole[] {
    if (this.members.some((m) => m.isReady)) return wanted;
    const now = this.#options.clock.monotonicMs();
    const starting = this.members.filter((m) => m.state === "starting");
    if (starting.length === 0) return wanted.slice(0, 1);
    return starting.some((m) => now - m.startedMs > ALONE_MS) ? wanted : [];
  }

  /** It is there, but does not answer. */
  #isHopeless({ id }: NodeRow): boolean {
    const member = this.#members.get(id);
    if (!member) return false;
    const age = this.#options.clock.monotonicMs() - member.startedMs;
    return member.missed >= MISSED_BEFORE_KILL || (member.state === "starting" && age > START_MS);
  }

  /** A row without a process: its manager died between the two. */
  #isStale({ id }: NodeRow): boolean {
    return !this.#starting.has(id);
  }

  readonly #starting = new Set<string>();

  async #startNode(role: NodeRole): Promise<void> {
    const { store, backend, configOf, log } = this.#options;
    const row = await store.insert(this.#spec.id, role);
    this.#starting.add(row.id);
    try {
      const place = backend.place(row.id);
      const config = await configOf(row, await store.token(row.id, row.generation), place);
      const process = backend.start(config, (why) => {
        log.warn("node.exited", { pool: this.#spec.name, node: row.id, why });
        this.#kick();
      });
      await store.started(row.id, { ...process, socket: place.socketPath });
      log.info("node.started", { pool: this.#spec.name, node: row.id, role, pid: process.pid });
      const started = { ...row, pid: process.pid, pidStart: process.startedAt, socket: place.socketPath };
      this.#rows.set(row.id, started);
      this.#adopt(started);
    } finally {
      this.#starting.delete(row.id);
    }
  }

  #adopt(row: NodeRow): void {
    const { socket } = row;
    if (socket === null || this.#stop.signal.aborted) return;
    const known = this.#members.get(row.id);
    if (known) {
      if (row.state === "draining") known.drain();
      return;
    }
    const { store, clock, build, managerId } = this.#options;
    const member = new Member({
      row,
      socketPath: socket,
      limit: this.#spec.concurrency,
      clock,
      connect: async () => {
        const token = await store.token(row.id, row.generation);
        const { generation } = row;
        return NodeClient.connect({ socketPath: socket, token, generation, build, manager: managerId });
      },
      onState: () => this.#kick(),
      onChange: () => this.#offer(),
    });
    this.#members.set(row.id, member);
  }

  #forget(id: string): void {
    this.#members.get(id)?.close();
    this.#members.delete(id);
    this.#rows.delete(id);
  }

  /** Drains it, then ends it. */
  async #retire(row: NodeRow): Promise<void> {
    const { store, clock, log } = this.#options;
    await store.setState(row.id, "draining");
    const member = this.#members.get(row.id);
    member?.drain();
    const endMs = clock.monotonicMs() + this.#spec.drainTimeoutMs;
    const isBusy = (): boolean => member !== undefined && !member.isIdle;
    while (isBusy() && clock.monotonicMs() < endMs) await clock.sleep(50, this.#stop.signal);
    await this.#end(row).catch((error: unknown) => log.warn("node.end_failed", { error: messageOf(error) }));
  }

  async #end(row: NodeRow): Promise<void> {
    const { store, backend, clock } = this.#options;
    const process = processOf(row);
    if (process) {
      backend.end(process, "SIGTERM");
      const endMs = clock.monotonicMs() + 3000;
      while (backend.isAlive(process) && clock.monotonicMs() < endMs) await clock.sleep(20);
      if (backend.isAlive(process)) backend.end(process, "SIGKILL");
    }
    this.#forget(row.id);
    await store.remove(row.id);
  }
}

function processOf({ pid, pidStart }: NodeRow): { pid: number; startedAt: string } | null {
  return pid === null || pidStart === null ? null : { pid, startedAt: pidStart };
}

function sameSchema(a: NodeResult, b: NodeResult): boolean {
  return a.arrowSchema === null
    ? b.arrowSchema === null
    : b.arrowSchema !== null && a.arrowSchema.equals(b.arrowSchema);
}

function lostInTransaction(cause: unknown): SpillwayError {
  return new SpillwayError("node_lost_in_transaction", "The node that held the transaction is gone.", {
    cause,
    details: { sqlstate: "40001" },
  });
}

async function* inTransaction(messages: AsyncIterable<Buffer>): AsyncIterable<Buffer> {
  try {
    yield* messages;
  } catch (error) {
    throw isSpillwayError(error, "node_lost") ? lostInTransaction(error) : error;
  }
}
