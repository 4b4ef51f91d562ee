/**
 * Keeping the landing and the delta small: leftover rows of the landing below the cut-line (the delta or the lake has their truth),
 * and delta rows at or above it that say nothing (docs/internals/seam.md §6).
 */
import { quoteIdent, quoteQualified } from "@spillway/pg/quote";
import { deltaColumn, deltaTable, keyLiteral, type Partition, readPartitions } from "../catalog/catalog.ts";
import { lockingTransaction, type MoverContext } from "./context.ts";
import type { TieredRelation } from "./tiered.ts";

/** Rows of one statement, so that no lock and no transaction is long. */
const BATCH = 10_000;

export async function sweepLanding(
  ctx: MoverContext,
  relation: TieredRelation,
): Promise<{ leftovers: number; idle: number }> {
  const landing = await ctx.pool.withClient(async (c) =>
    (await readPartitions(c, relation.relid, relation.keyKind)).find((p) => p.isDefault),
  );
  if (!landing) return { leftovers: 0, idle: 0 };
  const leftovers = relation.keepHeap ? 0 : await deleteLeftovers(ctx, relation, landing);
  return { leftovers, idle: await purgeIdle(ctx, relation, landing) };
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
 * Delta rows at or above T without a row in the landing, and outside of what is being captured. By version, so that a row
 * which a client changes at this moment is left: the condition on the landing is that of an older snapshot.
 */
async function purgeIdle(ctx: MoverContext, relation: TieredRelation, landing: Partition): Promise<number> {
  const delta = deltaTable(relation.relationId);
  const pk = relation.pkAttnums.map((attnum) => ({
    delta: deltaColumn(attnum),
    name: quoteIdent(relation.columns.find((c) => c.attnum === attnum)?.name ?? ""),
  }));
  const same = pk.map((c) => `r.${c.name}::text = d.${c.delta}::text`).join(" and ");
  return lockingTransaction(ctx, async (tx) => {
    const { rowCount } = await tx.query(
      `delete from ${delta} where version = any (array(
         select d.version from ${delta} d where d.key >= $1
           and not exists (select from only ${quoteQualified(landing.schemaName, landing.name)} r where ${same})
           and not exists (select from spillway.band b where b.relation_id = $2 and b.state = 'capturing'
             and d.key >= b.leaf_lo and d.key < b.hi)
         limit ${BATCH}))`,
      [relation.seam.t.toString(), relation.relationId.toString()],
    );
    return rowCount ?? 0;
  });
}
