/**
 * Corrections of direct tables: what a client's transaction wrote into the delta is folded inside that transaction, so that
 * one COMMIT acknowledges the correction and publishes it in the lake, and the delta stays empty. A lake commit by
 * somebody else meanwhile refuses this one (`commit_conflict`, or 40001): the client's statement runs again.
 */
import { must } from "@spillway/base/assert";
import { faultPoint } from "@spillway/base/fault";
import { newUuid } from "@spillway/base/ids";
import { applyUpdates, checkRequirements } from "@spillway/lake/commit";
import { readMetadata, writeMetadata } from "@spillway/lake/metadata";
import {
  appendFileLog,
  applyLakeCommit,
  type Db,
  type LakeCommit,
  loadBands,
  loadLakeTable,
  loadRelation,
  openOp,
} from "../catalog/catalog.ts";
import type { DirectCommit } from "../seam/seam.ts";
import { fileLog, type MoverContext, stager } from "./context.ts";
import { Fold, FOLD_ROWS, type FoldHost, giveUp } from "./fold.ts";
import { readChunk } from "./fold-chunk.ts";
import { droppedLogFiles, pointerMove, type Publication } from "./publish.ts";
import { asTiered, type TieredRelation } from "./tiered.ts";

/** For `createSeam`. The context's epoch is not used: such a writer is no leader. */
export function directCommit(ctx: MoverContext): DirectCommit {
  return async ({ tx, connection, relationId }) => {
    const ops: bigint[] = [];
    const abandon = async (error: unknown): Promise<void> => {
      for (const opId of ops) await giveUp(ctx, opId, error);
    };
    try {
      const relation = must(asTiered(must(await loadRelation(tx, relationId), "relation")), "tiered or direct");
      const limits = { rows: FOLD_ROWS, bytes: Number.POSITIVE_INFINITY };
      for (let more = true; more;) {
        const chunk = await readChunk(ctx, relation, limits, connection);
        if (chunk === null) break;
        const opId = await ctx.pool.withClient((c) =>
          openOp(c, {
            kind: "direct",
            relationId,
            lakeId: relation.lakeId,
            epoch: null,
            detail: { delta_rows: chunk.versions.length, upserts: chunk.upserts.length },
          }),
        );
        ops.push(opId);
        await new Fold(ctx, relation, chunk, opId, clientHost(ctx, tx, relation)).run();
        ({ more } = chunk);
      }
      return { abandon };
    } catch (error) {
      await abandon(error);
      throw error;
    }
  };
}

function clientHost(ctx: MoverContext, tx: Db, relation: TieredRelation): FoldHost {
  return {
    table: () => loadLakeTable(tx, relation.lakeId),
    bands: () => loadBands(tx, relation.relationId),
    publish: (publication) => publishInside(ctx, tx, publication),
    commit: (commit) => applyLakeCommit(tx, plainCommit(commit)),
  };
}

async function publishInside(ctx: MoverContext, tx: Db, { opId, lakeId, stage }: Publication): Promise<void> {
  const row = must(await loadLakeTable(tx, lakeId), "lake table");
  const onFile = stager(ctx, opId);
  const base = await readMetadata(ctx.store, row.metadataLocation);
  const change = await stage(base, onFile);
  checkRequirements(base, change.requirements ?? []);
  const next = applyUpdates(base, change.updates, ctx.clock.wallMs(), {
    previousMetadataLocation: row.metadataLocation,
  });
  const version = row.metadataVersion + 1;
  const metadataLocation = await writeMetadata(ctx.store, next, { version, uuid: newUuid() }, onFile);
  const doomed = [...(change.commit.doomed ?? []), ...droppedLogFiles(base, next, lakeId)];
  if (doomed.length > 0) await appendFileLog(fileLog(ctx), { op: opId, doomed: doomed.map((d) => d.path) });
  faultPoint("direct.files_written");
  faultPoint("direct.before_commit");
  await applyLakeCommit(
    tx,
    plainCommit({
      ...change.commit,
      opId,
      epoch: null,
      pointers: [pointerMove(row, next, metadataLocation, version)],
      doomed,
    }),
  );
}

/** Without the counters, whose rows all folds share: a client must not fail, or wait, for them. */
function plainCommit({ also: _counters, ...commit }: LakeCommit): LakeCommit {
  return { ...commit, epoch: null };
}
