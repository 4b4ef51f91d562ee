/** Manifests: reading with inheritance (sequence numbers, snapshot id, first row id), and writing. */
import { SpillwayError } from "@spillway/base/errors";
import { AvroWriter, readAvro } from "./avro/container.ts";
import { printJson } from "./json.ts";
import { entryShape, manifestEntrySchema } from "./manifest-schema.ts";
import type {
  DataFile,
  EntryStatus,
  FileContent,
  FileFormat,
  FormatVersion,
  ManifestEntry,
  ManifestFile,
  PartitionSpec,
  PartitionTuple,
  PrimitiveType,
  PrimitiveValue,
  Schema,
} from "./model.ts";
import { FieldSummaries } from "./manifest-summary.ts";
import { partitionFieldsToJson } from "./partition.ts";
import { schemaToJson } from "./schema.ts";
import { decimalBytes } from "./types.ts";
import { decodeUnscaled, encodeUnscaledFixed } from "./values.ts";

const STATUSES: readonly EntryStatus[] = ["existing", "added", "deleted"];
const CONTENTS: readonly FileContent[] = ["data", "position-deletes", "equality-deletes"];
const FORMATS = new Set(["parquet", "avro", "orc", "puffin"]);

export interface ManifestContext {
  readonly spec: PartitionSpec;
  /** `partitionTypesOf(metadata, spec.specId)`. */
  readonly partitionTypes: readonly PrimitiveType[];
}

/** Reads every entry of a manifest, inherited values filled in from its line in the manifest list. */
export function readManifest(bytes: Uint8Array, manifest: ManifestFile, context: ManifestContext): ManifestEntry[] {
  const { records } = readAvro(bytes, () => entryShape(context.spec));
  let nextRowId = manifest.firstRowId;
  return records.map((record) => {
    const entry = entryOf(record, manifest, context);
    const file = entry.dataFile;
    if (nextRowId === undefined || entry.status === "deleted" || file.content !== "data") return entry;
    if (file.firstRowId !== undefined) return entry;
    const firstRowId = nextRowId;
    nextRowId += file.recordCount;
    return withFirstRowId(entry, firstRowId);
  });
}

function withFirstRowId(entry: ManifestEntry, firstRowId: bigint): ManifestEntry {
  return { ...entry, dataFile: { ...entry.dataFile, firstRowId } };
}

function entryOf(record: readonly unknown[], manifest: ManifestFile, context: ManifestContext): ManifestEntry {
  const [rawStatus, snapshotId, sequenceNumber, fileSequenceNumber, file] = record;
  const status = STATUSES[rawStatus as number] ?? corrupt(manifest, `the entry status ${String(rawStatus)}`);
  const dataSequenceNumber = inherit(sequenceNumber, status, manifest);
  return {
    status,
    snapshotId: (snapshotId ?? manifest.addedSnapshotId) as bigint,
    sequenceNumber: dataSequenceNumber,
    // Early writers of version 2 had no file sequence number: the data's is the nearest to it.
    fileSequenceNumber: (fileSequenceNumber ??
      (status === "added" ? manifest.sequenceNumber : dataSequenceNumber)) as bigint,
    dataFile: dataFileOf(file as readonly unknown[], manifest, context),
  };
}

/** Only added entries inherit; a manifest of format version 1 has sequence number 0 throughout. */
function inherit(value: unknown, status: EntryStatus, manifest: ManifestFile): bigint {
  if (typeof value === "bigint") return value;
  if (status === "added" || manifest.sequenceNumber === 0n) return manifest.sequenceNumber;
  return corrupt(manifest, `an entry with status ${status} and no sequence number`);
}

function dataFileOf(slots: readonly unknown[], manifest: ManifestFile, context: ManifestContext): DataFile {
  const format = (slots[2] as string).toLowerCase();
  if (!FORMATS.has(format)) corrupt(manifest, `the file format ${format}`);
  return {
    content: CONTENTS[(slots[0] ?? 0) as number] ?? corrupt(manifest, `the file content ${String(slots[0])}`),
    path: slots[1] as string,
    format: format as FileFormat,
    specId: manifest.partitionSpecId,
    partition: partitionOf(slots[3] as readonly unknown[], context.partitionTypes),
    recordCount: slots[4] as bigint,
    fileSizeBytes: slots[5] as bigint,
    columnSizes: orUndefined(slots[6]),
    valueCounts: orUndefined(slots[7]),
    nullValueCounts: orUndefined(slots[8]),
    nanValueCounts: orUndefined(slots[9]),
    lowerBounds: orUndefined(slots[10]),
    upperBounds: orUndefined(slots[11]),
    splitOffsets: orUndefined(slots[12]),
    equalityIds: orUndefined(slots[13]),
    sortOrderId: orUndefined(slots[14]),
    firstRowId: orUndefined(slots[15]),
    referencedDataFile: orUndefined(slots[16]),
    contentOffset: orUndefined(slots[17]),
    contentSizeInBytes: orUndefined(slots[18]),
  };
}

function orUndefined<T>(value: unknown): T | undefined {
  return (value ?? undefined) as T | undefined;
}

/** The partition tuple of a data file as the Avro reader gives it. */
export function partitionOf(raw: readonly unknown[], types: readonly PrimitiveType[]): PartitionTuple {
  return types.map((type, i) => fromAvro(type, raw[i]));
}

/** A partition value as another writer, or an older schema, may have typed it. */
function fromAvro(type: PrimitiveType, raw: unknown): PrimitiveValue | null {
  if (raw === null || raw === undefined) return null;
  if (type.kind === "decimal" && raw instanceof Uint8Array) return decodeUnscaled(raw);
  if (typeof raw === "number" && isWide(type)) return BigInt(raw);
  if (typeof raw === "bigint" && (type.kind === "int" || type.kind === "date")) return Number(raw);
  return raw as PrimitiveValue;
}

function isWide(type: PrimitiveType): boolean {
  return type.kind === "long" || type.kind === "time" || type.kind.startsWith("timestamp");
}

function toAvro(type: PrimitiveType, value: PrimitiveValue | null): unknown {
  if (value === null || type.kind !== "decimal") return value;
  return encodeUnscaledFixed(value as bigint, decimalBytes(type.precision));
}

function corrupt(manifest: ManifestFile, what: string): never {
  throw new SpillwayError("lake_file_corrupt", `the manifest ${manifest.path} has ${what}`);
}

/** An entry to write. Null sequence numbers are inherited from the snapshot that commits (added only). */
export interface NewEntry {
  readonly status: EntryStatus;
  readonly snapshotId: bigint;
  readonly sequenceNumber: bigint | null;
  readonly fileSequenceNumber: bigint | null;
  readonly dataFile: DataFile;
}

export interface ManifestWriterOptions extends ManifestContext {
  readonly formatVersion: FormatVersion;
  readonly schema: Schema;
  readonly content: "data" | "deletes";
  /** The snapshot that adds the manifest. */
  readonly snapshotId: bigint;
  /** Its sequence number. */
  readonly sequenceNumber: bigint;
}

interface Tally {
  files: number;
  rows: bigint;
}

/** What the manifest list needs to know of a new manifest beside its line. */
export interface WrittenManifest {
  readonly bytes: Uint8Array;
  readonly manifest: ManifestFile;
  /** v3: rows of live data files that will inherit their row ids. */
  readonly unassignedRows: bigint;
}

/** Writes one manifest, entry by entry. */
export class ManifestWriter {
  readonly #options: ManifestWriterOptions;
  readonly #avro: AvroWriter;
  readonly #summaries: FieldSummaries;
  readonly #tally: Record<EntryStatus, Tally> = {
    added: { files: 0, rows: 0n },
    existing: { files: 0, rows: 0n },
    deleted: { files: 0, rows: 0n },
  };
  #minSequenceNumber: bigint;
  #unassignedRows = 0n;

  constructor(options: ManifestWriterOptions) {
    this.#options = options;
    const { formatVersion, spec, partitionTypes, schema, content } = options;
    this.#minSequenceNumber = options.sequenceNumber;
    this.#summaries = new FieldSummaries(partitionTypes);
    this.#avro = new AvroWriter(manifestEntrySchema(formatVersion, spec, partitionTypes), {
      metadata: {
        schema: printJson(schemaToJson(schema)),
        "schema-id": String(schema.schemaId),
        "partition-spec": printJson(partitionFieldsToJson(spec.fields)),
        "partition-spec-id": String(spec.specId),
        "format-version": String(formatVersion),
        content,
      },
    });
  }

  /** Bytes so far, roughly. */
  get size(): number {
    return this.#avro.size;
  }

  get count(): number {
    return this.#tally.added.files + this.#tally.existing.files + this.#tally.deleted.files;
  }

  add(entry: NewEntry): void {
    const file = entry.dataFile;
    const tally = this.#tally[entry.status];
    tally.files += 1;
    tally.rows += file.recordCount;
    this.#summaries.add(file.partition);
    if (entry.status !== "deleted") {
      const sequenceNumber = entry.sequenceNumber ?? this.#options.sequenceNumber;
      if (sequenceNumber < this.#minSequenceNumber) this.#minSequenceNumber = sequenceNumber;
      if (file.content === "data" && file.firstRowId === undefined) this.#unassignedRows += file.recordCount;
    }
    const { snapshotId, sequenceNumber, fileSequenceNumber } = entry;
    const status = STATUSES.indexOf(entry.status);
    this.#avro.append([status, snapshotId, sequenceNumber, fileSequenceNumber, this.#fileRecord(file)]);
  }

  #fileRecord(file: DataFile): unknown[] {
    const { formatVersion, partitionTypes } = this.#options;
    const record: unknown[] = [
      CONTENTS.indexOf(file.content),
      file.path,
      file.format.toUpperCase(),
      partitionTypes.map((type, i) => toAvro(type, file.partition[i] ?? null)),
      file.recordCount,
      file.fileSizeBytes,
      file.columnSizes,
      file.valueCounts,
      file.nullValueCounts,
      file.nanValueCounts,
      file.lowerBounds,
      file.upperBounds,
      null,
      file.splitOffsets,
      file.equalityIds,
      file.sortOrderId,
    ];
    if (formatVersion >= 3) record.push(file.content === "data" ? file.firstRowId : null);
    record.push(file.referencedDataFile);
    if (formatVersion >= 3) record.push(file.contentOffset, file.contentSizeInBytes);
    return record;
  }

  finish(path: string): WrittenManifest {
    const bytes = this.#avro.finish();
    const { added, existing, deleted } = this.#tally;
    const { snapshotId, sequenceNumber, spec, content } = this.#options;
    const manifest: ManifestFile = {
      path,
      length: BigInt(bytes.length),
      partitionSpecId: spec.specId,
      content,
      sequenceNumber,
      minSequenceNumber: this.#minSequenceNumber,
      addedSnapshotId: snapshotId,
      addedFilesCount: added.files,
      existingFilesCount: existing.files,
      deletedFilesCount: deleted.files,
      addedRowsCount: added.rows,
      existingRowsCount: existing.rows,
      deletedRowsCount: deleted.rows,
      partitions: this.#summaries.finish(),
    };
    return { bytes, manifest, unassignedRows: this.#unassignedRows };
  }
}
