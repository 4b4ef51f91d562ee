/**
 * Keeping the landing and the delta small: leftover rows of the landing below the cut-line (the delta or the lake has their truth),
 * and delta rows at or above it that say nothing (docs/internals/seam.md §6).
 */
import { quoteIdent, quoteQualified } from "@spillway/pg/quote";
import {
  type Db,
  deltaColumn,
  deltaTable,
  dropCaptureFunction,
  dropCaptureTriggers,
  keyLiteral,
  loadBands,
  type Partition,
  readPartitions,
} from "../catalog/catalog.ts";
import { lockingTransaction, type MoverContext } from "./context.ts";
import type { TieredRelation } from "./tiered.ts";

/** Rows of one statement, so that no lock and no transaction is long. */
const BATCH = 10_000;

export interface Swept {
  readonly leftovers: number;
  readonly idle: number;
}

export async function sweepLanding(ctx: MoverContext, relation: TieredRelation): Promise<Swept> {
  const partitions = await ctx.pool.withClient((c) => readPartitions(c, relation.relid, relation.keyKind));
  const landing = partitions.find((p) => p.isDefault);
  if (!landing) return { leftovers: 0, idle: 0 };
  await forgetLostLeaves(ctx, relation, partitions);
  const leftovers = relation.keepHeap ? 0 : await deleteLeftovers(ctx, relation, landing);
  const idle = await lockingTransaction(ctx, (tx) => purgeIdle(tx, relation, landing));
  return { leftovers, idle };
}

/** Leaves that were dropped or detached while their copy was under way: the capture comes off, the band is forgotten. */
async function forgetLostLeaves(ctx: MoverContext, relation: TieredRelation, all: readonly Partition[]): Promise<void> {
  const bands = await ctx.pool.withClient((c) => loadBands(c, relation.relationId));
  for (const band of bands.filter((b) => b.state === "capturing" && !all.some((p) => p.oid === b.leaf))) {
    await lockingTransaction(ctx, async (tx) => {
      await removeCapture(tx, relation.relationId, band.leaf ?? 0);
      await tx.query("delete from spillway.band where band_id = $1 and state = 'capturing'", [band.bandId.toString()]);
    });
  }
}

/** Takes the capture off a table that is no partition of ours any more; nothing when it is gone. */
export async function removeCapture(tx: Db, relationId: bigint, leaf: number): Promise<void> {
  const { rows } = await tx.query<{ nspname: string; relname: string }>(
    "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = $1",
    [leaf],
  );
  const found = rows[0];
  if (found) {
    for (const sql of dropCaptureTriggers({ schemaName: found.nspname, name: found.relname })) await tx.query(sql);
  }
  await tx.query(dropCaptureFunction(relationId, leaf));
}

async function deleteLeftovers(ctx: MoverContext, relation: TieredRelation, landing: Partition): Promise<number> {
  const table = quoteQualified(landing.schemaName, landing.name);
  const below = `${quoteIdent(relation.keyName)} < ${keyLiteral(relation.keyKind, relation.seam.t)}`;
  return lockingTransaction(ctx, async (tx) => {
    await tx.query("select set_config('spillway.internal', pg_current_xact_id()::text, true)");
    const { rowCount } = await tx.query(
      `delete from only ${table} where ctid = any (array(select ctid from only ${table} where ${below} limit ${BATCH}))`,
    );
    return rowCount ?? 0;
  });
}

/**
 * Delta rows at or above T (and below `hi`) without a row in the landing, and outside of what is being captured. By version, so
 * that a row which a client changes at this moment is left: the condition on the landing is that of an older snapshot.
 */
export async function purgeIdle(
  tx: Db,
  relation: TieredRelation,
  landing: Pick<Partition, "schemaName" | "name">,
  hi: bigint | null = null,
): Promise<number> {
  const delta = deltaTable(relation.relationId);
  const pk = relation.pkAttnums.map((attnum) => ({
    delta: deltaColumn(attnum),
    name: quoteIdent(relation.columns.find((c) => c.attnum === attnum)?.name ?? ""),
  }));
  const same = pk.map((c) => `pg_catalog.concat(r.${c.name}) = pg_catalog.concat(d.${c.delta})`).join(" and ");
  // Below `hi` nothing is captured but the landing: what lost leaves have left goes, all of it.
  const range =
    hi === null
      ? `and not exists (select from spillway.band b where b.relation_id = $2 and b.state = 'capturing'
             and d.key >= b.leaf_lo and d.key < b.hi) limit ${BATCH}`
      : "and d.key < $2";
  const { rowCount } = await tx.query(
    `delete from ${delta} where version = any (array(
       select d.version from ${delta} d where d.key >= $1
         and not exists (select from only ${quoteQualified(landing.schemaName, landing.name)} r where ${same}) ${range}))`,
    [relation.seam.t.toString(), (hi ?? relation.relationId).toString()],
  );
  return rowCount ?? 0;
}
