/**
 * Folding: corrections below the cut-line move from the delta into the lake (docs/internals/seam.md §8), a bounded part at a
 * time. Upserts become plain appends, what they and the tombstones replace becomes deleted positions, and the
 * bands' checksums change by exactly these rows, all in the commit that takes the rows out of the delta. A row that
 * is corrected again meanwhile has another version and stays.
 */
import { must } from "@spillway/base/assert";
import { takeRows } from "@spillway/base/batch";
import type { Column, ColumnBatch } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import { faultPoint } from "@spillway/base/fault";
import { newInt63 } from "@spillway/base/ids";
import { RowHasher } from "@spillway/base/rowhash";
import { readMetadata } from "@spillway/lake/metadata";
import type { DataFile, TableMetadata } from "@spillway/lake/model";
import { stageSnapshot } from "@spillway/lake/snapshot/stage";
import {
  abandonOp,
  type Db,
  deltaTable,
  type LakeCommit,
  type LakeTableRow,
  loadBands,
  loadLakeTable,
  openOp,
} from "../catalog/catalog.ts";
import type { LakeField } from "../engine/engine.ts";
import { displayName, type MoverContext, stager } from "./context.ts";
import { type BandMoves, type HashedRows, moveBands } from "./fold-bands.ts";
import { type DeltaChunk, readChunk } from "./fold-chunk.ts";
import { type KnownField, knownFields } from "./fold-fields.ts";
import { type Lookup, lookUp } from "./fold-lookup.ts";
import { writeDeletes, writeUpserts } from "./fold-write.ts";
import { raiseCounters } from "./maintain-counters.ts";
import { commitPatiently, type Publication, publish, type StagedChange } from "./publish.ts";
import type { TieredRelation } from "./tiered.ts";

export interface FoldOptions {
  /** Delta rows of one pass, and so of one commit. Default 50 000. */
  readonly rowsPerPass?: number;
  /** Default: until all that was due at the start is folded. */
  readonly maxPasses?: number;
}

export interface FoldResult {
  readonly passes: number;
  /** Delta rows that the lake has now. */
  readonly deltaRows: number;
  readonly upserts: number;
  /** Rows of the lake that were replaced or deleted. */
  readonly replaced: number;
  readonly ms: number;
}

export const FOLD_ROWS = 50_000;
/** Rows of one pass are held in memory. */
const CHUNK_BYTES = 64 << 20;

/**
 * Folds until what was due at the start is in the lake, the passes are used up, or the signal comes. Corrections that come
 * meanwhile are the next fold's: clients that correct faster than a pass takes must not keep one from ending. Throws
 * what stops the table.
 */
export async function foldRelation(
  ctx: MoverContext,
  relation: TieredRelation,
  options: FoldOptions = {},
): Promise<FoldResult> {
  const startMs = ctx.clock.monotonicMs();
  const total = { passes: 0, deltaRows: 0, upserts: 0, replaced: 0 };
  const upTo = await latestVersion(ctx, relation);
  const limits = { rows: options.rowsPerPass ?? FOLD_ROWS, bytes: CHUNK_BYTES, upTo };
  for (let more = true; more && total.passes < (options.maxPasses ?? Infinity) && !ctx.signal?.aborted;) {
    const chunk = await readChunk(ctx, relation, limits);
    if (chunk === null) break;
    total.replaced += await foldChunk(ctx, relation, chunk);
    total.passes += 1;
    total.deltaRows += chunk.versions.length;
    total.upserts += chunk.upserts.length;
    more = chunk.more;
  }
  const ms = Math.round(ctx.clock.monotonicMs() - startMs);
  if (total.passes > 0) ctx.log.info("fold.done", { table: displayName(relation), ...total, ms });
  return { ...total, ms };
}

async function latestVersion(ctx: MoverContext, relation: TieredRelation): Promise<bigint> {
  const { rows } = await ctx.pool.withClient((c) =>
    c.query<{ v: string | null }>(`select max(version)::text as v from ${deltaTable(relation.relationId)}`),
  );
  return BigInt(rows[0]?.v ?? -1);
}

async function foldChunk(ctx: MoverContext, relation: TieredRelation, chunk: DeltaChunk): Promise<number> {
  const opId = await ctx.pool.withClient((c) =>
    openOp(c, {
      kind: "fold",
      relationId: relation.relationId,
      lakeId: relation.lakeId,
      epoch: ctx.epoch,
      detail: { delta_rows: chunk.versions.length, upserts: chunk.upserts.length },
    }),
  );
  faultPoint("fold.journaled");
  try {
    return await new Fold(ctx, relation, chunk, opId, ownHost(ctx, relation)).run();
  } catch (error) {
    if (!isUnknown(error)) await giveUp(ctx, opId, error);
    throw error;
  }
}

/** An outcome that is not known yet must not be given up: recovery looks it up. */
export function isUnknown(error: unknown): boolean {
  return error instanceof SpillwayError && error.kind === "unknown";
}

export async function giveUp(ctx: MoverContext, opId: bigint, error: unknown): Promise<void> {
  const reason = error instanceof SpillwayError ? `${error.code}: ${error.message}` : "failed";
  await ctx.pool
    .withClient((c) => abandonOp(c, opId, reason))
    .catch((e: unknown) => ctx.log.warn("abandon_failed", { op: opId, error: e }));
}

/** Where a fold looks and commits: by itself, or inside a client's transaction (direct.ts). */
export interface FoldHost {
  table(): Promise<LakeTableRow | null>;
  bands(): ReturnType<typeof loadBands>;
  publish(publication: Publication): Promise<unknown>;
  /** A commit that moves no pointer. */
  commit(commit: LakeCommit): Promise<unknown>;
}

function ownHost(ctx: MoverContext, relation: TieredRelation): FoldHost {
  return {
    table: () => ctx.pool.withClient((c) => loadLakeTable(c, relation.lakeId)),
    bands: () => ctx.pool.withClient((c) => loadBands(c, relation.relationId)),
    publish: (publication) => publish(ctx, publication),
    commit: (commit) => commitPatiently(ctx, commit),
  };
}

/** One chunk of the delta into the lake. */
export class Fold {
  readonly #ctx: MoverContext;
  readonly #relation: TieredRelation;
  readonly #chunk: DeltaChunk;
  readonly #opId: bigint;
  readonly #host: FoldHost;
  readonly #pk: readonly LakeField[];
  readonly #pkRows: ColumnBatch;
  #replaced = 0;

  constructor(ctx: MoverContext, relation: TieredRelation, chunk: DeltaChunk, opId: bigint, host: FoldHost) {
    this.#ctx = ctx;
    this.#host = host;
    this.#relation = relation;
    this.#chunk = chunk;
    this.#opId = opId;
    const at = relation.pkAttnums.map((attnum) => chunk.columns.findIndex((c) => c.attnum === attnum));
    this.#pk = at.map((i) => must(chunk.columns[i], "primary key").field);
    this.#pkRows = {
      length: chunk.rows.length,
      columns: at.map((i): Column => must(chunk.rows.columns[i], "primary key")),
    };
  }

  async run(): Promise<number> {
    const { store } = this.#ctx;
    const table = await this.#host.table();
    if (table === null) {
      throw new SpillwayError("table_unknown", `the lake table of ${displayName(this.#relation)} is gone`);
    }
    const metadata = await readMetadata(store, table.metadataLocation);
    let found = await this.#lookUp(metadata);
    const files = await writeUpserts(this.#ctx, {
      chunk: this.#chunk,
      metadata,
      pk: this.#pk,
      pkColumns: this.#pkRows.columns,
      rowIds: found.rowIds,
      onFile: stager(this.#ctx, this.#opId),
    });
    faultPoint("fold.files_written");
    if (files.length === 0 && found.count === 0) return this.#commitNothing();
    await this.#host.publish({
      opId: this.#opId,
      lakeId: this.#relation.lakeId,
      points: { before: "fold.before_commit", after: "fold.after_commit" },
      stage: async (base, onFile) => {
        // Somebody else committed: positions are looked for again, the upserts stay as they are.
        if (base.currentSnapshotId !== found.snapshotId) found = await this.#lookUp(base);
        return this.#stage(base, files, found, onFile);
      },
    });
    return this.#replaced;
  }

  /** Tombstones of rows that the lake does not have. */
  async #commitNothing(): Promise<number> {
    faultPoint("fold.before_commit");
    await this.#host.commit({
      opId: this.#opId,
      epoch: this.#ctx.epoch,
      pointers: [],
      absorbed: [this.#absorbed()],
      also: (tx) => this.#count(tx, 0, false),
    });
    faultPoint("fold.after_commit");
    return 0;
  }

  #absorbed(): { relationId: bigint; versions: readonly bigint[] } {
    return { relationId: this.#relation.relationId, versions: this.#chunk.versions };
  }

  #lookUp(metadata: TableMetadata): Promise<Lookup> {
    return lookUp(this.#ctx, {
      relation: this.#relation,
      metadata,
      fields: knownFields(this.#relation, metadata),
      pk: this.#pk,
      pkRows: this.#pkRows,
      keys: this.#chunk.keys,
    });
  }

  async #stage(
    base: TableMetadata,
    files: readonly DataFile[],
    found: Lookup,
    onFile: (path: string) => Promise<void>,
  ): Promise<StagedChange> {
    // Read after the metadata: whoever changes bands moves the pointer too, and then this commit fails.
    const bands = await this.#host.bands();
    const moves = this.#moves(base, bands, found);
    const deletes = await writeDeletes(this.#ctx, base, found.files, onFile);
    const { written, ...deleteFiles } = deletes;
    const isAppend = found.count === 0;
    const staged = await stageSnapshot({
      metadata: base,
      store: this.#ctx.store,
      operation: isAppend ? "append" : files.length === 0 ? "delete" : "overwrite",
      snapshotId: newInt63(),
      nowMs: this.#ctx.clock.wallMs(),
      addDataFiles: files,
      ...(isAppend ? {} : deleteFiles),
      summaryProps: { "spillway.op": this.#opId.toString(), "spillway.kind": "fold" },
      onFile,
    });
    return {
      updates: staged.updates,
      requirements: staged.requirements,
      attemptFiles: [...written, ...staged.writtenFiles],
      commit: {
        bandChanges: moves.changes,
        bandPuts: moves.puts,
        absorbed: [this.#absorbed()],
        detail: { replaced: found.count, files: files.length, bands: moves.changes.length + moves.puts.length },
        also: (tx) => this.#count(tx, found.count, true),
      },
    };
  }

  #moves(base: TableMetadata, bands: Awaited<ReturnType<typeof loadBands>>, found: Lookup): BandMoves {
    const fields = knownFields(this.#relation, base);
    return moveBands({
      relationId: this.#relation.relationId,
      bands,
      t: this.#relation.seam.t,
      removed: found.rows,
      added: this.#added(fields),
      fieldIds: fields.map((f) => f.scan.id),
    });
  }

  #added(fields: readonly KnownField[]): HashedRows[] {
    const { columns, rows, upserts, keys } = this.#chunk;
    if (upserts.length === 0) return [];
    const hashes = columns.map((c) =>
      must(
        fields.find((f) => f.scan.id === c.field.id),
        `lake field of column ${c.field.name}`,
      ),
    );
    const batch = takeRows(rows, upserts);
    const hasher = new RowHasher(hashes.map((f) => f.hash));
    return [{ keys: BigInt64Array.from(upserts, (i) => keys[i] ?? 0n), hashes: hasher.hashBatch(batch) }];
  }

  async #count(tx: Db, replaced: number, isCommit: boolean): Promise<void> {
    this.#replaced = replaced;
    await raiseCounters(tx, this.#relation.relationId, {
      fold_passes_total: 1,
      fold_delta_rows_total: this.#chunk.versions.length,
      fold_upserts_total: this.#chunk.upserts.length,
      fold_lake_rows_replaced_total: replaced,
      lake_commits_total: isCommit ? 1 : 0,
    });
  }
}
