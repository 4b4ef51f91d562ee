/**
 * Runs plans over one source. It checks that a plan names every table that the statement reaches, and otherwise decides
 * nothing: what the user may see is inside the plan's tables, and the seam makes it the tables' views.
 */
import type { Clock } from "@spillway/base/clock";
import type { ColumnBatch, ColumnSpec } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import { quoteLiteral } from "@spillway/pg/quote";
import type { TextResult } from "@spillway/pg/wire/query";
import { ArrowBatcher, encodeArrowBatch, encodeArrowSchema, type EngineParam } from "../../engine/engine.ts";
import {
  type ExecuteResult,
  printExplanation,
  type QueryOptions,
  type QueryResult,
  replaceParams,
  type ResolvedRelation,
  type Seam,
  type SeamTransaction,
  type TablePolicy,
} from "../../seam/seam.ts";
import type { WireColumn } from "../session/session.ts";
import {
  duckConstant,
  duckParameterType,
  engineParam,
  isBindable,
  parameterColumn,
  type SentParam,
  wireColumn,
} from "../session/wire-types.ts";
import type { NodeRequest, NodeResult, NodeStats, PlannedTable, Runner, RunnerOptions } from "./request.ts";
import { textBatch, textColumns } from "./text-rows.ts";

export interface ExecutorOptions {
  readonly seam: Seam;
  readonly clock: Clock;
}

export class NodeExecutor implements Runner {
  readonly #seam: Seam;
  readonly #clock: Clock;
  readonly #transactions = new Map<string, SeamTransaction>();

  constructor({ seam, clock }: ExecutorOptions) {
    this.#seam = seam;
    this.#clock = clock;
  }

  get openTransactions(): number {
    return this.#transactions.size;
  }

  async run(request: NodeRequest, { signal }: Pick<RunnerOptions, "signal">): Promise<NodeResult> {
    const startMs = this.#clock.monotonicMs();
    switch (request.action) {
      case "query":
        return this.#query(request, signal, startMs);
      case "execute":
        return this.#execute(request, signal, startMs);
      case "source":
        return this.#source(request, signal);
      case "explain":
        return this.#explain(request, signal);
      case "describe":
        return this.#describe(request);
      case "describe-dml":
        return this.#describeDml(request);
      case "outcome":
        return this.#outcome(request.sql);
      default:
        return this.#transaction(request, signal);
    }
  }

  /** Rolls a transaction back whose session is gone. */
  async abandon(id: string): Promise<void> {
    const transaction = this.#transactions.get(id);
    this.#transactions.delete(id);
    await transaction?.rollback();
  }

  async close(): Promise<void> {
    for (const id of this.#transactions.keys()) await this.abandon(id);
  }

  #open(request: NodeRequest): SeamTransaction | null {
    if (request.transaction === null) return null;
    const found = this.#transactions.get(request.transaction);
    if (found) return found;
    throw new SpillwayError("node_lost_in_transaction", "The node does not hold the session's transaction.", {
      details: { sqlstate: "40001" },
    });
  }

  async #query(request: NodeRequest, signal: AbortSignal, startMs: number): Promise<NodeResult> {
    const { sql, params } = bindable(request);
    const options: QueryOptions = { ...this.#options(request), params, signal };
    const transaction = this.#open(request);
    const result = await (transaction ?? this.#seam).query(sql, options);
    return this.#stream(result, startMs, () => transaction?.fail());
  }

  #stream(result: QueryResult, startMs: number, onError: () => void): NodeResult {
    const stats = { rows: 0, bytes: 0, engineMs: 0 };
    const clock = this.#clock;
    async function* messages(): AsyncIterable<Buffer> {
      const batcher = new ArrowBatcher();
      try {
        for await (const batch of result.batches()) {
          stats.rows += batch.length;
          for (const message of batcher.add(batch)) {
            stats.bytes += message.length;
            yield message;
          }
        }
        for (const message of batcher.flush()) {
          stats.bytes += message.length;
          yield message;
        }
      } catch (error) {
        onError();
        throw error;
      } finally {
        stats.engineMs = clock.monotonicMs() - startMs;
      }
    }
    return {
      command: "SELECT",
      columns: result.columns.map(wireColumn),
      parameters: [],
      arrowSchema: encodeArrowSchema(result.columns),
      messages,
      stats: () => stats,
      close: () => result.close(),
    };
  }

  async #execute(request: NodeRequest, signal: AbortSignal, startMs: number): Promise<NodeResult> {
    this.#checkWritable(request);
    const { searchPath } = request;
    const { commitId } = request;
    const own = commitId === undefined || request.transaction !== null ? {} : { commitId };
    const options = { params: request.params.map(engineParam), signal, searchPath, ...own };
    const result: ExecuteResult = await (this.#open(request) ?? this.#seam).execute(request.sql, options);
    const command = result.command === "INSERT" ? "INSERT 0" : result.command;
    const engineMs = this.#clock.monotonicMs() - startMs;
    if (result.columns.length === 0) return done(command, { rows: result.rowCount, bytes: 0, engineMs });
    const batch = textBatch(result.columns, result.rows);
    return whole(command, textColumns(result.columns), batch, { rows: result.rowCount, engineMs });
  }

  async #outcome(id: string): Promise<NodeResult> {
    const { outcome, rows } = await this.#seam.outcome(id);
    return done(outcome.toUpperCase(), { rows, bytes: 0, engineMs: 0 });
  }

  /** What no policy stands on, but may be written. DML that Postgres evaluates could read what a policy hides. */
  #checkWritable({ tables }: NodeRequest): void {
    const guarded = tables?.find((t) => t.rows !== null || t.columns.length > 0);
    if (!guarded) return;
    throw new SpillwayError(
      "sql_unsupported",
      `Rows of ${guarded.schema}.${guarded.name}, which has a policy for the user, are not changed by statements that read it.`,
      { details: { sqlstate: "42501" } },
    );
  }

  async #source(request: NodeRequest, signal: AbortSignal): Promise<NodeResult> {
    if (request.tables !== null) throw new SpillwayError("sql_unsupported", "The statement is for the owner only.");
    const sql = replaceParams(request.sql, (n) => pgConstant(request.params[n - 1]));
    const results: TextResult[] = await (this.#open(request) ?? this.#seam).source(sql, signal);
    const last = results.at(-1);
    if (!last) return done("");
    const command = last.tag.replace(/ \d+$/, "");
    const rows = Number(/ (\d+)$/.exec(last.tag)?.[1] ?? "0");
    if (last.fields.length === 0) return done(command, { rows, bytes: 0, engineMs: 0 });
    return whole(command, textColumns(last.fields), textBatch(last.fields, last.rows), { rows, engineMs: 0 });
  }

  async #explain(request: NodeRequest, signal: AbortSignal): Promise<NodeResult> {
    const { sql, params } = bindable(request);
    const analyze = request.analyze ?? false;
    const explanation = await this.#seam.explain(sql, { ...this.#options(request), params, signal, analyze });
    const lines = printExplanation(explanation);
    const field = { name: "QUERY PLAN", typeOid: 25, typmod: -1 };
    return whole(
      "EXPLAIN",
      textColumns([field]),
      textBatch(
        [field],
        lines.map((l) => [l]),
      ),
      {
        rows: lines.length,
        engineMs: 0,
      },
    );
  }

  async #describe(request: NodeRequest): Promise<NodeResult> {
    const { sql } = typed(request);
    const shape = await (this.#open(request) ?? this.#seam).describe(sql, this.#options(request));
    const parameters = request.params.map((p, i) => {
      const found = shape.parameters[i];
      return p.oid === 0 && found ? { ...wireColumn(found), name: `$${i + 1}` } : parameterColumn(i, p.oid);
    });
    return {
      ...done("SELECT"),
      columns: shape.columns.map(wireColumn),
      parameters,
      arrowSchema: encodeArrowSchema(shape.columns),
    };
  }

  async #describeDml(request: NodeRequest): Promise<NodeResult> {
    const types = request.params.map((p) => p.oid);
    const shape = await (this.#open(request) ?? this.#seam).describeSource(request.sql, types);
    const columns = shape.columns && textColumns(shape.columns);
    const parameters = shape.parameters.map((oid, i) => parameterColumn(i, oid));
    return { ...done(""), columns, parameters, arrowSchema: columns && encodeArrowSchema(columns.map(specOf)) };
  }

  async #transaction(request: NodeRequest, signal: AbortSignal): Promise<NodeResult> {
    const { action, sql, transaction: id } = request;
    if (id === null) throw new SpillwayError("transaction_none", "There is no transaction.");
    if (action === "begin") {
      const { isolation, readOnly } = request;
      const transaction = await this.#seam.begin({
        signal,
        ...(isolation ? { isolation } : {}),
        ...(readOnly ? { readOnly } : {}),
      });
      this.#transactions.set(id, transaction);
      return done("BEGIN");
    }
    const transaction = this.#open(request);
    if (!transaction) throw new SpillwayError("transaction_none", "There is no transaction.");
    switch (action) {
      case "commit":
        this.#transactions.delete(id);
        await transaction.commit(sql === "" ? null : sql);
        return done("COMMIT");
      case "rollback":
        this.#transactions.delete(id);
        await transaction.rollback();
        return done("ROLLBACK");
      case "savepoint":
        await transaction.savepoint(sql);
        return done("SAVEPOINT");
      case "release":
        await transaction.releaseSavepoint(sql);
        return done("RELEASE");
      default:
        await transaction.rollbackTo(sql);
        return done("ROLLBACK");
    }
  }

  #options({ tables, searchPath }: NodeRequest): QueryOptions {
    if (tables === null) return { searchPath };
    const byName = new Map(tables.map((t) => [`${t.schema}\0${t.name}`, t]));
    // A schema of which nothing is granted is not in the way, as in Postgres without USAGE.
    const granted = new Set(tables.map((t) => t.schema));
    return {
      searchPath: searchPath.filter((schema) => granted.has(schema)),
      access: (relation) => policyOf(byName.get(`${relation.schema}\0${relation.name}`), relation),
    };
  }
}

function policyOf(table: PlannedTable | undefined, relation: ResolvedRelation): TablePolicy {
  if (table) {
    const columns = new Map<string, string | null>();
    for (const { spec } of relation.columns) {
      // A policy that was written for `SSN` holds for `ssn`.
      const found = table.columns.find(([name]) => name.toLowerCase() === spec.name.toLowerCase());
      if (found) columns.set(spec.name, found[1]);
    }
    return { rows: table.rows, columns };
  }
  // Not its schema: that it is there is not for the user to know.
  throw new SpillwayError("access_denied", `relation ${JSON.stringify(relation.name)} does not exist`, {
    details: { sqlstate: "42P01" },
  });
}

/** Parameters that DuckDB can bind stay parameters, so that the statement's text is known when it comes again. */
function bindable({ sql, params }: NodeRequest): { sql: string; params: readonly EngineParam[] } {
  if (params.every(isBindable)) return { sql, params: params.map(engineParam) };
  return { sql: replaceParams(sql, (n) => duckConstant(at(params, n))), params: [] };
}

/** For a description: parameters whose types are known are cast to them. */
function typed({ sql, params }: NodeRequest): { sql: string } {
  if (params.every((p) => p.oid === 0)) return { sql };
  return {
    sql: replaceParams(sql, (n) => {
      const param = at(params, n);
      return param.oid === 0 ? `$${n}` : `($${n}::${duckParameterType(param.oid)})`;
    }),
  };
}

function at(params: readonly SentParam[], n: number): SentParam {
  const param = params[n - 1];
  if (param) return param;
  throw new SpillwayError("sql_syntax", `The statement has $${n} and got ${params.length} parameters.`, {
    details: { sqlstate: "08P01" },
  });
}

function pgConstant(param: SentParam | undefined): string {
  if (!param) return "NULL";
  if ("base64" in param) return quoteLiteral(`\\x${Buffer.from(param.base64, "base64").toString("hex")}`);
  return param.text === null ? "NULL" : quoteLiteral(param.text);
}

function specOf({ name, kind, decimal }: WireColumn): ColumnSpec {
  return decimal ? { name, kind, decimal } : { name, kind };
}

function done(command: string, stats: NodeStats = { rows: 0, bytes: 0, engineMs: 0 }): NodeResult {
  return {
    command,
    columns: null,
    parameters: [],
    arrowSchema: null,
    messages: () => none(),
    stats: () => stats,
    close: () => Promise.resolve(),
  };
}

/** An answer that is here already. */
function whole(
  command: string,
  columns: readonly WireColumn[],
  batch: ColumnBatch,
  stats: { readonly rows: number; readonly engineMs: number },
): NodeResult {
  const messages = batch.length === 0 ? [] : [encodeArrowBatch([batch])];
  const bytes = messages.reduce((sum, m) => sum + m.length, 0);
  return {
    ...done(command, { ...stats, bytes }),
    columns,
    arrowSchema: encodeArrowSchema(columns.map(specOf)),
    messages: () => each(messages),
  };
}

async function* none(): AsyncIterable<Buffer> {}

async function* each(messages: readonly Buffer[]): AsyncIterable<Buffer> {
  yield* messages;
}
