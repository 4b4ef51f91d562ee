/** The front door of the seam: reads and corrections over heap and lake as one table; see docs/internals/seam.md. */
import type { Clock } from "@spillway/base/clock";
import type { Logger } from "@spillway/base/log";
import type { LocalCache } from "@spillway/lake/store/cache";
import type { ObjectStore } from "@spillway/lake/store/store";
import type { Conninfo } from "@spillway/pg/conninfo";
import { describeStatement, type StatementShape } from "@spillway/pg/wire/describe";
import type { TextResult } from "@spillway/pg/wire/query";
import type { Engine } from "../engine/engine.ts";
import { type FoundCommit, lookUpCommit } from "./client-commit.ts";
import { type DirectCommit, type ExecuteOptions, type ExecuteResult, runDml } from "./corrections.ts";
import { describeQuery, type QueryShape } from "./describe.ts";
import { explain, type Explanation } from "./explain.ts";
import { FrontierWait } from "./frontier-wait.ts";
import { LakeReader } from "./lake-reader.ts";
import { MirrorReader } from "./mirror-read.ts";
import { PartialReader } from "./partials.ts";
import { PinKeeper } from "./pins.ts";
import { type QueryOptions, type QueryParts, type QueryResult, runQuery } from "./query.ts";
import { Resolver } from "./resolve.ts";
import { Source } from "./source.ts";
import { TextCache } from "./text-cache.ts";
import { TableReader } from "./table-read.ts";
import { type BeginOptions, SeamTransaction } from "./transaction.ts";

export interface SeamOptions {
  readonly conninfo: Conninfo | string;
  readonly store: ObjectStore;
  /** For stores that are not local. */
  readonly cache?: LocalCache;
  readonly engine: Engine;
  readonly clock: Clock;
  readonly log: Logger;
  /** Named in the rows of the pins: host and process. */
  readonly holder: string;
  readonly pinTtlMs?: number;
  /** Connections to Postgres, and so statements that fetch from it at a time. Default 4. */
  readonly connections?: number;
  /** Transactions that may be open at a time. Default 16. */
  readonly transactions?: number;
  readonly connectTimeoutMs?: number;
  readonly searchPath?: string;
  /** How corrections of direct tables get into the lake: `directCommit` of the movers. Without it they are refused. */
  readonly direct?: DirectCommit;
}

export class Seam {
  readonly #parts: QueryParts;
  readonly #reader: LakeReader;
  readonly #transactions: Source;

  constructor(options: SeamOptions) {
    const { conninfo, engine, clock, log, holder, connections, connectTimeoutMs, searchPath, pinTtlMs } = options;
    const source = new Source({
      conninfo,
      ...(connections === undefined ? {} : { size: connections }),
      ...(connectTimeoutMs === undefined ? {} : { connectTimeoutMs }),
      ...(searchPath === undefined ? {} : { searchPath }),
    });
    this.#transactions = new Source({
      conninfo,
      size: options.transactions ?? 16,
      ...(connectTimeoutMs === undefined ? {} : { connectTimeoutMs }),
      ...(searchPath === undefined ? {} : { searchPath }),
    });
    this.#reader = new LakeReader({ store: options.store, ...(options.cache ? { cache: options.cache } : {}) });
    this.#parts = {
      engine,
      source,
      clock,
      pins: new PinKeeper({ source, clock, log, holder, ...(pinTtlMs === undefined ? {} : { ttlMs: pinTtlMs }) }),
      resolver: new Resolver(),
      texts: new TextCache(),
      partials: new PartialReader(engine),
      mirrors: new MirrorReader(this.#reader),
      frontier: new FrontierWait({ source, clock, log }),
      ...(options.direct ? { direct: options.direct } : {}),
      tables: new TableReader({ engine, reader: this.#reader }),
    };
  }

  /** A SELECT over both tiers as one point in time. Iterate the result's batches to the end, or close it. */
  query(sql: string, options: QueryOptions = {}): Promise<QueryResult> {
    return runQuery(this.#parts, sql, options);
  }

  /** What a read touches in each tier, and what was pushed down; with `analyze` it is run to its end. */
  explain(sql: string, options: QueryOptions & { readonly analyze?: boolean } = {}): Promise<Explanation> {
    return explain((o) => this.query(sql, o), options);
  }

  /**
   * An INSERT, UPDATE or DELETE in Postgres's SQL over both tiers, in one transaction of its own. Errors: Postgres's,
   * `sql_unsupported`, `limit_exceeded`.
   */
  execute(sql: string, options: ExecuteOptions = {}): Promise<ExecuteResult> {
    return runDml(this.#parts, sql, options);
  }

  /** The columns and parameters of a SELECT, without reading a row. */
  describe(sql: string, options: QueryOptions = {}): Promise<QueryShape> {
    return describeQuery(this.#parts, sql, options);
  }

  /** Parameters and columns of a statement that Postgres runs, without running it. */
  describeSource(sql: string, types: readonly number[] = []): Promise<StatementShape> {
    return this.#parts.source.use((connection) => describeStatement(connection, sql, types));
  }

  /** A statement that touches no registered table, by Postgres as it is, in a transaction of its own. */
  source(sql: string, signal?: AbortSignal): Promise<TextResult[]> {
    return this.#parts.source.use((connection) => connection.query(sql, signal ? { signal } : {}));
  }

  /** A transaction over any number of tables and both tiers. */
  begin(options: BeginOptions = {}): Promise<SeamTransaction> {
    return SeamTransaction.begin(this.#parts, this.#transactions, options);
  }

  /** The true outcome of a commit whose answer was lost. */
  outcome(commitId: string): Promise<FoundCommit> {
    return this.#parts.source.use((connection) => lookUpCommit(connection, commitId));
  }

  /** Gives the pins back and closes the connections. The engine is the caller's. */
  async close(): Promise<void> {
    await this.#parts.pins.close();
    this.#parts.source.close();
    this.#transactions.close();
  }
}

export function createSeam(options: SeamOptions): Seam {
  return new Seam(options);
}

export type { QueryOptions, QueryResult, QueryStats } from "./query.ts";
export type { AsOf, TableStats } from "./table-read.ts";
export type { Freshness, MirrorStats, MirrorWhy } from "./mirror-read.ts";
export { type Pin, PinKeeper, type PinOptions } from "./pins.ts";
export { Source, type SourceOptions } from "./source.ts";
export type { DirectCommit, ExecuteOptions, ExecuteResult, StagedDirect } from "./corrections.ts";
export { type Explanation, heapInstead, printExplanation } from "./explain.ts";
export { type BeginOptions, SeamTransaction } from "./transaction.ts";
export type { CommitOutcome, FoundCommit } from "./client-commit.ts";
export type { QueryShape } from "./describe.ts";
export type { TablePolicy } from "./policy.ts";
export type { ResolvedRelation } from "./resolve.ts";
export { inlineParams, replaceParams, verbOf } from "./sql-lex.ts";
