/**
 * Lake retention: the line R follows the newest key at a distance, by whole bands. In one commit R moves, the rows below it
 * leave the lake, their bands are expired, and corrections of them leave the delta. From then on writes below R
 * are refused. Files go whole; the few that lie across R (folded ones of an unpartitioned lake) keep what is above it.
 */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { faultPoint } from "@spillway/base/fault";
import { newInt63 } from "@spillway/base/ids";
import { Checksum } from "@spillway/base/rowhash";
import { defaultSpec, readMetadata } from "@spillway/lake/metadata";
import type { TableMetadata } from "@spillway/lake/model";
import type { Expr, ScanTask } from "@spillway/lake/scan/scan";
import { stageSnapshot } from "@spillway/lake/snapshot/stage";
import {
  type BandRow,
  type Db,
  deltaTable,
  keyText,
  loadBands,
  loadLakeTable,
  openOp,
  readPartitions,
} from "../catalog/catalog.ts";
import { readDataFiles } from "../engine/engine.ts";
import { displayName, type MoverContext } from "./context.ts";
import { giveUp, isUnknown } from "./fold.ts";
import { knownFields, lakeKey } from "./fold-fields.ts";
import { keyField, places } from "./fold-lookup.ts";
import { loadDeletes, planTasks, withLocalFiles } from "./fold-scan.ts";
import { type Deletion, writeDeletes } from "./fold-write.ts";
import { raiseCounters } from "./maintain-counters.ts";
import { commitPatiently, publish, type StagedChange } from "./publish.ts";
import { presentKey } from "./tier.ts";
import { newestKey } from "./tier-choose.ts";
import type { TieredRelation } from "./tiered.ts";

export interface RetainResult {
  /** Bands that were expired. */
  readonly bands: number;
  readonly rows: bigint;
  /** The retention line after it; null when there is none yet. */
  readonly r: bigint | null;
}

/** Boundaries that are tried for one that no file lies across. */
const MAX_TRIES = 64;

/** Moves R if it is due. Throws what stops the table. */
export async function retain(ctx: MoverContext, relation: TieredRelation): Promise<RetainResult> {
  const none = { bands: 0, rows: 0n, r: relation.seam.r };
  const retention = relation.lakeRetention;
  if (retention === null) return none;
  await forgetBelow(ctx, relation);
  const due = await dueBands(ctx, relation, retention);
  if (due.length === 0) return none;
  const table = await ctx.pool.withClient((c) => loadLakeTable(c, relation.lakeId));
  const metadata = await readMetadata(ctx.store, must(table, "lake table").metadataLocation);
  const expiring = due.slice(0, await alignedCount(ctx, relation, metadata, due));
  if (expiring.length === 0) return none;
  return expire(ctx, relation, expiring);
}

/** The first bands, as long as they are behind the newest key by the retention and their partition is done with. */
async function dueBands(ctx: MoverContext, relation: TieredRelation, retention: bigint): Promise<BandRow[]> {
  const { bands, newest } = await ctx.pool.withClient(async (c) => ({
    bands: await loadBands(c, relation.relationId),
    newest: await newestKey(c, relation, await readPartitions(c, relation.relid, relation.keyKind)),
  }));
  if (newest === null) return [];
  const present = presentKey(ctx, relation);
  const line = (present !== null && present < newest ? present : newest) - retention;
  const open = bands.filter((b) => b.state !== "expired");
  const end = open.findIndex((b) => b.hi > line || (b.state !== "dropped" && b.state !== "kept"));
  return end === -1 ? open : open.slice(0, end);
}

/** How many of the bands end where no file lies across, so that files go whole. */
async function alignedCount(
  ctx: MoverContext,
  relation: TieredRelation,
  metadata: TableMetadata,
  due: readonly BandRow[],
): Promise<number> {
  const isPartitioned = defaultSpec(metadata).fields.length > 0;
  for (let count = due.length; count > Math.max(0, due.length - MAX_TRIES); count--) {
    const { across } = await splitFiles(ctx, relation, metadata, must(due[count - 1], "band").hi);
    if (across.length === 0) return count;
    // Without partitions no boundary is better than another.
    if (!isPartitioned) break;
  }
  const last = must(due.at(-1), "band");
  const waited = last.hi - must(due[0], "band").lo;
  // Partitions that never end where a band does must not hold the line for ever.
  return !isPartitioned || waited > (relation.lakeRetention ?? 0n) ? due.length : 0;
}

interface Split {
  /** Every row is below the line. */
  readonly below: readonly ScanTask[];
  /** Some rows may be. */
  readonly across: readonly ScanTask[];
}

async function splitFiles(
  ctx: MoverContext,
  relation: TieredRelation,
  metadata: TableMetadata,
  line: bigint,
): Promise<Split> {
  if (metadata.currentSnapshotId === undefined) return { below: [], across: [] };
  const key = keyField(relation, knownFields(relation, metadata));
  const filter: Expr = { op: "<", fieldId: key.scan.id, value: lakeKey(key.scan.kind, line) };
  const tasks = await planTasks(ctx, metadata, filter);
  return {
    below: tasks.filter((t) => t.residual.op === "true"),
    across: tasks.filter((t) => t.residual.op !== "true"),
  };
}

async function expire(ctx: MoverContext, relation: TieredRelation, bands: readonly BandRow[]): Promise<RetainResult> {
  const r = must(bands.at(-1), "band").hi;
  const rows = bands.reduce((sum, b) => sum + (b.rows ?? 0n), 0n);
  const opId = await ctx.pool.withClient((c) =>
    openOp(c, {
      kind: "retain",
      relationId: relation.relationId,
      lakeId: relation.lakeId,
      epoch: ctx.epoch,
      detail: { r: r.toString(), bands: bands.length, rows: rows.toString() },
    }),
  );
  try {
    const change = changeOf(relation, bands, r, rows);
    const hasFiles = relation.seam.s !== null;
    if (hasFiles) {
      await publish(ctx, {
        opId,
        lakeId: relation.lakeId,
        points: { before: "retain.before_commit", after: "retain.after_commit" },
        stage: (base, onFile) => stage(ctx, { relation, opId, r, rows, change }, base, onFile),
      });
    } else {
      faultPoint("retain.before_commit");
      await commitPatiently(ctx, { ...change, opId, epoch: ctx.epoch, pointers: [] });
      faultPoint("retain.after_commit");
    }
  } catch (error) {
    if (!isUnknown(error)) await giveUp(ctx, opId, error);
    throw error;
  }
  ctx.log.info("retain.done", {
    table: displayName(relation),
    retention_line: keyText(relation.keyKind, r),
    bands: bands.length,
    rows,
  });
  return { bands: bands.length, rows, r };
}

function changeOf(
  relation: TieredRelation,
  bands: readonly BandRow[],
  r: bigint,
  rows: bigint,
): StagedChange["commit"] {
  return {
    seams: [{ relationId: relation.relationId, r }],
    bandChanges: bands.map((b) => ({
      bandId: b.bandId,
      state: "expired" as const,
      rows: 0n,
      checksum: new Checksum().toString(),
      bytes: 0n,
    })),
    also: async (tx: Db) => {
      await tx.query(`delete from ${deltaTable(relation.relationId)} where key < $1`, [r.toString()]);
      await raiseCounters(tx, relation.relationId, {
        retained_bands_expired_total: bands.length,
        retained_rows_expired_total: rows,
        lake_commits_total: relation.seam.s === null ? 0 : 1,
      });
    },
  };
}

interface Expiry {
  readonly relation: TieredRelation;
  readonly opId: bigint;
  readonly r: bigint;
  readonly rows: bigint;
  readonly change: StagedChange["commit"];
}

async function stage(
  ctx: MoverContext,
  { relation, opId, r, rows, change }: Expiry,
  base: TableMetadata,
  onFile: (path: string) => Promise<void>,
): Promise<StagedChange> {
  const { below, across } = await splitFiles(ctx, relation, base, r);
  const deletes = await loadDeletes(ctx, below);
  const whole = below.reduce(
    (sum, t) => sum + t.dataFile.recordCount - BigInt(deletes.get(t.dataFile.path)?.cardinality ?? 0),
    0n,
  );
  const deletions = await positionsBelow(ctx, relation, base, across, r);
  const found = whole + deletions.reduce((sum, d) => sum + BigInt([...d.positions].length), 0n);
  if (found !== rows) {
    throw new SpillwayError(
      "checksum_mismatch",
      `the lake of ${displayName(relation)} has ${found} rows below ${keyText(relation.keyKind, r)}, journaled are ${rows}`,
    );
  }
  if (found === 0n && below.length === 0) {
    return { updates: [], commit: change };
  }
  const { written, ...cut } = await writeDeletes(ctx, base, deletions, onFile);
  const staged = await stageSnapshot({
    metadata: base,
    store: ctx.store,
    operation: "delete",
    snapshotId: newInt63(),
    nowMs: ctx.clock.wallMs(),
    addDeleteFiles: cut.addDeleteFiles,
    removeDeleteFiles: cut.removeDeleteFiles,
    removeDataFiles: [...below.map((t) => t.dataFile), ...cut.removeDataFiles],
    summaryProps: {
      "spillway.op": opId.toString(),
      "spillway.kind": "retain",
      "spillway.retention-line": r.toString(),
    },
    onFile,
  });
  return {
    updates: staged.updates,
    requirements: staged.requirements,
    attemptFiles: [...written, ...staged.writtenFiles],
    commit: {
      ...change,
      detail: { removed_files: below.length + cut.removeDataFiles.length, cut_files: across.length },
    },
  };
}

/** The live rows below the line in files that lie across it. */
async function positionsBelow(
  ctx: MoverContext,
  relation: TieredRelation,
  metadata: TableMetadata,
  tasks: readonly ScanTask[],
  line: bigint,
): Promise<Deletion[]> {
  const key = keyField(relation, knownFields(relation, metadata));
  const deletions: Deletion[] = [];
  for (const task of tasks) {
    const positions: number[] = [];
    await withLocalFiles(ctx, [task], async (files) => {
      const batches = readDataFiles({ engine: ctx.engine, files, fields: [key.scan], withPosition: true });
      for await (const batch of batches) {
        const column = must(batch.columns[0], "tier key");
        const [, at] = places(batch);
        for (let i = 0; i < batch.length; i++) {
          if ("data" in column && BigInt(column.data[i] ?? 0) < line) positions.push(Number(at[i]));
        }
      }
    });
    if (positions.length > 0) deletions.push({ task, positions });
  }
  return deletions;
}

/** keep-heap captures rows below R too, which the heap still has: nothing reads them. */
async function forgetBelow(ctx: MoverContext, relation: TieredRelation): Promise<void> {
  const { r } = relation.seam;
  if (r === null) return;
  await ctx.pool.withClient((c) =>
    c.query(
      `delete from ${deltaTable(relation.relationId)} where version = any (array(
         select version from ${deltaTable(relation.relationId)} where key < $1 limit 10000))`,
      [r.toString()],
    ),
  );
}
