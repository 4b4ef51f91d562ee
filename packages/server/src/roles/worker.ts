/**
 * The worker: campaigns for the lease, and while it leads, passes over the registered tables. Any number may run; one leads.
 * SIGTERM (the signal) undoes the step in hand, or lets it finish where it is past its commit, and steps down.
 */
import { randomHex } from "@spillway/base/ids";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { armFault } from "@spillway/base/fault";
import { Metrics } from "@spillway/base/metrics";
import { hostname } from "node:os";
import { connect, destroyClient } from "@spillway/pg/connect";
import { assertEpoch, campaign, type Lease } from "@spillway/pg/lease";
import { fromPgError } from "@spillway/pg/pg-error";
import { quoteIdent } from "@spillway/pg/quote";
import {
  answerRequest,
  claimLake,
  claimRequests,
  type ClaimRequest,
  pruneRequests,
  RENEW_EVERY_MS,
  renewOwnership,
  requireCatalog,
  requireClaimable,
  WORKER_CHANNEL,
} from "../catalog/catalog.ts";
import {
  answerMaintenance,
  Passes,
  type PassResult,
  Pump,
  type PumpSettings,
  recover,
  SourceUpkeep,
  tendCopies,
} from "../movers/movers.ts";
import { type RunningHttp, startMetricsHttp } from "./metrics-http.ts";
import { MirrorMetrics } from "./mirror-metrics.ts";
import { openRuntime, type Runtime, type RuntimeOptions } from "./runtime.ts";
import { LakeMetrics } from "./lake-metrics.ts";
import { WorkerMetrics } from "./worker-metrics.ts";

export interface WorkerOptions extends Omit<RuntimeOptions, "applicationName"> {
  readonly campaignIntervalMs: number;
  readonly cycleIntervalMs: number;
  readonly deltaBacklogWarnRows: number;
  /** Go on by itself on a promoted server. */
  readonly adoptPromotion: boolean;
  /** How long it watches for others when its server is not the one that claimed the lake last. */
  readonly takeoverWatchMs: number;
  /** `host:port`, or `off`. */
  readonly metricsListen: string;
  readonly mirror: PumpSettings;
  /** WAL kept by the slot at which the worker warns. */
  readonly slotWarnBytes: number;
  /** Connections of a mirrored table's first copy. */
  readonly copyParallel: number;
  /** Passes until nothing moves any more, then ends. */
  readonly once: boolean;
  readonly signal: AbortSignal;
  /** `SPILLWAY_FAULT`: for tests. */
  readonly fault: string | undefined;
  /** Told when it begins to lead. */
  readonly onLead?: (epoch: bigint) => void;
}

export interface WorkerResult {
  /** Of the last pass. */
  readonly failed: Readonly<Record<string, string>>;
}

/** A number for the role in this database: "SPILLWRK". */
const LEASE_KEY = 0x5350494c4c57524bn;
const PAUSE_AFTER_TROUBLE_MS = 1000;
const RENEWAL_ENDS_MS = 2000;
/** How often operations of commands that died, and files of abandoned ones, are looked for within a term. */
const RECOVER_EVERY_MS = 60_000;

/** Runs until the signal, or with `once` until there is nothing to do. Throws what waiting cannot heal. */
export async function runWorker(options: WorkerOptions): Promise<WorkerResult> {
  armFault(options.fault);
  const holder = `spillway-worker ${hostname().slice(0, 24)} ${process.pid} ${randomHex(8)}`.slice(0, 63);
  const runtime = await openRuntime({ ...options, applicationName: holder });
  const registry = new Metrics();
  const metrics = new WorkerMetrics(registry);
  let http: RunningHttp | null = null;
  try {
    await runtime.pool.withClient((c) => requireCatalog(c));
    await requireClaimable(claimOf(options, runtime));
    http = await startMetricsHttp(options.metricsListen, metrics, options.log);
    return await lead(options, runtime, metrics, new LakeMetrics(registry), new MirrorMetrics(registry), holder);
  } finally {
    await http?.close();
    await runtime.close();
  }
}

async function lead(
  options: WorkerOptions,
  runtime: Runtime,
  metrics: WorkerMetrics,
  lakeMetrics: LakeMetrics,
  mirrorMetrics: MirrorMetrics,
  holder: string,
): Promise<WorkerResult> {
  const { clock, log, signal } = options;
  let last: WorkerResult = { failed: {} };
  while (!signal.aborted) {
    let lease: Lease;
    try {
      lease = await campaign({
        conninfo: runtime.conninfo,
        key: LEASE_KEY,
        holder,
        intervalMs: options.campaignIntervalMs,
        clock,
        log,
        signal,
      });
    } catch (error) {
      if (signal.aborted) return last;
      throw error;
    }
    metrics.leads(true);
    try {
      options.onLead?.(lease.epoch);
      last = await new Term(options, runtime, metrics, lakeMetrics, mirrorMetrics, lease).run();
      if (options.once) return last;
    } catch (error) {
      if (signal.aborted) return last;
      const typed = fromPgError(error, "leading");
      if (!passes(typed)) throw typed;
      log.warn("worker.term_ended", { epoch: lease.epoch, error: typed });
      await clock.sleep(PAUSE_AFTER_TROUBLE_MS, signal);
    } finally {
      metrics.leads(false);
      await lease.release();
    }
  }
  return last;
}

function claimOf(options: WorkerOptions, { pool, store, warehouse }: Runtime): ClaimRequest {
  const { clock, takeoverWatchMs: watchMs, adoptPromotion } = options;
  return { lend: (work) => pool.withClient(work), store, warehouse, clock, watchMs, adoptPromotion };
}

/** Errors after which the worker campaigns again. */
function passes(error: SpillwayError): boolean {
  return ["retry", "conflict", "unknown"].includes(error.kind);
}

/** One term of leadership. */
class Term {
  readonly #options: WorkerOptions;
  readonly #runtime: Runtime;
  readonly #metrics: WorkerMetrics;
  readonly #mirrorMetrics: MirrorMetrics;
  readonly #lakeMetrics: LakeMetrics;
  readonly #lease: Lease;
  readonly #signal: AbortSignal;
  readonly #over = new AbortController();
  readonly #passes = new Passes();
  readonly #upkeep = new SourceUpkeep();
  #wake: () => void = () => {};
  #kicked = false;
  #mirrorFailed = false;
  /** Why the lake is not ours any more. */
  #lost: SpillwayError | null = null;

  constructor(
    options: WorkerOptions,
    runtime: Runtime,
    metrics: WorkerMetrics,
    lakeMetrics: LakeMetrics,
    mirrorMetrics: MirrorMetrics,
    lease: Lease,
  ) {
    this.#mirrorMetrics = mirrorMetrics;
    this.#options = options;
    this.#runtime = runtime;
    this.#metrics = metrics;
    this.#lakeMetrics = lakeMetrics;
    this.#lease = lease;
    this.#signal = AbortSignal.any([options.signal, lease.signal, this.#over.signal]);
  }

  async run(): Promise<WorkerResult> {
    const ctx = this.#runtime.mover(this.#lease.epoch, this.#signal);
    await this.#claim();
    await recover(ctx);
    let recoveredMs = this.#options.clock.monotonicMs();
    await this.#runtime.pool.withClient((c) => pruneRequests(c));
    const listener = await this.#listen();
    const renewing = this.#renew();
    const mirror = this.#startMirror();
    try {
      for (;;) {
        const result = await this.#cycle();
        const nowMs = this.#options.clock.monotonicMs();
        const idle = result.moved === 0;
        const isLast = this.#options.once && idle;
        if ((isLast || nowMs - recoveredMs > RECOVER_EVERY_MS) && !this.#signal.aborted) {
          await recover(ctx);
          recoveredMs = nowMs;
        }
        if (this.#signal.aborted) break;
        if (isLast) {
          await mirror.caughtUp();
          return { failed: result.failed };
        }
        if (this.#lost !== null) throw this.#lost;
        if (!this.#lease.isHeld() || this.#mirrorFailed) break;
        if (idle) await this.#rest();
      }
    } catch (error) {
      throw this.#lost ?? error;
    } finally {
      listener();
      this.#over.abort();
      await mirror.stop();
      // One that waits for a server that is away is not waited for.
      await Promise.race([renewing, this.#options.clock.sleep(RENEWAL_ENDS_MS)]);
    }
    if (this.#lost !== null) throw this.#lost;
    if (!this.#options.signal.aborted) throw new SpillwayError("leader_lost", `epoch ${this.#lease.epoch} is over`);
    return { failed: {} };
  }

  /** Before anything is committed or removed: the lake is this server's alone. */
  async #claim(): Promise<void> {
    const { epoch } = this.#lease;
    const { log } = this.#options;
    const outcome = await claimLake({
      ...claimOf(this.#options, this.#runtime),
      signal: this.#signal,
      also: (tx) => assertEpoch(tx, { epoch }),
      onWatch: (ms) => log.info("worker.watches", { ms, why: "the server is not the one that claimed the lake last" }),
    }).catch((error: unknown) => {
      // Only this term is over: another one may lead, or this one again.
      const isTerm = this.#signal.aborted && !this.#options.signal.aborted;
      throw isTerm ? new SpillwayError("leader_lost", `epoch ${epoch} ended while the lake was claimed`) : error;
    });
    if (outcome === "claimed") log.warn("worker.claimed", { warehouse: this.#runtime.warehouse, epoch });
  }

  /** Beside the cycles, which can be long: whoever has a copy of this server sees that the original lives. */
  async #renew(): Promise<void> {
    const { clock } = this.#options;
    const { pool, store, warehouse } = this.#runtime;
    const { epoch } = this.#lease;
    const signal = this.#signal;
    while (!signal.aborted) {
      try {
        await pool.withClient((c) => renewOwnership(c, store, warehouse, clock, (tx) => assertEpoch(tx, { epoch })));
      } catch (error) {
        if (signal.aborted) return;
        const typed = fromPgError(error, "renewing the claim to the lake");
        if (typed.code === "lake_not_ours" || typed.code === "lake_unclaimed") {
          this.#lost = typed;
          this.#over.abort();
          return;
        }
        // The store or the server is away for a moment; who leads is the lease's business.
        this.#options.log.warn("worker.renewal_failed", { error: typed });
      }
      await clock.sleep(RENEW_EVERY_MS, signal);
    }
  }

  /** The pump and the copies run beside the cycles. What ends the pump for good ends the term. */
  #startMirror(): { caughtUp(): Promise<void>; stop(): Promise<void> } {
    const over = new AbortController();
    const signal = AbortSignal.any([this.#signal, over.signal]);
    // Without the signal in it: what is under way when the term ends is finished, and fenced by the epoch.
    const ctx = this.#runtime.mover(this.#lease.epoch);
    const pump = new Pump(ctx, this.#options.mirror, { onFlush: (stats) => this.#mirrorMetrics.flushed(stats) });
    this.#mirrorMetrics.follow(() => pump.status);
    const running = pump.run(signal).catch((error: unknown) => {
      this.#options.log.warn("worker.pump_ended", { error: fromPgError(error, "the pump") });
      this.#mirrorFailed = true;
      this.#wake();
    });
    const copies = tendCopies(this.#runtime.mover(this.#lease.epoch, signal), this.#options.copyParallel, signal);
    return {
      caughtUp: () => pump.caughtUp(signal),
      stop: async () => {
        over.abort();
        await Promise.all([running, copies]);
      },
    };
  }

  async #cycle(): Promise<PassResult> {
    const { clock, log } = this.#options;
    const { pool } = this.#runtime;
    this.#kicked = false;
    const requests = await pool.withClient((c) => claimRequests(c, ["pass"]));
    const startMs = clock.monotonicMs();
    const result = await this.#passes.run(this.#runtime.mover(this.#lease.epoch, this.#signal), {
      force: this.#options.once || requests.length > 0,
    });
    await this.#maintain();
    this.#metrics.cycle((clock.monotonicMs() - startMs) / 1000, clock.wallMs() / 1000, result);
    await pool.withClient(async (c) => {
      for (const { requestId } of requests) await answerRequest(c, requestId, "done", { ...result });
      await this.#metrics.refresh(c, log, this.#options.deltaBacklogWarnRows);
      await this.#mirrorMetrics.refresh(c, log, this.#options.slotWarnBytes);
    });
    log.debug("cycle.done", { ms: Math.round(clock.monotonicMs() - startMs), ...result });
    return result;
  }

  /** What was asked for, and what concerns no single table. */
  async #maintain(): Promise<void> {
    const { pool } = this.#runtime;
    const ctx = this.#runtime.mover(this.#lease.epoch, this.#signal);
    for (const request of await pool.withClient((c) => claimRequests(c, ["maintain"]))) {
      const { state, result } = await answerMaintenance(ctx, this.#upkeep, request);
      await pool.withClient((c) => answerRequest(c, request.requestId, state, result));
    }
    await this.#upkeep.run(ctx);
    await this.#lakeMetrics.refresh(ctx);
  }

  /** Until the next cycle is due, somebody asks for it, or the term ends. */
  async #rest(): Promise<void> {
    const over = new AbortController();
    const woken = new Promise<void>((resolve) => (this.#wake = resolve));
    if (this.#kicked) return;
    await Promise.race([
      woken,
      this.#options.clock.sleep(this.#options.cycleIntervalMs, AbortSignal.any([this.#signal, over.signal])),
    ]);
    over.abort();
  }

  /** Hears of requests at once. Without it they are found at the next cycle, so a lost listener is no fault. */
  async #listen(): Promise<() => void> {
    const { log } = this.#options;
    try {
      const client = await connect(this.#runtime.conninfo, { applicationName: this.#lease.holder });
      client.on("notification", () => {
        this.#kicked = true;
        this.#wake();
      });
      await client.query(`listen ${quoteIdent(WORKER_CHANNEL)}`);
      return () => destroyClient(client);
    } catch (error) {
      if (isSpillwayError(error)) log.warn("worker.listen_failed", { error });
      return () => {};
    }
  }
}
