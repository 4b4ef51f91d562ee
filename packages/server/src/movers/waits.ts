/** What a table waits for, as `status` shows it: kept in the catalog, so that every process sees it. */
import type { Db } from "../catalog/catalog.ts";

export interface Wait {
  readonly step: string;
  readonly reason: string;
  readonly code: string | null;
  /** Until the next try. */
  readonly retryMs: number | null;
}

/** Records a try in vain; the time of the first one stays while the step is the same. */
export async function noteWait(db: Db, relationId: bigint, wait: Wait): Promise<void> {
  await db.query(
    `insert into spillway.relation_wait as w (relation_id, step, reason, code, retry_at)
     values ($1, $2, $3, $4, now() + make_interval(secs => $5::float8 / 1000))
     on conflict (relation_id) do update set step = excluded.step, reason = excluded.reason, code = excluded.code,
       attempts = case when w.step = excluded.step then w.attempts + 1 else 1 end,
       since = case when w.step = excluded.step then w.since else now() end, last_at = now(), retry_at = excluded.retry_at`,
    [relationId.toString(), wait.step, wait.reason, wait.code, wait.retryMs],
  );
}

/** The code of a drop that waits for its lock. */
export const DROP_WAITS = "pg_lock_timeout";

/** Without a code: whatever it was. */
export async function clearWait(db: Db, relationId: bigint, code?: string): Promise<void> {
  await db.query("delete from spillway.relation_wait where relation_id = $1 and ($2::text is null or code = $2)", [
    relationId.toString(),
    code ?? null,
  ]);
}
