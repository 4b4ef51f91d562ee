/**
 * Compaction: files with many deleted rows, and many small files of a partition, are rewritten in the order of their rows. The
 * rewrite takes its time on one snapshot; deletes that came since are carried over to the new positions in the
 * commit, so that no row comes back and a steady stream of corrections cannot starve it.
 */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { faultPoint } from "@spillway/base/fault";
import { newInt63 } from "@spillway/base/ids";
import { RowHasher } from "@spillway/base/rowhash";
import { readMetadata } from "@spillway/lake/metadata";
import type { TableMetadata } from "@spillway/lake/model";
import { type ScanTask, TRUE } from "@spillway/lake/scan/scan";
import { stageSnapshot } from "@spillway/lake/snapshot/stage";
import { type BandChange, carriedPosition, type Db, loadBands, loadLakeTable, openOp } from "../catalog/catalog.ts";
import { readDataFiles } from "../engine/engine.ts";
import { displayName, type MoverContext, stager } from "./context.ts";
import { type CompactionUnit, planCompaction, rulesOf } from "./compact-plan.ts";
import { type OldFile, Remap } from "./compact-remap.ts";
import { type Rewritten, rewrite } from "./compact-rewrite.ts";
import { type HashedRows, moveBands } from "./fold-bands.ts";
import { giveUp, isUnknown } from "./fold.ts";
import { type KnownField, keysOf, knownFields } from "./fold-fields.ts";
import { keyField } from "./fold-lookup.ts";
import { loadDeletes, planTasks, withLocalFiles } from "./fold-scan.ts";
import { writeDeletes } from "./fold-write.ts";
import { raiseCounters } from "./maintain-counters.ts";
import { policyOf } from "./policy.ts";
import { publish, type StagedChange } from "./publish.ts";
import { asTiered, type LakeRelation, type TieredRelation } from "./tiered.ts";

export interface CompactResult {
  readonly units: number;
  readonly inputFiles: number;
  readonly outputFiles: number;
  readonly inputBytes: bigint;
  readonly outputBytes: bigint;
  /** Units that another movement made void. */
  readonly superseded: number;
}

export interface CompactOptions {
  /** Default: all that are due. */
  readonly maxUnits?: number;
}

/** Rewrites what the table's policy says. Throws what stops the table. */
export async function compact(
  ctx: MoverContext,
  relation: LakeRelation,
  options: CompactOptions = {},
): Promise<CompactResult> {
  const total = { units: 0, inputFiles: 0, outputFiles: 0, inputBytes: 0n, outputBytes: 0n, superseded: 0 };
  const metadata = await currentMetadata(ctx, relation);
  if (metadata.currentSnapshotId === undefined) return total;
  const tasks = await planTasks(ctx, metadata, TRUE);
  const deletes = await loadDeletes(ctx, tasks);
  const rules = rulesOf(policyOf(relation), await lastBytesPerRow(ctx, relation));
  const units = planCompaction(tasks, (t) => deletes.get(t.dataFile.path)?.cardinality ?? 0, rules);
  for (const unit of units.slice(0, options.maxUnits ?? units.length)) {
    if (ctx.signal?.aborted) break;
    const done = await compactUnit(ctx, relation, metadata, unit);
    if (done === null) {
      total.superseded += 1;
      continue;
    }
    total.units += 1;
    total.inputFiles += unit.tasks.length;
    total.outputFiles += done.files.length;
    total.inputBytes += bytesOf(unit.tasks.map((t) => t.dataFile));
    total.outputBytes += bytesOf(done.files);
  }
  return total;
}

export async function currentMetadata(ctx: MoverContext, relation: LakeRelation): Promise<TableMetadata> {
  const table = await ctx.pool.withClient((c) => loadLakeTable(c, relation.lakeId));
  return readMetadata(ctx.store, must(table, "lake table").metadataLocation);
}

function bytesOf(files: readonly { readonly fileSizeBytes: bigint }[]): bigint {
  return files.reduce((sum, f) => sum + f.fileSizeBytes, 0n);
}

async function lastBytesPerRow(ctx: MoverContext, relation: LakeRelation): Promise<number | null> {
  const { rows } = await ctx.pool.withClient((c) =>
    c.query<{ v: string | null }>(
      `select detail ->> 'bytes_per_row' as v from spillway.journal
       where relation_id = $1 and kind = 'compact' and phase = 'committed' order by op_id desc limit 1`,
      [relation.relationId.toString()],
    ),
  );
  const value = Number(rows[0]?.v ?? Number.NaN);
  return Number.isFinite(value) && value > 0 ? value : null;
}

/** Null when its files were removed by another movement meanwhile. */
async function compactUnit(
  ctx: MoverContext,
  relation: LakeRelation,
  metadata: TableMetadata,
  unit: CompactionUnit,
): Promise<Rewritten | null> {
  const startMs = ctx.clock.monotonicMs();
  const opId = await ctx.pool.withClient((c) =>
    openOp(c, {
      kind: "compact",
      relationId: relation.relationId,
      lakeId: relation.lakeId,
      epoch: ctx.epoch,
      detail: { reason: unit.reason, input_files: unit.tasks.length },
    }),
  );
  try {
    const done = await new Compaction(ctx, relation, metadata, unit, opId).run();
    ctx.log.info("compact.done", {
      table: displayName(relation),
      reason: unit.reason,
      input_files: unit.tasks.length,
      output_files: done.files.length,
      rows: done.rows,
      ms: Math.round(ctx.clock.monotonicMs() - startMs),
    });
    return done;
  } catch (error) {
    if (!isUnknown(error)) await giveUp(ctx, opId, error);
    if (!(error instanceof SpillwayError) || error.code !== "compaction_superseded") throw error;
    ctx.log.info("compact.superseded", { table: displayName(relation), reason: error.message });
    return null;
  }
}

class Compaction {
  readonly #ctx: MoverContext;
  readonly #relation: LakeRelation;
  readonly #metadata: TableMetadata;
  readonly #unit: CompactionUnit;
  readonly #opId: bigint;
  readonly #fields: readonly KnownField[];
  /** Rows whose hash changes, because values of dropped columns are not copied. */
  readonly #before: HashedRows[] = [];
  readonly #after: HashedRows[] = [];

  constructor(ctx: MoverContext, relation: LakeRelation, metadata: TableMetadata, unit: CompactionUnit, opId: bigint) {
    this.#ctx = ctx;
    this.#relation = relation;
    this.#metadata = metadata;
    this.#unit = unit;
    this.#opId = opId;
    this.#fields = knownFields(relation, metadata);
  }

  async run(): Promise<Rewritten> {
    const deleted = await loadDeletes(this.#ctx, this.#unit.tasks);
    const old = this.#unit.tasks.map(({ dataFile }): OldFile => ({
      path: dataFile.path,
      rows: dataFile.recordCount,
      deleted: deleted.get(dataFile.path) ?? null,
    }));
    const done = await rewrite(this.#ctx, {
      relation: this.#relation,
      metadata: this.#metadata,
      fields: this.#fields,
      tasks: this.#unit.tasks,
      onFile: stager(this.#ctx, this.#opId),
      onDropped: ({ before, after }) => {
        this.#before.push(before);
        this.#after.push(after);
      },
    });
    faultPoint("compact.files_written");
    const remap = new Remap(
      old,
      done.files.map((f) => f.recordCount),
    );
    if (BigInt(remap.total) !== done.rows) {
      throw new SpillwayError("verify_failed", `${remap.total} live rows were to be rewritten, ${done.rows} were`);
    }
    await publish(this.#ctx, {
      opId: this.#opId,
      lakeId: this.#relation.lakeId,
      points: { before: "compact.before_commit", after: "compact.after_commit" },
      stage: (base, onFile) => this.#stage(base, done, remap, onFile),
    });
    return done;
  }

  async #stage(
    base: TableMetadata,
    done: Rewritten,
    remap: Remap,
    onFile: (path: string) => Promise<void>,
  ): Promise<StagedChange> {
    const inputs = await this.#inputsNow(base);
    const now = await loadDeletes(this.#ctx, inputs);
    const moved = [...remap.remap(now)].map(([i, positions]) => ({
      task: newTask(must(done.files[i], "new file")),
      positions,
    }));
    const { written, ...deletes } = await writeDeletes(this.#ctx, base, moved, onFile);
    // A new file whose every row was deleted meanwhile is not added at all.
    const emptied = new Set(deletes.removeDataFiles.map((f) => f.path));
    const staged = await stageSnapshot({
      metadata: base,
      store: this.#ctx.store,
      operation: "replace",
      snapshotId: newInt63(),
      nowMs: this.#ctx.clock.wallMs(),
      addDataFiles: done.files.filter((f) => !emptied.has(f.path)),
      addDeleteFiles: deletes.addDeleteFiles,
      removeDataFiles: inputs.map((t) => t.dataFile),
      summaryProps: { ...carriedPosition(base), "spillway.op": this.#opId.toString(), "spillway.kind": "compact" },
      onFile,
    });
    return {
      updates: staged.updates,
      requirements: staged.requirements,
      attemptFiles: [...written, ...staged.writtenFiles],
      commit: {
        bandChanges: await this.#bandChanges(base, inputs, now, remap),
        unused: [...emptied],
        detail: {
          output_files: done.files.length,
          rows: done.rows,
          input_bytes: bytesOf(inputs.map((t) => t.dataFile)),
          output_bytes: bytesOf(done.files),
          bytes_per_row: Math.ceil(done.bytesPerRow),
          carried_deletes: moved.reduce((sum, m) => sum + m.positions.cardinality, 0),
        },
        also: (tx) => this.#count(tx, inputs),
      },
    };
  }

  /** The input files as the table has them now. Throws `compaction_superseded`. */
  async #inputsNow(base: TableMetadata): Promise<readonly ScanTask[]> {
    const byPath = new Map((await planTasks(this.#ctx, base, TRUE)).map((t) => [t.dataFile.path, t]));
    return this.#unit.tasks.map(({ dataFile }) => {
      const found = byPath.get(dataFile.path);
      if (found) return found;
      throw new SpillwayError("compaction_superseded", `${dataFile.path} is not in the table any more`);
    });
  }

  /** Nothing where no column was ever dropped: the rows are the same, and so is their sum. */
  async #bandChanges(
    base: TableMetadata,
    inputs: readonly ScanTask[],
    now: Awaited<ReturnType<typeof loadDeletes>>,
    remap: Remap,
  ): Promise<readonly BandChange[]> {
    const tiered = asTiered(this.#relation);
    if (this.#before.length === 0 || tiered === null) return [];
    const since: HashedRows[] = [];
    const sinceLive: HashedRows[] = [];
    for (const task of inputs) {
      const deleted = now.get(task.dataFile.path);
      const positions = deleted ? remap.since(task.dataFile.path, deleted) : [];
      if (positions.length > 0) await this.#hashPositions(tiered, task, positions, since, sinceLive);
    }
    const bands = await this.#ctx.pool.withClient((c) => loadBands(c, this.#relation.relationId));
    // Rows deleted since are in neither sum any more.
    return moveBands({
      relationId: this.#relation.relationId,
      bands,
      t: tiered.seam.t,
      removed: [...this.#before, ...sinceLive],
      added: [...this.#after, ...since],
      fieldIds: knownFields(this.#relation, base).map((f) => f.scan.id),
    }).changes;
  }

  async #hashPositions(
    tiered: TieredRelation,
    task: ScanTask,
    positions: readonly number[],
    full: HashedRows[],
    live: HashedRows[],
  ): Promise<void> {
    const liveFields = this.#fields.filter((f) => f.live);
    const fullHasher = new RowHasher(this.#fields.map((f) => f.hash));
    const liveHasher = new RowHasher(liveFields.map((f) => f.hash));
    const keyAt = this.#fields.indexOf(keyField(tiered, this.#fields));
    await withLocalFiles(this.#ctx, [task], async (files) => {
      const batches = readDataFiles({
        engine: this.#ctx.engine,
        // With the rows that are deleted.
        files: files.map(({ path, rows }) => ({ path, rows })),
        fields: this.#fields.map((f) => f.scan),
        where: `file_row_number IN (${positions.join(", ")})`,
      });
      for await (const batch of batches) {
        const keys = keysOf(must(batch.columns[keyAt], "tier key"), batch.length).slice();
        full.push({ keys, hashes: fullHasher.hashBatch(batch) });
        const columns = batch.columns.slice(0, liveFields.length);
        live.push({ keys, hashes: liveHasher.hashBatch({ length: batch.length, columns }) });
      }
    });
  }

  async #count(tx: Db, inputs: readonly ScanTask[]): Promise<void> {
    await raiseCounters(tx, this.#relation.relationId, {
      compactions_total: 1,
      compacted_files_total: inputs.length,
      compacted_bytes_total: bytesOf(inputs.map((t) => t.dataFile)),
      lake_commits_total: 1,
    });
  }
}

function newTask(dataFile: ScanTask["dataFile"]): ScanTask {
  return { dataFile, sequenceNumber: 0n, deletes: [], residual: { op: "true" } };
}
