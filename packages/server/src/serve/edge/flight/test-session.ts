/** Sessions over one DuckDB without a source, for tests of the edge alone: real statements, types, transactions and interrupts. */
import type { ColumnBatch } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import {
  ArrowBatcher,
  decodeArrowBatch,
  type Engine,
  type EngineParam,
  type EngineSession,
  valueAt,
} from "../../../engine/engine.ts";
import { ownArrowFields } from "../../../engine/engine.ts";
import { classify } from "../../plan/classify.ts";
import type {
  Prepared,
  Principal,
  RunOptions,
  RunResult,
  ServeSession,
  SessionOptions,
  Sessions,
  SessionStatus,
  WireColumn,
} from "../../session/session.ts";
import { arrowSchemaOf } from "./schemas.ts";

export class TestSessions implements Sessions {
  readonly engine: Engine;
  opened = 0;
  closed = 0;
  interrupted = 0;

  constructor(engine: Engine) {
    this.engine = engine;
  }

  async open(principal: Principal, options: SessionOptions): Promise<ServeSession> {
    this.opened += 1;
    return new TestSession(this, await this.engine.session(), principal, options);
  }
}

class TestSession implements ServeSession {
  readonly id = "test";
  readonly principal: Principal;
  readonly database: string;
  status: SessionStatus = "idle";
  readonly #owner: TestSessions;
  readonly #session: EngineSession;
  readonly #parameters = new Map<string, string>([["search_path", "main"]]);

  constructor(owner: TestSessions, session: EngineSession, principal: Principal, options: SessionOptions) {
    this.#owner = owner;
    this.#session = session;
    this.principal = principal;
    this.database = options.database;
    for (const [name, value] of Object.entries(options.parameters ?? {})) this.#parameters.set(name, value);
  }

  parameter(name: string): string | null {
    return this.#parameters.get(name) ?? null;
  }

  split(sql: string): Promise<readonly string[]> {
    return Promise.resolve([sql]);
  }

  async prepare(sql: string): Promise<Prepared> {
    const { kind, writes, parameters } = await classify(sql);
    const columns = kind === "select" ? await this.#describe(sql) : null;
    return {
      sql,
      kind,
      writes,
      parameters: Array.from({ length: parameters }, (_, i) => wire({ name: `$${i + 1}`, kind: "text" })),
      columns,
      arrowSchema: columns === null ? null : arrowSchemaOf(columns),
    };
  }

  async run(prepared: Prepared, options: RunOptions = {}): Promise<RunResult> {
    const { sql, kind } = prepared;
    if (kind === "set") {
      const [, name = "", value = ""] = /^SET (\S+) = '(.*)'$/i.exec(sql) ?? [];
      if (name !== "search_path") throw new SpillwayError("usage", `unknown setting ${name}`);
      this.#parameters.set(name, value);
      return finished("SET", 0);
    }
    const result = await this.#session.query(sql, {
      params: (options.params ?? []) as EngineParam[],
      ...(options.signal ? { signal: options.signal } : {}),
    });
    options.signal?.addEventListener("abort", () => this.#owner.interrupted++, { once: true });
    if (kind === "begin") this.status = "transaction";
    if (kind === "commit" || kind === "rollback") this.status = "idle";
    if (prepared.columns === null) {
      let count = 0;
      for await (const batch of result.batches()) {
        const [column] = batch.columns;
        if (column && batch.length > 0) count = Number(valueAt(column, 0));
      }
      return finished(kind.toUpperCase(), count);
    }
    return new TestResult(prepared, result.batches());
  }

  async #describe(sql: string): Promise<WireColumn[]> {
    try {
      return (await this.#session.describe(sql)).map(({ spec }) => wire(spec));
    } catch (error) {
      if (/does not exist/.test(String(error))) throw new SpillwayError("table_unknown", "no such table");
      throw error;
    }
  }

  cancel(): void {
    this.#session.interrupt();
  }

  async close(): Promise<void> {
    this.#owner.closed += 1;
    if (this.status !== "idle") await this.#session.run("ROLLBACK").catch(() => {});
    this.#owner.engine.release(this.#session, false);
  }
}

function wire(spec: Pick<WireColumn, "name" | "kind">): WireColumn {
  return { ...spec, nullable: true, typeOid: 0, typmod: -1 };
}

function finished(command: string, rows: number): RunResult {
  async function* nothing(): AsyncIterable<never> {}
  return {
    command,
    columns: null,
    arrowSchema: null,
    messages: nothing,
    batches: nothing,
    rowCount: Promise.resolve(rows),
    close: () => Promise.resolve(),
  };
}

class TestResult implements RunResult {
  readonly command = "SELECT";
  readonly columns: readonly WireColumn[] | null;
  readonly arrowSchema: Buffer | null;
  readonly rowCount: Promise<number>;
  readonly #batches: AsyncIterable<ColumnBatch>;
  #settle: (rows: number) => void = () => {};

  constructor(prepared: Prepared, batches: AsyncIterable<ColumnBatch>) {
    this.columns = prepared.columns;
    this.arrowSchema = prepared.arrowSchema;
    this.#batches = batches;
    this.rowCount = new Promise((resolve) => (this.#settle = resolve));
  }

  async *messages(): AsyncIterable<Buffer> {
    const batcher = new ArrowBatcher();
    let rows = 0;
    for await (const batch of this.#batches) {
      rows += batch.length;
      yield* batcher.add(batch);
    }
    yield* batcher.flush();
    this.#settle(rows);
  }

  async *batches(): AsyncIterable<ColumnBatch> {
    const fields = ownArrowFields(this.columns ?? []);
    for await (const message of this.messages()) yield decodeArrowBatch(fields, message);
  }

  close(): Promise<void> {
    this.#settle(0);
    return Promise.resolve();
  }
}
