/**
 * Corrections merged into a read. Every delta row with key < T hides the lake row of its primary key, and an upsert adds
 * its own. The lake row is hidden by its position in its file, as a delete is: the positions of the delta's keys are
 * looked up once for a lake snapshot and a state of the delta, and kept, so that the next statement neither fetches
 * the delta nor reads the key columns of the lake again.
 *
 * A state of the delta is told by count, sum, maximum and hash sum of its versions, each of which is drawn from one
 * sequence for each change of a row.
 */
import { PositionSet } from "@spillway/lake/puffin/position-set";
import type { TableMetadata } from "@spillway/lake/model";
import { and, type Expr } from "@spillway/lake/scan/scan";
import type { PgColumnPlan } from "@spillway/pg/columns/plan";
import { quoteLiteral } from "@spillway/pg/quote";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { deltaColumn, deltaTable } from "../catalog/catalog.ts";
import {
  duckIdent,
  type Engine,
  type EngineSession,
  positionedSql,
  type ScanFile,
  storedDuckType,
} from "../engine/engine.ts";
import { fieldIdOf, scanFields } from "./lake-fields.ts";
import type { LakeReader } from "./lake-reader.ts";
import { columnsOf, type Predicate, toPgCondition } from "./predicates.ts";
import type { LakeState, ResolvedRelation, SeamColumn } from "./resolve.ts";
import { stageCopy } from "./staging.ts";

/** `__u` is true for an upsert; the other columns are the relation's, named `c<attnum>`. */
export const UPSERT = "__u";

type HiddenPositions = ReadonlyMap<string, PositionSet>;

/** The delta of one relation in one statement. */
export interface DeltaState {
  readonly table: string;
  readonly rows: number;
  /** Whether its positions were known already. */
  readonly cached: boolean;
  /** Whether the table is kept for other statements; else it is a temporary one of the session. */
  readonly shared: boolean;
  /** The deletes of a file together with what the delta hides in it: the same object for the same two sets. */
  union(file: ScanFile, hidden: PositionSet): PositionSet;
  /** Positions that it hides in the snapshot's files, by local path. */
  hidden(session: EngineSession, metadata: TableMetadata, snapshotId: bigint): Promise<HiddenPositions>;
  release(): Promise<void>;
}

interface CacheEntry {
  readonly key: string;
  readonly table: string;
  readonly rows: number;
  readonly hidden: Map<bigint, Promise<HiddenPositions>>;
  users: number;
  stale: boolean;
}

export interface DeltaRequest {
  readonly connection: RawConnection;
  readonly session: EngineSession;
  readonly relation: ResolvedRelation;
  readonly lake: LakeState;
  readonly t: bigint;
  readonly predicates: readonly Predicate[];
  readonly signal?: AbortSignal;
}

export class DeltaReader {
  readonly #engine: Engine;
  readonly #reader: LakeReader;
  readonly #cache = new Map<bigint, CacheEntry>();
  readonly #unions = new WeakMap<PositionSet, { deleted: PositionSet; union: PositionSet }>();

  constructor(engine: Engine, reader: LakeReader) {
    this.#engine = engine;
    this.#reader = reader;
  }

  /** Null when there is no row that concerns the statement. */
  async open(request: DeltaRequest): Promise<DeltaState | null> {
    const exact = keyConditions(request);
    if (exact !== null) return this.#fetch(request, exact);
    const print = await fingerprint(request);
    if (print === null) return null;
    const { relation, lake, t } = request;
    const key = `${t}|${print}|${relation.columns.map((c) => `${c.attnum}:${c.spec.name}:${storedDuckType(c.spec)}`).join(",")}`;
    let entry = this.#cache.get(lake.relationId);
    if (entry?.key !== key) {
      const made = await this.#stage(request, "", false);
      if (entry) await this.#retire(entry);
      entry = { key, table: made.table, rows: made.rows, hidden: new Map(), users: 0, stale: false };
      this.#cache.set(lake.relationId, entry);
    }
    return this.#share(request, entry);
  }

  #share(request: DeltaRequest, entry: CacheEntry): DeltaState {
    entry.users += 1;
    return {
      table: entry.table,
      rows: entry.rows,
      cached: entry.hidden.size > 0,
      shared: true,
      union: (file, hidden) => this.#union(file, hidden),
      hidden: (session, metadata, snapshotId) => {
        let found = entry.hidden.get(snapshotId);
        if (!found) {
          found = this.#locate(request, session, entry.table, metadata, snapshotId);
          entry.hidden.clear();
          entry.hidden.set(snapshotId, found);
          found.catch(() => entry.hidden.delete(snapshotId));
        }
        return found;
      },
      release: async () => {
        entry.users -= 1;
        if (entry.stale && entry.users === 0) await this.#drop(entry.table);
      },
    };
  }

  #union(file: ScanFile, hidden: PositionSet): PositionSet {
    const deleted = file.deletes;
    if (!deleted || deleted.isEmpty) return hidden;
    const known = this.#unions.get(hidden);
    if (known && known.deleted === deleted) return known.union;
    const union = hidden.union(deleted);
    this.#unions.set(hidden, { deleted, union });
    return union;
  }

  async #retire(entry: CacheEntry): Promise<void> {
    entry.stale = true;
    if (entry.users === 0) await this.#drop(entry.table);
  }

  #drop(table: string): Promise<void> {
    return this.#engine.use((session) => session.run(`DROP TABLE IF EXISTS ${duckIdent(table)}`)).catch(() => {});
  }

  /** The few rows of a statement that names the primary key. */
  async #fetch(request: DeltaRequest, conditions: string): Promise<DeltaState | null> {
    const made = await this.#stage(request, conditions, true);
    if (made.rows === 0) return null;
    return {
      table: made.table,
      rows: made.rows,
      cached: false,
      shared: false,
      union: (file, hidden) => this.#union(file, hidden),
      hidden: (session, metadata, snapshotId) => this.#locate(request, session, made.table, metadata, snapshotId),
      release: async () => {},
    };
  }

  async #stage(
    request: DeltaRequest,
    conditions: string,
    temporary: boolean,
  ): Promise<{ table: string; rows: number }> {
    const { connection, session, relation, lake, t, signal } = request;
    const columns = relation.columns.map((c) => deltaPlan(c, lake));
    const list = columns.map((c) => c.sql).join(", ");
    const where = conditions === "" ? "" : ` AND ${conditions}`;
    return stageCopy({
      connection,
      session,
      table: this.#engine.freshName("delta"),
      temporary,
      select: `SELECT op = 'U', ${list} FROM ${deltaTable(lake.relationId)} WHERE key < ${t}${where}`,
      columns: [UPSERT_PLAN, ...columns.map((c) => c.plan)],
      ...(signal ? { signal } : {}),
    });
  }

  /** Where the delta's keys are in the lake. Reads the key columns of the files whose tier keys can be among the delta's. */
  async #locate(
    request: DeltaRequest,
    session: EngineSession,
    table: string,
    metadata: TableMetadata,
    snapshotId: bigint,
  ): Promise<HiddenPositions> {
    const { relation, lake } = request;
    const pk = relation.columns.filter((c) => lake.pkAttnums.includes(c.attnum));
    const filter = await keyFilter(session, table, relation, lake);
    const scan = await this.#reader.scan(metadata, snapshotId, filter);
    try {
      if (scan.files.length === 0) return new Map();
      const names = pk.map((c) => duckIdent(c.spec.name));
      const rows = positionedSql(scan.files, scanFields(relation, lake, metadata, pk), names);
      const on = pk.map((c) => `l.${duckIdent(c.spec.name)} = d.${duckIdent(`c${c.attnum}`)}`).join(" AND ");
      const result = await session.query(
        `SELECT l.__file, l.__pos FROM (${rows}) l SEMI JOIN ${duckIdent(table)} d ON ${on}`,
      );
      return await collect(result.batches(), scan.files);
    } finally {
      scan.release();
    }
  }
}

async function collect(
  batches: AsyncIterable<{ length: number; columns: readonly unknown[] }>,
  files: readonly ScanFile[],
): Promise<HiddenPositions> {
  const byFile = new Map<number, number[]>();
  for await (const batch of batches) {
    const [file, pos] = batch.columns as [{ data: BigInt64Array }, { data: BigInt64Array }];
    for (let i = 0; i < batch.length; i++) {
      const index = Number(file.data[i]);
      let list = byFile.get(index);
      if (!list) byFile.set(index, (list = []));
      list.push(Number(pos.data[i]));
    }
  }
  return new Map([...byFile].map(([index, positions]) => [files[index]?.path ?? "", new PositionSet(positions)]));
}

const IN_LIMIT = 500;

/** A filter on the tier key that lets every file pass that may hold a key of the delta. */
async function keyFilter(
  session: EngineSession,
  table: string,
  relation: ResolvedRelation,
  lake: LakeState,
): Promise<Expr> {
  const column = relation.columns.find((c) => c.attnum === lake.keyAttnum);
  const fieldId = column ? fieldIdOf(lake, column) : null;
  if (!column || fieldId === null) return and();
  const name = duckIdent(`c${column.attnum}`);
  const from = `FROM ${duckIdent(table)}`;
  const few = await session.rows(`SELECT DISTINCT ${name} ${from} LIMIT ${IN_LIMIT + 1}`);
  if (few.length <= IN_LIMIT) {
    return { op: "in", fieldId, values: few.map((r) => r[0] as number | bigint) };
  }
  const [range] = await session.rows(`SELECT min(${name}), max(${name}) ${from}`);
  const [low, high] = [range?.[0] as number | bigint, range?.[1] as number | bigint];
  return and({ op: ">=", fieldId, value: low }, { op: "<=", fieldId, value: high });
}

/** Conditions of a statement that fixes the whole primary key, on the delta's columns; null for any other. */
function keyConditions({ predicates, lake }: DeltaRequest): string | null {
  const fixed = new Set<number>();
  const conditions: string[] = [];
  for (const predicate of predicates) {
    if (!columnsOf(predicate).every((c) => lake.pkAttnums.includes(c.attnum))) continue;
    const sql = toPgCondition(predicate, (c) => deltaColumn(c.attnum));
    if (sql === null) continue;
    conditions.push(sql);
    if (predicate.op === "=" || predicate.op === "in") fixed.add(predicate.column.attnum);
  }
  // A part of the key besides the tier key is enough to find few rows.
  const others = lake.pkAttnums.filter((n) => n !== lake.keyAttnum);
  const isPoint = fixed.size > 0 && (others.length === 0 ? fixed.size > 0 : others.every((n) => fixed.has(n)));
  return isPoint ? conditions.join(" AND ") : null;
}

async function fingerprint({ connection, lake, t, signal }: DeltaRequest): Promise<string | null> {
  const results = await connection.query(
    `SELECT count(*), sum(version), max(version), sum(hashint8extended(version, 0))
     FROM ${deltaTable(lake.relationId)} WHERE key < ${t}`,
    signal ? { signal } : {},
  );
  const row = results[0]?.rows[0] ?? [];
  return row[0] === "0" ? null : row.join("|");
}

const UPSERT_PLAN: PgColumnPlan = {
  name: UPSERT,
  typeOid: 16,
  typmod: -1,
  spec: { name: UPSERT, kind: "bool" },
  wire: "bool",
  asText: false,
};

/** A column of the delta: typed as the value's own base type, or text; before it is followed, in the jsonb `x`. */
function deltaPlan(column: SeamColumn, lake: LakeState): { attnum: number; sql: string; plan: PgColumnPlan } {
  const { attnum, plan, table } = column;
  const isText = table.deltaType === "text";
  const name = `c${attnum}`;
  const spec = { ...plan.spec, name };
  const delta: PgColumnPlan = { ...plan, name, spec, wire: isText ? "text" : plan.wire, asText: false };
  // The cast matters only until the worker has followed a change of the type.
  if (lake.followed.has(attnum)) return { attnum, sql: `${deltaColumn(attnum)}::${table.deltaType}`, plan: delta };
  const missing = table.missingValue === null ? "NULL" : quoteLiteral(table.missingValue);
  const sql = `CASE WHEN x ? '${attnum}' THEN x ->> '${attnum}' ELSE ${missing} END`;
  return { attnum, sql: `(${sql})::${table.deltaType}`, plan: delta };
}
