/**
 * Snapshot expiry. Snapshots thin out: all of the last minutes stay, then one a minute, none after the retention; branches,
 * tags and the last few stay whatever their age. What only expired snapshots named is doomed in the same commit, and
 * leaves the store later (`remove.ts`). Readers' pins do not hold this back, only the removal.
 */
import { applyUpdates } from "@spillway/lake/commit";
import type { Snapshot, TableMetadata } from "@spillway/lake/model";
import { type ExpirePlan, stageExpire, unreferencedFiles } from "@spillway/lake/snapshot/expire";
import { storeSource } from "@spillway/lake/snapshot/source";
import { type DoomedFile, openOp } from "../catalog/catalog.ts";
import { currentMetadata } from "./compact.ts";
import { displayName, type MoverContext } from "./context.ts";
import { giveUp, isUnknown } from "./fold.ts";
import { raiseCounters } from "./maintain-counters.ts";
import { type Policy, policyOf } from "./policy.ts";
import { publish } from "./publish.ts";
import type { LakeRelation } from "./tiered.ts";

export interface ExpireResult {
  readonly snapshots: number;
  readonly doomedFiles: number;
}

/** Younger snapshots all stay. */
const RECENT_MS = 600_000;
const THINNED_TO_MS = 60_000;

/** Null when nothing is old enough. */
export async function expireSnapshots(ctx: MoverContext, relation: LakeRelation): Promise<ExpireResult | null> {
  const policy = policyOf(relation);
  if (!policy.on("snapshot_expiry_enabled")) return null;
  if (planOf(ctx, await currentMetadata(ctx, relation), policy).updates.length === 0) return null;
  const opId = await ctx.pool.withClient((c) =>
    openOp(c, { kind: "expire", relationId: relation.relationId, lakeId: relation.lakeId, epoch: ctx.epoch }),
  );
  try {
    let result: ExpireResult = { snapshots: 0, doomedFiles: 0 };
    await publish(ctx, {
      opId,
      lakeId: relation.lakeId,
      points: { before: "expire.before_commit", after: "expire.after_commit" },
      stage: async (base) => {
        const plan = planOf(ctx, base, policy);
        const doomed = await doomedBy(ctx, relation, base, plan);
        result = { snapshots: plan.removedSnapshotIds.length, doomedFiles: doomed.length };
        return {
          updates: plan.updates,
          commit: {
            doomed,
            detail: { ...result, refs: plan.removedRefs },
            also: (tx) => raiseCounters(tx, relation.relationId, { snapshots_expired_total: result.snapshots }),
          },
        };
      },
    });
    ctx.log.info("expire.done", { table: displayName(relation), ...result });
    return result;
  } catch (error) {
    if (!isUnknown(error)) await giveUp(ctx, opId, error);
    throw error;
  }
}

function planOf(ctx: MoverContext, metadata: TableMetadata, policy: Policy): ExpirePlan {
  const nowMs = ctx.clock.wallMs();
  const retentionMs = policy.number("snapshot_retention");
  return stageExpire({
    metadata,
    nowMs,
    olderThanMs: nowMs - Math.min(RECENT_MS, retentionMs),
    minKeep: Math.max(1, policy.number("snapshot_min_retained")),
    keep: thinned(metadata.snapshots, nowMs - retentionMs),
  });
}

/** Whether a snapshot is the last of its minute, and not older than the retention. */
function thinned(snapshots: readonly Snapshot[], fromMs: number): (snapshot: Snapshot) => boolean {
  const last = new Map<number, Snapshot>();
  for (const s of snapshots) {
    const minute = Math.floor(s.timestampMs / THINNED_TO_MS);
    const other = last.get(minute);
    if (!other || s.sequenceNumber > other.sequenceNumber) last.set(minute, s);
  }
  const kept = new Set([...last.values()].map((s) => s.snapshotId));
  return (s) => s.timestampMs >= fromMs && kept.has(s.snapshotId);
}

async function doomedBy(
  ctx: MoverContext,
  relation: LakeRelation,
  base: TableMetadata,
  plan: ExpirePlan,
): Promise<DoomedFile[]> {
  const after = applyUpdates(base, plan.updates, ctx.clock.wallMs());
  const doomed: DoomedFile[] = [];
  for await (const path of unreferencedFiles(base, after, storeSource(ctx.store))) {
    doomed.push({ lakeId: relation.lakeId, path });
  }
  return doomed;
}
