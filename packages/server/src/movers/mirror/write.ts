/** One table's part of a flush: its rows into data files, its dead positions into deletes, its snapshot staged. */
import { must } from "@spillway/base/assert";
import { takeRows } from "@spillway/base/batch";
import type { ColumnBatch } from "@spillway/base/columns";
import { newUuid } from "@spillway/base/ids";
import { randomBytes } from "node:crypto";
import { applyUpdates, type TableUpdate } from "@spillway/lake/commit";
import { type FileDeletes, writeDeletionVectors, writePositionDeletes } from "@spillway/lake/deletes/deletes";
import { defaultSpec, writeMetadata } from "@spillway/lake/metadata";
import type { DataFile, TableMetadata } from "@spillway/lake/model";
import { PositionSet } from "@spillway/lake/puffin/position-set";
import { stageSnapshot } from "@spillway/lake/snapshot/stage";
import type { ManifestSource } from "@spillway/lake/snapshot/source";
import type { DoomedFile, PointerMove } from "../../catalog/catalog.ts";
import { writeDataFiles } from "../../engine/engine.ts";
import type { MoverContext } from "../context.ts";
import { journaled } from "../fold-scan.ts";
import { droppedLogFiles, pointerMove } from "../publish.ts";
import { type Applied, deadPositions, isDead } from "./apply.ts";
import type { Segment, TableShape } from "./change-log.ts";
import type { Block, LakeState } from "./lake-state.ts";
import { Missing } from "./resolve.ts";
import { convertRows } from "./shape.ts";
import { thin } from "./thin.ts";

export interface WriteRequest {
  readonly ctx: MoverContext;
  readonly state: LakeState;
  readonly applied: Applied;
  readonly segments: readonly Segment[];
  readonly shape: TableShape;
  /** Files of a copy that joins with this flush. */
  readonly copied: readonly Block[];
  readonly summary: Readonly<Record<string, string>>;
  readonly onFile: (path: string) => Promise<void>;
  readonly source: ManifestSource;
  /** What rows from before a column read in it, by field id. */
  readonly initialText: (fieldId: number) => string | null;
  /** Schema changes that come with it. */
  readonly updates: readonly TableUpdate[];
}

export interface Written {
  /** Null when the table's rows did not change. */
  readonly move: PointerMove | null;
  readonly doomed: readonly DoomedFile[];
  readonly unused: readonly string[];
  readonly rows: number;
  readonly deleted: number;
  /** Of new data files. */
  readonly bytes: number;
  /** Makes the state what the table is after the commit. */
  readonly settle: () => void;
}

interface Change {
  readonly files: readonly DataFile[];
  readonly survivors: readonly Survivors[];
  readonly removed: readonly Block[];
  readonly deletes: readonly { readonly block: Block; readonly positions: PositionSet }[];
}

interface Survivors {
  readonly segment: Segment;
  readonly base: number;
  /** Null: all of them. */
  readonly rows: Uint32Array | null;
}

export async function writeTable(request: WriteRequest): Promise<Written> {
  const { ctx, state, copied, updates } = request;
  const change = await collect(request);
  const staged = change.files.length > 0 || copied.length > 0 || stagedFiles(request).length > 0;
  const unused = unusedFiles(request, change);
  if (!staged && change.removed.length === 0 && change.deletes.length === 0 && updates.length === 0) {
    return { move: null, doomed: [], unused, rows: 0, deleted: 0, bytes: 0, settle: () => settle(request, change, []) };
  }
  const { row } = state;
  const nowMs = ctx.clock.wallMs();
  const base = updates.length === 0 ? state.metadata : applyUpdates(state.metadata, updates, nowMs);
  const deleteFiles = await writeDeletes(request, base, change);
  const snapshot = await stage(request, base, change, deleteFiles);
  const thinned = await thin(ctx, state, applyUpdates(base, snapshot, nowMs), request.source);
  const metadata = applyUpdates(state.metadata, [...updates, ...snapshot, ...thinned.updates], nowMs, {
    previousMetadataLocation: row.metadataLocation,
  });
  const version = row.metadataVersion + 1;
  const metadataLocation = await writeMetadata(ctx.store, metadata, { version, uuid: newUuid() }, request.onFile);
  const move = pointerMove(row, metadata, metadataLocation, version);
  return {
    move,
    doomed: [...thinned.doomed, ...droppedLogFiles(state.metadata, metadata, row.lakeId)],
    unused,
    rows: change.files.reduce((sum, f) => sum + Number(f.recordCount), 0),
    deleted: change.deletes.reduce((sum, d) => sum + d.positions.cardinality - (d.block.deletes?.cardinality ?? 0), 0),
    bytes: [...change.files, ...stagedFiles(request).flatMap((b) => b.file ?? [])].reduce(
      (sum, f) => sum + Number(f.fileSizeBytes),
      0,
    ),
    settle: () => {
      settle(request, change, deleteFiles);
      state.metadata = metadata;
      state.row = {
        ...row,
        metadataLocation,
        metadataVersion: version,
        currentSnapshotId: move.currentSnapshotId,
        sequenceNumber: move.sequenceNumber,
      };
    },
  };
}

/** Staged or copied files that nobody needs in the end: garbage after the commit. */
function unusedFiles({ applied, segments, copied }: WriteRequest, change: Change): string[] {
  const gone = new Set(change.removed);
  const fresh = [...applied.blocks.values()].flat().concat(copied);
  const dead = fresh.filter((b) => b.file !== null && (gone.has(b) || applied.wiped.has(b)));
  const rewritten = segments.filter((s) => s.rows === null && s.toast.length > 0).flatMap((s) => s.staged);
  return [...dead.map((b) => must(b.file, "file").path), ...rewritten.map((f) => f.path)];
}

/** Staged files of this flush that are used as they are. */
function stagedFiles({ applied }: WriteRequest): Block[] {
  return [...applied.blocks.values()].flat().filter((b) => b.file !== null && !applied.wiped.has(b));
}

async function collect(request: WriteRequest): Promise<Change> {
  const { ctx, state, applied, segments, shape } = request;
  const survivors = segments.flatMap((segment) => survivorsOf(applied, segment));
  const missing = new Missing(state, applied.fixups);
  async function* batches(): AsyncIterable<ColumnBatch> {
    for (const { segment, rows } of survivors) {
      const bits = must(applied.blocks.get(segment)?.[0], "block");
      const dead = applied.dead.get(bits);
      const filled = await missing.fill(ctx, state, segment, (row) => !isDead(dead, row));
      const alive = rows === null ? filled : takeRows(filled, rows);
      yield convertRows(alive, segment.shape, shape, request.initialText);
    }
  }
  const files =
    survivors.length === 0
      ? []
      : await writeDataFiles({
          engine: ctx.engine,
          batches: batches(),
          fields: shape.fields,
          spec: defaultSpec(state.metadata),
          store: ctx.store,
          dataLocation: `${state.metadata.location}/data`,
          stageDir: ctx.stageDir,
          onFile: request.onFile,
          ...(ctx.signal ? { signal: ctx.signal } : {}),
        });
  return { files, survivors, ...deletesOf(request) };
}

function survivorsOf(applied: Applied, segment: Segment): Survivors[] {
  const block = applied.blocks.get(segment)?.[0];
  if (!block || block.segment === null || applied.wiped.has(block)) return [];
  const dead = applied.dead.get(block);
  if (dead === undefined) return [{ segment, base: block.base, rows: null }];
  const rows = new Uint32Array(block.rows);
  let count = 0;
  for (let i = 0; i < block.rows; i++) if (!isDead(dead, i)) rows[count++] = i;
  if (count === 0) return [];
  return [{ segment, base: block.base, rows: count === block.rows ? null : rows.slice(0, count) }];
}

/** What becomes of the blocks that are files: gone, or with more deletes than before. */
function deletesOf({ state, applied }: WriteRequest): Pick<Change, "removed" | "deletes"> {
  const removed: Block[] = [];
  const deletes: { block: Block; positions: PositionSet }[] = [];
  for (const block of state.blocks) {
    if (block.file === null) continue;
    if (applied.wiped.has(block)) {
      removed.push(block);
      continue;
    }
    const bits = applied.dead.get(block);
    if (bits === undefined) continue;
    const added = new PositionSet(deadPositions(bits));
    const positions = block.deletes ? block.deletes.union(added) : added;
    if (positions.cardinality === block.rows) removed.push(block);
    else deletes.push({ block, positions });
  }
  return { removed, deletes };
}

async function writeDeletes(request: WriteRequest, base: TableMetadata, change: Change): Promise<DataFile[]> {
  if (change.deletes.length === 0) return [];
  const store = journaled(request.ctx.store, request.onFile);
  const list: FileDeletes[] = change.deletes.map(({ block, positions }) => ({
    dataFile: must(block.file, "file"),
    positions,
  }));
  const folder = `${base.location}/data`;
  return base.formatVersion >= 3
    ? writeDeletionVectors(store, folder, list)
    : writePositionDeletes(store, folder, list);
}

async function stage(
  request: WriteRequest,
  base: TableMetadata,
  change: Change,
  deleteFiles: readonly DataFile[],
): Promise<readonly TableUpdate[]> {
  const { ctx, source, onFile, summary } = request;
  const gone = new Set(change.removed);
  const staged = stagedFiles(request).filter((b) => !gone.has(b));
  const copied = request.copied.filter((b) => !gone.has(b));
  // What a TRUNCATE of the same flush has emptied was never in the table either.
  const isNew = new Set([...request.applied.blocks.values()].flat().concat(request.copied));
  const removed = change.removed.filter((b) => !isNew.has(b));
  const replaced = change.deletes.flatMap(({ block }) => (isNew.has(block) ? [] : block.deleteFiles));
  const addDataFiles = [...copied, ...staged].map((b) => must(b.file, "file")).concat(change.files);
  const onlyAdds = removed.length === 0 && deleteFiles.length === 0;
  if (addDataFiles.length === 0 && onlyAdds) return [];
  const { updates } = await stageSnapshot({
    metadata: base,
    store: ctx.store,
    operation: onlyAdds ? "append" : "overwrite",
    snapshotId: randomBytes(8).readBigInt64BE() & 0x7fffffffffffffffn,
    nowMs: ctx.clock.wallMs(),
    addDataFiles,
    addDeleteFiles: deleteFiles,
    removeDataFiles: removed.map((b) => must(b.file, "file")),
    removeDeleteFiles: replaced.filter((d) => d.referencedDataFile !== undefined),
    summaryProps: summary,
    onFile,
    source,
  });
  return updates;
}

/** After the commit: rows in memory are in files now, dead ones are deleted ones. */
function settle({ state, applied, copied }: WriteRequest, change: Change, deleteFiles: readonly DataFile[]): void {
  const removed = new Set(change.removed);
  const { index } = state;
  for (const { block, positions } of change.deletes) {
    block.deletes = positions;
    block.deleteFiles = deleteFiles.filter((d) => d.referencedDataFile === block.file?.path);
  }
  state.blocks = state.blocks.filter((b) => b.file !== null && !removed.has(b) && !applied.wiped.has(b));
  for (const block of copied) (block as { copyLsn: null }).copyLsn = null;
  const total = change.survivors.reduce((sum, s) => sum + (s.rows?.length ?? s.segment.rowCount), 0);
  if (total === 0) return;
  const first = contiguous(change.survivors) ? must(change.survivors[0], "survivors").base : state.reserve(total);
  let at = first;
  for (const file of change.files) {
    state.addFile(file, null, [], null, at);
    at += Number(file.recordCount);
  }
  state.blocks.sort((a, b) => a.base - b.base);
  if (index !== null) relocate(state, change.survivors, first);
}

/** Every row is where its ordinal says already. */
function contiguous(survivors: readonly Survivors[]): boolean {
  let next = survivors[0]?.base ?? 0;
  for (const { base, rows, segment } of survivors) {
    if (rows !== null || base !== next) return false;
    next += segment.rowCount;
  }
  return true;
}

function relocate(state: LakeState, survivors: readonly Survivors[], first: number): void {
  const index = must(state.index, "index");
  let to = first;
  for (const { segment, base, rows } of survivors) {
    const { tags, lows } = segment.hashes;
    const count = rows?.length ?? segment.rowCount;
    for (let i = 0; i < count; i++, to++) {
      const row = rows === null ? i : (rows[i] ?? 0);
      if (base + row === to) continue;
      index.replaceAt(index.slotOf(tags[row] ?? 0, lows[row] ?? 0, base + row), to);
    }
  }
}
