/**
 * One flush: what the logs hold of all tables becomes snapshots, and one Postgres transaction publishes them with F. What
 * a single table cannot take stops that table; anything else ends the session, and the next one starts from F.
 */
import { must } from "@spillway/base/assert";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { faultPoint } from "@spillway/base/fault";
import { formatLsn, type Lsn } from "@spillway/base/lsn";
import { limiter } from "@spillway/lake/limiter";
import {
  abandonOp,
  appendFileLog,
  COPIED_KEY,
  type Db,
  type LakeCommit,
  LSN_KEY,
  openOp,
  putColumns,
  stageFiles,
} from "../../catalog/catalog.ts";
import { displayName, fileLog, type MoverContext } from "../context.ts";
import { commitPatiently } from "../publish.ts";
import { type Applied, Applier, needsIndex } from "./apply.ts";
import { OP, type Segment, type TableShape } from "./change-log.ts";
import type { KeyIndex } from "./key-index.ts";
import { LakeState } from "./lake-state.ts";
import { type Leaves, noteTruncated, putLeaves } from "./leaves.ts";
import type { MirrorTable, PendingSchema } from "./mirror-table.ts";
import { discerner } from "./resolve.ts";
import { CachedManifests } from "./manifests.ts";
import { loadCopied, stopMirrored } from "./state.ts";
import { type Written, writeTable } from "./write.ts";

export interface FlushPart {
  readonly table: MirrorTable;
  readonly segments: readonly Segment[];
  /** The columns as they were when the logs were cut: the stream goes on while the flush is under way. */
  readonly pending: PendingSchema | null;
}

export interface FlushInput {
  readonly parts: readonly FlushPart[];
  /** Leaves that changed up to here. */
  readonly leaves: readonly { readonly relationId: bigint; readonly leaves: Leaves }[];
  /** Tables whose F moves without rows. */
  readonly live: readonly MirrorTable[];
  readonly lsn: Lsn;
  readonly timeline: number;
  /** µs since 1970 of the last commit; null when none came. */
  readonly commitTime: bigint | null;
  /** How long ago it was that everything up to `lsn` was all there is; null when that is not known. */
  readonly ageMs: () => number | null;
}

export interface FlushResult {
  readonly tables: number;
  readonly rows: number;
  readonly deleted: number;
  readonly operations: number;
  /** Operations that were applied and bytes of new data files, of each table that had any. */
  readonly byTable: readonly { readonly table: string; readonly operations: number; readonly bytes: number }[];
}

/** What stops one table and not the pump. */
const TABLE_CODES = [
  "mirror_row_missing",
  "mirror_toast_missing",
  "mirror_schema_ambiguous",
  "mirror_identity_lost",
  "mirror_index_limit",
  "pg_value_unrepresentable",
  "pg_type_mismatch",
  "engine_value_refused",
  "schema_change_unsupported",
] as const;

export function isTableError(error: unknown): error is SpillwayError {
  return isSpillwayError(error, ...TABLE_CODES);
}

const MAX_ATTEMPTS = 10;
const PARALLEL_TABLES = 3;
/** Journal rows of flushes that are kept. */
const KEPT_OPS = 3600n;

export class Flusher {
  readonly #ctx: MoverContext;
  readonly #indexBytes: number;
  readonly #manifests: CachedManifests;
  #flushes = 0;
  /** Written for tables that failed then: garbage of the flush. */
  readonly #failedFiles: string[] = [];

  constructor(ctx: MoverContext, indexBytes: number) {
    this.#ctx = ctx;
    this.#indexBytes = indexBytes;
    this.#manifests = new CachedManifests(ctx.store);
  }

  /** Commits. Tables that could not be flushed have their `failure` set, and are stopped in the catalog. */
  async flush(input: FlushInput): Promise<FlushResult> {
    let parts = [...input.parts];
    for (let attempt = 1; attempt <= MAX_ATTEMPTS; attempt++) {
      const opId = await this.#ctx.pool.withClient((c) =>
        openOp(c, { kind: "mirror", relationId: null, lakeId: null, epoch: this.#ctx.epoch }),
      );
      const result = await this.#attempt(opId, input, parts).catch(async (error: unknown) => {
        // After this the operation cannot commit any more, if it has not.
        await this.#ctx.pool.withClient((c) => abandonOp(c, opId, "the flush failed")).catch(() => {});
        throw error;
      });
      if (result !== null) return result;
      await this.#ctx.pool.withClient((c) => abandonOp(c, opId, "a pointer was moved meanwhile"));
      parts = parts.filter(({ table }) => table.failure === null);
      // Somebody else changed a table: everything is read again, and the same operations are run on what is there now.
      for (const { table } of parts) table.forgetLake();
    }
    throw new SpillwayError("commit_conflict", `a lake table changed ${MAX_ATTEMPTS} times during a flush`);
  }

  /** Null on a conflict. */
  async #attempt(opId: bigint, input: FlushInput, parts: FlushInput["parts"]): Promise<FlushResult | null> {
    const prepared = await this.#prepareAll(opId, input, parts);
    await this.#stopFailed(input);
    faultPoint("mirror.files_written");
    if (!(await this.#commit(opId, input, prepared))) return null;
    for (const p of prepared) this.#settle(p);
    return {
      tables: prepared.filter((p) => p.written.move !== null).length,
      rows: prepared.reduce((sum, p) => sum + p.written.rows, 0),
      deleted: prepared.reduce((sum, p) => sum + p.written.deleted, 0),
      operations: prepared.reduce((sum, p) => sum + p.applied.operations, 0),
      byTable: prepared.map(({ table, applied, written }) => ({
        table: displayName(table.relation),
        operations: applied.operations,
        bytes: written.bytes,
      })),
    };
  }

  async #prepareAll(opId: bigint, input: FlushInput, parts: FlushInput["parts"]): Promise<Prepared[]> {
    const limit = limiter(PARALLEL_TABLES);
    const stage = batchedStager(this.#ctx, opId);
    const results = await Promise.all(
      parts.map((part) =>
        limit(async (): Promise<Prepared | null> => {
          const { table } = part;
          const files: string[] = [];
          const onFile = async (path: string): Promise<void> => {
            await stage(path);
            files.push(path);
          };
          try {
            return await this.#prepare(part, input, onFile);
          } catch (error) {
            table.forgetLake();
            if (!isTableError(error)) throw error;
            table.failure = error;
            this.#failedFiles.push(...files);
            return null;
          }
        }),
      ),
    );
    return results.filter((p): p is Prepared => p !== null);
  }

  async #prepare(
    { table, segments, pending }: FlushPart,
    input: FlushInput,
    onFile: (path: string) => Promise<void>,
  ): Promise<Prepared> {
    const ctx = this.#ctx;
    const lakeId = must(table.relation.lakeId, "lake table");
    const state = (table.state ??= await LakeState.load(ctx, lakeId));
    state.usedAtMs = ctx.clock.monotonicMs();
    // The stream goes on meanwhile, and may stop the table: what is part of this flush stays part of it.
    const joins = table.phase === "copied";
    if (joins && table.join === null) await this.#addCopy(table, state);
    const shape: TableShape | undefined = segments.at(-1)?.shape ?? table.feed.log?.shape;
    let index: KeyIndex | null = state.index;
    if (segments.length > 0 && (needsIndex(segments) || this.#isMixed(table, segments))) {
      const { shape: keyed } = must(segments[0], "segment");
      index = await state.ensureIndex(ctx, keyed, this.#indexBytes, new Set(table.replaced));
    }
    const discern = discerner(ctx, state, must(segments[0]?.shape ?? shape ?? EMPTY_SHAPE, "shape"));
    const applied = await new Applier(state, index, discern, table.join, table.replaced).run(segments);
    const written = await writeTable({
      ctx,
      state,
      applied,
      segments,
      shape: shape ?? EMPTY_SHAPE,
      copied: table.copied,
      summary: { ...summaryOf(input), ...(table.phase === "copied" ? { [COPIED_KEY]: "true" } : {}) },
      onFile,
      source: this.#manifests,
      initialText: (id) => table.relation.columns.find((c) => c.fieldId === id)?.initialDefault ?? null,
      updates: pending?.updates ?? [],
    });
    return { table, applied, written, segments, pending, joins };
  }

  /** Whether an insert may concern a row that a later range has as well. */
  #isMixed(table: MirrorTable, segments: readonly Segment[]): boolean {
    const { join } = table;
    return join !== null && join.min < join.max && segments.some((s) => s.commits.some((c) => c.lsn < join.max));
  }

  /** The copy's files become blocks of the state, those of older snapshots first. */
  async #addCopy(table: MirrorTable, state: LakeState): Promise<void> {
    const ranges = await this.#ctx.pool.withClient((c) => loadCopied(c, table.relation.relationId));
    // Of a table that is copied again: the old rows leave with the commit that brings the new ones.
    table.replaced = [...state.blocks];
    state.dropIndex();
    const blocks = ranges.flatMap((range) => range.files.map((file) => state.addFile(file, null, [], range.lsn)));
    table.copied = blocks;
    const lsns = ranges.map((r) => r.lsn);
    const max = lsns.reduce((a, b) => (a > b ? a : b), 0n);
    table.join = { min: lsns.reduce((a, b) => (a < b ? a : b), max), max };
  }

  /** Stops, in the catalog, what failed. */
  async #stopFailed(input: FlushInput): Promise<void> {
    for (const { table } of input.parts) {
      const { failure } = table;
      if (failure === null || table.phase === "needs_copy") continue;
      table.phase = "needs_copy";
      await this.#ctx.pool.withClient((c) => stopMirrored(c, table.relation.relationId, failure.code, failure.message));
      this.#ctx.log.error("mirror.table_stopped", { table: table.name, code: failure.code, error: failure });
    }
  }

  async #commit(opId: bigint, input: FlushInput, ready: readonly Prepared[]): Promise<boolean> {
    const ctx = this.#ctx;
    const doomed = ready.flatMap((p) => p.written.doomed);
    if (doomed.length > 0) await appendFileLog(fileLog(ctx), { op: opId, doomed: doomed.map((d) => d.path) });
    const stopped = new Set(input.parts.filter(({ table }) => table.failure !== null).map(({ table }) => table));
    const live = [...new Set([...input.live, ...ready.map((p) => p.table)])].filter((t) => !stopped.has(t));
    const commit: LakeCommit = {
      opId,
      epoch: ctx.epoch,
      pointers: ready.flatMap((p) => p.written.move ?? []),
      doomed,
      unused: [...this.#failedFiles.splice(0), ...ready.flatMap((p) => p.written.unused)],
      detail: { lsn: formatLsn(input.lsn), tables: ready.length },
      also: (tx) => this.#also(tx, opId, input, ready, live),
    };
    faultPoint("mirror.before_commit");
    const done = await commitPatiently(ctx, commit);
    if (done) faultPoint("mirror.after_commit");
    return done;
  }

  async #also(
    tx: Db,
    opId: bigint,
    input: FlushInput,
    ready: readonly Prepared[],
    live: readonly MirrorTable[],
  ): Promise<void> {
    const ids = live.map((t) => t.relation.relationId.toString());
    const ageMs = input.ageMs();
    await tx.query(
      `update spillway.seam set f_lsn = $2, f_timeline = $3, f_at = coalesce(clock_timestamp() - make_interval(secs => $4), f_at)
       where relation_id = any ($1::bigint[])`,
      [ids, formatLsn(input.lsn), input.timeline, ageMs === null ? null : ageMs / 1000],
    );
    const stageOps = ready.flatMap((p) => p.segments.flatMap((s) => (s.stageOp === null ? [] : s.stageOp.toString())));
    if (stageOps.length > 0) {
      await tx.query("delete from spillway.staged_file where op_id = any ($1::bigint[])", [stageOps]);
      await tx.query(
        "update spillway.journal set phase = 'committed', ended_at = now() where op_id = any ($1::bigint[])",
        [stageOps],
      );
    }
    for (const { relationId, leaves } of input.leaves) await putLeaves(tx, relationId, leaves);
    for (const { table, pending, joins } of ready) {
      if (pending !== null) await putColumns(tx, table.relation.relationId, pending.columns);
      if (joins) await joined(tx, table);
    }
    const truncated = ready.filter((p) => p.segments.some((s) => s.ops.includes(OP.truncate)));
    if (truncated.length > 0)
      await noteTruncated(
        tx,
        truncated.map((p) => p.table.relation.relationId),
      );
    if (++this.#flushes % 60 === 0) {
      await tx.query("delete from spillway.journal where kind = 'mirror' and phase = 'committed' and op_id < $1", [
        (opId - KEPT_OPS).toString(),
      ]);
    }
  }

  #settle({ table, written, pending, joins }: Prepared): void {
    written.settle();
    // What came meanwhile is made on top of it.
    if (table.pending === pending) table.pending = null;
    if (!joins) return;
    if (table.phase === "copied") table.phase = "live";
    table.holdLsn = null;
    table.copied = [];
    table.replaced = [];
    table.join = null;
    this.#ctx.log.info("mirror.joined", { table: table.name });
  }
}

const EMPTY_SHAPE: TableShape = { attnums: [], plans: [], fields: [], keyAt: [] };

interface Prepared {
  readonly table: MirrorTable;
  readonly applied: Applied;
  readonly written: Written;
  readonly segments: readonly Segment[];
  readonly pending: PendingSchema | null;
  /** Its copy is published with it. */
  readonly joins: boolean;
}

/** The copy is part of the table: the operation that kept its files is over. */
async function joined(tx: Db, table: MirrorTable): Promise<void> {
  const id = table.relation.relationId.toString();
  await tx.query(
    `update spillway.relation set state = 'active', stop_code = null, stop_reason = null, stopped_at = null
     where relation_id = $1`,
    [id],
  );
  await tx.query(
    "update spillway.mirror_table set phase = 'live', hold_lsn = null, copy_op = null, changed_at = now() where relation_id = $1",
    [id],
  );
  await tx.query("delete from spillway.mirror_range where relation_id = $1", [id]);
  if (table.copyOp === null) return;
  const op = table.copyOp.toString();
  // Files of parts that were interrupted.
  await tx.query(
    `insert into spillway.doomed_file (path, lake_id, op_id, doomed_xid)
     select path, $3, op_id, pg_current_xact_id() from spillway.staged_file where op_id = $1 and path <> all ($2::text[])
     on conflict (path) do nothing`,
    [op, table.copied.map((b) => b.file?.path ?? ""), table.relation.lakeId?.toString() ?? null],
  );
  await tx.query("delete from spillway.staged_file where op_id = $1", [op]);
  const { rowCount } = await tx.query(
    "update spillway.journal set phase = 'committed', ended_at = now() where op_id = $1 and phase = 'open'",
    [op],
  );
  // Somebody has begun another copy: the files of this one are on their way out of the store.
  if (rowCount !== 1) throw new SpillwayError("commit_conflict", `the copy of ${table.name} was given up meanwhile`);
}

function summaryOf({ lsn, timeline, commitTime }: FlushInput): Record<string, string> {
  return {
    [LSN_KEY]: formatLsn(lsn),
    "spillway.timeline": String(timeline),
    ...(commitTime === null ? {} : { "spillway.commit-time": isoTime(commitTime) }),
  };
}

/** With microseconds. */
function isoTime(micros: bigint): string {
  const ms = Number(micros / 1000n);
  return new Date(ms).toISOString().replace("Z", `${String(micros % 1000n).padStart(3, "0")}Z`);
}

/** Journals files that are about to be written by several tables at a time in one transaction. */
export function batchedStager(ctx: MoverContext, opId: bigint): (path: string) => Promise<void> {
  let waiting: string[] = [];
  let running: Promise<void> | null = null;
  return (path) => {
    waiting.push(path);
    running ??= new Promise<void>((resolve) => setImmediate(resolve)).then(() => {
      const paths = waiting;
      waiting = [];
      running = null;
      return ctx.pool.withClient((c) => stageFiles(c, fileLog(ctx), opId, paths));
    });
    return running;
  };
}
