/**
 * Pins (docs/internals/seam.md §5): a committed row whose floor is the oldest transaction that any snapshot taken after
 * it can fail to see as ended. Statements of a process share one renewed pin; a new one takes its place when it
 * has aged, so that an old floor is held only as long as the statements that began under it; and when nothing
 * runs, the pin is given up. A pin that could not be renewed in time is lost, and so is every statement under it.
 */
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import { quoteLiteral } from "@spillway/pg/quote";
import type { Source } from "./source.ts";

export interface PinOptions {
  readonly source: Source;
  readonly clock: Clock;
  readonly log: Logger;
  /** How long a pin lives without being renewed. Default 60 s. */
  readonly ttlMs?: number;
  /** Named in the pin's row: who reads. */
  readonly holder: string;
}

/** A statement's share of a pin. */
export interface Pin {
  readonly id: bigint;
  /** Throws `pin_lost` when the files may be gone by now. */
  check(): void;
  release(): void;
}

interface Shared {
  readonly id: bigint;
  readonly bornMs: number;
  users: number;
  /** By the local clock, counted from before the renewal was sent. */
  expiresMs: number;
  lost: boolean;
}

const DEFAULT_TTL_MS = 60_000;

export class PinKeeper {
  readonly #options: PinOptions;
  readonly #ttlMs: number;
  readonly #pins = new Set<Shared>();
  readonly #stop = new AbortController();
  #current: Shared | null = null;
  #making: Promise<Shared> | null = null;
  #loop: Promise<void> | null = null;

  constructor(options: PinOptions) {
    this.#options = options;
    this.#ttlMs = options.ttlMs ?? DEFAULT_TTL_MS;
  }

  /** A pin that is committed now. No await lies between the check and the count of its user. */
  async take(): Promise<Pin> {
    const current = this.#usable();
    const shared = current ?? (await this.#make());
    shared.users += 1;
    let released = false;
    return {
      id: shared.id,
      check: () => {
        if (!shared.lost && this.#options.clock.monotonicMs() < shared.expiresMs) return;
        shared.lost = true;
        throw new SpillwayError("pin_lost", `The pin ${shared.id} could not be renewed within ${this.#ttlMs} ms.`);
      },
      release: () => {
        if (released) return;
        released = true;
        shared.users -= 1;
      },
    };
  }

  /** Gives every pin up. */
  async close(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
    const ids = [...this.#pins].map((pin) => pin.id);
    this.#pins.clear();
    await this.#remove(ids);
  }

  #usable(): Shared | null {
    const pin = this.#current;
    if (pin === null || pin.lost) return null;
    const nowMs = this.#options.clock.monotonicMs();
    return nowMs - pin.bornMs < this.#ttlMs / 2 && nowMs < pin.expiresMs - this.#ttlMs / 4 ? pin : null;
  }

  async #make(): Promise<Shared> {
    this.#making ??= this.#insert().finally(() => (this.#making = null));
    return this.#making;
  }

  async #insert(): Promise<Shared> {
    const { source, clock, holder } = this.#options;
    const bornMs = clock.monotonicMs();
    const id = await source.use(async (connection) => {
      const results = await connection.query(
        `insert into spillway.pin (holder, floor, expires_at) values (${quoteLiteral(holder)},
           pg_snapshot_xmin(pg_current_snapshot()), now() + interval '${this.#ttlMs} milliseconds') returning pin_id`,
        { timeoutMs: this.#ttlMs },
      );
      return BigInt(results[0]?.rows[0]?.[0] ?? "0");
    });
    const shared: Shared = { id, bornMs, users: 0, expiresMs: bornMs + this.#ttlMs, lost: false };
    this.#pins.add(shared);
    this.#current = shared;
    this.#loop ??= this.#renewLoop();
    return shared;
  }

  async #renewLoop(): Promise<void> {
    const { clock, log } = this.#options;
    while (!this.#stop.signal.aborted && this.#pins.size > 0) {
      await clock.sleep(this.#ttlMs / 4, this.#stop.signal);
      if (this.#stop.signal.aborted) return;
      const nowMs = clock.monotonicMs();
      const idle = [...this.#pins].filter(
        (p) => p.users === 0 && (p !== this.#current || nowMs - p.bornMs > this.#ttlMs / 2),
      );
      for (const pin of idle) this.#forget(pin);
      await this.#remove(idle.map((p) => p.id));
      await this.#renew().catch((error: unknown) => log.warn("pin.renew_failed", { error }));
      for (const pin of this.#pins) {
        if (clock.monotonicMs() < pin.expiresMs) continue;
        pin.lost = true;
        this.#forget(pin);
      }
    }
    // At once, not in a later turn: a pin that is made now needs a loop of its own.
    this.#loop = null;
  }

  async #renew(): Promise<void> {
    const pins = [...this.#pins];
    if (pins.length === 0) return;
    const { source, clock } = this.#options;
    const sentMs = clock.monotonicMs();
    const ids = pins.map((p) => p.id).join(", ");
    const results = await source.use((connection) =>
      connection.query(
        `update spillway.pin set expires_at = now() + interval '${this.#ttlMs} milliseconds'
         where pin_id in (${ids}) and expires_at > now() returning pin_id`,
        { timeoutMs: this.#ttlMs / 4 },
      ),
    );
    const renewed = new Set((results[0]?.rows ?? []).map((row) => BigInt(row[0] ?? "0")));
    for (const pin of pins) {
      if (renewed.has(pin.id)) pin.expiresMs = sentMs + this.#ttlMs;
      else {
        pin.lost = true;
        this.#forget(pin);
      }
    }
  }

  #forget(pin: Shared): void {
    this.#pins.delete(pin);
    if (this.#current === pin) this.#current = null;
  }

  async #remove(ids: readonly bigint[]): Promise<void> {
    if (ids.length === 0) return;
    const { source, log } = this.#options;
    await source
      .use((c) => c.query(`delete from spillway.pin where pin_id in (${ids.join(", ")})`, { timeoutMs: 5_000 }))
      .catch((error: unknown) => log.debug("pin.remove_failed", { error }));
  }
}
