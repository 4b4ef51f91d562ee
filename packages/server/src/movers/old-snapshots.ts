/**
 * Snapshots that are older than what a transaction is about to commit. Rows that change their partition behind the back of a
 * REPEATABLE READ transaction are lost to it: a condition on the key makes it look only where they are now, and there they
 * are too new for it. So such a change waits until nobody could be in that position.
 */
import { SpillwayError } from "@spillway/base/errors";
import type pg from "pg";

/**
 * A session has one when it is inside a transaction of several statements and holds a snapshot: whether that outlives the
 * statement (REPEATABLE READ) is not shown. A single statement outside of a transaction is over with it, unless the
 * isolation is set so by default. What another role does is hidden without pg_read_all_stats: then its open
 * transaction counts.
 */
const OLD_SNAPSHOT = `
  select a.pid from pg_stat_activity a
  where a.datname = current_database() and a.pid <> pg_backend_pid()
    and coalesce(a.backend_type, '') not in ('walsender', 'autovacuum worker')
    and (a.backend_xmin is not null and (a.state is distinct from 'active' or a.xact_start is distinct from a.query_start
           or current_setting('default_transaction_isolation') <> 'read committed'
           or exists (select from pg_db_role_setting s, unnest(s.setconfig) c where c like 'default_transaction_isolation=%'))
      or a.query = '<insufficient privilege>'
        and exists (select from pg_locks l where l.pid = a.pid and l.locktype = 'virtualxid' and l.granted))
  limit 5`;

/**
 * Called as the last thing before COMMIT, under the locks that keep everybody out (`alone`). The commit is then not waited for: it
 * is lost with a crash as a whole or not at all, and no snapshot should be taken while it is written. Throws `pg_lock_timeout`.
 */
export async function refuseOldSnapshots(tx: pg.Client, alone: boolean): Promise<void> {
  await tx.query("set local synchronous_commit = off");
  const { rows } = await tx.query<{ pid: number }>(OLD_SNAPSHOT);
  if (alone && rows.length === 0) return;
  const by = alone ? `of sessions ${rows.map((row) => row.pid).join(", ")}` : "of statements under way";
  throw new SpillwayError("pg_lock_timeout", `rows of the landing get no partition while snapshots ${by} are older`);
}
