/**
 * A table written by `lake`, its Parquet files by pyarrow, and beside it a model of its rows: what
 * every reader must find. Rows are values by field id.
 */
import { randomUUID } from "node:crypto";
import { applyUpdates, type TableUpdate } from "@spillway/lake/commit";
import { writeDeletionVectors, writePositionDeletes } from "@spillway/lake/deletes/deletes";
import { evolveSchema, type SchemaChange } from "@spillway/lake/evolve";
import { createTableMetadata, currentSchema, defaultSpec, writeMetadata } from "@spillway/lake/metadata";
import type {
  DataFile,
  DefaultValue,
  FormatVersion,
  IcebergType,
  NestedField,
  PartitionSpec,
  PrimitiveType,
  PrimitiveValue,
  Schema,
  TableMetadata,
} from "@spillway/lake/model";
import { PositionSet } from "@spillway/lake/puffin/position-set";
import { fieldById } from "@spillway/lake/schema";
import { partitionKey } from "@spillway/lake/snapshot/removals";
import { stageSnapshot, type StageRequest } from "@spillway/lake/snapshot/stage";
import type { ObjectStore } from "@spillway/lake/store/store";
import { applyTransform } from "@spillway/lake/transforms";
import { isPrimitive } from "@spillway/lake/types";
import { compareValues, encodeValue, truncateLower, truncateUpper } from "@spillway/lake/values";
import type { Canonical, CanonicalRow, Foreign, ForeignRows } from "./foreign.ts";

/** A primitive value, or for a nested type its canonical form. */
export type CellValue = PrimitiveValue | null | readonly Canonical[];
export type Row = ReadonlyMap<number, CellValue>;

interface LakeFile {
  readonly file: DataFile;
  readonly schema: Schema;
  readonly rows: readonly Row[];
  readonly deleted: PositionSet;
  /** The delete file in force. */
  deletes: DataFile | null;
}

export interface LakeTableOptions {
  readonly store: ObjectStore;
  readonly foreign: Foreign;
  readonly location: string;
  readonly fields: readonly NestedField[];
  readonly spec?: PartitionSpec;
  readonly formatVersion: FormatVersion;
}

export class LakeTable {
  metadata: TableMetadata;
  readonly #store: ObjectStore;
  readonly #foreign: Foreign;
  #files: LakeFile[] = [];
  #version = 0;
  #nextSnapshot = 2n ** 62n + 1n;

  constructor(options: LakeTableOptions) {
    const { location, fields, spec, formatVersion } = options;
    this.#store = options.store;
    this.#foreign = options.foreign;
    const schema = { schemaId: 0, fields };
    const tableUuid = randomUUID();
    const base = { tableUuid, location, schema, formatVersion, nowMs: 1 };
    this.metadata = createTableMetadata(spec ? { ...base, spec } : base);
  }

  get schema(): Schema {
    return currentSchema(this.metadata);
  }

  get files(): readonly DataFile[] {
    return this.#files.map((one) => one.file);
  }

  /** Writes the metadata file; gives its location. */
  async publish(): Promise<string> {
    return writeMetadata(this.#store, this.metadata, { version: this.#version++, uuid: randomUUID() });
  }

  /** The live rows under the current schema, in the readers' form, sorted. */
  expected(keep: (row: Row) => boolean = () => true): string[] {
    return this.#files
      .flatMap(({ rows, deleted, schema }) =>
        rows.filter((_, i) => !deleted.has(i)).map((row) => withDefaults(row, schema, this.schema)),
      )
      .filter(keep)
      .map((row) => JSON.stringify(canonicalRow(this.schema, row)))
      .toSorted();
  }

  /** What a reader gave, in the same form, sorted. */
  received({ rows }: ForeignRows): string[] {
    const { fields } = this.schema;
    return rows
      .map((row) => JSON.stringify(row.map((value, i) => (fields[i]?.type.kind === "uuid" ? plainUuid(value) : value))))
      .toSorted();
  }

  async append(rows: readonly Row[], change: Partial<StageRequest> = {}): Promise<void> {
    const { schema } = this;
    const spec = defaultSpec(this.metadata);
    const groups = new Map<string, { partition: (PrimitiveValue | null)[]; rows: Row[] }>();
    for (const row of rows) {
      const partition = spec.fields.map(({ sourceId, transform }) => {
        const type = fieldById(schema, sourceId)?.type as PrimitiveType;
        return applyTransform(transform, type, (row.get(sourceId) ?? null) as PrimitiveValue | null);
      });
      const key = partitionKey({ specId: spec.specId, partition } as unknown as DataFile);
      const group = groups.get(key) ?? { partition, rows: [] };
      group.rows.push(row);
      groups.set(key, group);
    }
    const added: LakeFile[] = [];
    for (const group of groups.values()) {
      const path = `${this.metadata.location}/data/${randomUUID()}.parquet`;
      const size = await this.#foreign.writeParquet(
        path,
        schema,
        group.rows.map((row) => canonicalRow(schema, row)),
      );
      const file = {
        ...metricsOf(schema, group.rows),
        path,
        partition: group.partition,
        specId: spec.specId,
        fileSizeBytes: size,
      };
      added.push({ file, schema, rows: group.rows, deleted: new PositionSet(), deletes: null });
    }
    await this.#commit({ operation: "append", addDataFiles: added.map((one) => one.file), ...change });
    this.#files.push(...added);
  }

  /** Deletes the rows that `doomed` names: by deletion vectors in v3, by position delete files in v2. */
  async delete(doomed: (row: Row) => boolean): Promise<void> {
    const touched: { one: LakeFile; positions: PositionSet }[] = [];
    for (const one of this.#files) {
      const positions = one.deleted.clone();
      one.rows.forEach((row, i) => {
        if (doomed(withDefaults(row, one.schema, this.schema))) positions.add(i);
      });
      if (positions.cardinality > one.deleted.cardinality) touched.push({ one, positions });
    }
    const write = this.metadata.formatVersion === 3 ? writeDeletionVectors : writePositionDeletes;
    const deletes = touched.map(({ one, positions }) => ({ dataFile: one.file, positions }));
    const files = await write(this.#store, `${this.metadata.location}/data`, deletes);
    const old = touched.flatMap(({ one }) => one.deletes ?? []);
    await this.#commit({ operation: "overwrite", addDeleteFiles: files, removeDeleteFiles: old });
    touched.forEach(({ one, positions }, i) => {
      one.deleted.addAll(positions);
      one.deletes = files[i] ?? null;
    });
  }

  evolve(...changes: SchemaChange[]): void {
    const { formatVersion, lastColumnId, partitionSpecs, sortOrders } = this.metadata;
    const base = { formatVersion, schema: this.schema, lastColumnId, partitionSpecs, sortOrders };
    const evolved = evolveSchema(base, changes);
    this.apply(
      { action: "add-schema", schema: evolved.schema, lastColumnId: evolved.lastColumnId },
      { action: "set-current-schema", schemaId: -1 },
    );
  }

  apply(...updates: TableUpdate[]): void {
    this.metadata = applyUpdates(this.metadata, updates, this.metadata.lastUpdatedMs + 1);
  }

  async #commit(change: Partial<StageRequest> & Pick<StageRequest, "operation">): Promise<void> {
    const { metadata } = this;
    const request = {
      metadata,
      store: this.#store,
      snapshotId: this.#nextSnapshot++,
      nowMs: metadata.lastUpdatedMs + 1,
    };
    const staged = await stageSnapshot({ ...request, ...change });
    this.apply(...staged.updates);
  }
}

function withDefaults(row: Row, written: Schema, current: Schema): Row {
  const missing = current.fields.filter((f) => !fieldById(written, f.id) && f.initialDefault !== undefined);
  return new Map([...row, ...missing.map((f) => [f.id, (f.initialDefault ?? null) as CellValue] as const)]);
}

export function canonicalRow(schema: Schema, row: Row): CanonicalRow {
  return schema.fields.map((field) => canonicalValue(field.type, row.get(field.id) ?? null));
}

export function canonicalValue(type: IcebergType, value: CellValue | DefaultValue): Canonical {
  if (value === null || Array.isArray(value)) return value as Canonical;
  if (typeof value === "bigint") return value.toString();
  if (typeof value === "boolean") return String(value);
  if (value instanceof Uint8Array) return Buffer.from(value).toString("hex");
  if (typeof value === "number")
    return type.kind === "float" || type.kind === "double" ? hexDouble(value) : String(value);
  return value as string;
}

export function hexDouble(value: number): string {
  const bytes = Buffer.alloc(8);
  bytes.writeDoubleBE(value);
  return bytes.toString("hex");
}

function plainUuid(value: Canonical | undefined): Canonical {
  return typeof value === "string" ? value.replaceAll("-", "") : (value ?? null);
}

type Metrics = Omit<DataFile, "path" | "partition" | "specId" | "fileSizeBytes">;

/** Counts and bounds of the primitive columns, from the rows. */
function metricsOf(schema: Schema, rows: readonly Row[]): Metrics {
  const valueCounts = new Map<number, bigint>();
  const nullValueCounts = new Map<number, bigint>();
  const nanValueCounts = new Map<number, bigint>();
  const lowerBounds = new Map<number, Uint8Array>();
  const upperBounds = new Map<number, Uint8Array>();
  for (const { id, type } of schema.fields) {
    if (!isPrimitive(type)) continue;
    const values = rows.flatMap((row) => (row.get(id) ?? []) as PrimitiveValue | []);
    valueCounts.set(id, BigInt(rows.length));
    nullValueCounts.set(id, BigInt(rows.length - values.length));
    const isFloat = type.kind === "float" || type.kind === "double";
    const sorted = values.filter((value) => !Number.isNaN(value)).toSorted((a, b) => compareValues(type, a, b));
    if (isFloat) nanValueCounts.set(id, BigInt(values.length - sorted.length));
    const [lower, upper] = [sorted[0], sorted.at(-1)];
    if (lower === undefined || upper === undefined) continue;
    lowerBounds.set(id, encodeValue(type, truncateLower(type, lower)));
    const top = truncateUpper(type, upper);
    if (top !== undefined) upperBounds.set(id, encodeValue(type, top));
  }
  const counts = { valueCounts, nullValueCounts, nanValueCounts, lowerBounds, upperBounds };
  return { content: "data", format: "parquet", recordCount: BigInt(rows.length), ...counts };
}
