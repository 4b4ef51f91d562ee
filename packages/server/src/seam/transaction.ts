/**
 * A client's transaction over both tiers: one REPEATABLE READ transaction of Postgres that stays open (docs/internals/serving.md
 * §1.7). Heap rows, delta rows and the id of the COMMIT are in it, so it is atomic over tables and tiers and reads its own
 * writes; whoever changed the same rows, or moved T under it, makes it fail with 40001.
 *
 * Tables are locked when they are first named, after the snapshot was taken. A partition that the worker dropped in between
 * would be missing from the heap while the snapshot's T says that its rows are there: so T is read again, outside of the
 * snapshot, once the lock is held, and a table that has moved is a conflict.
 */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { faultPoint } from "@spillway/base/fault";
import { quoteIdent } from "@spillway/pg/quote";
import { describeStatement, type StatementShape } from "@spillway/pg/wire/describe";
import type { RawConnection } from "@spillway/pg/wire/connection";
import type { TextResult } from "@spillway/pg/wire/query";
import { recordCommitSql } from "./client-commit.ts";
import { Correction, type ExecuteOptions, type ExecuteResult } from "./corrections.ts";
import { describeQuery, type QueryShape } from "./describe.ts";
import type { Pin } from "./pins.ts";
import { type QueryOptions, type QueryParts, type QueryResult, runQuery } from "./query.ts";
import type { ReadScope } from "./read-scope.ts";
import type { RelationName, ResolvedRelation } from "./resolve.ts";
import type { Source } from "./source.ts";
import { inlineParams, parseDml } from "./sql-lex.ts";

export interface BeginOptions {
  readonly isolation?: "repeatable read" | "serializable";
  readonly readOnly?: boolean;
  readonly signal?: AbortSignal;
}

export class SeamTransaction {
  readonly #parts: QueryParts;
  readonly #connection: RawConnection;
  readonly #pin: Pin;
  /** Registered tables that are locked, and whose T was seen not to have moved since the snapshot. */
  readonly #held = new Set<number>();
  #status: "open" | "failed" | "ended" = "open";
  #wrote = false;

  readonly #source: Source;

  private constructor(parts: QueryParts, source: Source, connection: RawConnection, pin: Pin) {
    this.#parts = parts;
    this.#source = source;
    this.#connection = connection;
    this.#pin = pin;
  }

  /** `source`: connections that a transaction may keep for long. */
  static async begin(parts: QueryParts, source: Source, options: BeginOptions = {}): Promise<SeamTransaction> {
    const pin = await parts.pins.take();
    try {
      const connection = await source.acquire();
      try {
        const isolation = (options.isolation ?? "repeatable read").toUpperCase();
        const access = options.readOnly ? "READ ONLY" : "READ WRITE";
        // The snapshot is the first query's.
        const text = `BEGIN ISOLATION LEVEL ${isolation} ${access}; SELECT pg_catalog.pg_current_snapshot()`;
        await connection.query(text, options.signal ? { signal: options.signal } : {});
        return new SeamTransaction(parts, source, connection, pin);
      } catch (error) {
        connection.destroy();
        source.release(connection);
        throw error;
      }
    } catch (error) {
      pin.release();
      throw error;
    }
  }

  get status(): "open" | "failed" | "ended" {
    return this.#connection.isOpen || this.#status === "ended" ? this.#status : "failed";
  }

  /** From here on only ROLLBACK, whole or to a savepoint, goes on. */
  fail(): void {
    if (this.#status === "open") this.#status = "failed";
  }

  query(sql: string, options: QueryOptions = {}): Promise<QueryResult> {
    return this.#work(() => runQuery(this.#parts, sql, options, this.#scope()));
  }

  describe(sql: string, options: QueryOptions = {}): Promise<QueryShape> {
    return this.#work(() => describeQuery(this.#parts, sql, options, this.#scope()));
  }

  /** Parameters and columns of a statement that Postgres runs. */
  describeSource(sql: string, types: readonly number[]): Promise<StatementShape> {
    return this.#work(() => describeStatement(this.#connection, sql, types));
  }

  execute(text: string, options: ExecuteOptions = {}): Promise<ExecuteResult> {
    return this.#work(async () => {
      const dml = parseDml(options.params ? inlineParams(text, options.params) : text);
      const name: RelationName = {
        schema: dml.schema,
        name: dml.name,
        ...(options.searchPath ? { searchPath: options.searchPath } : {}),
      };
      const [relation] = await this.#relations([name], options.signal);
      if (relation?.lake?.mode === "direct") {
        throw new SpillwayError(
          "sql_unsupported",
          `The direct table ${relation.sql} is changed outside of BEGIN only.`,
        );
      }
      this.#wrote = true;
      const session = await this.#parts.engine.session();
      try {
        const work = new Correction(this.#parts, this.#connection, session, dml, must(relation, "relation"), options);
        const result = await work.run();
        await this.#connection.query("DROP TABLE IF EXISTS pg_temp.spw_cold, pg_temp.spw_before, pg_temp.spw_new");
        return result;
      } finally {
        this.#parts.engine.release(session, false);
      }
    });
  }

  /** A statement that touches no registered table, by Postgres as it is. */
  source(sql: string, signal?: AbortSignal): Promise<TextResult[]> {
    return this.#work(() => {
      this.#wrote = true;
      return this.#connection.query(sql, signal ? { signal } : {});
    });
  }

  savepoint(name: string): Promise<void> {
    return this.#work(async () => void (await this.#connection.query(`SAVEPOINT ${quoteIdent(name)}`)));
  }

  releaseSavepoint(name: string): Promise<void> {
    return this.#work(async () => void (await this.#connection.query(`RELEASE SAVEPOINT ${quoteIdent(name)}`)));
  }

  /** Also after a failed statement. */
  async rollbackTo(name: string): Promise<void> {
    if (this.#status === "ended" || !this.#connection.isOpen) throw ended();
    await this.#connection.query(`ROLLBACK TO SAVEPOINT ${quoteIdent(name)}`);
    this.#status = "open";
  }

  /**
   * Writes the id and commits. Throws 40001 (`transaction_conflict`) with nothing applied; `pg_commit_unknown` when the
   * connection ended meanwhile: `lookUpCommit` knows.
   */
  async commit(id: string | null): Promise<void> {
    if (this.#status !== "open") {
      await this.rollback();
      throw new SpillwayError("transaction_failed", "The transaction had failed and was rolled back.");
    }
    const insert = id !== null && this.#wrote ? `${recordCommitSql(id, 0)}; ` : "";
    try {
      this.#pin.check();
      faultPoint("serve.before_commit");
      const results = await this.#connection.query(`${insert}COMMIT`);
      faultPoint("serve.after_commit");
      if (results.at(-1)?.tag !== "COMMIT")
        throw new SpillwayError("transaction_failed", "The transaction was rolled back.");
    } catch (error) {
      if (!this.#connection.isOpen) {
        throw new SpillwayError("pg_commit_unknown", "The connection ended during COMMIT.", { cause: error });
      }
      if (this.#connection.transactionStatus !== "I") await this.#connection.query("ROLLBACK").catch(() => {});
      throw conflictOf(error);
    } finally {
      this.#end();
    }
  }

  async rollback(): Promise<void> {
    if (this.#status === "ended") return;
    try {
      if (this.#connection.isOpen && !this.#connection.isBusy) await this.#connection.query("ROLLBACK");
    } catch {
      this.#connection.destroy();
    } finally {
      this.#end();
    }
  }

  #end(): void {
    if (this.#status === "ended") return;
    this.#status = "ended";
    this.#source.release(this.#connection);
    this.#pin.release();
  }

  async #work<T>(body: () => Promise<T>): Promise<T> {
    if (this.#status === "ended") throw ended();
    if (this.#status === "failed") {
      throw new SpillwayError("transaction_failed", "The transaction has failed.", { details: { sqlstate: "25P02" } });
    }
    try {
      this.#pin.check();
      return await body();
    } catch (error) {
      this.fail();
      throw conflictOf(error);
    }
  }

  #scope(): ReadScope {
    return {
      pin: this.#pin,
      connection: this.#connection,
      relations: (names, signal) => this.#relations(names, signal),
      end: () => {},
    };
  }

  async #relations(names: readonly RelationName[], signal?: AbortSignal): Promise<ResolvedRelation[]> {
    const relations = await this.#parts.resolver.within(this.#connection, names, signal);
    const fresh = relations.filter((r) => r.lake && !this.#held.has(r.oid));
    if (fresh.length > 0) {
      const oids = fresh.map((r) => r.oid).join(", ");
      const [now] = await this.#parts.source.use((connection) =>
        connection.query(`SELECT x.relid, s.t FROM spillway.relation x JOIN spillway.seam s USING (relation_id)
          WHERE x.relid IN (${oids})`),
      );
      const current = new Map((now?.rows ?? []).map((row) => [Number(row[0]), row[1] ?? null]));
      for (const relation of fresh) {
        const seen = relation.lake?.t;
        if (current.get(relation.oid) !== (seen === null || seen === undefined ? null : String(seen))) {
          throw new SpillwayError("transaction_conflict", `The cut-line of ${relation.sql} moved after BEGIN.`, {
            details: { sqlstate: "40001" },
          });
        }
        this.#held.add(relation.oid);
      }
    }
    return relations;
  }
}

function ended(): SpillwayError {
  return new SpillwayError("transaction_none", "The transaction is over.", { details: { sqlstate: "25P01" } });
}

function conflictOf(error: unknown): unknown {
  if (!(error instanceof SpillwayError) || error.code === "transaction_conflict") return error;
  const state = error.details["sqlstate"];
  const isConflict = state === "40001" || state === "40P01" || error.code === "commit_conflict";
  if (!isConflict) return error;
  return new SpillwayError("transaction_conflict", error.message, { cause: error, details: { sqlstate: "40001" } });
}
