/** What `spillway status` shows of a mirrored table. */
import type { Db } from "./db.ts";

export interface MirrorStatus {
  /** copying, copied, live or needs_copy. */
  readonly phase: string;
  /** F; null before the table has joined the stream. */
  readonly frontier: string | null;
  readonly lagBytes: number | null;
  readonly lagMs: number | null;
  /** While it is copied. */
  readonly copy: CopyStatus | null;
  /** The last certificate of `verify`. */
  readonly verified: VerifiedStatus | null;
}

export interface CopyStatus {
  readonly parts: number;
  readonly done: number;
  readonly rows: number;
  readonly rowsPerSecond: number | null;
  readonly secondsLeft: number | null;
}

export interface VerifiedStatus {
  readonly ageMs: number;
  readonly lsn: string;
  readonly rows: number;
  readonly sum: string;
}

interface Row {
  readonly phase: string;
  readonly f: string | null;
  readonly lag_bytes: string | null;
  readonly lag_ms: number | null;
  readonly parts: number;
  readonly done: number;
  readonly blocks: string | null;
  readonly blocks_done: string | null;
  readonly copied: string;
  readonly seconds: number | null;
  readonly verified_ms: number | null;
  readonly verified_lsn: string | null;
  readonly verified_rows: string | null;
  readonly verified_sum: string | null;
}

/** The last part of a leaf is open: it counts as far as the leaf has grown. */
const BLOCKS = `coalesce(r.end_block, greatest(r.first_block + 1, pg_relation_size(to_regclass(format('%I.%I', r.leaf_schema, r.leaf_name)))
  / current_setting('block_size')::int)) - r.first_block`;

const SQL = `select m.phase, s.f_lsn::text as f, case when not pg_is_in_recovery() then pg_wal_lsn_diff(pg_current_wal_lsn(), s.f_lsn)::text end as lag_bytes,
    (extract(epoch from clock_timestamp() - s.f_at) * 1000)::float8 as lag_ms,
    p.parts, p.done, p.blocks, p.blocks_done, p.copied,
    (select extract(epoch from clock_timestamp() - j.started_at)::float8 from spillway.journal j where j.op_id = m.copy_op) as seconds,
    (extract(epoch from clock_timestamp() - m.verified_at) * 1000)::float8 as verified_ms, m.verified_lsn::text, m.verified_rows, m.verified_sum
  from spillway.mirror_table m left join spillway.seam s using (relation_id)
  cross join lateral (select count(*)::int as parts, count(r.done_at)::int as done, sum(${BLOCKS})::text as blocks,
      (sum(${BLOCKS}) filter (where r.done_at is not null))::text as blocks_done, coalesce(sum(r.rows), 0)::text as copied
    from spillway.mirror_range r where r.relation_id = m.relation_id) p
  where m.relation_id = $1`;

/** Null for a table that is not mirrored, or has not got as far as the publication. */
export async function readMirrorStatus(db: Db, relationId: bigint): Promise<MirrorStatus | null> {
  const { rows } = await db.query<Row>(SQL, [relationId.toString()]);
  const row = rows[0];
  if (!row) return null;
  return {
    phase: row.phase,
    frontier: row.f,
    lagBytes: row.lag_bytes === null ? null : Math.max(0, Number(row.lag_bytes)),
    lagMs: row.lag_ms === null ? null : Math.max(0, row.lag_ms),
    copy: row.phase === "copying" || row.phase === "copied" ? copyStatus(row) : null,
    verified:
      row.verified_ms === null
        ? null
        : {
            ageMs: Math.max(0, row.verified_ms),
            lsn: row.verified_lsn ?? "",
            rows: Number(row.verified_rows ?? 0),
            sum: row.verified_sum ?? "",
          },
  };
}

/** Time left: as long for each block to come as for those that are done. */
function copyStatus(row: Row): CopyStatus {
  const [blocks, done] = [Number(row.blocks ?? 0), Number(row.blocks_done ?? 0)];
  const { seconds } = row;
  const known = seconds !== null && seconds > 0 && done > 0;
  return {
    parts: row.parts,
    done: row.done,
    rows: Number(row.copied),
    rowsPerSecond: known ? Math.round(Number(row.copied) / seconds) : null,
    secondsLeft: known ? Math.max(0, Math.round((seconds * (blocks - done)) / done)) : null,
  };
}
