/**
 * COPY … TO STDOUT (FORMAT binary) into column batches: rows are decoded where they lie in the read buffer, and the
 * socket is paused while finished batches wait, so memory is bounded by `READY_BATCHES + 1` batches and one read.
 * It runs inside whatever transaction and snapshot the caller has opened on the connection.
 * Source: https://www.postgresql.org/docs/current/sql-copy.html (Binary Format), protocol-flow.html (COPY Operations)
 */
import { assert } from "@spillway/base/assert";
import type { ColumnBatch } from "@spillway/base/columns";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { BatchBuilder } from "../columns/batch-builder.ts";
import type { ColumnBuilder } from "../columns/builder.ts";
import type { PgColumnPlan } from "../columns/plan.ts";
import type { Operation, RawConnection } from "../wire/connection.ts";
import { copyFailMessage, queryMessage } from "../wire/frontend.ts";
import { guardOperation } from "../wire/query.ts";

export interface CopyOutOptions {
  readonly connection: RawConnection;
  /** The query or table after COPY: `(SELECT …)` with `selectList(columns)`. */
  readonly source: string;
  /** What the query returns, in its order. */
  readonly columns: readonly PgColumnPlan[];
  /** Rows of a batch; the last one has fewer. Default 65 536. */
  readonly batchRows?: number;
  /** A batch is cut early when it took this much to receive. Default 32 MiB. */
  readonly batchBytes?: number;
  readonly signal?: AbortSignal | undefined;
}

const DEFAULT_BATCH_ROWS = 65_536;
const DEFAULT_BATCH_BYTES = 32 * 1024 * 1024;
/** Finished batches that may wait before the socket is paused. */
const READY_BATCHES = 2;

/**
 * The rows, as batches. Ends only after the server has said that the COPY is complete; anything else throws: the
 * server's error, pg_connection_lost, pg_protocol_error, or a value's fault. A consumer that stops early has the COPY
 * canceled, which leaves the caller's transaction failed and the connection usable.
 */
export async function* copyOut(options: CopyOutOptions): AsyncGenerator<ColumnBatch, void, void> {
  const { connection, source } = options;
  if (options.signal?.aborted) throw new SpillwayError("pg_canceled", "the COPY was given up before it began");
  const copy = new CopyOut(options);
  connection.begin(copy);
  connection.send(queryMessage(`COPY ${source} TO STDOUT (FORMAT binary)`));
  const guard = guardOperation(connection, { signal: options.signal });
  try {
    for (;;) {
      const batch = await copy.next();
      if (batch === null) return;
      yield batch;
    }
  } catch (error) {
    throw guard.reason() ?? error;
  } finally {
    await copy.settle();
    await guard.release();
  }
}

const SIGNATURE = Buffer.from("PGCOPY\n\xff\r\n\0", "latin1");
const CANCEL_GRACE_MS = 5_000;

class CopyOut implements Operation {
  readonly #connection: RawConnection;
  readonly #batch: BatchBuilder;
  readonly #builders: readonly ColumnBuilder[];
  readonly #batchRows: number;
  readonly #batchBytes: number;
  readonly #ready: ColumnBatch[] = [];
  /** Bytes received for the batch under construction. */
  #received = 0;
  #sawHeader = false;
  #sawTrailer = false;
  #sawTag = false;
  /** Ready for the next statement, or never again. */
  #over = false;
  #error: SpillwayError | null = null;
  #wake: (() => void) | null = null;

  constructor({ connection, columns, batchRows, batchBytes }: CopyOutOptions) {
    this.#connection = connection;
    this.#batch = new BatchBuilder(columns);
    this.#builders = this.#batch.builders;
    this.#batchRows = batchRows ?? DEFAULT_BATCH_ROWS;
    this.#batchBytes = batchBytes ?? DEFAULT_BATCH_BYTES;
    assert(this.#batchRows > 0, "a batch has rows");
  }

  /** The next batch, or null after a complete COPY. */
  async next(): Promise<ColumnBatch | null> {
    for (;;) {
      if (this.#error) throw this.#error;
      const batch = this.#ready.shift();
      if (this.#ready.length < READY_BATCHES) this.#connection.resume();
      if (batch) return batch;
      if (this.#over) return null;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  /** Waits until the connection can be used again, canceling a COPY that still runs. */
  async settle(): Promise<void> {
    if (this.#over) return;
    this.#error ??= new SpillwayError("pg_canceled", "the COPY was not read to its end");
    this.#connection.resume();
    const cut = setTimeout(() => this.#connection.destroy(), CANCEL_GRACE_MS);
    await this.#connection.cancel().catch(() => this.#connection.destroy());
    while (!this.#over) await new Promise<void>((resolve) => (this.#wake = resolve));
    clearTimeout(cut);
  }

  message(type: number, buffer: Buffer, start: number, end: number): void {
    // After an error, what is on its way is only drained.
    if (type === 0x64) {
      if (this.#error === null) this.#data(buffer, start, end);
      return;
    }
    switch (String.fromCharCode(type)) {
      case "H":
        return this.#begin(buffer, start);
      case "c":
        return;
      case "C":
        this.#sawTag = true;
        return;
      case "Z":
        return this.#end();
      case "G":
        this.#connection.send(copyFailMessage("this COPY only reads"));
        return this.#stop(new SpillwayError("pg_protocol_error", "the server asks for rows instead of sending them"));
      default:
        return this.#stop(new SpillwayError("pg_protocol_error", `message ${type} is not expected in a COPY`));
    }
  }

  error(error: SpillwayError): void {
    this.#error ??= error;
  }

  fail(error: SpillwayError): void {
    this.#error ??= error;
    this.#over = true;
    this.#notify();
  }

  #begin(buffer: Buffer, start: number): void {
    const columns = buffer.readInt16BE(start + 1);
    if (buffer[start] !== 1) return this.#stop(new SpillwayError("pg_protocol_error", "the COPY is not binary"));
    if (columns !== this.#builders.length) {
      const text = `the COPY has ${columns} columns, planned were ${this.#builders.length}`;
      this.#stop(new SpillwayError("pg_type_mismatch", text));
    }
  }

  #end(): void {
    if (this.#error === null && !(this.#sawTrailer && this.#sawTag)) {
      this.#error = new SpillwayError("pg_protocol_error", "the COPY ended without its trailer");
    }
    if (this.#error === null && this.#batch.length > 0) this.#ready.push(this.#batch.finish());
    this.#over = true;
    this.#notify();
  }

  /** Remembers why and lets the server stop; the rest of the stream is drained. */
  #stop(error: SpillwayError): void {
    if (this.#error !== null) return;
    this.#error = error;
    this.#ready.length = 0;
    this.#notify();
  }

  #notify(): void {
    const wake = this.#wake;
    this.#wake = null;
    wake?.();
  }

  #data(buffer: Buffer, start: number, end: number): void {
    try {
      let at = start;
      if (!this.#sawHeader) at = this.#header(buffer, start, end);
      while (at < end) at = this.#row(buffer, at, end);
    } catch (error) {
      const known = error instanceof SpillwayError;
      this.#stop(known ? error : new SpillwayError("pg_protocol_error", messageOf(error), { cause: error }));
    }
  }

  #header(buffer: Buffer, start: number, end: number): number {
    if (end - start < 19 || buffer.compare(SIGNATURE, 0, 11, start, start + 11) !== 0) throw malformed();
    this.#sawHeader = true;
    return start + 19 + buffer.readUInt32BE(start + 15);
  }

  /** One row; the server puts each whole into one message. Returns where the next one starts. */
  #row(buffer: Buffer, start: number, end: number): number {
    const builders = this.#builders;
    const fields = ((buffer[start] ?? 0) << 8) | (buffer[start + 1] ?? 0);
    let at = start + 2;
    if (fields === 0xffff && at === end) {
      this.#sawTrailer = true;
      return end;
    }
    if (fields !== builders.length || this.#sawTrailer) throw malformed();
    for (let i = 0; i < fields; i++) {
      const size =
        ((buffer[at] ?? 0) << 24) |
        ((buffer[at + 1] ?? 0) << 16) |
        ((buffer[at + 2] ?? 0) << 8) |
        (buffer[at + 3] ?? 0);
      at += 4;
      if (size === -1) {
        builders[i]?.appendNull();
        continue;
      }
      const next = at + size;
      if (size < 0 || next > end) throw malformed();
      builders[i]?.appendBinary(buffer, at, next);
      at = next;
    }
    if (at > end) throw malformed();
    this.#batch.endRow();
    this.#received += at - start;
    if (this.#batch.length >= this.#batchRows || this.#received >= this.#batchBytes) this.#cut();
    return at;
  }

  #cut(): void {
    this.#received = 0;
    this.#ready.push(this.#batch.finish());
    if (this.#ready.length >= READY_BATCHES) this.#connection.pause();
    this.#notify();
  }
}

function malformed(): SpillwayError {
  return new SpillwayError("pg_protocol_error", "the binary COPY stream is malformed");
}
