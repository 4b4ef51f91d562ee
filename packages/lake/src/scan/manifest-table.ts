/**
 * A data manifest as a scan needs it: live files only, and column metrics left encoded until a filter
 * asks for a column. Then that column is decoded for all files at once, and kept.
 */
import { SpillwayError } from "@spillway/base/errors";
import { compileDecoder, type Shape } from "../avro/codec.ts";
import { type AvroHeader, readAvro } from "../avro/container.ts";
import { Cursor } from "../avro/cursor.ts";
import { type AvroRecord, type AvroSchema, isUnion } from "../avro/schema.ts";
import { type ManifestContext, partitionOf } from "../manifest.ts";
import { entryShape } from "../manifest-schema.ts";
import type { DataFile, FileFormat, ManifestFile, PrimitiveType } from "../model.ts";
import { partitionKey } from "../snapshot/removals.ts";
import { type Comparable, comparable } from "./expression.ts";
import { decoded } from "./facts.ts";

/** Slots of the entry and of its data file, in the order of `entryShape`. */
const ENTRY = { status: 0, snapshotId: 1, sequenceNumber: 2, file: 4 } as const;
const FILE = {
  content: 0,
  path: 1,
  format: 2,
  partition: 3,
  recordCount: 4,
  fileSizeBytes: 5,
  valueCounts: 7,
  nullValueCounts: 8,
  nanValueCounts: 9,
  lowerBounds: 10,
  upperBounds: 11,
  splitOffsets: 12,
  sortOrderId: 14,
  firstRowId: 15,
} as const;
/** Column sizes and metrics. */
const RAW_SLOTS = [6, 7, 8, 9, 10, 11] as const;
const STATUS_DELETED = 2;
/** What an entry takes in memory beside its encoded metrics, roughly. */
const ENTRY_BYTES = 900;
const COLUMN_ENTRY_BYTES = 150;

type Raw = Uint8Array | undefined;

/** A live data file with its sequence number. */
export interface TableEntry {
  readonly dataFile: DataFile;
  /** Its `partitionKey`. */
  readonly partition: string;
  readonly sequenceNumber: bigint;
  readonly recordCount: number;
  readonly fileSizeBytes: number;
  /** Encoded maps, in the order of `RAW_SLOTS`. */
  readonly raw: readonly Raw[];
}

/** One column's metrics, by the entry's place. -1 where a count is unknown. */
export interface MetricColumn {
  readonly lower: readonly (Comparable | undefined)[];
  readonly upper: readonly (Comparable | undefined)[];
  readonly values: Float64Array;
  readonly nulls: Float64Array;
  readonly nans: Float64Array;
}

type MapReader = (raw: Raw, key: number) => Uint8Array | number | undefined;

export class ManifestTable {
  readonly entries: readonly TableEntry[];
  /** Live rows and bytes. */
  readonly rows: number;
  readonly bytes: number;
  readonly #readers: readonly MapReader[];
  readonly #columns = new Map<number, MetricColumn>();
  #memoryBytes: number;

  constructor(entries: readonly TableEntry[], readers: readonly MapReader[]) {
    this.entries = entries;
    this.#readers = readers;
    this.rows = entries.reduce((sum, entry) => sum + entry.recordCount, 0);
    this.bytes = entries.reduce((sum, entry) => sum + entry.fileSizeBytes, 0);
    const encoded = entries.reduce((sum, { raw }) => sum + raw.reduce((all, one) => all + (one?.length ?? 0), 0), 0);
    this.#memoryBytes = encoded + entries.length * ENTRY_BYTES;
  }

  get memoryBytes(): number {
    return this.#memoryBytes;
  }

  /** The metrics of a column of the given type. */
  column(fieldId: number, type: PrimitiveType): MetricColumn {
    const known = this.#columns.get(fieldId);
    if (known) return known;
    const column = this.#decode(fieldId, type);
    this.#columns.set(fieldId, column);
    this.#memoryBytes += this.entries.length * COLUMN_ENTRY_BYTES;
    return column;
  }

  #decode(fieldId: number, type: PrimitiveType): MetricColumn {
    const { length } = this.entries;
    const at = (slot: (typeof RAW_SLOTS)[number], entry: TableEntry): Uint8Array | number | undefined =>
      this.#readers[slot - RAW_SLOTS[0]]?.(entry.raw[slot - RAW_SLOTS[0]], fieldId);
    const counts = (slot: (typeof RAW_SLOTS)[number]): Float64Array =>
      Float64Array.from(
        { length },
        (_, i) => (this.entries[i] ? (at(slot, this.entries[i]) as number) : undefined) ?? -1,
      );
    const bounds = (slot: (typeof RAW_SLOTS)[number]): (Comparable | undefined)[] =>
      this.entries.map((entry) => boundOf(type, at(slot, entry) as Raw));
    return {
      lower: bounds(FILE.lowerBounds),
      upper: bounds(FILE.upperBounds),
      values: counts(FILE.valueCounts),
      nulls: counts(FILE.nullValueCounts),
      nans: counts(FILE.nanValueCounts),
    };
  }
}

/** Text stays in its bytes: they compare as they are. */
function boundOf(type: PrimitiveType, raw: Raw): Comparable | undefined {
  if (raw === undefined || type.kind === "string" || type.kind === "binary") return raw;
  const value = decoded(type, raw);
  return value === undefined ? undefined : comparable(type, value);
}

/** Reads a data manifest. Throws `lake_file_corrupt`, `lake_format_unsupported`. */
export function readManifestTable(bytes: Uint8Array, manifest: ManifestFile, context: ManifestContext): ManifestTable {
  let readers: MapReader[] = [];
  const { records } = readAvro(bytes, (header) => {
    readers = mapReaders(header);
    return rawShape(entryShape(context.spec));
  });
  const entries: TableEntry[] = [];
  let nextRowId = manifest.firstRowId;
  for (const record of records) {
    if (record[ENTRY.status] === STATUS_DELETED) continue;
    const slots = record[ENTRY.file] as readonly unknown[];
    const inherited = (slots[FILE.firstRowId] ?? undefined) === undefined;
    const entry = entryOf(record, manifest, context, inherited ? nextRowId : undefined);
    if (inherited && nextRowId !== undefined) nextRowId += entry.dataFile.recordCount;
    entries.push(entry);
  }
  return new ManifestTable(entries, readers);
}

function rawShape(shape: Shape): Shape {
  const file = shape.fields[ENTRY.file];
  const fields = file?.shape?.fields.map((f, i) =>
    (RAW_SLOTS as readonly number[]).includes(i) ? Object.assign({}, f, { raw: true }) : f,
  );
  return { fields: shape.fields.map((f, i) => (i === ENTRY.file ? { ...f, shape: { fields: fields ?? [] } } : f)) };
}

function entryOf(
  record: readonly unknown[],
  manifest: ManifestFile,
  context: ManifestContext,
  rowId: bigint | undefined,
): TableEntry {
  const slots = record[ENTRY.file] as readonly unknown[];
  const format = (slots[FILE.format] as string).toLowerCase();
  if ((slots[FILE.content] ?? 0) !== 0) throw corrupt(manifest, "a delete file among data files");
  const dataFile: DataFile = {
    content: "data",
    path: slots[FILE.path] as string,
    format: format as FileFormat,
    specId: manifest.partitionSpecId,
    partition: partitionOf(slots[FILE.partition] as readonly unknown[], context.partitionTypes),
    recordCount: slots[FILE.recordCount] as bigint,
    fileSizeBytes: slots[FILE.fileSizeBytes] as bigint,
    ...optional("splitOffsets", slots[FILE.splitOffsets]),
    ...optional("sortOrderId", slots[FILE.sortOrderId]),
    ...optional("firstRowId", slots[FILE.firstRowId] ?? rowId),
  };
  return {
    dataFile,
    partition: partitionKey(dataFile),
    sequenceNumber: sequenceNumber(record, manifest),
    recordCount: Number(dataFile.recordCount),
    fileSizeBytes: Number(dataFile.fileSizeBytes),
    raw: RAW_SLOTS.map((slot) => slots[slot] as Raw),
  };
}

function optional(name: string, value: unknown): object {
  return value === undefined || value === null ? {} : { [name]: value };
}

/** Only an added entry inherits; format version 1 has 0 throughout. */
function sequenceNumber(record: readonly unknown[], manifest: ManifestFile): bigint {
  const own = record[ENTRY.sequenceNumber];
  if (typeof own === "bigint") return own;
  if (record[ENTRY.status] === 1 || manifest.sequenceNumber === 0n) return manifest.sequenceNumber;
  throw corrupt(manifest, "an existing file without a sequence number");
}

function corrupt(manifest: ManifestFile, what: string): SpillwayError {
  return new SpillwayError("lake_file_corrupt", `The manifest ${manifest.path} has ${what}.`);
}

/** Readers of one key of each encoded map, by the way in which the file's writer encoded it. */
function mapReaders(header: AvroHeader): MapReader[] {
  const file = fieldOf(header.schema as AvroRecord, 2, "data_file");
  const wanted = entryShape({ specId: 0, fields: [] }).fields[ENTRY.file]?.shape?.fields ?? [];
  return RAW_SLOTS.map((slot) => {
    const field = wanted[slot];
    const schema = file && field ? fieldOf(file as AvroRecord, field.id, field.name) : undefined;
    return schema === undefined ? () => undefined : mapReader(schema);
  });
}

function fieldOf(record: AvroRecord, id: number, name: string): AvroSchema | undefined {
  return record.fields.find((f) => (f["field-id"] === undefined ? f.name === name : f["field-id"] === id))?.type;
}

/** The usual form (null or an array of int keys and long or bytes values) is searched without decoding the rest. */
function mapReader(schema: AvroSchema): MapReader {
  const fast = usualForm(schema);
  if (fast) {
    const varints = new Varints();
    return (raw, key) => {
      if (raw === undefined || (raw[0] === 0) === fast.nullFirst) return undefined;
      varints.bytes = raw as Uint8Array<ArrayBuffer>;
      varints.at = 1;
      return searchMap(varints, key, fast.isBytes);
    };
  }
  const decode = compileDecoder(schema);
  return (raw, key) => {
    if (raw === undefined) return undefined;
    const found = (decode(new Cursor(raw)) as ReadonlyMap<number, unknown> | null)?.get(key);
    return typeof found === "bigint" ? Number(found) : (found as Uint8Array | number | undefined);
  };
}

function usualForm(schema: AvroSchema): { nullFirst: boolean; isBytes: boolean } | null {
  if (!isUnion(schema) || schema.length !== 2) return null;
  const nullFirst = schema[0] === "null";
  const array = schema[nullFirst ? 1 : 0];
  if ((!nullFirst && schema[1] !== "null") || typeof array !== "object" || isUnion(array) || array.type !== "array")
    return null;
  const { items } = array;
  if (typeof items !== "object" || isUnion(items) || items.type !== "record" || items.fields.length !== 2) return null;
  const [key, value] = items.fields;
  if (key?.type !== "int" || (value?.type !== "long" && value?.type !== "bytes")) return null;
  return { nullFirst, isBytes: value.type === "bytes" };
}

/** Variable-length numbers below 2^53, for the inner loop of a cold plan. Past the end reads as zeros. */
class Varints {
  bytes = new Uint8Array(0);
  at = 0;

  /** As it is encoded: zigzag. */
  raw(): number {
    let byte = this.bytes[this.at++] ?? 0;
    let value = byte & 0x7f;
    for (let scale = 128; byte >= 0x80; scale *= 128) {
      byte = this.bytes[this.at++] ?? 0;
      value += (byte & 0x7f) * scale;
    }
    return value;
  }

  int(): number {
    const value = this.raw();
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2;
  }

  skip(): void {
    while ((this.bytes[this.at++] ?? 0) >= 0x80);
  }
}

function searchMap(varints: Varints, key: number, isBytes: boolean): Uint8Array | number | undefined {
  const wanted = key * 2;
  for (let count = varints.int(); count !== 0; count = varints.int()) {
    if (count < 0) varints.skip();
    for (let left = Math.abs(count); left > 0; left--) {
      const found = varints.raw() === wanted;
      if (!isBytes) {
        if (found) return varints.int();
        varints.skip();
        continue;
      }
      const length = varints.int();
      if (found) return varints.bytes.subarray(varints.at, varints.at + length);
      varints.at += length;
    }
  }
  return undefined;
}
