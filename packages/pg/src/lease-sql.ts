/** The statements of the lease, all on the candidate's or leader's one session. */
import type pg from "pg";
import type { LeaderView } from "./lease-rules.ts";
import { sqlstateOf } from "./pg-error.ts";

export async function tryLock(client: pg.Client, key: bigint): Promise<boolean> {
  const { rows } = await client.query<{ locked: boolean }>("SELECT pg_try_advisory_lock($1) AS locked", [
    key.toString(),
  ]);
  return rows[0]?.locked === true;
}

/** The leader's row with the ages by the server's clock; null when there is no row yet. */
export async function readLeader(client: pg.Client): Promise<LeaderView | null> {
  const { rows } = await client.query<LeaderView>(
    `SELECT l.epoch, l.holder, l.backend_pid AS "backendPid", l.backend_start::text AS "backendStart",
       l.interval_ms AS "intervalMs", l.heartbeat_at::text AS "heartbeatAt",
       (extract(epoch FROM clock_timestamp() - l.heartbeat_at) * 1000)::float8 AS "heartbeatAgeMs",
       (extract(epoch FROM clock_timestamp() - a.state_change) * 1000)::float8 AS "sessionAgeMs"
     FROM spillway.leader AS l
     LEFT JOIN pg_stat_activity AS a ON a.pid = l.backend_pid AND a.backend_start = l.backend_start`,
  );
  return rows[0] ?? null;
}

/**
 * Begins a term: a new epoch, and this session on record. Only with the lock in hand. The epoch is at least the
 * time in milliseconds: an epoch that a failover to a lagging standby, or a restore, has forgotten is not given out
 * a second time, to another leader.
 */
export async function raiseEpoch(client: pg.Client, holder: string, intervalMs: number): Promise<bigint> {
  await client.query("BEGIN");
  try {
    // This one is to survive a failover, unlike the heartbeats.
    await client.query("SET LOCAL synchronous_commit = on");
    const { rows } = await client.query<{ epoch: bigint }>(
      `INSERT INTO spillway.leader AS l (epoch, holder, backend_pid, backend_start, heartbeat_at, interval_ms)
       SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint, $1, a.pid, a.backend_start, clock_timestamp(), $2
       FROM pg_stat_activity AS a WHERE a.pid = pg_backend_pid()
       ON CONFLICT (id) DO UPDATE SET epoch = greatest(l.epoch + 1, excluded.epoch), holder = excluded.holder,
         backend_pid = excluded.backend_pid, backend_start = excluded.backend_start,
         heartbeat_at = excluded.heartbeat_at, interval_ms = excluded.interval_ms
       RETURNING epoch`,
      [holder, Math.ceil(intervalMs)],
    );
    await client.query("COMMIT");
    return rows[0]?.epoch ?? 0n;
  } catch (error) {
    await client.query("ROLLBACK").catch(() => {});
    throw error;
  }
}

/**
 * Renews; false when the epoch is not ours any more. The row may be locked by a commit of ours that takes long (it waits
 * for a standby, say): then nobody else can have raised the epoch, and the session itself shows that we live.
 */
export async function heartbeat(client: pg.Client, epoch: bigint, holder: string): Promise<boolean> {
  const ours = [epoch.toString(), holder];
  try {
    const { rowCount } = await client.query(
      "UPDATE spillway.leader SET heartbeat_at = clock_timestamp() WHERE epoch = $1 AND holder = $2",
      ours,
    );
    return rowCount === 1;
  } catch (error) {
    if (sqlstateOf(error) !== "55P03") throw error;
    const { rows } = await client.query("SELECT 1 FROM spillway.leader WHERE epoch = $1 AND holder = $2", ours);
    return rows.length === 1;
  }
}

/**
 * Ends the sessions of a silent leader: the recorded one (pid and start), those that carry its name, a holder of the
 * lock that has done nothing for `limitMs` (it stopped between the lock and the record), and one that stopped
 * between the fence and COMMIT that long ago. Only if the row is still as it was seen. Gives how many were ended.
 */
export async function endOldLeader(client: pg.Client, key: bigint, seen: LeaderView, limitMs: number): Promise<number> {
  const { rows } = await client.query<{ ended: boolean }>(
    `SELECT pg_terminate_backend(a.pid) AS ended
     FROM spillway.leader AS l, pg_stat_activity AS a
     CROSS JOIN LATERAL (SELECT
         a.state_change < clock_timestamp() - make_interval(secs => $4::float8 / 1000) AS silent,
         EXISTS (SELECT FROM pg_locks AS k WHERE k.pid = a.pid AND k.granted AND k.locktype = 'advisory'
           AND k.objsubid = 1 AND (k.classid::bigint << 32 | k.objid::bigint) = $3::bigint) AS has_lock,
         EXISTS (SELECT FROM pg_locks AS k WHERE k.pid = a.pid AND k.granted AND k.locktype = 'relation'
           AND k.relation = 'spillway.leader'::regclass AND k.mode = 'RowShareLock') AS has_fence) AS s
     WHERE l.epoch = $1 AND l.heartbeat_at::text IS NOT DISTINCT FROM $2
       AND a.datname = current_database() AND a.pid <> pg_backend_pid()
       AND ((a.pid = l.backend_pid AND a.backend_start = l.backend_start)
         OR a.application_name = l.holder
         OR (s.silent AND s.has_lock)
         OR (s.silent AND s.has_fence AND a.state LIKE 'idle in transaction%'))`,
    [seen.epoch.toString(), seen.heartbeatAt, key.toString(), limitMs],
  );
  return rows.filter((row) => row.ended).length;
}

/** Ends a term in order. The epoch stays; the next leader raises it. */
export async function stepDown(client: pg.Client, key: bigint, epoch: bigint, holder: string): Promise<void> {
  await client.query(
    `UPDATE spillway.leader SET holder = NULL, backend_pid = NULL, backend_start = NULL, heartbeat_at = NULL
     WHERE epoch = $1 AND holder = $2`,
    [epoch.toString(), holder],
  );
  await client.query("SELECT pg_advisory_unlock($1)", [key.toString()]);
}
