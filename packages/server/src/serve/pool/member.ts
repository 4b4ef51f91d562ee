/** One node as a manager sees it: its connection, its probes, and what is in flight on it. */
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import { NodeClient, type NodeHealth } from "../node/node-client.ts";
import type { NodeRequest, NodeResult } from "../node/request.ts";
import { type Candidate, nextEwma, type NodeRole } from "../route/route.ts";
import type { NodeRow } from "./store.ts";

export interface MemberOptions {
  readonly row: NodeRow;
  readonly socketPath: string;
  readonly limit: number;
  readonly clock: Clock;
  readonly connect: () => Promise<NodeClient>;
  /** It has room again, or became ready. */
  readonly onChange: () => void;
  readonly onState: () => void;
}

export type MemberState = "starting" | "ready" | "suspect" | "lost";

const PROBE_EVERY_MS = 1000;
const PROBE_TIMEOUT_MS = 1000;
/** Missed probes after which what runs on it is given up. */
const GIVEN_UP_AFTER = 2;
const CONNECT_EVERY_MS = 30;

export class Member implements Candidate {
  readonly id: string;
  readonly role: NodeRole;
  readonly limit: number;
  readonly row: NodeRow;
  readonly #options: MemberOptions;
  readonly #stop = new AbortController();
  #client: NodeClient | null = null;
  #state: MemberState = "starting";
  #draining = false;
  #missed = 0;
  inFlight = 0;
  transactions = 0;
  ewmaMs = 0;
  health: NodeHealth | null = null;
  readonly startedMs: number;

  constructor(options: MemberOptions) {
    this.#options = options;
    this.row = options.row;
    this.id = options.row.id;
    this.role = options.row.role;
    this.limit = options.limit;
    this.startedMs = options.clock.monotonicMs();
    void this.#watch();
  }

  get state(): MemberState {
    return this.#state;
  }

  get isReady(): boolean {
    return this.#state === "ready" && !this.#draining && this.#client?.isOpen === true;
  }

  get isDraining(): boolean {
    return this.#draining;
  }

  get isIdle(): boolean {
    return this.inFlight === 0 && this.transactions === 0;
  }

  /** No new statements; what runs may finish. */
  drain(): void {
    this.#draining = true;
  }

  evict(manager: string): void {
    this.#client?.evict(manager);
  }

  /** Counts until the last byte. */
  async run(request: NodeRequest, signal: AbortSignal): Promise<NodeResult> {
    const client = this.#client;
    if (!client)
      throw new SpillwayError("node_lost", "The node is gone.", { details: { sqlstate: "08006", unsent: true } });
    const startMs = this.#options.clock.monotonicMs();
    let counted = true;
    this.inFlight += 1;
    const end = (): void => {
      if (!counted) return;
      counted = false;
      this.inFlight -= 1;
      this.ewmaMs = nextEwma(this.ewmaMs, this.#options.clock.monotonicMs() - startMs);
      this.#options.onChange();
    };
    try {
      const result = await client.run(request, { signal });
      if (result.columns === null || result.messages === undefined) {
        end();
        return result;
      }
      return this.#counted(result, end);
    } catch (error) {
      end();
      throw error;
    }
  }

  close(): void {
    this.#stop.abort();
    this.#client?.close();
    this.#state = "lost";
  }

  #counted(result: NodeResult, end: () => void): NodeResult {
    async function* messages(): AsyncIterable<Buffer> {
      try {
        yield* result.messages();
      } finally {
        end();
      }
    }
    return {
      ...result,
      messages,
      close: async () => {
        await result.close();
        end();
      },
    };
  }

  /** Connects, and probes every second; nothing is sent to it before its first good probe. */
  async #watch(): Promise<void> {
    const { clock, connect } = this.#options;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      const startMs = clock.monotonicMs();
      try {
        if (!this.#client?.isOpen) this.#attach(await connect());
        this.health = (await this.#client?.probe(PROBE_TIMEOUT_MS)) ?? null;
        this.#missed = 0;
        this.#become("ready");
      } catch {
        this.#miss();
      }
      const spentMs = clock.monotonicMs() - startMs;
      const everyMs = this.#state === "ready" ? PROBE_EVERY_MS : this.#state === "starting" ? CONNECT_EVERY_MS : 200;
      await clock.sleep(Math.max(10, everyMs - spentMs), signal);
    }
  }

  #attach(client: NodeClient): void {
    if (this.#stop.signal.aborted) {
      client.close();
      return;
    }
    this.#client = client;
    void client.closed.then(() => {
      if (this.#state === "ready") this.#become("suspect");
    });
  }

  #miss(): void {
    if (this.#state === "starting") return;
    this.#missed += 1;
    this.#become("suspect");
    if (this.#missed >= GIVEN_UP_AFTER) this.#client?.close();
  }

  get missed(): number {
    return this.#missed;
  }

  #become(state: MemberState): void {
    if (this.#state === state || this.#stop.signal.aborted) return;
    this.#state = state;
    this.#options.onState();
    this.#options.onChange();
  }
}
