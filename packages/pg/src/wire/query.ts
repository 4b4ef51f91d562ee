/**
 * The simple query protocol, results as text. For the few statements around a COPY or a replication stream; rows in
 * number travel as column batches.
 */
import { SpillwayError } from "@spillway/base/errors";
import type { Operation } from "./connection.ts";
import { copyFailMessage, queryMessage } from "./frontend.ts";

export interface TextField {
  readonly name: string;
  readonly typeOid: number;
  readonly typmod: number;
}

/** The result of one statement. */
export interface TextResult {
  readonly fields: readonly TextField[];
  readonly rows: readonly (readonly (string | null)[])[];
  /** `SELECT 3`, `BEGIN`, …; empty for an empty statement. */
  readonly tag: string;
}

export interface QueryOptions {
  /** The statement is canceled after this; if that brings no answer within 5 s the connection is cut. */
  readonly timeoutMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

interface QueryHost {
  begin(operation: Operation): void;
  send(bytes: Buffer): boolean;
  cancel(): Promise<void>;
  destroy(error: SpillwayError): void;
}

const CANCEL_GRACE_MS = 5_000;

export async function runQuery(host: QueryHost, sql: string, options: QueryOptions): Promise<TextResult[]> {
  if (options.signal?.aborted) throw new SpillwayError("pg_canceled", "the statement was given up before it was sent");
  const query = new Query(host);
  host.begin(query);
  host.send(queryMessage(sql));
  const guard = guardOperation(host, options);
  try {
    return await query.done;
  } catch (error) {
    throw guard.reason() ?? error;
  } finally {
    await guard.release();
  }
}

export interface Guard {
  /** Why the operation was canceled from this side, or null. */
  reason(): SpillwayError | null;
  /** Ends the watch. Waits for a cancel that is under way, so that it cannot hit the next statement. */
  release(): Promise<void>;
}

/** Cancels the running operation on timeout or abort, and cuts the connection when the cancel does not help. */
export function guardOperation(host: Pick<QueryHost, "cancel" | "destroy">, options: QueryOptions): Guard {
  let reason: SpillwayError | null = null;
  let grace: NodeJS.Timeout | undefined;
  let canceling: Promise<void> = Promise.resolve();
  const stop = (why: SpillwayError): void => {
    if (reason) return;
    reason = why;
    grace = setTimeout(() => host.destroy(why), CANCEL_GRACE_MS);
    canceling = host.cancel().catch(() => host.destroy(why));
  };
  const timer =
    options.timeoutMs === undefined
      ? undefined
      : setTimeout(() => {
          const details = { timeout_ms: options.timeoutMs };
          stop(
            new SpillwayError("deadline_exceeded", `Postgres did not answer in ${options.timeoutMs} ms`, { details }),
          );
        }, options.timeoutMs);
  const abort = (): void => stop(new SpillwayError("pg_canceled", "the statement was given up"));
  options.signal?.addEventListener("abort", abort, { once: true });
  return {
    reason: () => reason,
    release: async () => {
      clearTimeout(timer);
      clearTimeout(grace);
      options.signal?.removeEventListener("abort", abort);
      await canceling;
    },
  };
}

class Query implements Operation {
  readonly done: Promise<TextResult[]>;
  readonly #host: QueryHost;
  readonly #results: TextResult[] = [];
  #fields: TextField[] = [];
  #rows: (string | null)[][] = [];
  #error: SpillwayError | null = null;
  #resolve: (results: TextResult[]) => void = () => {};
  #reject: (error: SpillwayError) => void = () => {};

  constructor(host: QueryHost) {
    this.#host = host;
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  message(type: number, buffer: Buffer, start: number, end: number): void {
    switch (String.fromCharCode(type)) {
      case "T":
        this.#fields = parseRowDescription(buffer, start);
        this.#rows = [];
        return;
      case "D":
        this.#rows.push(parseDataRow(buffer, start));
        return;
      case "C":
        return this.#finish(buffer.toString("utf8", start, end - 1));
      case "I":
        return this.#finish("");
      case "G":
        this.#host.send(copyFailMessage("this statement is not run as a COPY"));
        return;
      case "W":
        return this.#host.destroy(new SpillwayError("pg_protocol_error", "replication was started as a plain query"));
      case "Z":
        if (this.#error) this.#reject(this.#error);
        else this.#resolve(this.#results);
        return;
      default:
        return;
    }
  }

  error(error: SpillwayError): void {
    this.#error ??= error;
  }

  fail(error: SpillwayError): void {
    this.#reject(error);
  }

  #finish(tag: string): void {
    this.#results.push({ fields: this.#fields, rows: this.#rows, tag });
    this.#fields = [];
    this.#rows = [];
  }
}

export function parseRowDescription(buffer: Buffer, start: number): TextField[] {
  const fields: TextField[] = [];
  let at = start + 2;
  for (let i = buffer.readInt16BE(start); i > 0; i--) {
    const zero = buffer.indexOf(0, at);
    const name = buffer.toString("utf8", at, zero);
    fields.push({ name, typeOid: buffer.readUInt32BE(zero + 7), typmod: buffer.readInt32BE(zero + 13) });
    at = zero + 19;
  }
  return fields;
}

export function parseDataRow(buffer: Buffer, start: number): (string | null)[] {
  const row: (string | null)[] = [];
  let at = start + 2;
  for (let i = buffer.readInt16BE(start); i > 0; i--) {
    const size = buffer.readInt32BE(at);
    at += 4;
    row.push(size < 0 ? null : buffer.toString("utf8", at, at + size));
    if (size > 0) at += size;
  }
  return row;
}
