/**
 * The rows of one running statement, sent as far as asked. A session runs one statement at a time, so rows that nobody has fetched
 * yet are taken in, up to a bound, before the next one runs.
 */
import { estimateBytes, sliceBatch } from "@spillway/base/batch";
import type { ColumnBatch } from "@spillway/base/columns";
import type { RunResult, WireColumn } from "../../session/session.ts";
import { cellWriter, type Format, requireBinary, type TextSettings } from "./cell-writers.ts";
import type { OutBuffer } from "./out-buffer.ts";
import { pgError } from "./wire-errors.ts";

/** Rows of suspended portals and held cursors that one connection may keep here. */
const MAX_KEPT_BYTES = 64 << 20;

export class RowCursor {
  readonly columns: readonly WireColumn[];
  readonly #result: Pick<RunResult, "batches" | "close">;
  #iterator: AsyncIterator<ColumnBatch> | null = null;
  #batch: ColumnBatch | null = null;
  #row = 0;
  /** Batches taken in ahead of their time. */
  #kept: ColumnBatch[] = [];
  #ended = false;
  sent = 0;

  constructor(result: Pick<RunResult, "batches" | "close">, columns: readonly WireColumn[]) {
    this.#result = result;
    this.columns = columns;
  }

  /** Rows that are there already, for small answers of the edge's own. */
  static of(columns: readonly WireColumn[], batch: ColumnBatch): RowCursor {
    const cursor = new RowCursor({ batches: async function* () {}, close: async () => {} }, columns);
    cursor.#batch = batch;
    cursor.#ended = true;
    return cursor;
  }

  /** Whether the session is free: everything that ran has ended. */
  get isEnded(): boolean {
    return this.#ended;
  }

  /** The next batch, or the rest of one; at most `max` rows (0: no bound). Null at the end. */
  async take(max: number): Promise<{ readonly batch: ColumnBatch; readonly from: number; readonly to: number } | null> {
    while (this.#batch === null || this.#row >= this.#batch.length) {
      this.#batch = this.#kept.shift() ?? (await this.#pull());
      this.#row = 0;
      if (this.#batch === null) return null;
    }
    const from = this.#row;
    const to = max > 0 ? Math.min(this.#batch.length, from + max) : this.#batch.length;
    this.#row = to;
    return { batch: this.#batch, from, to };
  }

  /** The next rows as a batch of their own. */
  async takeBatch(max: number): Promise<ColumnBatch | null> {
    const piece = await this.take(max);
    if (piece === null) return null;
    const { batch, from, to } = piece;
    return from === 0 && to === batch.length ? batch : sliceBatch(batch, from, to);
  }

  /** Sends up to `max` rows (0: all). Gives how many; `done` when there are no more. */
  async send(
    out: OutBuffer,
    formats: readonly Format[],
    settings: TextSettings,
    max: number,
  ): Promise<{ readonly rows: number; readonly done: boolean }> {
    for (const [i, column] of this.columns.entries()) if (formats[i] === 1) requireBinary(column);
    let rows = 0;
    for (;;) {
      if (max > 0 && rows >= max) return { rows, done: false };
      const piece = await this.take(max === 0 ? 0 : max - rows);
      if (piece === null) return { rows, done: true };
      await this.#write(out, formats, settings, piece);
      rows += piece.to - piece.from;
      this.sent += piece.to - piece.from;
    }
  }

  async #write(
    out: OutBuffer,
    formats: readonly Format[],
    settings: TextSettings,
    { batch, from, to }: { readonly batch: ColumnBatch; readonly from: number; readonly to: number },
  ): Promise<void> {
    const writers = this.columns.map((wire, i) => {
      const column = batch.columns[i];
      if (!column) throw pgError("XX000", "a batch has fewer columns than were described");
      return cellWriter(column, wire, formats[i] ?? 0, settings);
    });
    for (let row = from; row < to; row++) {
      out.begin("D").int16(writers.length);
      for (const write of writers) write(row, out);
      out.end();
      if (out.full) await out.relieve();
    }
  }

  /** Takes the rest in, so that the session is free. Throws 54000 when it is too much. */
  async keep(): Promise<void> {
    let bytes = this.#kept.reduce((sum, batch) => sum + estimateBytes(batch), 0);
    while (!this.#ended) {
      const batch = await this.#pull();
      if (batch === null) return;
      bytes += estimateBytes(batch);
      if (bytes > MAX_KEPT_BYTES) {
        await this.close();
        throw pgError(
          "54000",
          `the rows left in an open portal or cursor take more than ${MAX_KEPT_BYTES >> 20} MiB`,
          { hint: "Fetch them all before the next statement, or use a LIMIT." },
          "limit_exceeded",
        );
      }
      this.#kept.push(batch);
    }
  }

  async close(): Promise<void> {
    const wasRunning = !this.#ended;
    this.#ended = true;
    this.#batch = null;
    this.#kept = [];
    if (wasRunning) {
      await this.#iterator?.return?.().catch(() => {});
      await this.#result.close().catch(() => {});
    }
  }

  async #pull(): Promise<ColumnBatch | null> {
    if (this.#ended) return null;
    this.#iterator ??= this.#result.batches()[Symbol.asyncIterator]();
    try {
      const next = await this.#iterator.next();
      if (!next.done) return next.value;
      this.#ended = true;
      return null;
    } catch (error) {
      this.#ended = true;
      throw error;
    }
  }
}
