/** A few raw connections to the source, for reads: statements sent together, rows by COPY. */
import { SpillwayError } from "@spillway/base/errors";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import type { Conninfo } from "@spillway/pg/conninfo";

export interface SourceOptions {
  readonly conninfo: Conninfo | string;
  /** Most connections, and so most statements that read from Postgres at a time. Default 4. */
  readonly size?: number;
  /** How long a statement waits for a connection. Default 30 s. */
  readonly waitMs?: number;
  readonly connectTimeoutMs?: number;
  readonly searchPath?: string;
}

interface Waiter {
  readonly resolve: (connection: RawConnection | null) => void;
  readonly timer: NodeJS.Timeout;
}

export class Source {
  readonly #options: SourceOptions;
  readonly #idle: RawConnection[] = [];
  readonly #waiting: Waiter[] = [];
  #count = 0;
  #closed = false;

  constructor(options: SourceOptions) {
    this.#options = options;
  }

  /** Lends a connection that is in no transaction. It is closed afterwards when it was left in one. */
  async use<T>(work: (connection: RawConnection) => Promise<T>): Promise<T> {
    const connection = await this.acquire();
    try {
      return await work(connection);
    } finally {
      this.release(connection);
    }
  }

  async acquire(): Promise<RawConnection> {
    if (this.#closed) throw new SpillwayError("interrupted", "The seam was closed.");
    for (let free = this.#idle.pop(); free; free = this.#idle.pop()) {
      if (free.isOpen) return free;
      this.#count -= 1;
    }
    if (this.#count >= (this.#options.size ?? 4)) {
      const given = await this.#wait();
      if (given) return given;
    } else this.#count += 1;
    try {
      const { searchPath, connectTimeoutMs } = this.#options;
      return await connectRaw(this.#options.conninfo, {
        applicationName: "spillway read",
        ...(connectTimeoutMs === undefined ? {} : { connectTimeoutMs }),
        settings: {
          // Many partitions, each with few rows: a plan compiled to machine code costs more than it gives.
          jit: "off",
          ...(searchPath === undefined ? {} : { search_path: searchPath }),
        },
      });
    } catch (error) {
      this.#freed();
      throw error;
    }
  }

  release(connection: RawConnection): void {
    if (this.#closed || !connection.isOpen || connection.isBusy || connection.transactionStatus !== "I") {
      connection.destroy();
      this.#freed();
      return;
    }
    const waiter = this.#waiting.shift();
    if (waiter) {
      clearTimeout(waiter.timer);
      waiter.resolve(connection);
    } else this.#idle.push(connection);
  }

  close(): void {
    this.#closed = true;
    for (const connection of this.#idle.splice(0)) connection.destroy();
    for (const waiter of this.#waiting.splice(0)) {
      clearTimeout(waiter.timer);
      waiter.resolve(null);
    }
  }

  #wait(): Promise<RawConnection | null> {
    const { size = 4, waitMs = 30_000 } = this.#options;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting.splice(this.#waiting.indexOf(waiter), 1);
        reject(new SpillwayError("pg_pool_timeout", `All ${size} reading connections were busy for ${waitMs} ms.`));
      }, waitMs);
      const waiter: Waiter = { resolve, timer };
      this.#waiting.push(waiter);
    });
  }

  #freed(): void {
    const waiter = this.#waiting.shift();
    if (waiter) {
      clearTimeout(waiter.timer);
      waiter.resolve(null);
    } else this.#count -= 1;
  }
}
