/** Merging manifests: many small ones make planning slow, and every commit of corrections adds two. */
import { newInt63 } from "@spillway/base/ids";
import { currentSnapshot } from "@spillway/lake/metadata";
import type { TableMetadata } from "@spillway/lake/model";
import { storeSource } from "@spillway/lake/snapshot/source";
import { stageSnapshot } from "@spillway/lake/snapshot/stage";
import { carriedPosition, openOp } from "../catalog/catalog.ts";
import { currentMetadata } from "./compact.ts";
import { displayName, type MoverContext } from "./context.ts";
import { giveUp, isUnknown } from "./fold.ts";
import { raiseCounters } from "./maintain-counters.ts";
import { policyOf } from "./policy.ts";
import { publish } from "./publish.ts";
import type { LakeRelation } from "./tiered.ts";

export interface ManifestsResult {
  readonly before: number;
  readonly after: number;
}

/** Null when there is nothing to merge. */
export async function rewriteManifests(ctx: MoverContext, relation: LakeRelation): Promise<ManifestsResult | null> {
  const policy = policyOf(relation);
  const before = await countManifests(ctx, await currentMetadata(ctx, relation));
  if (!policy.on("manifest_rewrite_enabled") || before < Math.max(2, policy.number("manifest_rewrite_min_manifests"))) {
    return null;
  }
  const opId = await ctx.pool.withClient((c) =>
    openOp(c, { kind: "manifests", relationId: relation.relationId, lakeId: relation.lakeId, epoch: ctx.epoch }),
  );
  try {
    let after = before;
    await publish(ctx, {
      opId,
      lakeId: relation.lakeId,
      stage: async (base, onFile) => {
        const staged = await stageSnapshot({
          metadata: base,
          store: ctx.store,
          operation: "replace",
          snapshotId: newInt63(),
          nowMs: ctx.clock.wallMs(),
          mergeManifests: true,
          summaryProps: { ...carriedPosition(base), "spillway.op": opId.toString(), "spillway.kind": "manifests" },
          onFile,
        });
        after = staged.manifests.length;
        return {
          updates: staged.updates,
          requirements: staged.requirements,
          attemptFiles: staged.writtenFiles,
          commit: {
            detail: { before, after },
            also: (tx) => raiseCounters(tx, relation.relationId, { manifest_rewrites_total: 1, lake_commits_total: 1 }),
          },
        };
      },
    });
    ctx.log.info("manifests.done", { table: displayName(relation), before, after });
    return { before, after };
  } catch (error) {
    if (!isUnknown(error)) await giveUp(ctx, opId, error);
    throw error;
  }
}

export async function countManifests(ctx: MoverContext, metadata: TableMetadata): Promise<number> {
  const snapshot = currentSnapshot(metadata);
  return snapshot ? (await storeSource(ctx.store).manifests(snapshot)).length : 0;
}
