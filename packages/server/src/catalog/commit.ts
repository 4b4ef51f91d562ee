/**
 * The lake commit: pointer, S, T, R, bands, delta, journal and file records move in one Postgres transaction, for one table
 * or for many (docs/internals/seam.md §4). Everything was written to the store before; nothing here does input or
 * output but SQL, so the transaction is short.
 */
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { assertEpoch } from "@spillway/pg/lease";
import { fromPgError, isConnectionError, sqlstateOf } from "@spillway/pg/pg-error";
import { commit as commitTransaction } from "@spillway/pg/transaction";
import type pg from "pg";
import type { Db } from "./db.ts";
import { opGone } from "./journal.ts";
import { deltaTable } from "./names.ts";
import type { BandState } from "./rows.ts";

/** The new metadata of one table, valid only on top of `base`. */
export interface PointerMove {
  readonly lakeId: bigint;
  /** The metadata location that the new one was staged on. */
  readonly base: string;
  readonly metadataLocation: string;
  readonly metadataVersion: number;
  readonly currentSnapshotId: bigint | null;
  readonly sequenceNumber: bigint;
  /** Only when it changes. */
  readonly formatVersion?: 2 | 3;
}

export interface SeamMove {
  readonly relationId: bigint;
  readonly t?: bigint;
  readonly r?: bigint;
  /** The frontier of a mirrored table: LSN text and timeline. */
  readonly f?: { readonly lsn: string; readonly timeline: number };
}

export interface BandPut {
  readonly relationId: bigint;
  /** Which band: bands of a table are known by their lower bound. */
  readonly lo: bigint;
  readonly hi: bigint;
  readonly leaf: number | null;
  readonly leafName: string;
  readonly leafLo: bigint | null;
  readonly state: BandState;
  readonly rows: bigint | null;
  /** Hex, as base/rowhash.ts prints it. */
  readonly checksum: string | null;
  readonly checksumFields: readonly number[] | null;
  readonly leafFilenode: number | null;
  readonly leafSignature: string | null;
  readonly bytes: bigint | null;
}

/** New values of an existing band. */
export interface BandChange {
  readonly bandId: bigint;
  readonly state?: BandState;
  readonly rows?: bigint;
  readonly checksum?: string;
  readonly checksumFields?: readonly number[];
  readonly bytes?: bigint;
}

/** Delta rows that the commit put into the lake, by their versions: exactly these are deleted. */
export interface Absorbed {
  readonly relationId: bigint;
  readonly versions: readonly bigint[];
}

export interface DoomedFile {
  readonly lakeId: bigint;
  readonly path: string;
}

export interface LakeCommit {
  readonly opId: bigint;
  /** The leader's epoch; null for a writer that is no leader: only the pointers are compared then. */
  readonly epoch: bigint | null;
  readonly pointers: readonly PointerMove[];
  readonly seams?: readonly SeamMove[];
  readonly bandPuts?: readonly BandPut[];
  readonly bandChanges?: readonly BandChange[];
  readonly absorbed?: readonly Absorbed[];
  /** Files that no current snapshot needs after this commit. */
  readonly doomed?: readonly DoomedFile[];
  /** Files that the operation staged and did not use. */
  readonly unused?: readonly string[];
  /** Counters for the journal. */
  readonly detail?: Readonly<Record<string, unknown>>;
  /** Further changes of the catalog in the same transaction, before the journal row is closed. */
  readonly also?: (tx: Db) => Promise<void>;
}

export type CommitResult =
  | { readonly kind: "success" }
  /** Another commit came first: stage again on the table's new metadata. Nothing was changed. */
  | { readonly kind: "conflict"; readonly lakeId: bigint; readonly current: string }
  /** The answer to COMMIT was lost and the journal could not be looked up. Do nothing before `lookUpOutcome` answers. */
  | { readonly kind: "unknown"; readonly cause: SpillwayError };

export interface CommitOptions {
  /** A connection outside any transaction. */
  readonly db: pg.Client;
  /** A fresh connection, to look up the outcome when `db` was lost in COMMIT. */
  readonly reconnect: <T>(work: (db: Db) => Promise<T>) => Promise<T>;
  /** How long to wait for rows that clients hold (a FOR SHARE on the cut-line). Default 2 000. */
  readonly lockTimeoutMs?: number;
  /** The longest that this transaction may sit idle on the server, should this process stall. Default 5 000. */
  readonly idleTimeoutMs?: number;
}

/**
 * Commits. Throws `pg_lock_timeout` (nothing changed, commit again as it is), `leader_lost`, `op_abandoned`, or the
 * connection's error when it was lost before COMMIT or the journal says that the commit did not happen.
 */
export async function commitLake(options: CommitOptions, commit: LakeCommit): Promise<CommitResult> {
  const { db } = options;
  try {
    await db.query("begin isolation level read committed");
    await db.query(
      `select set_config('lock_timeout', $1, true), set_config('idle_in_transaction_session_timeout', $2, true)`,
      [String(options.lockTimeoutMs ?? 2000), String(options.idleTimeoutMs ?? 5000)],
    );
    await applyLakeCommit(db, commit);
  } catch (error) {
    await db.query("rollback").catch(() => {});
    if (error instanceof PointerConflict) return { kind: "conflict", lakeId: error.lakeId, current: error.current };
    // What the caller's own part threw comes out as it is.
    const isServers = sqlstateOf(error) !== null || isConnectionError(error);
    throw isServers ? fromPgError(error, `lake commit of operation ${commit.opId}`) : error;
  }
  try {
    await commitTransaction(db);
    return { kind: "success" };
  } catch (error) {
    if (!isSpillwayError(error, "pg_commit_unknown")) {
      throw fromPgError(error, `lake commit of operation ${commit.opId}`);
    }
    return resolveUnknown(options, commit.opId, error);
  }
}

async function resolveUnknown(options: CommitOptions, opId: bigint, cause: SpillwayError): Promise<CommitResult> {
  let phase: string;
  try {
    phase = await options.reconnect((fresh) => lookUpOutcome(fresh, opId));
  } catch {
    return { kind: "unknown", cause };
  }
  if (phase === "committed") return { kind: "success" };
  if (phase === "abandoned") throw opGone(opId);
  throw new SpillwayError("pg_connection_lost", `the connection ended before operation ${opId} was committed`, {
    cause,
  });
}

/**
 * What became of an operation. Waits for a commit of it that is still under way, because that commit holds the row's lock:
 * `open` means that it did not commit, and will not unless it is tried again.
 */
export async function lookUpOutcome(db: Db, opId: bigint): Promise<"open" | "committed" | "abandoned"> {
  const { rows } = await db.query<{ phase: "open" | "committed" | "abandoned" }>(
    "select phase from spillway.journal where op_id = $1 for update",
    [opId.toString()],
  );
  return rows[0]?.phase ?? "abandoned";
}

/** A pointer that is not what the commit was staged on. Extends SpillwayError for those who let it through. */
export class PointerConflict extends SpillwayError {
  readonly lakeId: bigint;
  readonly current: string;

  constructor(lakeId: bigint, current: string) {
    super("commit_conflict", `lake table ${lakeId} has got new metadata meanwhile`);
    this.lakeId = lakeId;
    this.current = current;
  }
}

/**
 * The body of the commit, inside a transaction of the caller's: for direct tables, whose client's transaction is the commit.
 * Throws PointerConflict, `leader_lost`, `op_abandoned`, or what Postgres says; the transaction is then to be rolled back.
 */
export async function applyLakeCommit(tx: Db, commit: LakeCommit): Promise<void> {
  await lockPointers(tx, commit.pointers);
  await moveSeams(tx, commit.seams ?? []);
  for (const pointer of commit.pointers) await movePointer(tx, pointer);
  await putBands(tx, commit.bandPuts ?? []);
  for (const change of commit.bandChanges ?? []) await changeBand(tx, change);
  for (const absorbed of commit.absorbed ?? []) await deleteAbsorbed(tx, absorbed);
  await recordFiles(tx, commit);
  if (commit.also) await commit.also(tx);
  await closeOp(tx, commit);
  if (commit.epoch !== null) await assertEpoch(tx, { epoch: commit.epoch });
}

async function lockPointers(tx: Db, pointers: readonly PointerMove[]): Promise<void> {
  if (pointers.length === 0) return;
  const { rows } = await tx.query<{ lake_id: string; metadata_location: string }>(
    "select lake_id, metadata_location from spillway.lake_table where lake_id = any ($1::bigint[]) order by lake_id for update",
    [pointers.map((p) => p.lakeId.toString())],
  );
  const found = new Map(rows.map((row) => [BigInt(row.lake_id), row.metadata_location]));
  for (const { lakeId, base } of pointers) {
    const current = found.get(lakeId) ?? "";
    if (current !== base) throw new PointerConflict(lakeId, current);
  }
}

async function movePointer(tx: Db, pointer: PointerMove): Promise<void> {
  const snapshot = pointer.currentSnapshotId?.toString() ?? null;
  const sequence = pointer.sequenceNumber.toString();
  await tx.query(
    `update spillway.lake_table set metadata_location = $2, metadata_version = $3, current_snapshot_id = $4,
       sequence_number = $5, format_version = coalesce($6, format_version), committed_at = now() where lake_id = $1`,
    [
      pointer.lakeId.toString(),
      pointer.metadataLocation,
      pointer.metadataVersion,
      snapshot,
      sequence,
      pointer.formatVersion ?? null,
    ],
  );
  await tx.query(
    `update spillway.seam s set s = $2, s_sequence = $3 from spillway.relation x
     where x.relation_id = s.relation_id and x.lake_id = $1`,
    [pointer.lakeId.toString(), snapshot, sequence],
  );
}

async function moveSeams(tx: Db, moves: readonly SeamMove[]): Promise<void> {
  for (const move of moves.toSorted((a, b) => (a.relationId < b.relationId ? -1 : 1))) {
    const values = [move.relationId.toString(), move.t?.toString() ?? null, move.r?.toString() ?? null];
    if (move.t !== undefined || move.r !== undefined) {
      // An UPDATE, not only a lock: a client whose snapshot is older must get 40001 when it asks for the row.
      await tx.query(
        "update spillway.seam_guard set t = coalesce($2, t), r = coalesce($3, r) where relation_id = $1",
        values,
      );
    }
    await tx.query(
      `update spillway.seam set t = coalesce($2, t), r = coalesce($3, r), f_lsn = coalesce($4, f_lsn),
         f_timeline = coalesce($5, f_timeline), f_at = case when $4::pg_lsn is null then f_at else now() end
       where relation_id = $1`,
      [...values, move.f?.lsn ?? null, move.f?.timeline ?? null],
    );
  }
}

async function putBands(tx: Db, puts: readonly BandPut[]): Promise<void> {
  for (const band of puts) {
    await tx.query(
      `insert into spillway.band (relation_id, lo, hi, leaf, leaf_name, leaf_lo, state, rows, checksum, checksum_fields,
         leaf_filenode, leaf_signature, bytes, moved_at)
       values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, case when $7 <> 'capturing' then now() end)
       on conflict (relation_id, lo) do update set hi = excluded.hi, leaf = excluded.leaf, leaf_name = excluded.leaf_name,
         leaf_lo = excluded.leaf_lo, state = excluded.state, rows = excluded.rows, checksum = excluded.checksum,
         checksum_fields = excluded.checksum_fields, leaf_filenode = excluded.leaf_filenode,
         leaf_signature = excluded.leaf_signature, bytes = excluded.bytes, moved_at = excluded.moved_at`,
      [
        band.relationId.toString(),
        band.lo.toString(),
        band.hi.toString(),
        band.leaf,
        band.leafName,
        band.leafLo?.toString() ?? null,
        band.state,
        band.rows?.toString() ?? null,
        band.checksum,
        band.checksumFields === null ? null : [...band.checksumFields],
        band.leafFilenode,
        band.leafSignature,
        band.bytes?.toString() ?? null,
      ],
    );
  }
}

async function changeBand(tx: Db, change: BandChange): Promise<void> {
  await tx.query(
    `update spillway.band set state = coalesce($2, state), rows = coalesce($3, rows), checksum = coalesce($4, checksum),
       checksum_fields = coalesce($5, checksum_fields), bytes = coalesce($6, bytes) where band_id = $1`,
    [
      change.bandId.toString(),
      change.state ?? null,
      change.rows?.toString() ?? null,
      change.checksum ?? null,
      change.checksumFields ? [...change.checksumFields] : null,
      change.bytes?.toString() ?? null,
    ],
  );
}

/**
 * A row that a client's transaction holds is left: it stays in the delta with what the lake has as well, which reads the
 * same, and no client can make the commit wait.
 */
async function deleteAbsorbed(tx: Db, absorbed: Absorbed): Promise<void> {
  if (absorbed.versions.length === 0) return;
  const delta = deltaTable(absorbed.relationId);
  await tx.query(
    `delete from ${delta} where ctid = any (array(
       select ctid from ${delta} where version = any ($1::bigint[]) for update skip locked))`,
    [absorbed.versions.map(String)],
  );
}

async function recordFiles(tx: Db, commit: LakeCommit): Promise<void> {
  await tx.query("delete from spillway.staged_file where op_id = $1", [commit.opId.toString()]);
  const doomed = [
    ...(commit.doomed ?? []),
    ...(commit.unused ?? []).map((path) => ({ path, lakeId: null as bigint | null })),
  ];
  if (doomed.length === 0) return;
  await tx.query(
    `insert into spillway.doomed_file (path, lake_id, op_id, doomed_xid)
     select d.path, d.lake_id, $3, pg_current_xact_id() from unnest($1::text[], $2::bigint[]) as d (path, lake_id)
     on conflict (path) do nothing`,
    [doomed.map((d) => d.path), doomed.map((d) => d.lakeId?.toString() ?? null), commit.opId.toString()],
  );
}

async function closeOp(tx: Db, commit: LakeCommit): Promise<void> {
  const { rowCount } = await tx.query(
    `update spillway.journal set phase = 'committed', ended_at = now(), detail = detail || $2::jsonb
     where op_id = $1 and phase = 'open'`,
    [commit.opId.toString(), JSON.stringify(commit.detail ?? {}, bigAsText)],
  );
  if (rowCount !== 1) throw opGone(commit.opId);
}

function bigAsText(_key: string, value: unknown): unknown {
  return typeof value === "bigint" ? value.toString() : value;
}
