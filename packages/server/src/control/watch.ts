/**
 * The version of the control state, as soon as it changes: one connection listens, and asks every second besides, which
 * also tells how old the last word is. While the control database is away, what was read before stays good for the
 * allowed time, and no longer.
 */
import type pg from "pg";
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import { connect, destroyClient, endClient } from "@spillway/pg/connect";
import type { Conninfo } from "@spillway/pg/conninfo";

export const CONTROL_CHANNEL = "spillway_control";
const POLL_MS = 1000;
/** An answer that takes longer counts as none. */
const ANSWER_MS = 2000;

export interface WatchOptions {
  readonly conninfo: Conninfo | string;
  readonly stalenessMs: number;
  readonly clock: Clock;
  readonly log: Logger;
}

export class VersionWatch {
  readonly #options: WatchOptions;
  readonly #ended = new AbortController();
  readonly #listeners = new Set<(version: bigint) => void>();
  #version = 0n;
  #freshMs = -Infinity;
  #running: Promise<void> | null = null;
  /** Wakes the loop when a connection ended. */
  #wake = new AbortController();

  constructor(options: WatchOptions) {
    this.#options = options;
  }

  /** 0 before the first word. */
  get version(): bigint {
    return this.#version;
  }

  /** Milliseconds since the control database last answered. */
  get ageMs(): number {
    return this.#options.clock.monotonicMs() - this.#freshMs;
  }

  /** Throws `control_unavailable` when what is known is too old to decide by. */
  requireFresh(): void {
    if (this.ageMs <= this.#options.stalenessMs) return;
    throw new SpillwayError(
      "control_unavailable",
      `the control database has not answered for over ${this.#options.stalenessMs} ms`,
      { details: { sqlstate: "57P03" } },
    );
  }

  onChange(listener: (version: bigint) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  start(): void {
    this.#running ??= this.#run();
  }

  async close(): Promise<void> {
    this.#ended.abort();
    this.#wake.abort();
    await this.#running;
  }

  /** Somebody read this version with data of it. */
  saw(version: bigint): void {
    this.#freshMs = this.#options.clock.monotonicMs();
    // Lower after the control database was restored: then everything is to be read anew as well.
    if (version === this.#version) return;
    this.#version = version;
    for (const listener of this.#listeners) listener(version);
  }

  async #run(): Promise<void> {
    const { clock, log, conninfo } = this.#options;
    let said = false;
    while (!this.#ended.signal.aborted) {
      this.#wake = new AbortController();
      try {
        const client = await connect(conninfo, {
          applicationName: "spillway control watch",
          connectTimeoutMs: ANSWER_MS,
          tcpUserTimeoutMs: ANSWER_MS,
        });
        said = false;
        try {
          await this.#follow(client);
        } finally {
          if (this.#wake.signal.aborted && !this.#ended.signal.aborted) destroyClient(client);
          else await endClient(client);
        }
      } catch (error) {
        if (!said && !this.#ended.signal.aborted) log.warn("control.watch_failed", { error });
        said = true;
      }
      await clock.sleep(250, this.#ended.signal);
    }
  }

  async #follow(client: pg.Client): Promise<void> {
    const { clock } = this.#options;
    const lost = this.#wake;
    let poke = new AbortController();
    const end = (): void => {
      lost.abort();
      poke.abort();
    };
    client.on("error", end);
    client.on("end", end);
    this.#ended.signal.addEventListener("abort", end, { once: true });
    // What a notification says is anybody's word: it only makes us ask.
    client.on("notification", () => poke.abort());
    await this.#within(client.query(`LISTEN ${CONTROL_CHANNEL}`));
    while (!this.#ended.signal.aborted && !lost.signal.aborted) {
      poke = new AbortController();
      const { rows } = await this.#within(
        client.query<{ version: bigint }>("SELECT version FROM spillway_control.control_version"),
      );
      if (rows[0]) this.saw(rows[0].version);
      if (!lost.signal.aborted) await clock.sleep(POLL_MS, poke.signal);
    }
  }

  /** Fails late answers: a connection that is cut off looks like one that is slow. */
  #within<T>(work: Promise<T>): Promise<T> {
    const done = new AbortController();
    return new Promise<T>((resolve, reject) => {
      work.then(resolve, reject).finally(() => done.abort());
      void this.#options.clock.sleep(ANSWER_MS, done.signal).then(() => {
        if (done.signal.aborted) return;
        this.#wake.abort();
        reject(new SpillwayError("control_unavailable", `the control database did not answer within ${ANSWER_MS} ms`));
      });
    });
  }
}
