/** Failed logins in a row: counted in the control database for users, so that all managers know. By its clock. */
import type { Db } from "../catalog/catalog.ts";

export interface LockoutRule {
  /** Failures after which the user is locked. */
  readonly failures: number;
  /** For how long at first; doubled with each further failure. */
  readonly lockMs: number;
}

export const MAX_LOCK_MS = 3_600_000;

/** Milliseconds until the user may try again; 0: now. */
export async function lockedForMs(db: Db, userId: string): Promise<number> {
  const { rows } = await db.query<{ ms: number }>(
    `SELECT greatest(0, extract(epoch FROM locked_until - clock_timestamp()) * 1000)::float8 AS ms
     FROM spillway_control.login_failure WHERE user_id = $1`,
    [userId],
  );
  return rows[0]?.ms ?? 0;
}

/** Failures of a day ago are forgotten. */
export async function noteFailure(db: Db, userId: string, rule: LockoutRule): Promise<void> {
  await db.query(
    `INSERT INTO spillway_control.login_failure AS f (user_id, failures, locked_until)
     VALUES ($1, 1, CASE WHEN $2::int <= 1 THEN clock_timestamp() + $3::float8 * interval '1 ms' END)
     ON CONFLICT (user_id) DO UPDATE SET last_at = clock_timestamp(),
       failures = CASE WHEN f.last_at < clock_timestamp() - interval '1 day' THEN 1 ELSE f.failures + 1 END,
       locked_until = CASE WHEN f.last_at >= clock_timestamp() - interval '1 day' AND f.failures + 1 >= $2::int
         THEN clock_timestamp() + least($4::float8, $3::float8 * power(2, least(30, f.failures + 1 - $2::int))) * interval '1 ms' END`,
    [userId, rule.failures, rule.lockMs, MAX_LOCK_MS],
  );
}

/** After a login that succeeded, or a new password. */
export async function forgetFailures(db: Db, userId: string): Promise<void> {
  await db.query("DELETE FROM spillway_control.login_failure WHERE user_id = $1", [userId]);
}
