/**
 * Rows of transactions that are too large for memory, into data files that nothing refers to. Each lot is journaled under an
 * operation of its own, which is over when a commit has taken the files, and abandoned when the transaction was rolled back.
 */
import { must } from "@spillway/base/assert";
import { defaultSpec, readMetadata } from "@spillway/lake/metadata";
import { abandonOp, loadLakeTable, openOp, type Relation } from "../../catalog/catalog.ts";
import { writeDataFiles } from "../../engine/engine.ts";
import { type MoverContext, stager } from "../context.ts";
import { removeAbandonedFiles } from "../recover.ts";
import type { ChangeLog, Segment } from "./change-log.ts";
import type { MirrorTable } from "./mirror-table.ts";

export interface StagedLog {
  readonly log: ChangeLog;
  readonly relation: Relation;
}

/** The logs of the tables and those of transactions that are still open. */
export function logsOf(tables: readonly MirrorTable[], open: Iterable<ChangeLog>): StagedLog[] {
  const logs = tables.flatMap(({ feed, relation }) => (feed.log === null ? [] : [{ log: feed.log, relation }]));
  for (const log of open) {
    const table = tables.find((t) => t.shapes.size > 0 && [...t.shapes.values()].includes(log.shape));
    if (table) logs.push({ log, relation: table.relation });
  }
  return logs;
}

/** Rows of a log that are in memory. */
export function memoryRows(log: ChangeLog): number {
  return log.segments.reduce((sum, s) => sum + (s.rows === null ? 0 : s.rowCount), log.openRows);
}

/** Size of the files with the others. */
export function stagedBytes(log: ChangeLog): number {
  return log.segments.flatMap((s) => s.staged).reduce((sum, file) => sum + Number(file.fileSizeBytes), 0);
}

export async function stageLogs(ctx: MoverContext, logs: readonly StagedLog[]): Promise<void> {
  for (const { log, relation } of logs) {
    log.seal();
    for (const segment of log.segments)
      if (segment.rows !== null && segment.rowCount > 0) await stageSegment(ctx, relation, segment);
  }
}

async function stageSegment(ctx: MoverContext, relation: Relation, segment: Segment): Promise<void> {
  const lakeId = must(relation.lakeId, "lake table");
  const { opId, row } = await ctx.pool.withClient(async (c) => ({
    opId: await openOp(c, { kind: "mirror-stage", relationId: relation.relationId, lakeId, epoch: ctx.epoch }),
    row: must(await loadLakeTable(c, lakeId), "lake table"),
  }));
  const metadata = await readMetadata(ctx.store, row.metadataLocation);
  const rows = must(segment.rows, "rows");
  async function* once() {
    yield rows;
  }
  segment.staged = await writeDataFiles({
    engine: ctx.engine,
    batches: once(),
    fields: segment.shape.fields,
    spec: defaultSpec(metadata),
    store: ctx.store,
    dataLocation: `${metadata.location}/data`,
    stageDir: ctx.stageDir,
    onFile: stager(ctx, opId),
    ...(ctx.signal ? { signal: ctx.signal } : {}),
  });
  segment.rows = null;
  segment.stageOp = opId;
  if (segment.isDiscarded) await abandonStaged(ctx, [opId]);
  ctx.log.debug("mirror.staged", { table: relation.tableName, rows: segment.rowCount });
}

/** Takes operations back, and removes their files at once: a worker that ends here leaves nothing behind. */
export async function abandonStaged(ctx: MoverContext, operations: readonly bigint[]): Promise<void> {
  await ctx.pool.withClient(async (c) => {
    for (const opId of operations) await abandonOp(c, opId, "nobody wants its rows any more");
  });
  await removeAbandonedFiles(ctx);
}
