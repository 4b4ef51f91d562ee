/** What a new leader does first: takes back what others left open, and removes files that nothing refers to. */
import { abandonedFiles, abandonOrphans, forgetStaged, requireClaim } from "../catalog/catalog.ts";
import type { MoverContext } from "./context.ts";

const BATCH = 500;

export interface Recovered {
  readonly abandoned: number;
  readonly removed: number;
}

/** Idempotent. Throws `lake_not_ours` and `lake_unclaimed` before it removes anything, when the lake is another's. */
export async function recover(ctx: MoverContext): Promise<Recovered> {
  const { epoch } = ctx;
  const abandoned = epoch === null ? [] : await ctx.pool.withClient((c) => abandonOrphans(c, epoch));
  if (abandoned.length > 0) ctx.log.info("recover.abandoned", { ops: abandoned.map(String).join(",") });
  return { abandoned: abandoned.length, removed: await removeAbandonedFiles(ctx) };
}

/** Files of abandoned operations. Ownership is checked before every batch. */
export async function removeAbandonedFiles(ctx: MoverContext): Promise<number> {
  let removed = 0;
  for (;;) {
    const paths = await ctx.pool.withClient((c) => abandonedFiles(c, BATCH));
    if (paths.length === 0 || ctx.signal?.aborted) return removed;
    await ctx.pool.withClient((c) => requireClaim(c, ctx.store, ctx.warehouse));
    await ctx.store.delete(paths);
    await ctx.pool.withClient((c) => forgetStaged(c, paths));
    removed += paths.length;
    ctx.log.info("recover.removed_files", { count: paths.length });
  }
}
