/**
 * The lease as one keeper lives it: grants of the monitor, promises of the voters' keepers, the standby's
 * own promises, and the beats to the watchdog. Times are those of the handed-in monotonic clock.
 */
import type { Clock } from "@spillway/base/clock";
import type { Logger } from "@spillway/base/log";
import { needsLease } from "../fsm/states.ts";
import type { KeeperCore } from "../fsm/keeper-core.ts";
import { KEEPER_PATHS } from "../protocol/http.ts";
import { PrimaryLease, StandbyPromise } from "../protocol/lease.ts";
import {
  promiseAnswer,
  PROTOCOL_VERSION,
  type Assignment,
  type NodeReport,
  type PromiseAnswer,
  type PromiseRequest,
} from "../protocol/messages.ts";
import { parseMessage } from "../protocol/validate.ts";
import { currentBootId, readBeat } from "../watchdog/beat.ts";
import type { HttpClient } from "./http-client.ts";
import type { KeeperConfig } from "./files.ts";
import type { WatchdogLink } from "./watchdog-link.ts";

const DEFAULT_TTL_MS = 2_500;

export interface LeaseKeeperOptions {
  readonly config: KeeperConfig;
  readonly clock: Clock;
  readonly log: Logger;
  readonly http: HttpClient;
  readonly watchdog: WatchdogLink;
  readonly core: () => KeeperCore;
}

export class LeaseKeeper {
  readonly #options: LeaseKeeperOptions;
  readonly #lease = new PrimaryLease();
  readonly #promise: StandbyPromise;
  #seq = 0;

  constructor(options: LeaseKeeperOptions) {
    this.#options = options;
    const { assignment } = options.core();
    const ttlMs = assignment?.timings.leaseTtlMs ?? DEFAULT_TTL_MS;
    this.#promise = new StandbyPromise(options.clock.monotonicMs(), ttlMs);
    if (assignment) this.#lease.setTerms(assignment.lease);
  }

  /** The lease of the keeper before this one is still what its last beat said. */
  resume(beatFile: string): void {
    const beat = readBeat(beatFile);
    if (beat === null || beat.deadlineNs === null || beat.bootId !== currentBootId()) return;
    const remainingMs = Number(beat.deadlineNs - process.hrtime.bigint()) / 1e6 - 100;
    if (remainingMs > 0) this.#lease.onGrant(this.#options.clock.monotonicMs(), remainingMs);
  }

  onAccepted(assignment: Assignment): void {
    this.#lease.setTerms(assignment.lease);
  }

  onGrant(sentAtMs: number, ttlMs: number): void {
    this.#lease.onGrant(sentAtMs, ttlMs);
  }

  drop(): void {
    this.#lease.drop();
  }

  held(): boolean {
    return this.#lease.held(this.#options.clock.monotonicMs());
  }

  promiseBinds(): boolean {
    return this.#promise.binds(this.#options.clock.monotonicMs());
  }

  /** null = no limit. */
  remainingMs(): number | null {
    const until = this.#lease.expiresAtMs();
    if (until === Number.POSITIVE_INFINITY) return null;
    return Math.max(-1, until === Number.NEGATIVE_INFINITY ? -1 : until - this.#options.clock.monotonicMs());
  }

  answer(request: PromiseRequest): PromiseAnswer {
    const { config, clock, core } = this.#options;
    const { state, assignment } = core();
    return this.#promise.answer(request, { nodeId: config.nodeId, state, assignment }, clock.monotonicMs());
  }

  promiseReport(): NodeReport["promise"] {
    return this.#promise.report(this.#options.clock.monotonicMs());
  }

  leaseReport(): NodeReport["lease"] {
    const { state, assignment } = this.#options.core();
    if (!needsLease(state) && !(assignment && needsLease(assignment.goalState))) return null;
    const remaining = this.remainingMs();
    return {
      held: this.held(),
      remainingMs: remaining === null ? null : Math.max(0, remaining),
      source: this.#lease.source(),
    };
  }

  /** Asks every voter at once for its promise. Resolves when all have answered or are late. */
  async askVoters(): Promise<void> {
    const { assignment, state } = this.#options.core();
    if (!assignment || !needsLease(assignment.goalState) || !assignment.lease.required) return;
    const holding = this.held() && needsLease(state);
    await Promise.all(assignment.lease.voters.map((id) => this.#ask(id, assignment, holding)));
  }

  async #ask(id: number, assignment: Assignment, holding: boolean): Promise<void> {
    const { config, clock, http, log } = this.#options;
    const peer = assignment.peers.find((p) => p.nodeId === id);
    if (!peer || id === config.nodeId) return;
    const seq = ++this.#seq;
    const question: PromiseRequest = {
      protocol: PROTOCOL_VERSION,
      formation: config.formation,
      from: config.nodeId,
      to: id,
      seq,
      holding,
    };
    const sentAtMs = clock.monotonicMs();
    try {
      const result = await http.call({
        method: "POST",
        url: new URL(KEEPER_PATHS.promise, peer.keeperUrl).toString(),
        token: config.peerToken,
        body: question,
        timeoutMs: assignment.timings.heartbeatMs * 2,
        fingerprint: peer.keeperFingerprint,
      });
      if (result.status !== 200) return;
      const answer = parseMessage(promiseAnswer, result.body, "a promise");
      if (answer.seq === seq && answer.to === id && answer.from === config.nodeId)
        this.#lease.onPromise(answer, sentAtMs);
    } catch (error) {
      log.debug("no promise", { peer: peer.name, error });
    }
  }

  /**
   * Tells the watchdog until when Postgres may run. `limited`: the node is, or may become in the action that
   * runs, writable.
   */
  beat(limited: boolean): void {
    const { watchdog } = this.#options;
    watchdog.ensure();
    watchdog.beat(limited ? this.remainingMs() : null);
  }
}
