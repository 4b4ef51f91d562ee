/**
 * The journal: every movement is a row that is `open` until its one commit, or abandoned. Files that a movement is about
 * to write are recorded first, each batch in a committed transaction of its own, and in the store's own log, so that
 * garbage is always found through a record and never by guessing (docs/internals/seam.md §4).
 */
import { SpillwayError } from "@spillway/base/errors";
import type { Db } from "./db.ts";
import { appendFileLog, type FileLogTarget } from "./file-log.ts";
import { big, bigOrNull, type JournalRow } from "./rows.ts";

/** Who opens an operation: the leader, or another writer that is known by its backend. */
export type OpOwner = { readonly epoch: bigint } | { readonly epoch: null };

export interface OpenOp {
  readonly kind: string;
  readonly relationId: bigint | null;
  readonly lakeId: bigint | null;
  /** The leader's epoch; null for a writer that is no leader (recorded by its backend's pid and start). */
  readonly epoch: bigint | null;
  readonly detail?: Readonly<Record<string, unknown>>;
}

/** Opens an operation. `db` must not be inside a transaction: the row has to be committed. */
export async function openOp(db: Db, op: OpenOp): Promise<bigint> {
  const { rows } = await db.query<{ op_id: string }>(
    `insert into spillway.journal (kind, relation_id, lake_id, epoch, owner_pid, owner_start, detail)
     select $1, $2, $3, $4, pg_backend_pid(), a.backend_start, $5
     from (select 1) one left join pg_stat_get_activity(pg_backend_pid()) a on true returning op_id`,
    [op.kind, text(op.relationId), text(op.lakeId), text(op.epoch), JSON.stringify(op.detail ?? {})],
  );
  return big(rows[0]?.op_id);
}

/**
 * Records files that the operation is about to write: in Postgres (committed) and in the store's log. `op_gone` when
 * somebody abandoned the operation meanwhile: then nothing may be written any more.
 */
export async function stageFiles(db: Db, log: FileLogTarget, opId: bigint, paths: readonly string[]): Promise<void> {
  if (paths.length === 0) return;
  const { rowCount } = await db.query(
    `insert into spillway.staged_file (path, op_id)
     select p, j.op_id from unnest($2::text[]) p
     join (select op_id from spillway.journal where op_id = $1 and phase = 'open' for share) j on true
     on conflict (path) do nothing`,
    [opId.toString(), [...paths]],
  );
  if (rowCount !== paths.length) throw opGone(opId);
  await appendFileLog(log, { op: opId, staged: paths });
}

export function opGone(opId: bigint): SpillwayError {
  return new SpillwayError("op_abandoned", `operation ${opId} was abandoned by another worker`);
}

/** Adds to the detail of an open operation. */
export async function noteOp(db: Db, opId: bigint, detail: Readonly<Record<string, unknown>>): Promise<void> {
  await db.query("update spillway.journal set detail = detail || $2::jsonb where op_id = $1", [
    opId.toString(),
    JSON.stringify(detail),
  ]);
}

/**
 * Takes back an open operation, so that it can never commit. Its staged files are the caller's to remove afterwards
 * (`removeAbandonedFiles`). False when it was not open any more.
 */
export async function abandonOp(db: Db, opId: bigint, reason: string): Promise<boolean> {
  const { rowCount } = await db.query(
    `update spillway.journal set phase = 'abandoned', ended_at = now(), detail = detail || jsonb_build_object('abandoned', $2::text)
     where op_id = $1 and phase = 'open'`,
    [opId.toString(), reason],
  );
  return rowCount === 1;
}

/** Ends an operation that changed no lake table. */
export async function finishOp(db: Db, opId: bigint, detail: Readonly<Record<string, unknown>> = {}): Promise<void> {
  const { rowCount } = await db.query(
    `update spillway.journal set phase = 'committed', ended_at = now(), detail = detail || $2::jsonb
     where op_id = $1 and phase = 'open'`,
    [opId.toString(), JSON.stringify(detail)],
  );
  if (rowCount !== 1) throw opGone(opId);
}

/**
 * Abandons the open operations of older epochs, and those of writers whose backend is gone. Waits for a commit of
 * theirs that is under way, because that commit updates the same row. Returns the ids.
 */
export async function abandonOrphans(db: Db, epoch: bigint): Promise<bigint[]> {
  const { rows } = await db.query<{ op_id: string }>(
    `update spillway.journal j set phase = 'abandoned', ended_at = now(),
       detail = detail || '{"abandoned": "its owner is gone"}'
     where phase = 'open' and (epoch < $1 or epoch is null and not exists (
       select 1 from pg_stat_get_activity(j.owner_pid) a where a.backend_start = j.owner_start))
     returning op_id`,
    [epoch.toString()],
  );
  return rows.map((row) => big(row.op_id));
}

/** Files of abandoned operations that are still in the store, a batch at a time. */
export async function abandonedFiles(db: Db, limit: number): Promise<string[]> {
  const { rows } = await db.query<{ path: string }>(
    `select f.path from spillway.staged_file f join spillway.journal j using (op_id)
     where j.phase = 'abandoned' order by f.op_id limit $1`,
    [limit],
  );
  return rows.map((row) => row.path);
}

/** Forgets files that were removed from the store. */
export async function forgetStaged(db: Db, paths: readonly string[]): Promise<void> {
  await db.query("delete from spillway.staged_file where path = any ($1::text[])", [[...paths]]);
}

export async function loadOp(db: Db, opId: bigint): Promise<JournalRow | null> {
  const { rows } = await db.query<RawOp>(
    "select *, owner_start::text as owner_start from spillway.journal where op_id = $1",
    [opId.toString()],
  );
  return rows[0] ? toOp(rows[0]) : null;
}

/** The last operations of a table, or of all, newest first. */
export async function recentOps(db: Db, relationId: bigint | null, limit: number): Promise<JournalRow[]> {
  const { rows } = await db.query<RawOp>(
    `select *, owner_start::text as owner_start from spillway.journal
     where $1::bigint is null or relation_id = $1 order by op_id desc limit $2`,
    [text(relationId), limit],
  );
  return rows.map(toOp);
}

interface RawOp {
  op_id: string;
  relation_id: string | null;
  lake_id: string | null;
  kind: string;
  phase: JournalRow["phase"];
  epoch: string | null;
  owner_pid: number | null;
  owner_start: string | null;
  detail: Record<string, unknown>;
  started_at: string;
  ended_at: string | null;
}

function toOp(raw: RawOp): JournalRow {
  return {
    opId: big(raw.op_id),
    relationId: bigOrNull(raw.relation_id),
    lakeId: bigOrNull(raw.lake_id),
    kind: raw.kind,
    phase: raw.phase,
    epoch: bigOrNull(raw.epoch),
    ownerPid: raw.owner_pid,
    ownerStart: raw.owner_start,
    detail: raw.detail,
    startedAt: raw.started_at,
    endedAt: raw.ended_at,
  };
}

function text(value: bigint | null): string | null {
  return value === null ? null : value.toString();
}
