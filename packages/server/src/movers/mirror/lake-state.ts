/**
 * What the pump knows of one lake table: its metadata, its data files with their deletes, and the ordinals of their
 * rows. Read from the catalog and the store when it is first needed, and then kept true by the pump's own commits.
 */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import type { Lsn } from "@spillway/base/lsn";
import { readMetadata } from "@spillway/lake/metadata";
import type { DataFile, TableMetadata } from "@spillway/lake/model";
import type { PositionSet } from "@spillway/lake/puffin/position-set";
import { TRUE } from "@spillway/lake/scan/scan";
import { type LakeTableRow, loadLakeTable } from "../../catalog/catalog.ts";
import { readDataFiles } from "../../engine/engine.ts";
import type { MoverContext } from "../context.ts";
import { loadDeletes, planTasks } from "../fold-scan.ts";
import { hashKeys, keyFields, keyHasher, type Segment, type TableShape } from "./change-log.ts";
import { FIRST_ORDINAL, KeyIndex, LAST_ORDINAL } from "./key-index.ts";

/** A run of ordinals: a data file of the table, one that is staged, or rows in memory. */
export interface Block {
  readonly base: number;
  readonly rows: number;
  /** Null for rows in memory. */
  readonly file: DataFile | null;
  /** What the table says is deleted; not to be changed. */
  deletes: PositionSet | null;
  /** The delete files that say so. */
  deleteFiles: readonly DataFile[];
  /** Of a copy that has not joined yet: the LSN of the snapshot that the rows were read under. */
  readonly copyLsn: Lsn | null;
  /** Where the rows in memory are. */
  readonly segment: Segment | null;
}

export class LakeState {
  row: LakeTableRow;
  metadata: TableMetadata;
  /** Ascending by `base`. */
  blocks: Block[] = [];
  index: KeyIndex | null = null;
  /** The columns that the index is made of: another key, another index. */
  indexKey = "";
  #next = FIRST_ORDINAL;
  usedAtMs = 0;
  thinnedAtMs = 0;

  constructor(row: LakeTableRow, metadata: TableMetadata) {
    this.row = row;
    this.metadata = metadata;
  }

  static async load(ctx: MoverContext, lakeId: bigint): Promise<LakeState> {
    const row = await ctx.pool.withClient((c) => loadLakeTable(c, lakeId));
    if (row === null) throw new SpillwayError("table_unknown", `lake table ${lakeId} is gone`);
    const state = new LakeState(row, await readMetadata(ctx.store, row.metadataLocation));
    await state.#loadBlocks(ctx);
    return state;
  }

  async #loadBlocks(ctx: MoverContext): Promise<void> {
    if (this.metadata.currentSnapshotId === undefined) return;
    const tasks = await planTasks(ctx, this.metadata, TRUE);
    const deletes = await loadDeletes(ctx, tasks);
    for (const { dataFile, deletes: deleteFiles } of tasks) {
      this.addFile(dataFile, deletes.get(dataFile.path) ?? null, deleteFiles, null);
    }
  }

  /** Ordinals for so many rows. Throws when there are none left: the state is then to be read again. */
  reserve(rows: number): number {
    const base = this.#next;
    if (base + rows > LAST_ORDINAL) {
      throw new SpillwayError("commit_conflict", "the ordinals of a lake table are used up; it is read again");
    }
    this.#next += rows;
    return base;
  }

  addFile(
    file: DataFile,
    deletes: PositionSet | null,
    deleteFiles: readonly DataFile[],
    copyLsn: Lsn | null,
    base: number = this.reserve(Number(file.recordCount)),
  ): Block {
    const block: Block = {
      base,
      rows: Number(file.recordCount),
      file,
      deletes,
      deleteFiles,
      copyLsn,
      segment: null,
    };
    this.blocks.push(block);
    return block;
  }

  /** The block of an ordinal. */
  blockOf(ordinal: number): Block {
    let low = 0;
    let high = this.blocks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((this.blocks[middle]?.base ?? 0) <= ordinal) low = middle;
      else high = middle - 1;
    }
    const block = must(this.blocks[low], "the block of an ordinal");
    if (ordinal < block.base || ordinal >= block.base + block.rows) {
      throw new SpillwayError("internal", `ordinal ${ordinal} is in no block`);
    }
    return block;
  }

  /** Makes the index from the key columns of every live row, unless it is there. `without`: blocks that are about to go. */
  async ensureIndex(
    ctx: MoverContext,
    shape: TableShape,
    maxBytes: number,
    without: ReadonlySet<Block> = new Set(),
  ): Promise<KeyIndex> {
    const key = keyFields(shape)
      .map((f) => `${f.id}:${f.kind}`)
      .join(",");
    if (this.index !== null && this.indexKey === key) return this.index;
    const live = this.blocks.reduce((sum, b) => sum + b.rows - (b.deletes?.cardinality ?? 0), 0);
    const index = new KeyIndex(live, maxBytes);
    for (const block of this.blocks) if (!without.has(block)) await indexBlock(ctx, shape, index, block);
    this.index = index;
    this.indexKey = key;
    return index;
  }

  dropIndex(): void {
    this.index = null;
  }
}

/** Puts the live rows of a file into the index. */
async function indexBlock(ctx: MoverContext, shape: TableShape, index: KeyIndex, block: Block): Promise<void> {
  if (block.file === null) return;
  for await (const { positions, hashes, rows } of readKeys(ctx, shape, block.file, block.deletes)) {
    for (let i = 0; i < rows; i++) {
      index.add(hashes.tags[i] ?? 0, hashes.lows[i] ?? 0, block.base + Number(positions[i]));
    }
  }
}

/** The keys of a file's live rows, hashed, with their positions. */
async function* readKeys(ctx: MoverContext, shape: TableShape, file: DataFile, deletes: PositionSet | null) {
  const hasher = keyHasher(shape);
  const local = await ctx.cache.localize([{ path: file.path, size: Number(file.fileSizeBytes) }]);
  try {
    const batches = readDataFiles({
      engine: ctx.engine,
      files: [{ path: must(local.paths[0], "local path"), rows: file.recordCount, deletes }],
      fields: keyFields(shape).map((f) => ({ ...f, initialDefault: null })),
      withPosition: true,
      ...(ctx.signal ? { signal: ctx.signal } : {}),
    });
    for await (const batch of batches) {
      const at = must(batch.columns.at(-1), "__pos");
      const positions = "data" in at ? (at.data as BigInt64Array) : new BigInt64Array(0);
      const keys = { length: batch.length, columns: batch.columns.slice(0, -2) };
      yield { rows: batch.length, positions, hashes: hashKeys(hasher, keys) };
    }
  } finally {
    local.release();
  }
}
