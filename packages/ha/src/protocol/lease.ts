/**
 * The lease, both halves, as pure objects fed with monotonic times (ms). The keeper owns one of each.
 *
 * Why: a primary that is cut off must be out before another one is in, without anybody being able to tell
 * it. So a primary may be writable only while it holds a lease, and a standby is promoted only after every
 * lease that the old primary can possibly hold has run out (`takeoverWaitMs` > `leaseTtlMs`).
 *
 * The primary holds a lease until the latest of
 * - the last grant of the monitor: `sentAtMs` of the report that it answered + ttl;
 * - the last round of promises: the *earliest*, over all voters, of (moment the question was sent + ttl).
 *   One voter that does not promise, and there is no lease from peers. No voters: no lease from peers.
 * Times count from sending, never from receiving: a late answer is worth less, never more.
 *
 * A standby's promise to the primary P: "for ttl from now I shall not become the primary". It gives one
 * only while its assignment's goal is in PROMISING, its own state is not in PROMOTING, and its
 * assignment names P as the primary. It ends promising *by accepting* (persisting) an assignment with
 * another goal, which is before it reports that assignment's version; reports carry how long its last
 * promise still binds, and the monitor waits that out. A keeper that restarted forgot what it promised and
 * reports a full ttl from its start.
 *
 * What the keeper does (`PrimaryLease`):
 * - each heartbeat: report to the monitor, and ask every voter, in parallel;
 * - on a timer at `expiresAtMs - fenceMarginMs` at the latest: if the lease is not held any more, stop
 *   Postgres at once (immediate mode, kill if need be), set the current state to `demote_timeout`, persist,
 *   report. The goal stays; `lease.held` again → the table's edge demote_timeout → goal starts it anew.
 * - the watchdog gets `expiresAtMs` and stops Postgres by itself when the keeper does not extend it.
 */
import { isPromising, isPromoting, type State } from "../fsm/states.ts";
import type { Assignment, PromiseAnswer, PromiseRequest } from "./messages.ts";

export interface LeaseTerms {
  readonly required: boolean;
  readonly voters: readonly number[];
}

export class PrimaryLease {
  #terms: LeaseTerms = { required: true, voters: [] };
  #monitorUntilMs = Number.NEGATIVE_INFINITY;
  readonly #promisedUntilMs = new Map<number, number>();

  /** The terms of the accepted assignment. Call on every acceptance, and at start from the persisted one. */
  setTerms(terms: LeaseTerms): void {
    this.#terms = terms;
  }

  /** The monitor answered the report that was sent at `sentAtMs` with this grant. */
  onGrant(sentAtMs: number, ttlMs: number): void {
    this.#monitorUntilMs = Math.max(this.#monitorUntilMs, sentAtMs + ttlMs);
  }

  /** A voter answered the question that was sent at `sentAtMs`. */
  onPromise(answer: PromiseAnswer, sentAtMs: number): void {
    if (!answer.granted) return;
    const before = this.#promisedUntilMs.get(answer.to) ?? Number.NEGATIVE_INFINITY;
    this.#promisedUntilMs.set(answer.to, Math.max(before, sentAtMs + answer.ttlMs));
  }

  /** The node was told to stand down, or did: nothing granted so far counts any more. */
  drop(): void {
    this.#monitorUntilMs = Number.NEGATIVE_INFINITY;
    this.#promisedUntilMs.clear();
  }

  /** Monotonic ms; +Infinity when no lease is required, -Infinity when there never was one. */
  expiresAtMs(): number {
    if (!this.#terms.required) return Number.POSITIVE_INFINITY;
    return Math.max(this.#monitorUntilMs, this.#peersUntilMs());
  }

  held(nowMs: number): boolean {
    return nowMs < this.expiresAtMs();
  }

  source(): "monitor" | "peers" | "none" {
    if (!this.#terms.required) return "none";
    return this.#monitorUntilMs >= this.#peersUntilMs() ? "monitor" : "peers";
  }

  #peersUntilMs(): number {
    const { voters } = this.#terms;
    if (voters.length === 0) return Number.NEGATIVE_INFINITY;
    return Math.min(...voters.map((id) => this.#promisedUntilMs.get(id) ?? Number.NEGATIVE_INFINITY));
  }
}

export class StandbyPromise {
  #untilMs: number;
  #to: number | null = null;
  #askedAtMs: number | null = null;

  /** `ttlMs`: the persisted assignment's; what was promised before this start is unknown, so all of it. */
  constructor(startedAtMs: number, ttlMs: number) {
    this.#untilMs = startedAtMs + ttlMs;
  }

  /** Answers the primary's keeper. `own` is what this keeper has persisted. */
  answer(
    request: PromiseRequest,
    own: { readonly nodeId: number; readonly state: State; readonly assignment: Assignment | null },
    nowMs: number,
  ): PromiseAnswer {
    const refusal = refusalOf(request, own);
    const head = { protocol: 1, from: request.from, to: own.nodeId, seq: request.seq } as const;
    if (refusal !== null || own.assignment === null) {
      return { ...head, granted: false, ttlMs: 0, reason: refusal ?? "" };
    }
    const ttlMs = own.assignment.timings.leaseTtlMs;
    this.#to = request.from;
    if (request.holding) this.#askedAtMs = nowMs;
    this.#untilMs = Math.max(this.#untilMs, nowMs + ttlMs);
    return { ...head, granted: true, ttlMs, reason: "" };
  }

  /** The `promise` section of the report. */
  report(nowMs: number): { to: number | null; askedAgeMs: number | null; remainingMs: number } {
    return {
      to: this.#to,
      askedAgeMs: this.#askedAtMs === null ? null : nowMs - this.#askedAtMs,
      remainingMs: Math.max(0, this.#untilMs - nowMs),
    };
  }

  /** Whether an own promise still forbids to promote: a second lock on the same door. */
  binds(nowMs: number): boolean {
    return nowMs < this.#untilMs;
  }
}

function refusalOf(
  request: PromiseRequest,
  own: { readonly nodeId: number; readonly state: State; readonly assignment: Assignment | null },
): string | null {
  if (request.to !== own.nodeId) return `this is node ${own.nodeId}`;
  if (own.assignment === null) return "not registered yet";
  if (own.assignment.primary?.nodeId !== request.from) return `node ${request.from} is not the primary known here`;
  if (!isPromising(own.assignment.goalState)) return `assigned ${own.assignment.goalState}`;
  if (isPromoting(own.state)) return `in ${own.state}`;
  return null;
}
