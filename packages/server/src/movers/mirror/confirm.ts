/**
 * What the slot may be told. The commit that published F = f lies in the WAL behind f: were f confirmed at once, a standby's
 * copy of the slot could be at f while that standby lacks the commit, and be promoted so. So f is confirmed once
 * the commit itself is flushed here and on every physical standby that streams.
 */
import { type Lsn, minLsn, parseLsn } from "@spillway/base/lsn";
import type { Db } from "../../catalog/catalog.ts";

/** Programs that receive WAL and are never promoted. */
const NO_STANDBYS = ["pg_receivewal", "pg_basebackup"];

interface Pending {
  readonly f: Lsn;
  /** The WAL position behind the commit. */
  readonly commit: Lsn;
}

/** The furthest position that is flushed everywhere where it must be. */
export async function flushedEverywhere(db: Db): Promise<Lsn> {
  const { rows } = await db.query<{ own: string; standby: string | null }>(
    `select pg_current_wal_flush_lsn()::text as own,
       (select min(r.flush_lsn)::text from pg_stat_replication r
        where r.state = 'streaming' and r.flush_lsn is not null and r.application_name <> all ($1::text[])
          and not exists (select from pg_replication_slots s where s.active_pid = r.pid and s.slot_type = 'logical')) as standby`,
    [NO_STANDBYS],
  );
  const own = parseLsn(rows[0]?.own ?? "0/0");
  const standby = rows[0]?.standby;
  return standby === null || standby === undefined ? own : minLsn(own, parseLsn(standby));
}

export async function walPosition(db: Db): Promise<Lsn> {
  const { rows } = await db.query<{ lsn: string }>("select pg_current_wal_insert_lsn()::text as lsn");
  return parseLsn(rows[0]?.lsn ?? "0/0");
}

/** Frontiers that wait for their commits to be safe. Pure. */
export class Confirmations {
  #pending: Pending[] = [];

  get waiting(): number {
    return this.#pending.length;
  }

  add(f: Lsn, commit: Lsn): void {
    this.#pending.push({ f, commit });
  }

  /** The highest frontier whose commit is flushed; null when there is none. */
  take(flushed: Lsn): Lsn | null {
    const safe = this.#pending.filter((p) => p.commit <= flushed);
    if (safe.length === 0) return null;
    this.#pending = this.#pending.filter((p) => p.commit > flushed);
    return safe.reduce((max, p) => (p.f > max ? p.f : max), 0n);
  }
}
