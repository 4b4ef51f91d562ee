/** The fold as a step of a pass: when it is due, and how much of it at a time, so that other tables get their turn. */
import { deltaTable } from "../catalog/catalog.ts";
import type { MoverContext } from "./context.ts";
import { foldRelation } from "./fold.ts";
import { policyOf } from "./policy.ts";
import type { TieredRelation } from "./tiered.ts";

/** Passes of one step: the rest of a long backlog is the next cycle's. */
const PASSES_PER_STEP = 4;

/** Returns the delta rows that went into the lake. */
export async function foldStep(ctx: MoverContext, relation: TieredRelation): Promise<{ moved: number }> {
  const policy = policyOf(relation);
  const rowsPerPass = Math.max(1, policy.number("fold_rows"));
  if (!policy.on("fold_enabled") || !(await isDue(ctx, relation, rowsPerPass, policy.number("fold_interval")))) {
    return { moved: 0 };
  }
  const { deltaRows } = await foldRelation(ctx, relation, { rowsPerPass, maxPasses: PASSES_PER_STEP });
  return { moved: deltaRows };
}

/** A backlog of a whole pass is due at once; less waits for the interval, so that trickles do not make many small files. */
async function isDue(
  ctx: MoverContext,
  relation: TieredRelation,
  rowsPerPass: number,
  intervalMs: number,
): Promise<boolean> {
  const { rows } = await ctx.pool.withClient((c) =>
    c.query<{ n: string; recent: boolean }>(
      `select (select count(*) from (select from ${deltaTable(relation.relationId)} where key < $2 and x is null limit $3) d) as n,
         exists (select from spillway.journal where relation_id = $1 and kind = 'fold' and phase = 'committed'
           and ended_at > now() - make_interval(secs => $4::float8 / 1000)) as recent`,
      [relation.relationId.toString(), relation.seam.t.toString(), rowsPerPass, intervalMs],
    ),
  );
  const n = Number(rows[0]?.n ?? 0);
  return n > 0 && (n >= rowsPerPass || rows[0]?.recent !== true);
}
