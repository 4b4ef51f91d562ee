/**
 * INSERT, UPDATE and DELETE over both tiers in one Postgres transaction. Postgres evaluates the statement, in its own
 * dialect, for both: for the heap's rows through a view of `key >= T`, and for the lake's rows in a temporary table that is
 * filled with those that the statement can concern. What changed there goes into the delta, or into the heap when the row's
 * tier key is now at or above T. So expressions, defaults, constraints (but for foreign keys), ON CONFLICT and RETURNING
 * mean what they always mean; only user triggers do not fire for rows in the lake. What it reads besides: dml-reads.ts.
 *
 * The transaction is REPEATABLE READ and holds the cut-line FOR SHARE: whoever changes the same rows, folds them or moves T
 * meanwhile makes Postgres refuse this one with 40001, and it runs again.
 */
import { must } from "@spillway/base/assert";
import type { Clock } from "@spillway/base/clock";
import type { ColumnBatch } from "@spillway/base/columns";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { faultPoint } from "@spillway/base/fault";
import { retry } from "@spillway/base/retry";
import { copyIn } from "@spillway/pg/copy/copy-in";
import { isSerializationError } from "@spillway/pg/pg-error";
import { quoteIdent } from "@spillway/pg/quote";
import type { RawConnection } from "@spillway/pg/wire/connection";
import type { TextField, TextResult } from "@spillway/pg/wire/query";
import { type Db, KEY_MIN, keyLiteral } from "../catalog/catalog.ts";
import { duckIdent, type EngineParam, type EngineSession } from "../engine/engine.ts";
import { isNode, parseSelect } from "./ast.ts";
import { recordCommitSql } from "./client-commit.ts";
import { countOf, writeDelta } from "./delta-write.ts";
import { bounded, readCold } from "./cold-rows.ts";
import { type DmlReads, meantAlike, prepareReads } from "./dml-reads.ts";
import { extractPredicates, type Predicate } from "./predicates.ts";
import type { QueryParts } from "./query.ts";
import { rawDb } from "./raw-db.ts";
import type { LakeState, ResolvedRelation, SeamColumn } from "./resolve.ts";
import { type Dml, inlineParams, parseDml } from "./sql-lex.ts";
import { stageCopy } from "./staging.ts";
import { BEFORE, COLD, HOT, makeWorkspace, NEW } from "./workspace.ts";

export interface ExecuteOptions {
  readonly params?: readonly EngineParam[];
  readonly signal?: AbortSignal;
  /** Schemas for a name without one; default: those of the connection. */
  readonly searchPath?: readonly string[];
  /** Written in the same transaction: `outcome` finds it. Of a statement outside of a transaction. */
  readonly commitId?: string;
  /** Lake rows that a statement may have to look at. Default 1 000 000. */
  readonly maxLakeRows?: number;
  /** Whether its subqueries may read registered tables: for a caller who may read all of them whole. Default false. */
  readonly tieredReads?: boolean;
}

export interface ExecuteResult {
  readonly command: "INSERT" | "UPDATE" | "DELETE";
  readonly rowCount: number;
  /** Of RETURNING, as Postgres's text. */
  readonly columns: readonly TextField[];
  readonly rows: readonly (readonly (string | null)[])[];
  /** Delta rows written, tombstones included. */
  readonly deltaRows: number;
}

/** A lake commit that was applied inside the client's transaction. */
export interface StagedDirect {
  /** Called after a rollback: what was written to the store is nobody's. */
  abandon(error: unknown): Promise<void>;
}

/** Moves the delta rows that `tx` wrote, and nobody else can see, into the lake, in `tx` itself. */
export type DirectCommit = (request: {
  readonly tx: Db;
  readonly connection: RawConnection;
  readonly relationId: bigint;
}) => Promise<StagedDirect>;

const DEFAULT_MAX_ROWS = 1_000_000;
const RETRIES = { attempts: 20, totalMs: 15_000, firstDelayMs: 10, maxDelayMs: 500 };

export async function runDml(parts: QueryParts, text: string, options: ExecuteOptions): Promise<ExecuteResult> {
  const dml = parseDml(options.params ? inlineParams(text, options.params) : text);
  const clock: Clock = parts.clock;
  // Somebody else's lake commit came first, or the same rows were changed: nothing happened, and it may run again.
  const retryable = (error: unknown): boolean =>
    isSerializationError(error) || isSpillwayError(error, "commit_conflict");
  return retry({ ...RETRIES, clock, random: Math.random, retryable }, () => attempt(parts, dml, options));
}

async function attempt(parts: QueryParts, dml: Dml, options: ExecuteOptions): Promise<ExecuteResult> {
  const pin = await parts.pins.take();
  const connection = await parts.source.acquire();
  const session = await parts.engine.session();
  let work: Correction | null = null;
  try {
    const { searchPath } = options;
    const names = [{ schema: dml.schema, name: dml.name, ...(searchPath ? { searchPath } : {}) }];
    let [relation] = await parts.resolver.begin(connection, names, options.signal, "write");
    if (relation?.lake?.mode === "direct") {
      await connection.query("ROLLBACK");
      [relation] = await parts.resolver.begin(connection, names, options.signal, "direct");
    }
    work = new Correction(parts, connection, session, dml, must(relation, "relation"), options);
    const result = await work.run();
    pin.check();
    if (options.commitId !== undefined) await connection.query(recordCommitSql(options.commitId, result.rowCount));
    await commit(connection);
    faultPoint("direct.after_commit");
    return result;
  } catch (error) {
    if (connection.isOpen && connection.transactionStatus !== "I") await connection.query("ROLLBACK").catch(() => {});
    // An outcome that is not known is not given up: recovery looks it up.
    if (!isSpillwayError(error, "pg_commit_unknown")) await work?.abandon(error);
    throw error;
  } finally {
    // Its temporary tables end with it.
    parts.engine.release(session, false);
    parts.source.release(connection);
    pin.release();
  }
}

async function commit(connection: RawConnection): Promise<void> {
  try {
    const [result] = await connection.query("COMMIT");
    if (result?.tag !== "COMMIT")
      throw new SpillwayError("pg_error", "The transaction had failed before its COMMIT and was rolled back.");
  } catch (error) {
    if (connection.isOpen) throw error;
    throw new SpillwayError("pg_commit_unknown", "The connection ended during COMMIT.", { cause: error });
  }
}

export class Correction {
  readonly #parts: QueryParts;
  readonly #connection: RawConnection;
  readonly #session: EngineSession;
  readonly #dml: Dml;
  readonly #relation: ResolvedRelation;
  readonly #options: ExecuteOptions;
  #lakeCommit: StagedDirect | null = null;
  #reads: DmlReads = { of: (text) => text, temporary: [] };

  constructor(
    parts: QueryParts,
    connection: RawConnection,
    session: EngineSession,
    dml: Dml,
    relation: ResolvedRelation,
    options: ExecuteOptions,
  ) {
    this.#parts = parts;
    this.#connection = connection;
    this.#session = session;
    this.#dml = dml;
    this.#relation = relation;
    this.#options = options;
  }

  /** Gives up what was staged for the lake; for a transaction that was rolled back. */
  async abandon(error: unknown): Promise<void> {
    await this.#lakeCommit?.abandon(error);
  }

  async run(): Promise<ExecuteResult> {
    const { lake } = this.#relation;
    if (!lake || !isSplit(lake)) {
      await this.#prepare([this.#dml.sql]);
      const result = this.#result([await this.#query(this.#reads.of(this.#dml.sql))], 0);
      await this.#dropReads();
      return result;
    }
    const { t, r } = await this.#holdCutLine(lake);
    const { direct } = this.#parts;
    if (lake.mode === "direct" && !direct) {
      throw new SpillwayError(
        "sql_unsupported",
        `The direct table ${this.#relation.sql} is corrected by \`spillway sql\` only.`,
      );
    }
    const key = quoteIdent(this.#key().spec.name);
    await makeWorkspace({
      query: (sql) => this.#query(sql),
      relation: this.#relation,
      pk: this.#pk().map((c) => quoteIdent(c.spec.name)),
      isBelow: this.#isBelow(t, key),
      withNew: this.#dml.verb === "insert",
    });
    const tail = this.#dml.tail === "" ? [] : [this.#intoSql(COLD, "true")];
    await this.#prepare(
      this.#dml.verb === "insert" ? [this.#dml.retargetBody(NEW), ...tail] : [this.#dml.retarget(COLD)],
    );
    const results = this.#dml.verb === "insert" ? await this.#insert(t) : await this.#change(t);
    const query = (sql: string): Promise<TextResult> => this.#query(sql);
    const deltaRows = await writeDelta({ query, relation: this.#relation, lake, r, cold: COLD, before: BEFORE });
    await this.#query(`DROP VIEW ${HOT}`);
    await this.#dropReads();
    if (lake.mode === "direct" && direct && deltaRows > 0) {
      const { relationId } = lake;
      this.#lakeCommit = await direct({ tx: rawDb(this.#connection), connection: this.#connection, relationId });
    }
    return this.#result(results, deltaRows);
  }

  #key(): SeamColumn {
    return must(
      this.#relation.columns.find((c) => c.attnum === this.#relation.lake?.keyAttnum),
      "tier key",
    );
  }

  #pk(): SeamColumn[] {
    const pk = this.#relation.lake?.pkAttnums ?? [];
    return pk.map((n) =>
      must(
        this.#relation.columns.find((c) => c.attnum === n),
        "primary key",
      ),
    );
  }

  #isBelow(t: bigint, sql: string): string {
    return `${sql} < ${keyLiteral(must(this.#relation.lake?.keyKind, "key kind"), t)}`;
  }

  async #holdCutLine(lake: LakeState): Promise<{ t: bigint; r: bigint | null }> {
    const result = await this.#query(
      `SELECT t, r FROM spillway.seam_guard WHERE relation_id = ${lake.relationId} FOR SHARE`,
    );
    const row = must(result.rows[0], "seam");
    return { t: BigInt(must(row[0], "T")), r: row[1] === null || row[1] === undefined ? null : BigInt(row[1]) };
  }

  async #prepare(texts: readonly string[]): Promise<void> {
    const { maxLakeRows, signal, tieredReads } = this.#options;
    this.#reads = await prepareReads({
      parts: this.#parts,
      connection: this.#connection,
      session: this.#session,
      dml: this.#dml,
      target: this.#relation,
      texts,
      query: (sql) => this.#query(sql),
      allowed: tieredReads === true,
      maxRows: maxLakeRows ?? DEFAULT_MAX_ROWS,
      ...(signal ? { signal } : {}),
    });
  }

  /** A transaction that goes on may have the same names again. */
  async #dropReads(): Promise<void> {
    const { temporary } = this.#reads;
    if (temporary.length > 0) await this.#query(`DROP TABLE ${temporary.map((t) => `pg_temp.${t}`).join(", ")}`);
  }

  async #change(t: bigint): Promise<TextResult[]> {
    await this.#loadCold(await this.#wherePredicates(), null);
    // The lake's rows first: a heap row that the statement moves below T must not be met again.
    const cold = await this.#query(this.#reads.of(this.#dml.retarget(COLD)));
    const hot = await this.#query(this.#reads.of(this.#dml.retarget(HOT)));
    if (this.#dml.verb === "update") await this.#refuseDuplicates(t);
    const key = quoteIdent(this.#key().spec.name);
    const list = this.#writable().join(", ");
    await this.#query(
      `WITH moved AS (DELETE FROM ${COLD} WHERE NOT (${this.#isBelow(t, key)}) RETURNING ${list})
       INSERT INTO ${this.#relation.sql} (${list}) OVERRIDING SYSTEM VALUE SELECT ${list} FROM moved`,
    );
    return [cold, hot];
  }

  /** A primary key that the statement made may be one that the lake has and that was not loaded. */
  async #refuseDuplicates(t: bigint): Promise<void> {
    const pk = this.#pk().map((c) => quoteIdent(c.spec.name));
    const same = pk.map((n) => `b.${n} = c.${n}`).join(" AND ");
    const below = this.#isBelow(t, `c.${quoteIdent(this.#key().spec.name)}`);
    const fresh = `FROM ${COLD} c WHERE ${below} AND NOT EXISTS (SELECT FROM ${BEFORE} b WHERE ${same})`;
    const made = await this.#stageKeys(`SELECT ${pk.map((n) => `c.${n}`).join(", ")} ${fresh}`);
    if (made.rows === 0) return;
    const found = await this.#readCold(
      this.#pk(),
      await this.#keyPredicates(made.table),
      made.table,
      async (batches) => {
        for await (const batch of batches) if (batch.length > 0) return true;
        return false;
      },
    );
    if (found !== true) return;
    throw new SpillwayError(
      "pg_error",
      `The statement makes a primary key of ${this.#relation.sql} that exists: duplicate key value.`,
      {
        details: { sqlstate: "23505" },
      },
    );
  }

  #stageKeys(select: string): Promise<{ table: string; rows: number }> {
    return stageCopy({
      connection: this.#connection,
      session: this.#session,
      table: this.#parts.engine.freshName("fresh"),
      temporary: true,
      select,
      columns: this.#pk().map((c) => c.plan),
    });
  }

  async #insert(t: bigint): Promise<TextResult[]> {
    await this.#query(this.#reads.of(this.#dml.retargetBody(NEW)));
    const key = quoteIdent(this.#key().spec.name);
    const names = this.#pk()
      .map((c) => quoteIdent(c.spec.name))
      .join(", ");
    const staged = await this.#stageKeys(`SELECT DISTINCT ${names} FROM ${NEW} WHERE ${this.#isBelow(t, key)}`);
    if (staged.rows > 0) await this.#loadCold(await this.#keyPredicates(staged.table), staged.table);
    else await this.#query(`CREATE TEMP TABLE spw_before ON COMMIT DROP AS TABLE ${COLD}`);
    const into = (table: string, condition: string): Promise<TextResult> =>
      this.#query(this.#reads.of(this.#intoSql(table, condition)));
    const below = this.#isBelow(t, key);
    // A NULL key is neither: it goes to the heap, which refuses it.
    const hot = await into(this.#relation.sql, `(${below}) IS NOT TRUE`);
    return [hot, await into(COLD, below)];
  }

  /** Puts new rows where they belong, with what the statement says of conflicts and of what it returns. */
  #intoSql(table: string, condition: string): string {
    const list = this.#writable().join(", ");
    return `INSERT INTO ${table} AS ${quoteIdent(this.#dml.alias)} (${list}) OVERRIDING SYSTEM VALUE
      SELECT ${list} FROM ${NEW} WHERE ${condition} ${this.#dml.tail}`;
  }

  #writable(): string[] {
    return this.#relation.columns.filter((c) => c.table.generated === "").map((c) => quoteIdent(c.spec.name));
  }

  /** What the statement's WHERE says of the target, as far as it is understood. */
  async #wherePredicates(): Promise<readonly Predicate[]> {
    const { where, alias, hasOthers } = this.#dml;
    if (where === null) return [];
    const parsed = await parseSelect(this.#session, `SELECT 1 FROM x WHERE (${where}\n)`).catch(() => null);
    if (!parsed || !isNode(parsed.node["where_clause"])) return [];
    const lookup = (names: readonly string[]): SeamColumn | null => {
      const name = names.at(-1)?.toLowerCase();
      if (names.length === 1 ? hasOthers : names.at(-2)?.toLowerCase() !== alias.toLowerCase()) return null;
      const found = this.#relation.columns.filter((c) => c.spec.name.toLowerCase() === name);
      return found.length === 1 ? (found[0] ?? null) : null;
    };
    const { predicates } = await extractPredicates(this.#session, parsed.node["where_clause"], lookup, []);
    return meantAlike(predicates);
  }

  /** The range of tier keys of the new rows. */
  async #keyPredicates(table: string): Promise<readonly Predicate[]> {
    const column = this.#key();
    const name = duckIdent(column.spec.name);
    const [range] = await this.#session.rows(`SELECT min(${name}), max(${name}) FROM ${duckIdent(table)}`);
    const [low, high] = [range?.[0] as number | bigint, range?.[1] as number | bigint];
    return [
      { op: ">=", column, value: low },
      { op: "<=", column, value: high },
    ];
  }

  /** Fills the temporary table with the rows below T that the predicates (and the primary keys of `only`) leave. */
  async #loadCold(predicates: readonly Predicate[], only: string | null): Promise<void> {
    const stored = this.#relation.columns.filter((c) => c.table.generated === "");
    const into = `${COLD} (${stored.map((c) => quoteIdent(c.spec.name)).join(", ")})`;
    await this.#readCold(stored, predicates, only, (batches) =>
      copyIn({
        connection: this.#connection,
        into,
        batches: bounded(batches, this.#options.maxLakeRows ?? DEFAULT_MAX_ROWS),
      }),
    );
    await this.#query(
      `CREATE TEMP TABLE spw_before ON COMMIT DROP AS TABLE ${COLD}; ANALYZE ${COLD}; ANALYZE ${BEFORE}`,
    );
  }

  /** Rows below T as they are in this transaction's snapshot; null when there can be none. */
  async #readCold<T>(
    columns: readonly SeamColumn[],
    predicates: readonly Predicate[],
    only: string | null,
    take: (batches: AsyncIterable<ColumnBatch>) => Promise<T>,
  ): Promise<T | null> {
    return readCold(
      {
        tables: this.#parts.tables,
        connection: this.#connection,
        session: this.#session,
        relation: this.#relation,
        columns,
        predicates,
        only: only === null ? null : { table: only, pk: this.#pk() },
        signal: this.#options.signal,
      },
      take,
    );
  }

  async #query(sql: string): Promise<TextResult> {
    const { signal } = this.#options;
    return must((await this.#connection.query(sql, signal ? { signal } : {})).at(-1), "result");
  }

  #result(results: readonly TextResult[], deltaRows: number): ExecuteResult {
    const { verb } = this.#dml;
    return {
      command: verb === "insert" ? "INSERT" : verb === "update" ? "UPDATE" : "DELETE",
      rowCount: results.reduce((sum, r) => sum + countOf(r), 0),
      columns: results[0]?.fields ?? [],
      rows: results.flatMap((r) => r.rows),
      deltaRows,
    };
  }
}

/** Whether rows of the table are in the lake only: else plain SQL does all, and captures carry it over. */
function isSplit(lake: LakeState): boolean {
  if (lake.state === "registering" || lake.keepHeap || lake.mode === "mirrored") return false;
  return lake.t !== null && lake.t > KEY_MIN;
}
