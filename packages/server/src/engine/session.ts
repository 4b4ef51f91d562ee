/** One connection to an Engine: one statement at a time, interruptible, its results as column batches. */
import type { Column, ColumnBatch, ColumnSpec } from "@spillway/base/columns";
import { isVarColumn } from "@spillway/base/columns";
import { assert } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import duckdb, { type Appender, type Connection, type Result } from "./bindings.ts";
import { BatchAppender } from "./append.ts";
import { readCopyStats, type CopyFileStats } from "./copy-stats.ts";
import { engineError } from "./errors.ts";
import { readChunk, shapeOfType, type ResultShape } from "./read-chunk.ts";

/** A value that can be bound to a parameter. */
export type EngineParam = null | boolean | number | bigint | string | Uint8Array;

export interface EngineResult {
  readonly columns: readonly ColumnSpec[];
  /** Iterate once. Ends early only by an error. */
  batches(): AsyncIterable<ColumnBatch>;
}

export interface RunOptions {
  readonly params?: readonly EngineParam[];
  readonly signal?: AbortSignal;
}

export class EngineSession {
  readonly #connection: Connection;
  readonly #name: string;
  #closed = false;
  /** Set by an error after which the session must not be used again. */
  broken = false;

  constructor(connection: Connection, name: string) {
    this.#connection = connection;
    this.#name = name;
  }

  /** Unique within the instance: prefix of this session's temporary objects. */
  get name(): string {
    return this.#name;
  }

  /** Runs one or more statements and throws their results away. */
  async run(sql: string, options: RunOptions = {}): Promise<void> {
    await this.#guard(options.signal, async () => {
      if (options.params === undefined) await duckdb.query(this.#connection, sql);
      else await this.#execute(sql, options.params, false);
    });
  }

  /** A small result, whole: rows of plain values (bigint for 64 bits, text for everything that is no number). */
  async rows(sql: string, options: RunOptions = {}): Promise<unknown[][]> {
    return this.#guard(options.signal, async () => {
      const result = await this.#execute(sql, options.params ?? [], false);
      const shapes = shapesOf(result);
      const rows: unknown[][] = [];
      for (let c = 0; c < duckdb.result_chunk_count(result); c++) {
        const batch = readChunk(duckdb.result_get_chunk(result, c), shapes);
        for (let i = 0; i < batch.length; i++) rows.push(batch.columns.map((column) => valueAt(column, i)));
      }
      return rows;
    });
  }

  /** Runs a `COPY … TO … (RETURN_STATS)` and says what each file holds. */
  async copyTo(sql: string, options: RunOptions = {}): Promise<CopyFileStats[]> {
    return this.#guard(options.signal, async () => readCopyStats(await duckdb.query(this.#connection, sql)));
  }

  /** The names and types of a query's result, without running it. */
  async describe(sql: string): Promise<readonly ResultShape[]> {
    return this.#guard(undefined, async () => {
      const statement = await duckdb.prepare(this.#connection, sql);
      try {
        return Array.from({ length: duckdb.prepared_statement_column_count(statement) }, (_, i) =>
          shapeOfType(
            duckdb.prepared_statement_column_name(statement, i),
            duckdb.prepared_statement_column_logical_type(statement, i),
          ),
        );
      } finally {
        duckdb.destroy_prepare_sync(statement);
      }
    });
  }

  /** The types that the statement's parameters take, by their numbers; null where the statement leaves it open. */
  async parameters(sql: string): Promise<readonly (ResultShape | null)[]> {
    return this.#guard(undefined, async () => {
      const statement = await duckdb.prepare(this.#connection, sql);
      try {
        return Array.from({ length: duckdb.nparams(statement) }, (_, i) => {
          const id = duckdb.param_type(statement, i + 1);
          if (id === duckdb.Type.INVALID || id === duckdb.Type.ANY || id === duckdb.Type.SQLNULL) return null;
          return shapeOfType(`$${i + 1}`, duckdb.param_logical_type(statement, i + 1));
        });
      } finally {
        duckdb.destroy_prepare_sync(statement);
      }
    });
  }

  /**
   * Runs a query and streams its result. Columns of types that no batch can hold are an error of the
   * caller, who casts them first (`describe` says which: `kind` is null).
   */
  async query(sql: string, options: RunOptions = {}): Promise<EngineResult> {
    return this.#guard(options.signal, async () => {
      const result = await this.#execute(sql, options.params ?? [], true);
      const shapes = shapesOf(result);
      return { columns: shapes.map((s) => s.spec), batches: () => this.#stream(result, shapes, options.signal) };
    });
  }

  async *#stream(result: Result, shapes: readonly ResultShape[], signal?: AbortSignal): AsyncIterable<ColumnBatch> {
    let finished = false;
    try {
      for (;;) {
        const chunk = await this.#guard(signal, () => duckdb.fetch_chunk(result));
        if (chunk === null || duckdb.data_chunk_get_size(chunk) === 0) break;
        yield readChunk(chunk, shapes);
      }
      finished = true;
    } finally {
      if (!finished && !this.#closed) this.interrupt();
    }
  }

  /** Appends batches to a table whose columns are `columns` in their stored types. */
  appender(table: string, columns: readonly ColumnSpec[]): BatchAppender {
    let appender: Appender;
    try {
      appender = duckdb.appender_create(this.#connection, null, table);
    } catch (error) {
      throw engineError(error);
    }
    return new BatchAppender(appender, columns);
  }

  /** Ends the running statement with `engine_interrupted`, within milliseconds. */
  interrupt(): void {
    if (!this.#closed) duckdb.interrupt(this.#connection);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    duckdb.disconnect_sync(this.#connection);
  }

  async #execute(sql: string, params: readonly EngineParam[], stream: boolean): Promise<Result> {
    const statement = await duckdb.prepare(this.#connection, sql);
    try {
      bindAll(statement, params);
      return await (stream ? duckdb.execute_prepared_streaming(statement) : duckdb.execute_prepared(statement));
    } finally {
      duckdb.destroy_prepare_sync(statement);
    }
  }

  async #guard<T>(signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    assert(!this.#closed, "the engine session is closed");
    if (signal?.aborted)
      throw new SpillwayError("engine_interrupted", "The statement was interrupted before it began.");
    const abort = (): void => this.interrupt();
    signal?.addEventListener("abort", abort, { once: true });
    try {
      return await work();
    } catch (error) {
      const typed = engineError(error);
      if (typed.code === "engine_failed") this.broken = true;
      throw typed;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }
}

function shapesOf(result: Result): ResultShape[] {
  return Array.from({ length: duckdb.column_count(result) }, (_, i) =>
    shapeOfType(duckdb.column_name(result, i), duckdb.column_logical_type(result, i)),
  );
}

type Prepared = Awaited<ReturnType<typeof duckdb.prepare>>;

function bindAll(statement: Prepared, params: readonly EngineParam[]): void {
  const wanted = duckdb.nparams(statement);
  if (wanted !== params.length) {
    throw new SpillwayError("engine_sql_error", `The statement has ${wanted} parameters and got ${params.length}.`);
  }
  params.forEach((value, i) => bindOne(statement, i + 1, value));
}

function bindOne(statement: Prepared, index: number, value: EngineParam): void {
  if (value === null) duckdb.bind_null(statement, index);
  else if (typeof value === "boolean") duckdb.bind_boolean(statement, index, value);
  else if (typeof value === "string") duckdb.bind_varchar(statement, index, value);
  else if (value instanceof Uint8Array) duckdb.bind_blob(statement, index, value);
  else if (typeof value === "number") {
    if (Number.isSafeInteger(value)) duckdb.bind_int64(statement, index, BigInt(value));
    else duckdb.bind_double(statement, index, value);
  } else if (value >= -(2n ** 63n) && value < 2n ** 63n) duckdb.bind_int64(statement, index, value);
  else duckdb.bind_hugeint(statement, index, value);
}

const utf8 = new TextDecoder("utf-8");

/** One value of a batch, for small results and messages; never on a hot path. */
export function valueAt(column: Column, row: number): unknown {
  if (column.validity !== null && column.validity[row] === 0) return null;
  if (isVarColumn(column)) {
    const bytes = column.heap.subarray(column.offsets[row], column.offsets[row + 1]);
    return column.spec.kind === "text" ? utf8.decode(bytes) : bytes.slice();
  }
  switch (column.spec.kind) {
    case "bool":
      return column.data[row] === 1;
    case "decimal": {
      const pairs = column.data as BigInt64Array;
      return ((pairs[row * 2 + 1] ?? 0n) << 64n) | BigInt.asUintN(64, pairs[row * 2] ?? 0n);
    }
    case "uuid":
      return (column.data as Uint8Array).slice(row * 16, row * 16 + 16);
    default:
      return column.data[row];
  }
}
