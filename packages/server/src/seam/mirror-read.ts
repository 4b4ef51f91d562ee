/**
 * Where a statement reads its mirrored tables from. The rule (docs/internals/mirror.md §7): one statement is one point in time.
 * The heap is the moment of the statement's snapshot; the lake is the moment F, the same for all mirrored tables. So all of
 * them come from the one or from the other, and from the heap whenever anything else of the statement is read from Postgres.
 *
 *     freshness        from the lake
 *     (none)           when that is cheaper, the wait included, once F has passed this statement's moment
 *     strict           once F has passed this statement's moment, or not at all
 *     within so long   when that is cheaper, and F is not older
 */
import { isSpillwayError } from "@spillway/base/errors";
import { type Lsn, parseLsn } from "@spillway/base/lsn";
import type { JsonValue } from "@spillway/lake/json";
import { localPathOf, normalizeLocation } from "@spillway/lake/store/store";
import { selectList } from "@spillway/pg/columns/plan";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { fieldIdOf, scanFields } from "./lake-fields.ts";
import type { LakeReader } from "./lake-reader.ts";
import {
  expectedWaitMs,
  type HeapEstimate,
  heapMs,
  isLakeCheaper,
  LEAST_LAKE_MS,
  lakeMs,
  type LakeEstimate,
} from "./mirror-cost.ts";
import type { MirrorState } from "./mirror-state.ts";
import { toLakeExpr, toPgCondition } from "./predicates.ts";
import type { LakeState } from "./resolve.ts";
import type { HeapQuery, TableRequest } from "./table-read.ts";

/** How new the rows of mirrored tables must be. */
export type Freshness =
  | {
      readonly kind: "strict";
      /** The longest wait for the lake; then the heap answers. Default 5 s. */
      readonly timeoutMs?: number;
    }
  | { readonly kind: "within"; readonly ms: number };

export type MirrorWhy =
  /** By cost. */
  | "cheaper"
  /** The lake: F has passed the statement's moment, as was asked. */
  | "fresh"
  /** The heap, because: other tables of the statement are read from Postgres, */
  | "other_tables"
  /** it is one of several statements of one snapshot, */
  | "in_transaction"
  /** F did not pass the statement's moment in time, */
  | "not_in_time"
  /** F is older than allowed, */
  | "too_old"
  /** a table does not follow the stream, or was rewritten and the pump has not said yet what that means, */
  | "not_followed"
  /** a table joined the stream at this moment, */
  | "frontiers_differ"
  /** the lake has nothing yet, */
  | "empty"
  /** the lake cannot be read under the table's columns as they are now. */
  | "columns_changed";

export interface MirrorStats {
  readonly tier: "heap" | "lake";
  readonly why: MirrorWhy;
  /** The lake's moment. */
  readonly frontier: Lsn | null;
  readonly ageMs: number | null;
  readonly waitedMs: number;
  /** Estimates; null where nobody had to know. */
  readonly heapMs: number | null;
  readonly lakeMs: number | null;
}

/** Wait until F has passed the position, begin anew, and ask `afterWait`. */
export interface MirrorWait {
  readonly wait: Lsn;
  readonly timeoutMs: number;
  /** The choice, if F has passed it in time. */
  readonly so: MirrorStats;
}

export type MirrorChoice = MirrorStats | MirrorWait;

export interface MirrorQuestion {
  readonly connection: RawConnection;
  readonly requests: readonly TableRequest[];
  readonly freshness: Freshness | null;
  /** The statement is one of several in one snapshot. */
  readonly isFixed: boolean;
  /** What Postgres would compute instead of giving rows, by request. */
  readonly aggregated: (index: number) => HeapQuery | undefined;
}

const STRICT_TIMEOUT_MS = 5_000;
/** Without a demand a wait is only worth while it is short, and somebody moves F, which happens every five seconds at the least. */
const LONGEST_WAIT_MS = 2_000;
const FOLLOWED_MS = 15_000;

/** Read from the heap or from the lake, as one sees fit: its heap is whole. */
export function isMirrored({ relation, asOf }: TableRequest): boolean {
  return asOf === null && relation.lake?.mode === "mirrored" && !relation.lake.heapRetention;
}

/** The mirrored tables' lake, at F: the snapshot that belongs to it. */
export function atFrontier<T extends TableRequest>(requests: readonly T[]): T[] {
  return requests.map((r) => {
    const s = r.relation.lake?.s ?? null;
    return isMirrored(r) && s !== null ? { ...r, asOf: { snapshotId: s } } : r;
  });
}

export class MirrorReader {
  readonly #reader: LakeReader;

  constructor(reader: LakeReader) {
    this.#reader = reader;
  }

  /** Null when the statement has no mirrored table. In the connection's transaction. */
  async choose(question: MirrorQuestion): Promise<MirrorChoice | null> {
    const { requests, freshness } = question;
    const mirrored = requests.filter(isMirrored);
    if (mirrored.length === 0) return null;
    if (question.isFixed) return heap("in_transaction", mirrored);
    const obstacle = obstacleOf(requests, mirrored);
    if (obstacle !== null) return heap(obstacle, mirrored);
    if (freshness?.kind === "strict") {
      const { lsn } = await lagOf(question.connection, mirrored);
      if (lsn === null) return heap("not_in_time", mirrored);
      return { wait: lsn, timeoutMs: freshness.timeoutMs ?? STRICT_TIMEOUT_MS, so: lake("fresh", mirrored) };
    }
    return this.#byCost(question, mirrored);
  }

  /** In a transaction that began after the wait: what was chosen, if it is still possible. */
  async afterWait(requests: readonly TableRequest[], { wait, so }: MirrorWait, waitedMs: number): Promise<MirrorStats> {
    const mirrored = requests.filter(isMirrored);
    const known = { waitedMs, heapMs: so.heapMs, lakeMs: so.lakeMs };
    const obstacle = obstacleOf(requests, mirrored) ?? (await this.#unreadable(mirrored));
    if (obstacle !== null) return { ...heap(obstacle, mirrored), ...known };
    const frontier = mirrored[0]?.relation.lake?.mirror?.frontier ?? 0n;
    if (frontier < wait) return { ...heap("not_in_time", mirrored), ...known };
    return { ...lake(so.why, mirrored), ...known };
  }

  async #byCost(question: MirrorQuestion, mirrored: readonly TableRequest[]): Promise<MirrorChoice> {
    const { connection, requests, freshness, aggregated } = question;
    const age = oldest(mirrored)?.ageMs ?? null;
    const oldestAllowedMs = freshness?.kind === "within" ? freshness.ms : FOLLOWED_MS;
    if (age === null || age > oldestAllowedMs) return heap("too_old", mirrored);
    let heapCost = 0;
    for (const [i, request] of requests.entries()) {
      if (isMirrored(request)) heapCost += heapMs(await estimateHeap(connection, request, aggregated(i)));
    }
    const costs = { heapMs: heapCost, lakeMs: null };
    if (heapCost < LEAST_LAKE_MS) return { ...heap("cheaper", mirrored), ...costs };
    // Only now the lake is looked at: a point look-up must not cost a read of its metadata.
    const unreadable = await this.#unreadable(mirrored);
    if (unreadable !== null) return { ...heap(unreadable, mirrored), ...costs };
    let lakeCost = 0;
    for (const request of mirrored) lakeCost += lakeMs(await this.#estimateLake(request));
    const both = { heapMs: heapCost, lakeMs: lakeCost };
    if (freshness !== null) {
      return { ...(isLakeCheaper(heapCost, lakeCost, 0) ? lake : heap)("cheaper", mirrored), ...both };
    }
    const { lsn, bytes } = await lagOf(connection, mirrored);
    const waitMs = expectedWaitMs(bytes);
    if (lsn === null || waitMs > LONGEST_WAIT_MS || !isLakeCheaper(heapCost, lakeCost, waitMs)) {
      return { ...heap("cheaper", mirrored), ...both };
    }
    return { wait: lsn, timeoutMs: LONGEST_WAIT_MS, so: { ...lake("cheaper", mirrored), ...both } };
  }

  /** Why the lake cannot be read as it is: nothing was ever written to it, or its columns are not those of the table. */
  async #unreadable(mirrored: readonly TableRequest[]): Promise<MirrorWhy | null> {
    if (mirrored.some((r) => r.relation.lake?.s === null || r.relation.lake?.metadataLocation === null)) return "empty";
    for (const { relation, columns } of mirrored) {
      if (relation.lake === null) continue;
      try {
        scanFields(relation, relation.lake, await this.#metadata(relation.lake), columns);
      } catch (error) {
        if (!isSpillwayError(error, "seam_columns_changed")) throw error;
        return "columns_changed";
      }
    }
    return null;
  }

  async #estimateLake({ relation, columns, predicates }: TableRequest): Promise<LakeEstimate> {
    const { lake: state } = relation;
    if (state === null || state.s === null) return { files: 0, bytes: 0, rows: 0, remoteBytes: 0 };
    const metadata = await this.#metadata(state);
    const plan = await this.#reader.plan(
      metadata,
      state.s,
      toLakeExpr(predicates, (c) => fieldIdOf(state, c)),
    );
    const bytes = plan.tasks.reduce((sum, t) => sum + Number(t.dataFile.fileSizeBytes), 0);
    const isLocal = plan.tasks.every((t) => localPathOf(normalizeLocation(t.dataFile.path)) !== null);
    return {
      files: plan.tasks.length + plan.tasks.filter((t) => t.deletes.length > 0).length,
      bytes: bytes * Math.min(1, columns.length / Math.max(1, relation.columns.length)),
      rows: plan.tasks.reduce((sum, t) => sum + Number(t.dataFile.recordCount), 0),
      remoteBytes: isLocal ? 0 : bytes,
    };
  }

  #metadata(state: LakeState): ReturnType<LakeReader["metadata"]> {
    return this.#reader.metadata(state.metadataLocation ?? "");
  }
}

/** Why the lake is out of the question, by what the catalog says. */
function obstacleOf(requests: readonly TableRequest[], mirrored: readonly TableRequest[]): MirrorWhy | null {
  if (requests.some((r) => !isMirrored(r) && r.asOf === null)) return "other_tables";
  const states = mirrored.map((r) => r.relation.lake?.mirror ?? null);
  if (states.some((s) => s?.isSound !== true)) return "not_followed";
  return new Set(states.map((s) => s?.frontier)).size > 1 ? "frontiers_differ" : null;
}

function oldest(mirrored: readonly TableRequest[]): MirrorState | null {
  const states = mirrored.flatMap((r) => r.relation.lake?.mirror ?? []);
  return states.toSorted((a, b) => (a.frontier < b.frontier ? -1 : 1))[0] ?? null;
}

const UNKNOWN = { waitedMs: 0, heapMs: null, lakeMs: null };

function heap(why: MirrorWhy, mirrored: readonly TableRequest[]): MirrorStats {
  const state = oldest(mirrored);
  return { tier: "heap", why, frontier: state?.frontier ?? null, ageMs: state?.ageMs ?? null, ...UNKNOWN };
}

function lake(why: MirrorWhy, mirrored: readonly TableRequest[]): MirrorStats {
  return { ...heap(why, mirrored), tier: "lake" };
}

/** Where the WAL ends now: whatever was acknowledged before is at or before it. Null on a standby, whose WAL has another end. */
async function lagOf(
  connection: RawConnection,
  mirrored: readonly TableRequest[],
): Promise<{ lsn: Lsn | null; bytes: number }> {
  const [found] = await connection.query(
    "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL ELSE pg_catalog.pg_current_wal_insert_lsn() END",
  );
  const text = found?.rows[0]?.[0];
  if (text === null || text === undefined) return { lsn: null, bytes: 0 };
  const lsn = parseLsn(text);
  return { lsn, bytes: Number(lsn - (oldest(mirrored)?.frontier ?? 0n)) };
}

/** What Postgres's planner expects of the heap's part, as it would be asked for. */
async function estimateHeap(
  connection: RawConnection,
  { relation, columns, predicates }: TableRequest,
  aggregated: HeapQuery | undefined,
): Promise<HeapEstimate> {
  const conditions = predicates.map((p) => toPgCondition(p)).filter((c) => c !== null);
  const where = conditions.length === 0 ? "" : ` WHERE ${conditions.join(" AND ")}`;
  const list = aggregated?.select ?? selectList(columns.map((c) => c.plan));
  const select = `SELECT ${list} FROM ${relation.sql}${where}${aggregated ? ` ${aggregated.tail}` : ""}`;
  const [found] = await connection.query(`EXPLAIN (FORMAT JSON) ${select}`);
  return readEstimate(JSON.parse(found?.rows[0]?.[0] ?? "[]") as JsonValue);
}

/** Source: https://www.postgresql.org/docs/current/sql-explain.html; the numbers are those of the plan's root. */
function readEstimate(explained: JsonValue): HeapEstimate {
  const root = (explained as { Plan?: Record<string, unknown> }[])[0]?.Plan ?? {};
  return {
    cost: Number(root["Total Cost"] ?? 0),
    rows: Number(root["Plan Rows"] ?? 0),
    width: Number(root["Plan Width"] ?? 0),
  };
}
