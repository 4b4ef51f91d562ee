/**
 * Dropping partitions whose rows are in the lake. Each drop waits for its locks a moment only and then backs off: it needs
 * ACCESS EXCLUSIVE on the table and its landing. Under the lock everything that could have bypassed the capture is looked
 * at again; if anything did, the table stops and nothing is dropped.
 */
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { faultPoint } from "@spillway/base/fault";
import { assertEpoch } from "@spillway/pg/lease";
import { fromPgError } from "@spillway/pg/pg-error";
import { quoteQualified } from "@spillway/pg/quote";
import type pg from "pg";
import { type BandRow, loadBands } from "../catalog/catalog.ts";
import { displayName, lockingTransaction, type MoverContext } from "./context.ts";
import { removeCapture } from "./landing-sweep.ts";
import { leafFault, type LeafState, readLeafState } from "./leaf-state.ts";
import { withLockRetries } from "./register.ts";
import type { TieredRelation } from "./tiered.ts";

export interface DropResult {
  readonly dropped: readonly string[];
  /** The leaf that could not be locked, and who is in the way; null when none was left. */
  readonly waiting: { readonly leaf: string; readonly blockers: readonly number[] } | null;
}

/** Tries in one pass; each blocks writers behind it for a moment. */
const LOCK_TRIES = 4;

/** Drops what can be dropped now. Throws `partition_changed` and what stops the table. */
export async function dropLeaves(ctx: MoverContext, relation: TieredRelation): Promise<DropResult> {
  const bands = await ctx.pool.withClient((c) => loadBands(c, relation.relationId));
  const dropped: string[] = [];
  for (const band of bands.filter((b) => b.state === "lake" && b.leaf !== null)) {
    if (ctx.signal?.aborted) break;
    try {
      await withLockRetries(ctx, () => dropOne(ctx, relation, band), LOCK_TRIES);
      dropped.push(band.leafName);
    } catch (error) {
      const typed = fromPgError(error, `dropping ${band.leafName}`);
      if (!isSpillwayError(typed, "pg_lock_timeout", "pg_transient")) throw typed;
      return { dropped, waiting: { leaf: band.leafName, blockers: await blockersOf(ctx, relation, band) } };
    }
  }
  return { dropped, waiting: null };
}

async function dropOne(ctx: MoverContext, relation: TieredRelation, band: BandRow): Promise<void> {
  faultPoint("tier.before_drop");
  await lockingTransaction(ctx, async (tx) => {
    const leaf = band.leaf ?? 0;
    const name = await lockForDrop(tx, relation, leaf);
    const state = name === null ? null : await readLeafState(tx, leaf, relation.relid);
    if (name !== null && state?.attached === true) {
      await recheck(tx, relation, band, state, name);
      await tx.query(`drop table ${name}`);
    }
    // One that somebody detached is theirs: the lake has its rows, and it keeps them without a capture.
    await removeCapture(tx, relation.relationId, leaf);
    await tx.query("update spillway.band set state = 'dropped', leaf = null where band_id = $1", [
      band.bandId.toString(),
    ]);
    await tx.query(
      `insert into spillway.journal (kind, phase, relation_id, lake_id, epoch, ended_at, detail)
       values ('drop', 'committed', $1, $2, $3, now(), jsonb_build_object('leaf', $4::text))`,
      [relation.relationId.toString(), relation.lakeId.toString(), ctx.epoch?.toString() ?? null, band.leafName],
    );
    if (ctx.epoch !== null) await assertEpoch(tx, { epoch: ctx.epoch });
  });
  faultPoint("tier.after_drop");
  ctx.log.info("tier.dropped", { table: displayName(relation), leaf: band.leafName });
}

/** The locks that DROP takes, in its order; null when the leaf is gone already. */
async function lockForDrop(tx: pg.Client, relation: TieredRelation, leaf: number): Promise<string | null> {
  const { rows } = await tx.query<{ nspname: string; relname: string }>(
    "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = $1",
    [leaf],
  );
  const found = rows[0];
  if (!found) return null;
  const name = quoteQualified(found.nspname, found.relname);
  await tx.query(`lock table only ${quoteQualified(relation.schemaName, relation.tableName)} in access exclusive mode`);
  await tx.query(`lock table ${name} in access exclusive mode`);
  return name;
}

async function recheck(
  tx: pg.Client,
  relation: TieredRelation,
  band: BandRow,
  state: LeafState,
  name: string,
): Promise<void> {
  const stop = (why: string): never => {
    throw new SpillwayError(
      "partition_changed",
      `${displayName(relation)}: partition ${band.leafName} is not dropped, because ${why}`,
    );
  };
  const fault = leafFault(band, state);
  if (fault !== null) stop(fault);
  const { rows } = await tx.query<{ name: string }>(
    `select conname as name from pg_constraint where contype = 'f' and conparentid = 0 and confrelid in ($1, $2)`,
    [band.leaf, relation.relid],
  );
  if (rows.length > 0) stop(`foreign key ${rows.map((r) => r.name).join(", ")} refers to the table`);
  // The drop must not take anything of the user's along; without CASCADE it fails by itself, with a worse message.
  const { rows: views } = await tx.query<{ name: string }>(
    `select distinct r.ev_class::regclass::text as name from pg_depend d join pg_rewrite r on r.oid = d.objid
     where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = $1::regclass`,
    [name],
  );
  if (views.length > 0) stop(`view ${views.map((r) => r.name).join(", ")} uses it`);
}

/** Sessions that hold a lock on the table or the leaf: whom to ask, in `status`. */
async function blockersOf(ctx: MoverContext, relation: TieredRelation, band: BandRow): Promise<number[]> {
  const { rows } = await ctx.pool.withClient((c) =>
    c.query<{ pid: number }>(
      `select distinct l.pid from pg_locks l join pg_database d on d.oid = l.database
       where d.datname = current_database() and l.locktype = 'relation' and l.granted
         and l.relation = any ($1::oid[]) and l.pid <> pg_backend_pid() limit 5`,
      [[relation.relid, band.leaf, relation.landing]],
    ),
  );
  return rows.map((row) => row.pid);
}
