/**
 * One table of a statement: what is read of it from which tier, and the view of DuckDB that puts it together:
 *
 *     heap rows with key >= T  ∪  lake rows at S that the delta does not hide  ∪  the delta's upserts
 */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import type { Lsn } from "@spillway/base/lsn";
import { snapshotAsOf, snapshotById } from "@spillway/lake/metadata";
import type { TableMetadata } from "@spillway/lake/model";
import { TRUE } from "@spillway/lake/scan/scan";
import { selectList } from "@spillway/pg/columns/plan";
import type { RawConnection } from "@spillway/pg/wire/connection";
import {
  type DeleteLease,
  DeleteTables,
  duckIdent,
  type Engine,
  type EngineSession,
  emptySql,
  hiddenSql,
  scanSql,
  type ScanField,
  type ScanFile,
  type ScanOptions,
} from "../engine/engine.ts";
import { requireSnapshotAtLsn } from "../catalog/catalog.ts";
import { DeltaReader, type DeltaState, UPSERT } from "./delta.ts";
import { fieldIdOf, scanFields } from "./lake-fields.ts";
import { LakeReader, type LakeScan } from "./lake-reader.ts";
import { type Predicate, toLakeExpr } from "./predicates.ts";
import type { LakeState, ResolvedRelation, SeamColumn } from "./resolve.ts";
import { stageCopy } from "./staging.ts";
import { type Parts, partsOf } from "./table-parts.ts";

/** Reads the lake alone, as it was. */
export type AsOf =
  | { readonly snapshotId: bigint }
  | { readonly timestampMs: number }
  /** Mirrored tables only: with exactly the commits that end at or before a WAL position. */
  | { readonly lsn: Lsn };

export interface TableRequest {
  readonly relation: ResolvedRelation;
  /** The columns that the statement may use. */
  readonly columns: readonly SeamColumn[];
  readonly predicates: readonly Predicate[];
  readonly asOf: AsOf | null;
  /** Of the heap's rows only the first: ` ORDER BY … LIMIT n`; see heap-limit.ts. */
  readonly heapLimit?: string;
  /** Leaves the heap out: only rows below T are wanted. */
  readonly coldOnly?: boolean;
  /** Instead of rows: partial aggregates of both tiers; see aggregate.ts. */
  readonly partials?: PartialsRequest;
}

export interface PartialsRequest {
  /** Computed by Postgres. */
  readonly heapQuery: HeapQuery;
  /** Told of the lake's part before Postgres is asked for the heap's, so that both are computed at the same time. */
  onLake(lake: LakePart): void;
}

/** The rows below the cut-line. */
export interface LakePart {
  readonly columns: readonly SeamColumn[];
  /** SQL of the rows; null when there is none. */
  readonly lakeSql: string | null;
  /** SQL of their number, known without reading them; null when predicates left files out. */
  readonly lakeCountSql: string | null;
  /** Whether other sessions can run `lakeSql`. */
  readonly shared: boolean;
  /** The same rows as a difference, when that is the cheaper way to aggregate them; else null. */
  readonly difference: LakeDifference | null;
}

export interface LakeDifference {
  /** All rows, deleted ones too. */
  readonly allSql: string;
  /** Told apart from other deletes of the same files. */
  readonly id: string;
  /** The deleted rows among them. */
  hiddenSql(): Promise<string>;
}

/** What Postgres computes of the heap's rows, and the columns that come back. */
export interface HeapQuery {
  /** Made into `SELECT <select> FROM … WHERE … <tail>`. */
  readonly select: string;
  readonly tail: string;
  readonly columns: Parameters<typeof stageCopy>[0]["columns"];
}

export interface TableStats {
  readonly table: string;
  readonly tier: "heap" | "lake" | "both";
  readonly t: bigint | null;
  readonly snapshotId: bigint | null;
  readonly columns: readonly string[];
  readonly heapConditions: readonly string[];
  /** The part of an order and a limit that the heap was asked for; empty without one. */
  readonly heapLimit: string;
  readonly heapAggregated: boolean;
  readonly heapRows: number;
  readonly deltaRows: number;
  readonly deltaCached: boolean;
  readonly manifestsConsidered: number;
  readonly manifestsSkipped: number;
  readonly filesConsidered: number;
  readonly filesSkipped: number;
  readonly filesRead: number;
  readonly bytesConsidered: number;
  readonly bytesSkipped: number;
  readonly bytesRead: number;
  readonly lakeRowsConsidered: number;
  readonly lakeRowsSkipped: number;
  readonly lakeRows: number;
  readonly lakeFilter: boolean;
}

/** A table whose parts are at hand. */
export interface OpenTable extends LakePart {
  /** SQL of the heap's part; null when Postgres was not asked. */
  readonly heapSql: string | null;
  readonly stats: TableStats;
  /** Temporary tables of the session. */
  readonly temporary: readonly string[];
  release(): Promise<void>;
}

export interface TableReaderOptions {
  readonly engine: Engine;
  readonly reader: LakeReader;
}

const SAMPLE_ROWS = 65_536;
/** Rows that a group must stand for, so that aggregating early is worth it. */
const ROWS_PER_GROUP = 10;
const KNOWN_GROUPS = 1000;

export class TableReader {
  readonly #engine: Engine;
  readonly #reader: LakeReader;
  readonly #deletes: DeleteTables;
  readonly #delta: DeltaReader;
  readonly #fewGroups = new Map<string, boolean>();

  constructor({ engine, reader }: TableReaderOptions) {
    this.#engine = engine;
    this.#reader = reader;
    this.#deletes = new DeleteTables(engine);
    this.#delta = new DeltaReader(engine, reader);
  }

  /** Fetches what Postgres has, inside the connection's transaction, and plans the lake's part meanwhile. */
  async open(
    connection: RawConnection,
    session: EngineSession,
    request: TableRequest,
    signal?: AbortSignal,
  ): Promise<OpenTable> {
    const parts = partsOf(request);
    const lakeRead = parts.lake ? this.#planLake(request, parts.lake) : Promise.resolve(null);
    lakeRead.catch(() => {});
    const releases: (() => void | Promise<void>)[] = [];
    try {
      const readHeap = async (): Promise<Heap | null> =>
        parts.heap ? this.#heap(connection, session, request, parts.heap, signal) : null;
      let heap = request.partials ? null : await readHeap();
      const delta = parts.delta
        ? await this.#delta.open({
            connection,
            session,
            relation: request.relation,
            lake: must(request.relation.lake, "lake"),
            t: parts.delta,
            predicates: request.predicates,
            ...(signal ? { signal } : {}),
          })
        : null;
      if (delta) releases.push(() => delta.release());
      const lake = await lakeRead;
      if (lake) releases.push(() => lake.scan.release());
      const merged = lake ? await this.#merge(session, lake, delta) : null;
      const lease = await this.#deletes.lease(merged ?? []);
      releases.push(() => lease.release());
      const part: LakePart = {
        columns: request.columns,
        lakeSql: lakeSqlOf(request, lake, merged, lease.table, delta),
        lakeCountSql: countSqlOf(request, merged, delta),
        shared: !delta || delta.shared,
        difference: differenceOf(request, lake, merged, lease, delta),
      };
      if (request.partials) {
        request.partials.onLake(part);
        heap = await readHeap();
      }
      return {
        ...part,
        heapSql: heap ? heap.sql : null,
        stats: statsOf(request, parts, heap, lake, delta),
        temporary: [...(heap ? [heap.table] : []), ...(delta && !delta.shared ? [delta.table] : [])],
        release: async () => {
          for (const release of releases) await release();
        },
      };
    } catch (error) {
      for (const release of releases) await release();
      await lakeRead.then((lake) => lake?.scan.release()).catch(() => {});
      throw error;
    }
  }

  /**
   * Whether rows of the lake fall into few groups by these columns, judged by the rows of one file, once: what it
   * decides is only where the work is done.
   */
  async hasFewGroups(session: EngineSession, relation: ResolvedRelation, by: readonly SeamColumn[]): Promise<boolean> {
    const { lake } = relation;
    if (!lake || lake.metadataLocation === null || lake.s === null) return false;
    if (by.length === 0) return true;
    const key = `${lake.relationId}|${by.map((c) => `${c.attnum}:${c.plan.typeOid}`).join(",")}`;
    const known = this.#fewGroups.get(key);
    if (known !== undefined) return known;
    const read = must(
      await this.#planLake({ relation, columns: by, predicates: [], asOf: null }, { snapshotId: lake.s }),
      "lake",
    );
    try {
      const [file] = read.scan.files.toSorted((a, b) => Number(b.rows - a.rows));
      if (!file) return false;
      const fields = scanFields(relation, lake, read.metadata, by);
      const rows = scanSql([{ path: file.path, rows: file.rows }], fields, null);
      const names = by.map((c) => duckIdent(c.spec.name)).join(", ");
      const sample = `SELECT hash(${names}) AS h FROM (${rows}) LIMIT ${SAMPLE_ROWS}`;
      const [found] = await session.rows(`SELECT count(*), count(DISTINCT h) FROM (${sample})`);
      const few = Number(found?.[1]) * ROWS_PER_GROUP <= Number(found?.[0]);
      if (this.#fewGroups.size >= KNOWN_GROUPS) this.#fewGroups.clear();
      this.#fewGroups.set(key, few);
      return few;
    } finally {
      read.scan.release();
    }
  }

  async #heap(
    connection: RawConnection,
    session: EngineSession,
    request: TableRequest,
    conditions: readonly string[],
    signal: AbortSignal | undefined,
  ): Promise<Heap> {
    const { relation, columns } = request;
    const heapQuery = request.partials?.heapQuery;
    const where = conditions.length === 0 ? "" : ` WHERE ${conditions.join(" AND ")}`;
    const plans = heapQuery?.columns ?? columns.map((c) => c.plan);
    const list = heapQuery?.select ?? selectList(plans);
    const staged = await stageCopy({
      connection,
      session,
      table: this.#engine.freshName("heap"),
      temporary: true,
      select: `SELECT ${list} FROM ${relation.sql}${where}${heapQuery ? ` ${heapQuery.tail}` : (request.heapLimit ?? "")}`,
      columns: plans,
      ...(signal ? { signal } : {}),
    });
    const names = plans.map((p) => duckIdent(p.spec.name)).join(", ");
    return { ...staged, sql: `SELECT ${names} FROM ${duckIdent(staged.table)}` };
  }

  async #planLake(request: TableRequest, asOf: AsOf): Promise<LakeRead | null> {
    const lake = must(request.relation.lake, "lake");
    if (lake.metadataLocation === null) return null;
    const metadata = await this.#reader.metadata(lake.metadataLocation);
    const snapshotId = snapshotIdOf(request.relation, metadata, asOf);
    const filter = toLakeExpr(request.predicates, (c) => fieldIdOf(lake, c));
    const scan = await this.#reader.scan(metadata, snapshotId, filter);
    return { metadata, snapshotId, scan, filtered: filter.op !== TRUE.op };
  }

  /** The files with what the delta hides added to their deletes. */
  async #merge(session: EngineSession, lake: LakeRead, delta: DeltaState | null): Promise<readonly ScanFile[]> {
    const { files } = lake.scan;
    if (!delta || files.length === 0) return files;
    const hidden = await delta.hidden(session, lake.metadata, lake.snapshotId);
    return files.map((file) => {
      const positions = hidden.get(file.path);
      return positions ? { path: file.path, rows: file.rows, deletes: delta.union(file, positions) } : file;
    });
  }
}

interface Heap {
  readonly table: string;
  readonly rows: number;
  readonly sql: string;
}

interface LakeRead {
  readonly metadata: TableMetadata;
  readonly snapshotId: bigint;
  readonly scan: LakeScan;
  readonly filtered: boolean;
}

function snapshotIdOf(relation: ResolvedRelation, metadata: TableMetadata, asOf: AsOf): bigint {
  if ("lsn" in asOf) {
    const { lake } = relation;
    // Corrections of what the heap has dropped have no position.
    if (!lake?.mirror || lake.t !== null) {
      throw new SpillwayError("as_of_unsupported", `${relation.sql} has no lake that follows the WAL as a whole.`);
    }
    return requireSnapshotAtLsn(metadata, asOf.lsn, lake.mirror.frontier, relation.sql).snapshotId;
  }
  const snapshot =
    "snapshotId" in asOf ? snapshotById(metadata, asOf.snapshotId) : snapshotAsOf(metadata, asOf.timestampMs);
  if (snapshot) return snapshot.snapshotId;
  const what =
    "snapshotId" in asOf ? `snapshot ${asOf.snapshotId}` : `snapshot at ${new Date(asOf.timestampMs).toISOString()}`;
  throw new SpillwayError("lake_snapshot_unknown", `The lake table of ${relation.sql} has no ${what}.`);
}

function lakeSqlOf(
  request: TableRequest,
  read: LakeRead | null,
  files: readonly ScanFile[] | null,
  deleteTable: string | null,
  delta: DeltaState | null,
): string | null {
  const parts: string[] = [];
  if (read && files && files.length > 0) {
    const { fields, options } = scanOf(request, read);
    parts.push(scanSql(files, fields, deleteTable, options));
  }
  if (delta) {
    const list = request.columns.map((c) => `${duckIdent(`c${c.attnum}`)} AS ${duckIdent(c.spec.name)}`).join(", ");
    parts.push(`SELECT ${list} FROM ${duckIdent(delta.table)} WHERE ${UPSERT}`);
  }
  return parts.length === 0 ? null : parts.join(" UNION ALL ");
}

function scanOf(request: TableRequest, read: LakeRead): { fields: ScanField[]; options: ScanOptions } {
  const { relation, columns } = request;
  const lake = must(relation.lake, "lake");
  // As it was, the lake is read alone, with all that it holds.
  const where = request.asOf === null ? keyBelow(relation, lake) : null;
  return { fields: scanFields(relation, lake, read.metadata, columns), options: where === null ? {} : { where } };
}

/** Deleted rows that are worth keeping beside: few among those of the files, and few at all. */
const HIDDEN_SHARE = 0.1;
const HIDDEN_ROWS = 1_000_000;

/**
 * To aggregate all rows and take the deleted ones off again costs less than to look each row up among the deleted: but the
 * deleted rows must be read first, so only for deletes that were met before.
 */
function differenceOf(
  request: TableRequest,
  read: LakeRead | null,
  files: readonly ScanFile[] | null,
  lease: DeleteLease,
  delta: DeltaState | null,
): LakeDifference | null {
  if (!read || !files || lease.table === null || lease.leases < 2 || request.columns.length === 0) return null;
  const all = files.reduce((sum, f) => sum + Number(f.rows), 0);
  if (lease.rows > HIDDEN_ROWS || lease.rows > all * HIDDEN_SHARE) return null;
  const { fields, options } = scanOf(request, read);
  const select = hiddenSql(files, fields, lease.table, options);
  const bare = files.map(({ path, rows }) => ({ path, rows }));
  return {
    allSql: must(lakeSqlOf(request, read, bare, null, delta), "rows"),
    id: lease.table,
    hiddenSql: async () => `SELECT * FROM ${await lease.hidden(select, fields.length)}`,
  };
}

/** Rows less deleted and hidden positions, and the delta's upserts. */
function countSqlOf(request: TableRequest, files: readonly ScanFile[] | null, delta: DeltaState | null): string | null {
  const { lake } = request.relation;
  if (request.predicates.length > 0 || (request.asOf === null && lake?.mode === "mirrored")) return null;
  const live = (files ?? []).reduce((sum, f) => sum + f.rows - BigInt(f.deletes?.cardinality ?? 0), 0n);
  return delta ? `${live} + (SELECT count(*) FROM ${duckIdent(delta.table)} WHERE ${UPSERT})` : String(live);
}

/** Only a mirror's lake holds rows at or above T as well. */
function keyBelow(relation: ResolvedRelation, lake: LakeState): string | null {
  if (lake.mode !== "mirrored" || lake.t === null) return null;
  const key = must(
    relation.columns.find((c) => c.attnum === lake.keyAttnum),
    "key",
  );
  const name = duckIdent(key.spec.name);
  const epoch =
    lake.keyKind === "int" ? name : lake.keyKind === "date" ? `(${name} - DATE '1970-01-01')` : `epoch_us(${name})`;
  return `${epoch} < ${lake.t}`;
}

/** The view of a table whose columns are all that the statement may use. */
export function unionSql(table: OpenTable): string {
  const parts = [table.heapSql, table.lakeSql].filter((sql) => sql !== null);
  return parts.length === 0 ? emptySql(table.columns.map((c) => c.spec)) : parts.join(" UNION ALL ");
}

function statsOf(
  request: TableRequest,
  parts: Parts,
  heap: { rows: number } | null,
  lake: LakeRead | null,
  delta: DeltaState | null,
): TableStats {
  const stats = lake?.scan.stats;
  const files = lake?.scan.files ?? [];
  return {
    table: `${request.relation.schema}.${request.relation.name}`,
    tier: heap && (lake ?? delta) ? "both" : heap ? "heap" : "lake",
    t: request.relation.lake?.t ?? null,
    snapshotId: lake?.snapshotId ?? null,
    columns: request.columns.map((c) => c.spec.name),
    heapConditions: parts.heap ?? [],
    heapLimit: heap ? (request.heapLimit ?? "").trim() : "",
    heapAggregated: request.partials !== undefined && heap !== null,
    heapRows: heap?.rows ?? 0,
    deltaRows: delta?.rows ?? 0,
    deltaCached: delta?.cached ?? false,
    manifestsConsidered: stats?.manifestsConsidered ?? 0,
    manifestsSkipped: stats?.manifestsSkipped ?? 0,
    filesConsidered: stats?.filesConsidered ?? 0,
    filesSkipped: stats?.filesSkipped ?? 0,
    filesRead: files.length,
    bytesConsidered: stats?.bytesConsidered ?? 0,
    bytesSkipped: stats?.bytesSkipped ?? 0,
    bytesRead: lake?.scan.bytesRead ?? 0,
    lakeRowsConsidered: stats?.rowsConsidered ?? 0,
    lakeRowsSkipped: stats?.rowsSkipped ?? 0,
    lakeRows: files.reduce((sum, f) => sum + Number(f.rows), 0) - (lake?.scan.deletedRows ?? 0),
    lakeFilter: lake?.filtered ?? false,
  };
}
