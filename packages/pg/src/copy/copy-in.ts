/**
 * COPY … FROM STDIN out of column batches, for corrections and restores. In text format: it is the one form in which
 * every type can be sent, also those that the lake holds as text.
 * Source: https://www.postgresql.org/docs/current/sql-copy.html (Text Format)
 */
import type { ColumnBatch } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import { textOf } from "../columns/text-out.ts";
import type { Operation, RawConnection } from "../wire/connection.ts";
import { copyDataMessage, copyDoneMessage, copyFailMessage, queryMessage } from "../wire/frontend.ts";
import { guardOperation } from "../wire/query.ts";

export interface CopyInOptions {
  readonly connection: RawConnection;
  /** What follows COPY: `schema.table (columns)`, quoted, the columns in the batches' order. */
  readonly into: string;
  readonly batches: AsyncIterable<ColumnBatch> | Iterable<ColumnBatch>;
  readonly signal?: AbortSignal | undefined;
}

const CHUNK_CHARACTERS = 64 * 1024;

/**
 * Sends all rows and returns how many Postgres took. When the batches or the server fail nothing is copied: the
 * statement fails as a whole, and so does the caller's transaction.
 */
export async function copyIn(options: CopyInOptions): Promise<number> {
  const { connection, into, batches, signal } = options;
  if (signal?.aborted) throw new SpillwayError("pg_canceled", "the COPY was given up before it began");
  const copy = new CopyIn();
  connection.begin(copy);
  connection.send(queryMessage(`COPY ${into} FROM STDIN (FORMAT text)`));
  const guard = guardOperation(connection, { signal });
  try {
    await copy.ready;
    await sendBatches(connection, copy, batches).catch((error: unknown) => {
      // The server must not take what was sent so far for the whole.
      connection.send(copyFailMessage("the rows could not be read"));
      copy.cause(error);
    });
    return await copy.done;
  } catch (error) {
    throw guard.reason() ?? error;
  } finally {
    await guard.release();
  }
}

async function sendBatches(connection: RawConnection, copy: CopyIn, batches: CopyInOptions["batches"]): Promise<void> {
  for await (const batch of batches) {
    for (const chunk of copyText(batch)) {
      if (copy.isRefused) return;
      if (!connection.send(copyDataMessage(Buffer.from(chunk, "utf8")))) await connection.drained();
    }
  }
  connection.send(copyDoneMessage());
}

/** The batch in COPY's text format, in pieces of some 64 KiB. */
export function* copyText({ length, columns }: ColumnBatch): Generator<string> {
  let chunk = "";
  for (let row = 0; row < length; row++) {
    for (const [i, column] of columns.entries()) {
      const text = textOf(column, row);
      chunk += (i === 0 ? "" : "\t") + (text === null ? "\\N" : escape(text));
    }
    chunk += "\n";
    if (chunk.length >= CHUNK_CHARACTERS) {
      yield chunk;
      chunk = "";
    }
  }
  if (chunk !== "") yield chunk;
}

const ESCAPES: Readonly<Record<string, string>> = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" };

function escape(text: string): string {
  return text.replace(/[\\\n\r\t]/g, (c) => ESCAPES[c] ?? c);
}

class CopyIn implements Operation {
  /** Resolves when the server waits for rows, or has refused already. */
  readonly ready: Promise<void>;
  readonly done: Promise<number>;
  #resolveReady: () => void = () => {};
  #resolveDone: (rows: number) => void = () => {};
  #rejectDone: (error: unknown) => void = () => {};
  #rows = 0;
  #error: unknown = null;

  constructor() {
    this.ready = new Promise((resolve) => (this.#resolveReady = resolve));
    this.done = new Promise((resolve, reject) => {
      this.#resolveDone = resolve;
      this.#rejectDone = reject;
    });
    this.done.catch(() => {});
  }

  get isRefused(): boolean {
    return this.#error !== null;
  }

  /** Why the rows ended early: said instead of the server's answer to that. */
  cause(error: unknown): void {
    this.#error ??= error;
  }

  message(type: number, buffer: Buffer, start: number, end: number): void {
    if (type === 0x47) this.#resolveReady();
    if (type === 0x43) this.#rows = Number(/^COPY (\d+)/.exec(buffer.toString("latin1", start, end))?.[1] ?? 0);
    if (type !== 0x5a) return;
    this.#resolveReady();
    if (this.#error === null) this.#resolveDone(this.#rows);
    else this.#rejectDone(this.#error);
  }

  error(error: SpillwayError): void {
    this.#error ??= error;
    this.#resolveReady();
  }

  fail(error: SpillwayError): void {
    this.#error ??= error;
    this.#resolveReady();
    this.#rejectDone(this.#error);
  }
}
