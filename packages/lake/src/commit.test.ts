import { describe, expect, test } from "vitest";
import {
  applyUpdates,
  checkRequirements,
  failedRequirement,
  stageSchemaChange,
  type TableRequirement,
  type TableUpdate,
} from "./commit.ts";
import { requirementFromJson, requirementToJson, updateFromJson, updateToJson } from "./commit-json.ts";
import { parseJson, printJson } from "./json.ts";
import {
  ancestorsOf,
  createTableMetadata,
  currentSchema,
  freshIds,
  metadataFileName,
  metadataVersionOf,
  parseMetadata,
  printMetadata,
  snapshotAsOf,
} from "./metadata.ts";
import type { FormatVersion, Schema, Snapshot, TableMetadata } from "./model.ts";
import { partitionPath, partitionTypesOf } from "./partition.ts";
import { fieldByName } from "./schema.ts";
import { parsePrimitiveType } from "./types.ts";

const t = parsePrimitiveType;
const SCHEMA: Schema = {
  schemaId: 0,
  identifierFieldIds: [1],
  fields: [
    { id: 1, name: "id", required: true, type: t("long") },
    { id: 2, name: "ts", required: false, type: t("timestamptz") },
    { id: 3, name: "name", required: false, type: t("string"), doc: "who" },
  ],
};
const BIG = 2n ** 63n - 1n;

function table(formatVersion: FormatVersion = 3): TableMetadata {
  return createTableMetadata({
    tableUuid: "0190c5e4-5ab1-7c2e-8a7b-1f2e3d4c5b6a",
    location: "s3://bucket/db/t/",
    schema: SCHEMA,
    spec: { specId: 0, fields: [{ fieldId: 0, sourceId: 2, name: "ts_day", transform: { kind: "day" } }] },
    formatVersion,
    nowMs: 1000,
  });
}

function snapshot(base: TableMetadata, snapshotId: bigint, extra: Partial<Snapshot> = {}): Snapshot {
  return {
    snapshotId,
    ...(base.currentSnapshotId === undefined ? {} : { parentSnapshotId: base.currentSnapshotId }),
    sequenceNumber: base.lastSequenceNumber + 1n,
    timestampMs: base.lastUpdatedMs + 10,
    manifestList: `s3://bucket/db/t/metadata/snap-${snapshotId}.avro`,
    operation: "append",
    summary: { "spillway.lsn": "0/16B3748" },
    schemaId: 0,
    ...(base.formatVersion >= 3 ? { firstRowId: base.nextRowId, addedRows: 5n } : {}),
    ...extra,
  };
}

function withSnapshots(base: TableMetadata, ...ids: bigint[]): TableMetadata {
  return ids.reduce((metadata, id) => {
    const updates: TableUpdate[] = [
      { action: "add-snapshot", snapshot: snapshot(metadata, id) },
      { action: "set-snapshot-ref", refName: "main", ref: { snapshotId: id, type: "branch" } },
    ];
    return applyUpdates(metadata, updates, metadata.lastUpdatedMs + 10, { previousMetadataLocation: `s3://m/${id}` });
  }, base);
}

const conflict = expect.objectContaining({ code: "lake_commit_conflict" });
const refused = (message: RegExp) =>
  expect.objectContaining({ code: "lake_update_invalid", message: expect.stringMatching(message) });

describe.each([2, 3] as const)("format version %d", (version) => {
  test("metadata round-trips, snapshot ids beyond 2^53 exact", () => {
    let metadata = withSnapshots(table(version), 5n, BIG);
    metadata = applyUpdates(
      metadata,
      [
        { action: "set-snapshot-ref", refName: "v1", ref: { snapshotId: 5n, type: "tag", maxRefAgeMs: 77 } },
        {
          action: "set-snapshot-ref",
          refName: "dev",
          ref: { snapshotId: 5n, type: "branch", minSnapshotsToKeep: 2, maxSnapshotAgeMs: 3 },
        },
        { action: "set-properties", updates: { a: "1", b: "ü" } },
        {
          action: "set-statistics",
          statistics: {
            snapshotId: BIG,
            statisticsPath: "s3://s",
            fileSizeInBytes: 2n ** 55n,
            fileFooterSizeInBytes: 10n,
            blobMetadata: [
              {
                type: "apache-datasketches-theta-v1",
                snapshotId: BIG,
                sequenceNumber: 1n,
                fields: [1],
                properties: { ndv: "5" },
              },
            ],
          },
        },
        {
          action: "set-partition-statistics",
          partitionStatistics: { snapshotId: 5n, statisticsPath: "s3://p", fileSizeInBytes: 4n },
        },
      ],
      9000,
    );
    const text = printMetadata(metadata);
    expect(text).toContain(`"current-snapshot-id":${BIG}`);
    expect(parseMetadata(text)).toEqual(metadata);
    expect(printMetadata(parseMetadata(text))).toBe(text);
  });

  test("an empty table round-trips", () => {
    const metadata = table(version);
    expect(parseMetadata(printMetadata(metadata))).toEqual(metadata);
    expect(metadata.location).toBe("s3://bucket/db/t");
    expect(partitionTypesOf(metadata, 0)).toEqual([{ kind: "date" }]);
    expect(partitionPath(metadata, 0, [17486])).toBe("ts_day=2017-11-16");
  });
});

describe("parsing refuses what breaks the format", () => {
  const good = printMetadata(withSnapshots(table(), 7n));
  test.each([
    ["a schema that is not there", '"current-schema-id":0', '"current-schema-id":4'],
    ["a snapshot that is not there", '"current-snapshot-id":7', '"current-snapshot-id":8'],
    ["a ref to nowhere", '"main":{"snapshot-id":7', '"main":{"snapshot-id":9'],
    ["a spec that is not there", '"default-spec-id":0', '"default-spec-id":1'],
    ["a low last-column-id", '"last-column-id":3', '"last-column-id":2'],
    ["a low next-row-id", '"next-row-id":5', '"next-row-id":4'],
    ["a low last-sequence-number", '"last-sequence-number":1', '"last-sequence-number":0'],
    ["a missing uuid", '"table-uuid"', '"table-uuid2"'],
    ["text for a number", '"last-updated-ms":1010', '"last-updated-ms":"1010"'],
  ])("%s", (_name, from, to) => {
    expect(good).toContain(from);
    expect(() => parseMetadata(good.replace(from, to))).toThrow(
      expect.objectContaining({ code: "lake_metadata_invalid" }),
    );
  });

  test("format versions 1 and 4, and text that is no JSON", () => {
    for (const version of [1, 4]) {
      expect(() => parseMetadata(good.replace('"format-version":3', `"format-version":${version}`))).toThrow(
        expect.objectContaining({ code: "lake_format_unsupported" }),
      );
    }
    expect(() => parseMetadata(good.slice(0, -1))).toThrow(expect.objectContaining({ code: "lake_metadata_invalid" }));
  });

  test("but refs may be missing, and current-snapshot-id may be -1 or null", () => {
    const parsed = parseMetadata(good.replace(/"refs":\{.*?\}\},/, ""));
    expect(parsed.refs["main"]?.snapshotId).toBe(7n);
    const empty = printMetadata(table(2));
    expect(empty).toContain('"current-snapshot-id":-1');
    expect(
      parseMetadata(empty.replace('"current-snapshot-id":-1', '"current-snapshot-id":null')).currentSnapshotId,
    ).toBeUndefined();
  });
});

describe("applyUpdates", () => {
  test("is pure: the input is untouched, deeply", () => {
    const base = withSnapshots(table(), 1n, 2n);
    const before = printMetadata(base);
    const updates: TableUpdate[] = [
      { action: "remove-snapshots", snapshotIds: [1n] },
      { action: "set-properties", updates: { x: "y" } },
      { action: "add-snapshot", snapshot: snapshot(base, 3n) },
    ];
    applyUpdates(base, updates, 5000);
    expect(printMetadata(base)).toBe(before);
  });

  test("the snapshot log follows main, and is cut where a snapshot was removed", () => {
    const base = withSnapshots(table(), 1n, 2n, 3n, 4n);
    expect(base.snapshotLog.map((e) => e.snapshotId)).toEqual([1n, 2n, 3n, 4n]);
    expect(snapshotAsOf(base, base.snapshotLog[1]?.timestampMs ?? 0)?.snapshotId).toBe(2n);
    expect(snapshotAsOf(base, 0)).toBeUndefined();
    const thinned = applyUpdates(base, [{ action: "remove-snapshots", snapshotIds: [2n] }], 5000);
    expect(thinned.snapshotLog.map((e) => e.snapshotId)).toEqual([3n, 4n]);
    expect([...ancestorsOf(thinned, 4n)].map((s) => s.snapshotId)).toEqual([4n, 3n]);
    const back = applyUpdates(
      base,
      [{ action: "set-snapshot-ref", refName: "main", ref: { snapshotId: 2n, type: "branch" } }],
      7000,
    );
    expect(back.snapshotLog.at(-1)).toEqual({ snapshotId: 2n, timestampMs: 7000 });
  });

  test("the metadata log keeps only so many versions", () => {
    const base = { ...table(), properties: { "write.metadata.previous-versions-max": "2" } };
    expect(withSnapshots(base, 1n, 2n, 3n, 4n).metadataLog.map((e) => e.metadataFile)).toEqual([
      "s3://m/3",
      "s3://m/4",
    ]);
  });

  test("removing a snapshot takes its refs and statistics along; the current one cannot go", () => {
    const base = withSnapshots(table(), 1n, 2n);
    const tagged = applyUpdates(
      base,
      [{ action: "set-snapshot-ref", refName: "old", ref: { snapshotId: 1n, type: "tag" } }],
      1,
    );
    expect(Object.keys(applyUpdates(tagged, [{ action: "remove-snapshots", snapshotIds: [1n] }], 1).refs)).toEqual([
      "main",
    ]);
    expect(() => applyUpdates(base, [{ action: "remove-snapshots", snapshotIds: [2n] }], 1)).toThrow(
      refused(/current/),
    );
  });

  test("schemas: equal ones are found again, -1 is the last added", () => {
    const { updates, requirements } = stageSchemaChange(table(), [
      { kind: "add", name: "n", type: t("int"), default: 3 },
    ]);
    checkRequirements(table(), requirements);
    const added = applyUpdates(table(), updates, 2000);
    expect(added).toMatchObject({ currentSchemaId: 1, lastColumnId: 4 });
    expect(fieldByName(currentSchema(added), "n")).toMatchObject({ id: 4, initialDefault: 3 });
    const again = applyUpdates(
      added,
      [
        { action: "add-schema", schema: SCHEMA },
        { action: "set-current-schema", schemaId: -1 },
      ],
      2000,
    );
    expect(again).toMatchObject({ currentSchemaId: 0, lastColumnId: 4 });
    expect(again.schemas).toHaveLength(2);
    expect(() => checkRequirements(added, requirements)).toThrow(conflict);
  });

  test("specs: field ids are reused for equal fields, new ones go on counting", () => {
    const day = { fieldId: 0, sourceId: 2, name: "ts_day", transform: { kind: "day" as const } };
    const bucket = { fieldId: 0, sourceId: 1, name: "id_b", transform: { kind: "bucket" as const, buckets: 8 } };
    const updates: TableUpdate[] = [
      { action: "add-spec", spec: { specId: 0, fields: [bucket, day] } },
      { action: "set-default-spec", specId: -1 },
    ];
    const metadata = applyUpdates(table(), updates, 2000);
    expect(metadata.defaultSpecId).toBe(1);
    expect(metadata.partitionSpecs[1]?.fields.map((f) => f.fieldId)).toEqual([1001, 1000]);
    expect(metadata.lastPartitionId).toBe(1001);
    const bad = { ...bucket, sourceId: 99 };
    expect(() => applyUpdates(table(), [{ action: "add-spec", spec: { specId: 0, fields: [bad] } }], 1)).toThrow(
      refused(/source/),
    );
    const clash = { ...bucket, name: "name" };
    expect(() => applyUpdates(table(), [{ action: "add-spec", spec: { specId: 0, fields: [clash] } }], 1)).toThrow(
      refused(/another column/),
    );
  });

  test("what makes no sense is refused, what is stale is a conflict", () => {
    const base = withSnapshots(table(), 1n);
    const add = (s: Snapshot): TableUpdate[] => [{ action: "add-snapshot", snapshot: s }];
    expect(() => applyUpdates(base, add(snapshot(base, 1n)), 1)).toThrow(refused(/already/));
    expect(() => applyUpdates(base, add(snapshot(base, 2n, { sequenceNumber: 1n })), 1)).toThrow(conflict);
    expect(() => applyUpdates(base, add(snapshot(base, 2n, { firstRowId: 4n })), 1)).toThrow(conflict);
    expect(() => applyUpdates(base, add(snapshot(base, 2n, { addedRows: undefined })), 1)).toThrow(refused(/row ids/));
    expect(() => applyUpdates(base, [{ action: "set-current-schema", schemaId: -1 }], 1)).toThrow(
      refused(/added no schema/),
    );
    expect(() => applyUpdates(base, [{ action: "upgrade-format-version", formatVersion: 2 }], 1)).toThrow(
      refused(/downgrade/),
    );
    expect(() => applyUpdates(base, [{ action: "assign-uuid", uuid: "other" }], 1)).toThrow(refused(/uuid/));
    expect(() =>
      applyUpdates(base, [{ action: "set-snapshot-ref", refName: "x", ref: { snapshotId: 99n, type: "tag" } }], 1),
    ).toThrow(refused(/no snapshot/));
    const withDefault = {
      ...SCHEMA,
      fields: [...SCHEMA.fields, { id: 9, name: "d", required: false, type: t("int"), initialDefault: 1 }],
    };
    expect(() => applyUpdates(table(2), [{ action: "add-schema", schema: withDefault }], 1)).toThrow(
      refused(/initial default/),
    );
  });

  test("v3 counts row ids", () => {
    expect(withSnapshots(table(), 1n, 2n, 3n).nextRowId).toBe(15n);
    expect(withSnapshots(table(2), 1n, 2n).nextRowId).toBe(0n);
  });
});

describe("requirements", () => {
  const base = withSnapshots(table(), BIG);
  const cases: [TableRequirement, TableRequirement][] = [
    [
      { type: "assert-table-uuid", uuid: base.tableUuid },
      { type: "assert-table-uuid", uuid: "x" },
    ],
    [
      { type: "assert-ref-snapshot-id", ref: "main", snapshotId: BIG },
      { type: "assert-ref-snapshot-id", ref: "main", snapshotId: BIG - 1n },
    ],
    [
      { type: "assert-ref-snapshot-id", ref: "none", snapshotId: null },
      { type: "assert-ref-snapshot-id", ref: "main", snapshotId: null },
    ],
    [
      { type: "assert-last-assigned-field-id", lastAssignedFieldId: 3 },
      { type: "assert-last-assigned-field-id", lastAssignedFieldId: 4 },
    ],
    [
      { type: "assert-current-schema-id", currentSchemaId: 0 },
      { type: "assert-current-schema-id", currentSchemaId: 1 },
    ],
    [
      { type: "assert-last-assigned-partition-id", lastAssignedPartitionId: 1000 },
      { type: "assert-last-assigned-partition-id", lastAssignedPartitionId: 999 },
    ],
    [
      { type: "assert-default-spec-id", defaultSpecId: 0 },
      { type: "assert-default-spec-id", defaultSpecId: 1 },
    ],
    [
      { type: "assert-default-sort-order-id", defaultSortOrderId: 0 },
      { type: "assert-default-sort-order-id", defaultSortOrderId: 1 },
    ],
  ];

  test.each(cases)("%o holds, %o does not; both round-trip as JSON", (good, bad) => {
    expect(failedRequirement(base, [good])).toBeUndefined();
    expect(failedRequirement(base, [good, bad])).toMatch(bad.type);
    expect(failedRequirement(null, [good])).toMatch(/does not exist/);
    for (const r of [good, bad]) expect(requirementFromJson(parseJson(printJson(requirementToJson(r))))).toEqual(r);
  });

  test("assert-create", () => {
    expect(failedRequirement(null, [{ type: "assert-create" }])).toBeUndefined();
    expect(() => checkRequirements(base, [{ type: "assert-create" }])).toThrow(conflict);
    expect(requirementFromJson({ type: "assert-create" })).toEqual({ type: "assert-create" });
  });
});

test("every update round-trips as the REST catalog's JSON", () => {
  const base = table();
  const statistics = {
    snapshotId: BIG,
    statisticsPath: "p",
    fileSizeInBytes: 1n,
    fileFooterSizeInBytes: 1n,
    blobMetadata: [],
  };
  const updates: TableUpdate[] = [
    { action: "assign-uuid", uuid: "u" },
    { action: "upgrade-format-version", formatVersion: 3 },
    { action: "add-schema", schema: SCHEMA, lastColumnId: 3 },
    { action: "set-current-schema", schemaId: -1 },
    { action: "remove-schemas", schemaIds: [1, 2] },
    {
      action: "add-spec",
      spec: { specId: 1, fields: [{ fieldId: -1, sourceId: 1, name: "b", transform: { kind: "bucket", buckets: 4 } }] },
    },
    { action: "set-default-spec", specId: -1 },
    { action: "remove-partition-specs", specIds: [1] },
    {
      action: "add-sort-order",
      sortOrder: {
        orderId: 1,
        fields: [{ sourceId: 1, transform: { kind: "identity" }, direction: "desc", nullOrder: "nulls-last" }],
      },
    },
    { action: "set-default-sort-order", sortOrderId: -1 },
    { action: "add-snapshot", snapshot: snapshot(base, BIG) },
    { action: "set-snapshot-ref", refName: "b", ref: { snapshotId: BIG, type: "branch", minSnapshotsToKeep: 1 } },
    { action: "remove-snapshots", snapshotIds: [BIG, 1n] },
    { action: "remove-snapshot-ref", refName: "b" },
    { action: "set-location", location: "s3://x" },
    { action: "set-properties", updates: { a: "b" } },
    { action: "remove-properties", removals: ["a"] },
    { action: "set-statistics", statistics },
    { action: "remove-statistics", snapshotId: BIG },
    {
      action: "set-partition-statistics",
      partitionStatistics: { snapshotId: BIG, statisticsPath: "p", fileSizeInBytes: 2n },
    },
    { action: "remove-partition-statistics", snapshotId: BIG },
  ];
  for (const update of updates) expect(updateFromJson(parseJson(printJson(updateToJson(update))))).toEqual(update);
  expect(() => updateFromJson({ action: "add-encryption-key" })).toThrow(
    expect.objectContaining({ code: "lake_format_unsupported" }),
  );
});

test("names of metadata files", () => {
  expect(metadataFileName(12, "abc")).toBe("00012-abc.metadata.json");
  expect(metadataVersionOf("s3://b/t/metadata/00012-abc.metadata.json")).toBe(12);
  expect(metadataVersionOf("/t/metadata/v7.metadata.json")).toBe(7);
  expect(metadataVersionOf("/t/metadata/3-x.gz.metadata.json")).toBe(3);
  expect(metadataVersionOf("/t/other.json")).toBeNull();
});

test("fresh ids: a level first, then what is inside; identifiers follow", () => {
  const schema: Schema = {
    schemaId: 0,
    identifierFieldIds: [70],
    fields: [
      {
        id: 50,
        name: "s",
        required: false,
        type: { kind: "struct", fields: [{ id: 50, name: "x", required: false, type: t("int") }] },
      },
      { id: 70, name: "k", required: true, type: t("int") },
    ],
  };
  expect(freshIds(schema)).toEqual({
    schemaId: 0,
    identifierFieldIds: [2],
    fields: [
      {
        id: 1,
        name: "s",
        required: false,
        type: { kind: "struct", fields: [{ id: 3, name: "x", required: false, type: t("int") }] },
      },
      { id: 2, name: "k", required: true, type: t("int") },
    ],
  });
});
