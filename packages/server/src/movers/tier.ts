/**
 * Tiering: whole partitions behind the lag go to the lake, one at a time, in key order (docs/internals/seam.md §7). Writers
 * go on at full speed: from the moment that a copy begins, a trigger captures into the delta what they change.
 */
import { SpillwayError } from "@spillway/base/errors";
import { faultPoint } from "@spillway/base/fault";
import { newInt63 } from "@spillway/base/ids";
import { assertEpoch } from "@spillway/pg/lease";
import { readMetadata } from "@spillway/lake/metadata";
import { stageSnapshot } from "@spillway/lake/snapshot/stage";
import { storeSource } from "@spillway/lake/snapshot/source";
import {
  abandonOp,
  type BandPut,
  captureSpecOf,
  deltaTable,
  installCapture,
  keyText,
  loadBands,
  loadLakeTable,
  noteOp,
  openOp,
  type Partition,
  readPartitions,
  readTableColumns,
  type TableColumn,
} from "../catalog/catalog.ts";
import { displayName, lockingTransaction, type MovedColumn, movedColumns, type MoverContext } from "./context.ts";
import { purgeIdle } from "./landing-sweep.ts";
import { type LeafState, leafFault, leafSignature, readLeafState } from "./leaf-state.ts";
import { commitPatiently, publish } from "./publish.ts";
import { withLockRetries } from "./register.ts";
import { schemaDrift } from "./schema-drift.ts";
import { type Copied, copyLeaf, verifyCopy } from "./tier-copy.ts";
import { chooseLeaves, type Looks } from "./tier-choose.ts";
import type { TieredRelation } from "./tiered.ts";

export interface TierResult {
  readonly leaf: string;
  readonly rows: bigint;
  readonly files: number;
  readonly bytes: bigint;
  readonly ms: number;
  /** The cut-line after it. */
  readonly t: bigint;
}

export interface TierOptions {
  readonly onProgress?: (progress: { readonly leaf: string; readonly rows: bigint }) => void;
  /** Called after each partition. */
  readonly onDone?: (result: TierResult) => void;
}

/** Copies of one leaf that are begun again because it was altered meanwhile. */
const COPY_ATTEMPTS = 5;
/** Tries, in one pass, to lock out the writers of a leaf for a moment. */
const LOCK_TRIES = 10;

/** Moves every partition that is due. Stops between two when the signal comes. Throws what stops the table. */
export async function tier(
  ctx: MoverContext,
  relation: TieredRelation,
  options: TierOptions = {},
): Promise<TierResult[]> {
  const choice = await ctx.pool.withClient(async (c) => {
    const partitions = await readPartitions(c, relation.relid, relation.keyKind);
    const bands = await loadBands(c, relation.relationId);
    const moved = new Set(bands.filter((b) => b.state !== "capturing").flatMap((b) => b.leaf ?? []));
    return chooseLeaves(c, relation, partitions, moved, presentKey(ctx, relation), looksOf(ctx));
  });
  const [stray] = choice.strays;
  if (stray) {
    throw new SpillwayError(
      "partition_unsupported",
      `partition ${stray.name} of ${displayName(relation)} begins below the cut-line ${keyText(relation.keyKind, relation.seam.t)}`,
      { remedy: "Detach it and insert its rows through the table again; rows in it are not seen by reads." },
    );
  }
  const results: TierResult[] = [];
  let { t } = relation.seam;
  for (const leaf of choice.due) {
    if (ctx.signal?.aborted) break;
    const result = await tierLeaf(ctx, withCutLine(relation, t), leaf, options);
    if (result === null) break;
    results.push(result);
    options.onDone?.(result);
    ({ t } = result);
  }
  return results;
}

/** One memory for each process that moves rows: its pool stands for it. */
const LOOKS = new WeakMap<MoverContext["pool"], Map<bigint, number>>();

function looksOf(ctx: MoverContext): Looks {
  const until = LOOKS.get(ctx.pool) ?? new Map<bigint, number>();
  LOOKS.set(ctx.pool, until);
  return { until, nowMs: () => ctx.clock.monotonicMs() };
}

function withCutLine(relation: TieredRelation, t: bigint): TieredRelation {
  return { ...relation, seam: { ...relation.seam, t } };
}

export function presentKey(ctx: MoverContext, relation: TieredRelation): bigint | null {
  if (relation.keyKind === "int") return null;
  const ms = BigInt(Math.floor(ctx.clock.wallMs()));
  return relation.keyKind === "date" ? ms / 86_400_000n : ms * 1000n;
}

/** A leaf that was altered between the capture and the commit: its copy is begun again. */
class LeafChanged extends Error {}
/** One that was dropped or detached: there is nothing to move, and the next pass looks again. */
class LeafGone extends LeafChanged {}

async function tierLeaf(
  ctx: MoverContext,
  relation: TieredRelation,
  leaf: Partition,
  options: TierOptions,
): Promise<TierResult | null> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await tierOnce(ctx, relation, leaf, options);
    } catch (error) {
      if (!(error instanceof LeafChanged)) throw error;
      if (error instanceof LeafGone) return null;
      ctx.log.info("tier.again", { table: displayName(relation), leaf: leaf.name, reason: error.message });
      if (attempt >= COPY_ATTEMPTS) {
        throw new SpillwayError("partition_unsupported", `partition ${leaf.name}: ${error.message}, again and again`);
      }
    }
  }
}

async function tierOnce(
  ctx: MoverContext,
  relation: TieredRelation,
  leaf: Partition,
  options: TierOptions,
): Promise<TierResult> {
  const startMs = ctx.clock.monotonicMs();
  const opId = await ctx.pool.withClient((c) =>
    openOp(c, {
      kind: "tier",
      relationId: relation.relationId,
      lakeId: relation.lakeId,
      epoch: ctx.epoch,
      detail: { leaf: leaf.name, lo: leaf.lo.toString(), hi: leaf.hi.toString() },
    }),
  );
  faultPoint("tier.journaled");
  try {
    const state = await withLockRetries(ctx, () => captureOn(ctx, relation, leaf), LOCK_TRIES);
    faultPoint("tier.capture_on");
    const { columns, copied } = await copy(ctx, relation, leaf, opId, state, options);
    faultPoint("tier.files_written");
    await verifyCopy(copied);
    faultPoint("tier.verified");
    await commit(ctx, { relation, leaf, opId, state, columns, copied });
    const bytes = copied.files.reduce((sum, f) => sum + f.fileSizeBytes, 0n);
    const ms = Math.round(ctx.clock.monotonicMs() - startMs);
    const { rows } = copied.checksum;
    ctx.log.info("tier.done", {
      table: displayName(relation),
      leaf: leaf.name,
      rows,
      files: copied.files.length,
      bytes,
      ms,
    });
    return { leaf: leaf.name, rows, files: copied.files.length, bytes, ms, t: leaf.hi };
  } catch (error) {
    // An outcome that is not known yet must not be given up: recovery looks it up.
    if (!isUnknown(error)) await giveUp(ctx, opId, error);
    throw error;
  }
}

function isUnknown(error: unknown): boolean {
  return error instanceof SpillwayError && error.kind === "unknown";
}

async function giveUp(ctx: MoverContext, opId: bigint, error: unknown): Promise<void> {
  const reason = error instanceof SpillwayError ? error.code : "failed";
  await ctx.pool
    .withClient((c) => abandonOp(c, opId, reason))
    .catch((e: unknown) => {
      ctx.log.warn("tier.abandon_failed", { op: opId, error: e });
    });
}

/**
 * Puts the capture on, in a transaction that waits for the writers in flight and is committed before the copy's snapshot. A
 * capture that was on before begins anew: what the delta has of the leaf's own range is forgotten, since the copy will have it.
 */
async function captureOn(ctx: MoverContext, relation: TieredRelation, leaf: Partition): Promise<LeafState> {
  return lockingTransaction(ctx, async (tx) => {
    const before = await readLeafState(tx, leaf.oid, relation.relid);
    if (before === null || !before.attached) throw new LeafGone("it is gone");
    const spec = captureSpecOf(relation, await readTableColumns(tx, relation.relid));
    await installCapture(tx, spec, { ...leaf, isLanding: false });
    const landing = (await readPartitions(tx, relation.relid, relation.keyKind)).find((p) => p.isDefault);
    // The hole below the leaf goes along: its rows are in the landing and in the delta. Others of that range are remains.
    if (landing) await purgeIdle(tx, relation, landing, leaf.lo);
    await tx.query(`delete from ${deltaTable(relation.relationId)} where key >= $1 and key < $2`, [
      leaf.lo.toString(),
      leaf.hi.toString(),
    ]);
    const state = await readLeafState(tx, leaf.oid, relation.relid);
    if (state === null || !state.attached) throw new LeafGone("it is gone");
    await tx.query(
      `insert into spillway.band (relation_id, lo, hi, leaf, leaf_name, leaf_lo, state, leaf_filenode, leaf_signature)
       values ($1, $2, $3, $4, $5, $6, 'capturing', $7, $8)
       on conflict (relation_id, lo) do update set hi = excluded.hi, leaf = excluded.leaf, leaf_name = excluded.leaf_name,
         leaf_lo = excluded.leaf_lo, leaf_filenode = excluded.leaf_filenode, leaf_signature = excluded.leaf_signature
       where band.state = 'capturing'`,
      [
        relation.relationId.toString(),
        relation.seam.t.toString(),
        leaf.hi.toString(),
        leaf.oid,
        leaf.name,
        leaf.lo.toString(),
        state.filenode,
        leafSignature(state),
      ],
    );
    if (ctx.epoch !== null) await assertEpoch(tx, { epoch: ctx.epoch });
    return state;
  });
}

async function copy(
  ctx: MoverContext,
  relation: TieredRelation,
  leaf: Partition,
  opId: bigint,
  state: LeafState,
  options: TierOptions,
): Promise<{ columns: readonly MovedColumn[]; copied: Copied }> {
  const { columns, metadata } = await ctx.pool.withClient(async (c) => {
    const now = await readTableColumns(c, relation.relid);
    requireFollowed(relation, now);
    const table = await loadLakeTable(c, relation.lakeId);
    if (table === null) throw new SpillwayError("table_unknown", `the lake table of ${displayName(relation)} is gone`);
    return { columns: movedColumns(relation, now), metadata: await readMetadata(ctx.store, table.metadataLocation) };
  });
  const copied = await copyLeaf(ctx, {
    opId,
    leaf,
    columns,
    metadata,
    // Under the copy's own snapshot: what is copied is what the capture was put on, and has the columns expected.
    check: async (connection) => {
      const [result] = await connection.query(
        `select pg_relation_filenode(${leaf.oid})::text, spillway.column_signature(${relation.relid})`,
      );
      const [filenode, signature] = result?.rows[0] ?? [];
      if (filenode === null) throw new LeafGone("it is gone");
      if (filenode !== String(state.filenode)) throw new LeafChanged("it was rewritten");
      if (signature !== relation.columnSignature) throw notFollowed(relation);
    },
    onProgress: progressReporter(ctx, leaf, opId, options),
  });
  return { columns, copied };
}

const PROGRESS_MS = 1000;

/** Tells the caller, and about once a second the journal, so that `status` shows how far a long copy is. */
function progressReporter(
  ctx: MoverContext,
  leaf: Partition,
  opId: bigint,
  options: TierOptions,
): (rows: bigint) => void {
  let saidMs = ctx.clock.monotonicMs();
  return (rows) => {
    options.onProgress?.({ leaf: leaf.name, rows });
    const nowMs = ctx.clock.monotonicMs();
    if (nowMs - saidMs < PROGRESS_MS) return;
    saidMs = nowMs;
    void ctx.pool.withClient((c) => noteOp(c, opId, { rows: Number(rows) })).catch(() => {});
  };
}

function requireFollowed(relation: TieredRelation, now: readonly TableColumn[]): void {
  if (schemaDrift(relation, now) !== null) throw notFollowed(relation);
}

function notFollowed(relation: TieredRelation): SpillwayError {
  return new SpillwayError("mover_busy", `${displayName(relation)} was altered and is followed first`);
}

interface Moved {
  readonly relation: TieredRelation;
  readonly leaf: Partition;
  readonly opId: bigint;
  readonly state: LeafState;
  readonly columns: readonly MovedColumn[];
  readonly copied: Copied;
}

async function commit(ctx: MoverContext, moved: Moved): Promise<void> {
  const { relation, leaf, opId, state, copied } = moved;
  const change = {
    seams: [{ relationId: relation.relationId, t: leaf.hi }],
    bandPuts: [bandOf(moved)],
    detail: {
      rows: copied.checksum.rows,
      files: copied.files.length,
      bytes: copied.files.reduce((sum, f) => sum + f.fileSizeBytes, 0n),
      checksum: copied.checksum.toString(),
    },
    also: async (tx: Parameters<typeof readLeafState>[0]): Promise<void> => {
      const now = await readLeafState(tx, leaf.oid, relation.relid);
      if (now === null || !now.attached) throw new LeafGone("it is gone");
      const fault = leafFault(recordOf(state), now);
      if (fault !== null) throw new LeafChanged(fault);
    },
  };
  if (copied.files.length === 0) {
    faultPoint("tier.before_commit");
    await commitPatiently(ctx, { ...change, opId, epoch: ctx.epoch, pointers: [] });
    faultPoint("tier.after_commit");
    return;
  }
  await publish(ctx, {
    opId,
    lakeId: relation.lakeId,
    points: { before: "tier.before_commit", after: "tier.after_commit" },
    stage: async (base, onFile) => {
      const staged = await stageSnapshot({
        metadata: base,
        store: ctx.store,
        operation: "append",
        snapshotId: newInt63(),
        nowMs: ctx.clock.wallMs(),
        addDataFiles: copied.files,
        summaryProps: {
          "spillway.op": opId.toString(),
          "spillway.kind": "tier",
          "spillway.cut-line": leaf.hi.toString(),
        },
        onFile,
        source: storeSource(ctx.store),
      });
      return {
        updates: staged.updates,
        requirements: staged.requirements,
        attemptFiles: staged.writtenFiles,
        commit: change,
      };
    },
  });
}

function recordOf(state: LeafState): { leafFilenode: number; leafSignature: string } {
  return { leafFilenode: state.filenode, leafSignature: leafSignature(state) };
}

function bandOf({ relation, leaf, state, columns, copied }: Moved): BandPut {
  return {
    relationId: relation.relationId,
    lo: relation.seam.t,
    hi: leaf.hi,
    leaf: leaf.oid,
    leafName: leaf.name,
    leafLo: leaf.lo,
    state: relation.keepHeap ? "kept" : "lake",
    rows: copied.checksum.rows,
    checksum: copied.checksum.toString(),
    checksumFields: columns.map((c) => c.field.id),
    bytes: copied.files.reduce((sum, f) => sum + f.fileSizeBytes, 0n),
    ...recordOf(state),
  };
}
