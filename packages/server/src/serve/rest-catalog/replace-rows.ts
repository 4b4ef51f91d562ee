/** The rows of exchanged files: the same multiset before and after, and what the new files' manifests say of them is true. */
import { must } from "@spillway/base/assert";
import { type Column, type ColumnBatch, isVarColumn } from "@spillway/base/columns";
import { Checksum, type HashField, RowHasher } from "@spillway/base/rowhash";
import { currentSchema } from "@spillway/lake/metadata";
import type { DataFile, NestedField, PrimitiveType, PrimitiveValue, TableMetadata } from "@spillway/lake/model";
import { specById } from "@spillway/lake/partition";
import { RESERVED_IDS } from "@spillway/lake/schema";
import { applyTransform } from "@spillway/lake/transforms";
import { isPrimitive } from "@spillway/lake/types";
import { compareValues, decodeValue } from "@spillway/lake/values";
import type { Relation } from "../../catalog/catalog.ts";
import { duckDefault, kindOfIceberg, readDataFiles, type ScanField, valueAt } from "../../engine/engine.ts";
import type { FileChanges, FileRows } from "./replace-files.ts";
import { refuse } from "./replace-rules.ts";
import type { ReplaceContext } from "./replace.ts";

export interface RowComparison {
  readonly metadata: TableMetadata;
  readonly relation: Relation;
  readonly changes: FileChanges;
}

/** Throws `foreign_replace_refused` unless the added files hold exactly the live rows of the removed ones. */
export async function compareRows(ctx: ReplaceContext, { metadata, relation, changes }: RowComparison): Promise<void> {
  const columns = columnsOf(metadata, relation);
  const lineage = metadata.formatVersion >= 3 ? lineageFields(columns) : [];
  const before = await checksum(ctx, changes.removed, columns, lineage, null);
  const after = await checksum(ctx, changes.added, columns, lineage, metadata);
  if (before.equals(after)) return;
  const why =
    before.rows === after.rows
      ? `their values${lineage.length > 0 ? ", or their row ids," : ""} differ`
      : `${before.rows} rows were replaced by ${after.rows}`;
  refuse(`the new files do not hold the rows of the old ones: ${why}`);
}

interface LakeColumn {
  readonly field: NestedField;
  readonly type: PrimitiveType;
  readonly scan: ScanField;
}

function columnsOf(metadata: TableMetadata, relation: Relation): LakeColumn[] {
  const defaults = new Map(relation.columns.map((c) => [c.fieldId, c.initialDefault]));
  return currentSchema(metadata).fields.map((field) => {
    if (!isPrimitive(field.type)) return refuse(`the column ${field.name} is nested`);
    const shape = kindOfIceberg(field.type);
    const initialDefault = duckDefault(shape.kind, defaults.get(field.id) ?? null);
    return { field, type: field.type, scan: { id: field.id, name: field.name, ...shape, initialDefault } };
  });
}

/** Row ids and the sequence numbers of their last change, under names that no column has. */
function lineageFields(columns: readonly LakeColumn[]): ScanField[] {
  const taken = new Set(columns.map((c) => c.field.name.toLowerCase()));
  const free = (name: string): string => (taken.has(name) ? free(`${name}_`) : name);
  return [
    { id: RESERVED_IDS.rowId, name: free("_row_id"), kind: "int64" },
    { id: RESERVED_IDS.lastUpdatedSequenceNumber, name: free("_last_updated_sequence_number"), kind: "int64" },
  ];
}

/** `declared`: the files are new, and what their manifest entries say is checked against this table's specs. */
async function checksum(
  ctx: ReplaceContext,
  files: readonly FileRows[],
  columns: readonly LakeColumn[],
  lineage: readonly ScanField[],
  declared: TableMetadata | null,
): Promise<Checksum> {
  const fields = [...columns.map((c) => c.scan), ...lineage];
  const hasher = new RowHasher(fields.map((f): HashField => ({ fieldId: f.id, kind: f.kind })));
  const sum = new Checksum();
  const engine = await ctx.engine();
  for (const one of files) {
    const facts = declared ? new FileFacts(declared, columns, one.file) : null;
    if (facts) await requireSize(ctx, one.file);
    const local = await ctx.cache.localize([{ path: one.file.path, size: Number(one.file.fileSizeBytes) }]);
    try {
      const path = must(local.paths[0], "local path");
      const file = { path, rows: one.file.recordCount, deletes: one.deletes };
      for await (const batch of readDataFiles({ engine, files: [file], fields, withPosition: true })) {
        sum.add(hasher.hashBatch(lineage.length > 0 ? withLineage(batch, one) : withoutPosition(batch)));
        facts?.add(batch);
      }
    } finally {
      local.release();
    }
    facts?.check();
  }
  return sum;
}

async function requireSize(ctx: ReplaceContext, file: DataFile): Promise<void> {
  const found = await ctx.store.head(file.path);
  if (found === null) refuse(`the file ${file.path} is not there`);
  if (BigInt(found?.size ?? 0) !== file.fileSizeBytes)
    refuse(`the file ${file.path} has not the size that its manifest says`);
}

function withoutPosition(batch: ColumnBatch): ColumnBatch {
  return { length: batch.length, columns: batch.columns.slice(0, -2) };
}

/**
 * A row's id is what its file says, else the file's first one plus the position; likewise its last change is the file's
 * sequence number (Iceberg specification, row lineage).
 */
function withLineage(batch: ColumnBatch, { file, sequenceNumber }: FileRows): ColumnBatch {
  const columns = batch.columns.slice(0, -2);
  const position = must(batch.columns.at(-1), "__pos");
  const { firstRowId } = file;
  const ids = must(columns.at(-2), "row ids");
  const sequences = must(columns.at(-1), "sequence numbers");
  columns.splice(
    -2,
    2,
    filled(ids, batch.length, (i) => (firstRowId === undefined ? null : firstRowId + longAt(position, i))),
    filled(sequences, batch.length, () => sequenceNumber),
  );
  return { length: batch.length, columns };
}

function longAt(column: Column, row: number): bigint {
  return isVarColumn(column) ? 0n : ((column.data as BigInt64Array)[row] ?? 0n);
}

function filled(column: Column, length: number, byDefault: (row: number) => bigint | null): Column {
  if (isVarColumn(column) || column.validity === null) return column;
  const data = (column.data as BigInt64Array).slice(0, length);
  const validity = column.validity.slice(0, length);
  for (let i = 0; i < length; i++) {
    if (validity[i] !== 0) continue;
    const value = byDefault(i);
    if (value === null) continue;
    data[i] = value;
    validity[i] = 1;
  }
  return { ...column, data, validity };
}

interface Seen {
  readonly column: LakeColumn;
  readonly index: number;
  readonly lower: PrimitiveValue | null;
  readonly upper: PrimitiveValue | null;
  nulls: bigint;
  nans: bigint;
}

/** What a manifest entry declares of a file, compared with its rows: reads skip files by it. */
class FileFacts {
  readonly #file: DataFile;
  readonly #seen: Seen[];
  readonly #partition: { index: number; holds: (value: PrimitiveValue | null) => boolean }[];
  #rows = 0n;

  constructor(metadata: TableMetadata, columns: readonly LakeColumn[], file: DataFile) {
    this.#file = file;
    this.#seen = columns.map((column, index) => ({
      column,
      index,
      lower: bound(column, file.lowerBounds),
      upper: bound(column, file.upperBounds),
      nulls: 0n,
      nans: 0n,
    }));
    this.#partition = specById(metadata, file.specId).fields.map((field, i) => {
      const index = columns.findIndex((c) => c.field.id === field.sourceId);
      const column = columns[index] ?? refuse(`the partition field ${field.name} has no column`);
      const declared = file.partition[i] ?? null;
      return {
        index,
        holds: (value) => sameValue(applyTransform(field.transform, column.type, value), declared),
      };
    });
  }

  add(batch: ColumnBatch): void {
    this.#rows += BigInt(batch.length);
    for (const seen of this.#seen) this.#addColumn(seen, must(batch.columns[seen.index], "column"), batch.length);
    for (const { index, holds } of this.#partition) {
      const column = must(batch.columns[index], "column");
      for (let i = 0; i < batch.length; i++) {
        if (!holds(valueAt(column, i) as PrimitiveValue | null))
          refuse(`a row of ${this.#file.path} lies outside its partition`);
      }
    }
  }

  #addColumn(seen: Seen, data: Column, length: number): void {
    const { lower, upper } = seen;
    const { type, field } = seen.column;
    for (let i = 0; i < length; i++) {
      const value = valueAt(data, i) as PrimitiveValue | null;
      if (value === null) seen.nulls += 1n;
      else if (typeof value === "number" && Number.isNaN(value)) seen.nans += 1n;
      else {
        const isInside =
          (lower === null || compareValues(type, lower, value) <= 0) &&
          (upper === null || compareValues(type, value, upper) <= 0);
        if (!isInside) refuse(`a value of ${field.name} in ${this.#file.path} lies outside the declared bounds`);
      }
    }
  }

  check(): void {
    const { path, recordCount, nullValueCounts, nanValueCounts, valueCounts } = this.#file;
    if (this.#rows !== recordCount) refuse(`${path} has ${this.#rows} rows, its manifest says ${recordCount}`);
    for (const { column, nulls, nans } of this.#seen) {
      const { id, name } = column.field;
      const isTrue =
        (nullValueCounts?.get(id) ?? nulls) === nulls &&
        (nanValueCounts?.get(id) ?? nans) === nans &&
        (valueCounts?.get(id) ?? recordCount) === recordCount;
      if (!isTrue) refuse(`the counts that the manifest has of ${name} in ${path} are wrong`);
    }
  }
}

function bound(
  { field, type }: LakeColumn,
  bounds: ReadonlyMap<number, Uint8Array> | undefined,
): PrimitiveValue | null {
  const bytes = bounds?.get(field.id);
  return bytes === undefined ? null : decodeValue(type, bytes);
}

function sameValue(a: PrimitiveValue | null, b: PrimitiveValue | null): boolean {
  if (a instanceof Uint8Array && b instanceof Uint8Array) return Buffer.compare(a, b) === 0;
  return a === b || (typeof a === "number" && typeof b === "bigint" && BigInt(a) === b);
}
