/**
 * The keeper's session in its own Postgres: one connection, statements in turn, each bounded in time. A
 * connection that fails or is late is thrown away and the next statement opens another.
 */
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { RawConnection } from "@spillway/pg/wire/connection";
import { serverOptions, type RawTarget } from "@spillway/pg/wire/target";

export type Row = Readonly<Record<string, string | null>>;

export interface Sql {
  /** The rows of the last statement, by column name. Throws `ha_sql_failed`. */
  query(sql: string, timeoutMs?: number): Promise<Row[]>;
  close(): void;
}

const DEFAULT_TIMEOUT_MS = 2_000;

export class Session implements Sql {
  readonly #target: RawTarget;
  #connection: RawConnection | null = null;
  #tail: Promise<unknown> = Promise.resolve();

  constructor(target: RawTarget) {
    this.#target = target;
  }

  query(sql: string, timeoutMs = DEFAULT_TIMEOUT_MS): Promise<Row[]> {
    const run = this.#tail.then(() => this.#run(sql, timeoutMs));
    this.#tail = run.catch(() => {});
    return run;
  }

  close(): void {
    this.#connection?.destroy();
    this.#connection = null;
  }

  async #run(sql: string, timeoutMs: number): Promise<Row[]> {
    let late = false;
    const opening = new AbortController();
    const timer = setTimeout(() => {
      late = true;
      opening.abort();
      this.close();
    }, timeoutMs);
    try {
      if (!this.#connection?.isOpen) {
        this.#connection = await RawConnection.open(this.#target, { signal: opening.signal });
      }
      const result = (await this.#connection.query(sql)).at(-1);
      const names = result?.fields.map((f) => f.name) ?? [];
      return (result?.rows ?? []).map((row) => Object.fromEntries(names.map((name, i) => [name, row[i] ?? null])));
    } catch (cause) {
      if (!this.#connection?.isOpen) this.close();
      const why = late ? `no answer in ${timeoutMs} ms` : messageOf(cause);
      throw new SpillwayError("ha_sql_failed", `Postgres at ${this.#target.host}: ${why}`, { cause });
    } finally {
      clearTimeout(timer);
    }
  }
}

export interface SocketFacts {
  readonly socketDir: string;
  readonly port: number;
  readonly user: string;
}

/** The superuser's way in: the Unix socket of the keeper's own directory, peer-authenticated. */
export function localTarget(facts: SocketFacts): RawTarget {
  return {
    host: "the local socket",
    port: facts.port,
    socketPath: `${facts.socketDir}/.s.PGSQL.${facts.port}`,
    user: facts.user,
    database: "postgres",
    connectTimeoutMs: 2_000,
    parameters: {
      application_name: "spillway-ha-keeper",
      // The keeper's own statements must never wait for a standby, nor be refused on a read-only node.
      options: serverOptions({ synchronous_commit: "local", default_transaction_read_only: "off" }),
    },
  };
}
