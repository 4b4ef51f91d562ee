/**
 * Removing files from the store, and nothing else does (docs/internals/seam.md §5). A doomed file goes once no live pin can see it,
 * the restore window is over, and its doom is durable on the synchronous standbys; whose lake it is is looked up
 * before every batch. Files that the catalog does not know at all (it was rewound by a failover or a restore) are
 * found through the store's own log, never by guessing from a listing.
 */
import { SpillwayError } from "@spillway/base/errors";
import { faultPoint } from "@spillway/base/fault";
import { inTransaction } from "@spillway/pg/transaction";
import { isWithin } from "@spillway/lake/store/store";
import { type Db, requireClaim } from "../catalog/catalog.ts";
import type { MoverContext } from "./context.ts";
import { raiseCounters } from "./maintain-counters.ts";

export interface RemoveResult {
  readonly removed: number;
  /** Why files that are old enough stay for now. */
  readonly held: string | null;
}

export const RESTORE_WINDOW_MS = 7 * 86_400_000;
const BATCH = 500;
const STANDBY_WAIT_MS = 5_000;

/** Removes what may go. Throws `lake_not_ours` and `lake_unclaimed` before anything is touched. */
export async function removeDoomed(ctx: MoverContext): Promise<RemoveResult> {
  let removed = 0;
  for (;;) {
    const paths = await ctx.pool.withClient((c) => removable(c, ctx.restoreWindowMs ?? RESTORE_WINDOW_MS));
    if (paths.length === 0 || ctx.signal?.aborted) break;
    const held = await undurable(ctx);
    if (held !== null) {
      ctx.log.warn("remove.held", { reason: held });
      return { removed, held };
    }
    await ctx.pool.withClient((c) => requireClaim(c, ctx.store, ctx.warehouse));
    for (const path of paths) requireOwnPath(ctx, path);
    faultPoint("remove.before_delete");
    await ctx.store.delete(paths);
    faultPoint("remove.after_delete");
    await ctx.pool.withClient((client) =>
      inTransaction(client, {}, async (tx) => {
        await tx.query("delete from spillway.doomed_file where path = any ($1::text[])", [paths]);
        await raiseCounters(tx, null, { files_removed_total: paths.length });
      }),
    );
    removed += paths.length;
  }
  if (removed > 0) ctx.log.info("remove.done", { files: removed });
  return { removed, held: null };
}

/** A record that names anything else is damaged, and is not obeyed. */
export function requireOwnPath(ctx: MoverContext, path: string): void {
  if (isWithin(ctx.warehouse, path)) return;
  throw new SpillwayError(
    "lake_not_ours",
    `the catalog names ${path} for removal, which is not below ${ctx.warehouse}`,
  );
}

/**
 * A reader whose pin is not committed yet takes its snapshot after this one, and so never sees what is doomed here.
 * Never what a table points at, or a movement under way has staged: no record should say so, and nothing could be brought back.
 */
async function removable(db: Db, restoreWindowMs: number): Promise<string[]> {
  const { rows } = await db.query<{ path: string }>(
    `select d.path from spillway.doomed_file d
     where coalesce(d.doomed_xid < (select floor from spillway.pin where expires_at > now() order by floor limit 1), true)
       and d.doomed_at <= now() - make_interval(secs => $1::float8 / 1000)
       and not exists (select from spillway.lake_table l where l.metadata_location = d.path)
       and not exists (select from spillway.staged_file s where s.path = d.path)
     order by d.doomed_at, d.path limit ${BATCH}`,
    [restoreWindowMs],
  );
  return rows.map((row) => row.path);
}

/** Null once everything that is committed now is flushed on every synchronous standby; else why that cannot be told. */
async function undurable(ctx: MoverContext): Promise<string | null> {
  const { names, lsn } = await ctx.pool.withClient(async (c) => {
    const { rows } = await c.query<{ names: string; lsn: string }>(
      "select current_setting('synchronous_standby_names') as names, pg_current_wal_insert_lsn()::text as lsn",
    );
    return { names: rows[0]?.names ?? "", lsn: rows[0]?.lsn ?? "0/0" };
  });
  if (names === "") return null;
  const endMs = ctx.clock.monotonicMs() + STANDBY_WAIT_MS;
  for (;;) {
    const { rows } = await ctx.pool.withClient((c) =>
      c.query<{ known: number; behind: number }>(
        `select count(*)::int as known, count(*) filter (where flush_lsn is null or flush_lsn < $1::pg_lsn)::int as behind
         from pg_stat_replication where sync_state in ('sync', 'quorum', 'potential')`,
        [lsn],
      ),
    );
    const { known, behind } = rows[0] ?? { known: 0, behind: 0 };
    if (known > 0 && behind === 0) return null;
    if (ctx.clock.monotonicMs() >= endMs || ctx.signal?.aborted) {
      return known === 0
        ? "no synchronous standby is connected (or the role may not see them: grant pg_monitor)"
        : `${behind} synchronous standbys have not flushed ${lsn} (or the role may not see it: grant pg_monitor)`;
    }
    await ctx.clock.sleep(200, ctx.signal);
  }
}

/** Deletes and counts pins that lapsed: their readers have failed already, or are gone. */
export async function sweepPins(ctx: MoverContext): Promise<number> {
  return ctx.pool.withClient((client) =>
    inTransaction(client, {}, async (tx) => {
      const { rowCount } = await tx.query("delete from spillway.pin where expires_at <= now()");
      await raiseCounters(tx, null, { expired_pins_deleted_total: rowCount ?? 0 });
      return rowCount ?? 0;
    }),
  );
}
