/** The steps of a pass over one tiered or direct table, in their order. Each is a movement of its own file. */
import type { MoverContext } from "./context.ts";
import { displayName } from "./context.ts";
import { dropLeaves } from "./drop-leaves.ts";
import { foldStep } from "./fold-step.ts";
import { follow } from "./follow.ts";
import { sweepLanding } from "./landing-sweep.ts";
import { maintainStep } from "./maintain.ts";
import { premake } from "./premake.ts";
import { retain } from "./retain.ts";
import { tier } from "./tier.ts";
import type { TieredRelation } from "./tiered.ts";
import { clearWait, DROP_WAITS, noteWait } from "./waits.ts";

export interface StepOutcome {
  /** Something was moved: the relation is loaded again before the next step, and the next pass comes soon. */
  readonly moved: number;
}

export interface TableStep {
  readonly name: string;
  /** Whether the steps after it make no sense when it fails. */
  readonly essential: boolean;
  /** Whether its failure stops the table; else it is a wait that `status` shows. */
  readonly stops: boolean;
  readonly run: (ctx: MoverContext, relation: TieredRelation) => Promise<StepOutcome>;
}

const NOTHING: StepOutcome = { moved: 0 };

export const TABLE_STEPS: readonly TableStep[] = [
  {
    name: "follow",
    essential: true,
    stops: true,
    run: async (ctx, relation) => ({ moved: (await follow(ctx, relation)) ? 1 : 0 }),
  },
  {
    name: "premake",
    essential: false,
    stops: false,
    run: async (ctx, relation) => ({ moved: (await premake(ctx, relation)).length }),
  },
  {
    name: "sweep",
    essential: false,
    stops: false,
    run: async (ctx, relation) => {
      const { leftovers, idle } = await sweepLanding(ctx, relation);
      if (leftovers + idle > 0) ctx.log.info("sweep.done", { table: displayName(relation), leftovers, idle });
      return NOTHING;
    },
  },
  // Not essential: what cannot be folded stays in the delta, where every read finds it.
  { name: "fold", essential: false, stops: true, run: foldStep },
  {
    name: "tier",
    essential: true,
    stops: true,
    run: async (ctx, relation) => ({ moved: (await tier(ctx, relation)).length }),
  },
  { name: "drop", essential: false, stops: true, run: dropStep },
  {
    name: "retain",
    essential: false,
    stops: true,
    run: async (ctx, relation) => ({ moved: (await retain(ctx, relation)).bands }),
  },
  { name: "maintain", essential: false, stops: true, run: maintainStep },
];

/** A drop that gets no lock is shown, with who is in the way, and tried again at the next pass. */
async function dropStep(ctx: MoverContext, relation: TieredRelation): Promise<StepOutcome> {
  const { dropped, waiting } = await dropLeaves(ctx, relation);
  await ctx.pool.withClient(async (c) => {
    if (waiting === null) return clearWait(c, relation.relationId, DROP_WAITS);
    const by = waiting.blockers.length > 0 ? `, held by ${waiting.blockers.join(", ")}` : "";
    const reason = `partition ${waiting.leaf} waits for a lock on the table${by}`;
    ctx.log.debug("drop.waits", { table: displayName(relation), reason });
    return noteWait(c, relation.relationId, { step: "drop", reason, code: DROP_WAITS, retryMs: null });
  });
  return { moved: dropped.length };
}
