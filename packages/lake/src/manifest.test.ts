import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { readAvroHeader } from "./avro/container.ts";
import { ManifestWriter, readManifest, type ManifestWriterOptions } from "./manifest.ts";
import { readManifestList, writeManifestList } from "./manifest-list.ts";
import { mayHoldTuple } from "./manifest-summary.ts";
import type {
  DataFile,
  FormatVersion,
  ManifestFile,
  PartitionSpec,
  PrimitiveType,
  PrimitiveValue,
  Schema,
} from "./model.ts";
import { parsePrimitiveType } from "./types.ts";
import { compareValues, decodeValue } from "./values.ts";

const int64 = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n });
const positive = fc.bigInt({ min: 0n, max: 2n ** 62n });
const COLUMNS: readonly (readonly [string, fc.Arbitrary<PrimitiveValue>])[] = [
  ["boolean", fc.boolean()],
  ["int", fc.integer()],
  ["long", int64],
  ["float", fc.float()],
  ["double", fc.double()],
  ["date", fc.integer()],
  ["time", positive],
  ["timestamp", int64],
  ["timestamptz_ns", int64],
  ["string", fc.string({ unit: "binary" })],
  ["uuid", fc.uint8Array({ minLength: 16, maxLength: 16 })],
  ["fixed[3]", fc.uint8Array({ minLength: 3, maxLength: 3 })],
  ["binary", fc.uint8Array()],
  ["decimal(20,3)", fc.bigInt({ min: -(10n ** 20n) + 1n, max: 10n ** 20n - 1n })],
];
const TYPES: readonly PrimitiveType[] = COLUMNS.map(([name]) => parsePrimitiveType(name));
const SCHEMA: Schema = {
  schemaId: 4,
  fields: TYPES.map((type, i) => ({ id: i + 1, name: `c ${i}`, required: false, type })),
};
const SPEC: PartitionSpec = {
  specId: 2,
  fields: TYPES.map((_, i) => ({
    fieldId: 1000 + i,
    sourceId: i + 1,
    name: `c ${i}`,
    transform: { kind: "identity" },
  })),
};
const options = (formatVersion: FormatVersion): ManifestWriterOptions => ({
  spec: SPEC,
  partitionTypes: TYPES,
  schema: SCHEMA,
  formatVersion,
  content: "data",
  snapshotId: 2n ** 62n + 1n,
  sequenceNumber: 7n,
});

const counts = fc.option(
  fc.array(fc.tuple(fc.integer({ min: 1, max: 300 }), positive)).map((pairs) => new Map(pairs)),
  { nil: undefined },
);
const bounds = fc.option(
  fc.array(fc.tuple(fc.integer({ min: 1, max: 300 }), fc.uint8Array({ maxLength: 20 }))).map((pairs) => new Map(pairs)),
  { nil: undefined },
);
const maybe = <T>(arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> => fc.option(arbitrary, { nil: undefined });
const dataFile = fc.record({
  content: fc.constant("data" as const),
  path: fc.string({ unit: "binary" }).map((s) => `s3://b/${s}`),
  format: fc.constant("parquet" as const),
  specId: fc.constant(2),
  partition: fc.tuple(...COLUMNS.map(([, values]) => fc.option(values))),
  recordCount: positive,
  fileSizeBytes: positive,
  columnSizes: counts,
  valueCounts: counts,
  nullValueCounts: counts,
  nanValueCounts: counts,
  lowerBounds: bounds,
  upperBounds: bounds,
  splitOffsets: maybe(fc.array(positive)),
  equalityIds: fc.constant(undefined),
  sortOrderId: maybe(fc.nat()),
  firstRowId: maybe(positive),
  referencedDataFile: maybe(fc.string()),
  contentOffset: maybe(positive),
  contentSizeInBytes: maybe(positive),
});

test("entries of version 3 round-trip, whatever they hold", () => {
  const entry = fc.record({
    status: fc.constantFrom("existing" as const, "deleted" as const),
    snapshotId: positive,
    sequenceNumber: positive,
    fileSequenceNumber: positive,
    dataFile,
  });
  fc.assert(
    fc.property(fc.array(entry, { maxLength: 8 }), (entries) => {
      const writer = new ManifestWriter(options(3));
      for (const e of entries) writer.add(e);
      const { bytes, manifest } = writer.finish("file:///m.avro");
      expect(readManifest(bytes, manifest, { spec: SPEC, partitionTypes: TYPES })).toEqual(entries);
    }),
    { numRuns: 60 },
  );
});

test("field summaries enclose every tuple", () => {
  const tuples = fc.array(fc.tuple(...COLUMNS.map(([, values]) => fc.option(values))), { minLength: 1, maxLength: 6 });
  fc.assert(
    fc.property(tuples, (all) => {
      const writer = new ManifestWriter(options(2));
      for (const partition of all) writer.add(added({ partition }));
      const { manifest } = writer.finish("file:///m.avro");
      for (const tuple of all) {
        expect(mayHoldTuple(manifest, tuple, TYPES)).toBe(true);
        tuple.forEach((value, i) => {
          const summary = manifest.partitions?.[i];
          const type = TYPES[i] ?? { kind: "int" };
          if (value === null) return expect(summary?.containsNull).toBe(true);
          if (Number.isNaN(value)) return expect(summary?.containsNan).toBe(true);
          const lower = decodeValue(type, summary?.lowerBound ?? new Uint8Array());
          expect(compareValues(type, lower, value)).toBeLessThanOrEqual(0);
        });
      }
    }),
    { numRuns: 60 },
  );
});

const FILE: DataFile = {
  content: "data",
  path: "file:///a.parquet",
  format: "parquet",
  specId: 2,
  partition: TYPES.map(() => null),
  recordCount: 10n,
  fileSizeBytes: 100n,
};
const added = (file: Partial<DataFile>) => ({
  status: "added" as const,
  snapshotId: 2n ** 62n + 1n,
  sequenceNumber: null,
  fileSequenceNumber: null,
  dataFile: { ...FILE, ...file },
});

describe("inheritance", () => {
  test("added entries take the manifest's sequence number, and row ids run on over files without one", () => {
    const writer = new ManifestWriter(options(3));
    writer.add(added({ path: "file:///1" }));
    writer.add({
      ...added({ path: "file:///2", firstRowId: 5n }),
      status: "existing",
      sequenceNumber: 3n,
      fileSequenceNumber: 4n,
    });
    writer.add({ ...added({ path: "file:///3" }), status: "deleted", sequenceNumber: 3n, fileSequenceNumber: 4n });
    writer.add(added({ path: "file:///4", recordCount: 3n }));
    const { bytes, manifest, unassignedRows } = writer.finish("file:///m.avro");
    expect(unassignedRows).toBe(13n);
    expect(manifest).toMatchObject({
      minSequenceNumber: 3n,
      addedFilesCount: 2,
      existingFilesCount: 1,
      deletedFilesCount: 1,
      addedRowsCount: 13n,
    });
    const entries = readManifest(bytes, { ...manifest, firstRowId: 1000n }, { spec: SPEC, partitionTypes: TYPES });
    expect(entries.map((e) => [e.sequenceNumber, e.fileSequenceNumber, e.dataFile.firstRowId])).toEqual([
      [7n, 7n, 1000n],
      [3n, 4n, 5n],
      [3n, 4n, undefined],
      [7n, 7n, 1010n],
    ]);
  });

  test("a value typed by an older schema is read as today's type", () => {
    const narrow: PartitionSpec = {
      specId: 0,
      fields: [{ fieldId: 1000, sourceId: 1, name: "n", transform: { kind: "identity" } }],
    };
    const writer = new ManifestWriter({ ...options(2), spec: narrow, partitionTypes: [{ kind: "int" }] });
    writer.add(added({ partition: [-5], specId: 0 }));
    const { bytes, manifest } = writer.finish("file:///m.avro");
    const [entry] = readManifest(bytes, manifest, { spec: narrow, partitionTypes: [{ kind: "long" }] });
    expect(entry?.dataFile.partition).toEqual([-5n]);
  });

  test("an existing entry without a sequence number is damage", () => {
    const writer = new ManifestWriter(options(2));
    writer.add({ ...added({}), status: "existing" });
    const { bytes, manifest } = writer.finish("file:///m.avro");
    expect(() => readManifest(bytes, manifest, { spec: SPEC, partitionTypes: TYPES })).toThrow(
      expect.objectContaining({ code: "lake_file_corrupt" }),
    );
  });
});

test("the header says what the specification asks", () => {
  const writer = new ManifestWriter(options(3));
  writer.add(added({}));
  const { metadata, schema } = readAvroHeader(writer.finish("file:///m.avro").bytes);
  expect(Object.fromEntries(metadata)).toMatchObject({
    "schema-id": "4",
    "partition-spec-id": "2",
    "format-version": "3",
    content: "data",
  });
  expect(JSON.parse(metadata.get("partition-spec") ?? "")).toHaveLength(TYPES.length);
  expect(JSON.stringify(schema)).toContain(
    '"name":"content_offset","type":["null","long"],"default":null,"field-id":144',
  );
});

test("manifest lists round-trip in both versions", () => {
  const manifest: ManifestFile = {
    path: "s3://b/m.avro",
    length: 2n ** 40n,
    partitionSpecId: 3,
    content: "data",
    sequenceNumber: 2n ** 53n + 1n,
    minSequenceNumber: 1n,
    addedSnapshotId: 2n ** 63n - 1n,
    addedFilesCount: 1,
    existingFilesCount: 2,
    deletedFilesCount: 3,
    addedRowsCount: 4n,
    existingRowsCount: 5n,
    deletedRowsCount: 6n,
    partitions: [{ containsNull: true, containsNan: false, lowerBound: new Uint8Array([1]), upperBound: undefined }],
    firstRowId: 77n,
  };
  const deletes: ManifestFile = { ...manifest, content: "deletes", firstRowId: undefined, partitions: [] };
  const header = { snapshotId: 2n ** 60n, sequenceNumber: 9n, firstRowId: 70n };
  expect(readManifestList(writeManifestList([manifest, deletes], { ...header, formatVersion: 3 }))).toEqual([
    manifest,
    deletes,
  ]);
  expect(readManifestList(writeManifestList([manifest], { ...header, formatVersion: 2 }))).toEqual([
    { ...manifest, firstRowId: undefined },
  ]);
});

test("10 000 entries with statistics of ten columns decode fast enough to plan by", () => {
  const stats = <T>(value: T): Map<number, T> => new Map(Array.from({ length: 10 }, (_, i) => [i + 1, value]));
  const spec: PartitionSpec = {
    specId: 0,
    fields: [{ fieldId: 1000, sourceId: 1, name: "d", transform: { kind: "day" } }],
  };
  const writer = new ManifestWriter({ ...options(3), spec, partitionTypes: [{ kind: "date" }] });
  for (let i = 0; i < 10_000; i += 1) {
    writer.add(
      added({
        path: `file:///lake/db/table/data/d=${i % 30}/part-${i}-0190c5e4-5ab1-7c2e-8a7b-1f2e3d4c5b6a.parquet`,
        partition: [i % 30],
        recordCount: 100_000n,
        columnSizes: stats(123_456n),
        valueCounts: stats(100_000n),
        nullValueCounts: stats(0n),
        lowerBounds: stats(new Uint8Array(8)),
        upperBounds: stats(new Uint8Array(8)),
      }),
    );
  }
  const { bytes, manifest } = writer.finish("file:///m.avro");
  const times: number[] = [];
  for (let run = 0; run < 5; run += 1) {
    const start = performance.now();
    expect(readManifest(bytes, manifest, { spec, partitionTypes: [{ kind: "date" }] })).toHaveLength(10_000);
    times.push(performance.now() - start);
  }
  // The aim is 100 ms; shared machines are given slack, a quadratic decoder is not.
  expect(Math.min(...times)).toBeLessThan(400);
  if (process.env["SPILLWAY_TIMES"])
    process.stderr.write(`decode 10k entries: ${times.map((t) => t.toFixed(0)).join(" ")} ms\n`);
});
