/** What a fold writes: upserts as plain data files, and the positions that they replace as deletes. */
import { must } from "@spillway/base/assert";
import { takeRows } from "@spillway/base/batch";
import type { Column, ColumnBatch } from "@spillway/base/columns";
import { mergeDeletes, writeDeletionVectors, writePositionDeletes } from "@spillway/lake/deletes/deletes";
import { defaultSpec } from "@spillway/lake/metadata";
import type { DataFile, TableMetadata } from "@spillway/lake/model";
import { PositionSet } from "@spillway/lake/puffin/position-set";
import type { ScanTask } from "@spillway/lake/scan/scan";
import { RESERVED_IDS } from "@spillway/lake/schema";
import { type LakeField, writeDataFiles } from "../engine/engine.ts";
import type { MoverContext } from "./context.ts";
import type { DeltaChunk } from "./fold-chunk.ts";
import { pkHashes, pkHasherOf } from "./fold-lookup.ts";
import { journaled, loadDeletes, ownDeletes } from "./fold-scan.ts";

const WRITE_BATCH = 16_384;
export const ROW_ID_FIELD: LakeField = { id: RESERVED_IDS.rowId, name: "_row_id", kind: "int64" };

export interface UpsertRequest {
  readonly chunk: DeltaChunk;
  readonly metadata: TableMetadata;
  readonly pk: readonly LakeField[];
  readonly pkColumns: readonly Column[];
  /** v3: row ids of rows that are replaced; they keep them (spec, row lineage). */
  readonly rowIds: ReadonlyMap<bigint, bigint>;
  readonly onFile: (path: string) => Promise<void>;
}

export async function writeUpserts(ctx: MoverContext, request: UpsertRequest): Promise<DataFile[]> {
  const { chunk, metadata, rowIds } = request;
  if (chunk.upserts.length === 0) return [];
  const fields = chunk.columns.map((c) => c.field);
  const withIds = metadata.formatVersion >= 3 && rowIds.size > 0;
  const files = await writeDataFiles({
    engine: ctx.engine,
    batches: upsertBatches(request, withIds),
    fields: withIds ? [...fields, ROW_ID_FIELD] : fields,
    spec: defaultSpec(metadata),
    store: ctx.store,
    dataLocation: `${metadata.location}/data`,
    stageDir: ctx.stageDir,
    onFile: request.onFile,
    ...(ctx.signal ? { signal: ctx.signal } : {}),
  });
  return files.map(withoutReserved);
}

async function* upsertBatches(request: UpsertRequest, withIds: boolean): AsyncIterable<ColumnBatch> {
  const { chunk, pk, pkColumns, rowIds } = request;
  const hashes = withIds ? pkHashes(pkHasherOf(pk), pkColumns, chunk.rows.length) : [];
  for (let start = 0; start < chunk.upserts.length; start += WRITE_BATCH) {
    const indexes = chunk.upserts.slice(start, start + WRITE_BATCH);
    const batch = takeRows(chunk.rows, indexes);
    yield withIds
      ? withRowIds(
          batch,
          indexes.map((i) => rowIds.get(must(hashes[i], "hash"))),
        )
      : batch;
  }
}

function withRowIds(batch: ColumnBatch, ids: readonly (bigint | undefined)[]): ColumnBatch {
  const data = new BigInt64Array(batch.length);
  const validity = new Uint8Array(batch.length);
  ids.forEach((id, i) => {
    if (id === undefined) return;
    data[i] = id;
    validity[i] = 1;
  });
  const column: Column = { spec: { name: ROW_ID_FIELD.name, kind: "int64" }, validity, data };
  return { length: batch.length, columns: [...batch.columns, column] };
}

/** Metrics are of the schema's columns; the row lineage ones are not in it. */
export function withoutReserved(file: DataFile): DataFile {
  const without = <V>(map: ReadonlyMap<number, V> | undefined): ReadonlyMap<number, V> | undefined =>
    map && new Map([...map].filter(([id]) => id < RESERVED_IDS.lastUpdatedSequenceNumber));
  return {
    ...file,
    columnSizes: without(file.columnSizes),
    valueCounts: without(file.valueCounts),
    nullValueCounts: without(file.nullValueCounts),
    nanValueCounts: without(file.nanValueCounts),
    lowerBounds: without(file.lowerBounds),
    upperBounds: without(file.upperBounds),
  };
}

export interface Deletion {
  readonly task: ScanTask;
  readonly positions: Iterable<number>;
}

export interface WrittenDeletes {
  readonly addDeleteFiles: readonly DataFile[];
  readonly removeDeleteFiles: readonly DataFile[];
  /** Files in which no row is left. */
  readonly removeDataFiles: readonly DataFile[];
  readonly written: readonly string[];
}

/** Each data file's new vector (v3) or delete file (v2) holds what its old one held; a file without a live row goes. */
export async function writeDeletes(
  ctx: MoverContext,
  metadata: TableMetadata,
  deletions: readonly Deletion[],
  onFile: (path: string) => Promise<void>,
): Promise<WrittenDeletes> {
  const existing = await loadDeletes(
    ctx,
    deletions.map((d) => d.task),
  );
  const added = new Map(deletions.map(({ task, positions }) => [task.dataFile.path, new PositionSet(positions)]));
  const own = new Map([...existing].filter(([path]) => added.has(path)));
  const merged = mergeDeletes(own, added);
  const all = deletions.map(({ task }) => ({ task, positions: must(merged.get(task.dataFile.path), "positions") }));
  const isEmptied = (d: (typeof all)[number]): boolean =>
    BigInt(d.positions.cardinality) >= d.task.dataFile.recordCount;
  const kept = all.filter((d) => !isEmptied(d));
  const files = kept.map(({ task, positions }) => ({ dataFile: task.dataFile, positions }));
  const store = journaled(ctx.store, onFile);
  const folder = `${metadata.location}/data`;
  const addDeleteFiles =
    metadata.formatVersion >= 3
      ? await writeDeletionVectors(store, folder, files)
      : await writePositionDeletes(store, folder, files);
  return {
    addDeleteFiles,
    removeDeleteFiles: kept.flatMap(({ task }) => ownDeletes(task)),
    removeDataFiles: all.filter(isEmptied).map(({ task }) => task.dataFile),
    written: [...new Set(addDeleteFiles.map((f) => f.path))],
  };
}
