/**
 * Statements that wait for a node: bounded, each with a deadline, and users take turns, so that one who sends a thousand
 * does not keep out one who sends one.
 */
import { SpillwayError } from "@spillway/base/errors";

export interface Waiting<T> {
  readonly user: string;
  readonly writes: boolean;
  /** Gives it a node; false: it is not waiting any more. */
  give(value: T): boolean;
  readonly onQueued?: (position: number) => void;
}

export interface QueueOptions {
  readonly limit: number;
  readonly timeoutMs: number;
}

export class FairQueue<T> {
  readonly #byUser = new Map<string, Waiting<T>[]>();
  #length = 0;

  get length(): number {
    return this.#length;
  }

  /** Throws `queue_full`, `queue_timeout`; what the signal's owner asked for is an interruption. */
  wait(
    request: {
      readonly user: string;
      readonly writes: boolean;
      readonly signal: AbortSignal;
      readonly onQueued?: (position: number) => void;
    },
    { limit, timeoutMs }: QueueOptions,
  ): Promise<T> {
    const { user, writes, signal, onQueued } = request;
    if (this.#length >= limit) {
      throw new SpillwayError("queue_full", `${this.#length} statements wait for a node already.`, {
        details: { sqlstate: "53300" },
      });
    }
    return new Promise((resolve, reject) => {
      let over = false;
      const finish = (settle: () => void): void => {
        over = true;
        clearTimeout(timer);
        signal.removeEventListener("abort", abort);
        settle();
      };
      const entry: Waiting<T> = {
        user,
        writes,
        give: (value) => {
          if (over) return false;
          finish(() => resolve(value));
          return true;
        },
        ...(onQueued ? { onQueued } : {}),
      };
      const leave = (error: SpillwayError): void => {
        if (over) return;
        this.#remove(entry);
        finish(() => reject(error));
      };
      const abort = (): void =>
        leave(new SpillwayError("engine_interrupted", "The statement was given up while it waited."));
      const timer = setTimeout(
        () =>
          leave(
            new SpillwayError("queue_timeout", `No node was free for ${timeoutMs} ms.`, {
              details: { sqlstate: "57014" },
            }),
          ),
        timeoutMs,
      );
      signal.addEventListener("abort", abort, { once: true });
      const list = this.#byUser.get(user);
      if (list) list.push(entry);
      else this.#byUser.set(user, [entry]);
      this.#length += 1;
      this.#announce();
    });
  }

  /** Offers to those who wait, in turn, until nobody can be served. `find` gives a value for reads or writes, or null. */
  serve(find: (writes: boolean) => T | null): void {
    let served = true;
    while (served && this.#length > 0) {
      served = false;
      for (const [user, list] of this.#byUser) {
        const entry = list[0];
        const value = entry ? find(entry.writes) : null;
        if (!entry || value === null) continue;
        this.#remove(entry);
        served = true;
        // Its user goes to the end of the row.
        const rest = this.#byUser.get(user);
        if (rest) {
          this.#byUser.delete(user);
          this.#byUser.set(user, rest);
        }
        entry.give(value);
        break;
      }
    }
    this.#announce();
  }

  #remove(entry: Waiting<T>): void {
    const list = this.#byUser.get(entry.user);
    const at = list?.indexOf(entry) ?? -1;
    if (!list || at < 0) return;
    list.splice(at, 1);
    if (list.length === 0) this.#byUser.delete(entry.user);
    this.#length -= 1;
  }

  /** Each is told how many are served before it, when users take turns. */
  #announce(): void {
    const lists = [...this.#byUser.values()];
    let position = 0;
    for (let round = 0; position < this.#length; round++) {
      for (const list of lists) {
        const entry = list[round];
        if (!entry) continue;
        position += 1;
        entry.onQueued?.(position);
      }
    }
  }
}
