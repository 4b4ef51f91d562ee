import { createTableMetadata, MAIN_BRANCH, parseMetadata, printMetadata } from "@spillway/lake/metadata";
import type { Snapshot, TableMetadata } from "@spillway/lake/model";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { metadataAt, parseView, parseWarehouse, printView } from "./views.ts";

const own = { location: "file:///lake", database: "shop" };

describe("the name of a warehouse", () => {
  test.each(["", "shop", "file:///lake", "/lake", "/lake/"])("%j is the one there is", (name) => {
    expect(parseWarehouse(own, name)).toEqual({ kind: "live" });
    expect(parseWarehouse(own, `${name}@latest`)).toEqual({ kind: "latest" });
    expect(parseWarehouse(own, `${name}@lsn:1/A`)).toEqual({ kind: "lsn", lsn: 0x10000000an });
    expect(parseWarehouse(own, `${name}@lsn:000000010000000A`)).toEqual({ kind: "lsn", lsn: 0x10000000an });
  });
  test.each([
    "other",
    "shop@",
    "shop@now",
    "shop@lsn:",
    "shop@lsn:1",
    "shop@lsn:1/A/B",
    "x@latest",
    "shop@lsn:1/A@latest",
  ])("%j is none", (name) => {
    expect(() => parseWarehouse(own, name)).toThrow(/there is no warehouse/);
  });
  test("a view's prefix is one segment of a path, and comes back", () => {
    fc.assert(
      fc.property(fc.bigInt(0n, 2n ** 64n - 1n), (lsn) => {
        expect(printView(lsn)).toMatch(/^[^/]+$/);
        expect(parseView(printView(lsn))).toBe(lsn);
      }),
    );
    expect([parseView("lake"), parseView("lake@lsn:12"), parseView("x@lsn:0000000000000001")]).toEqual([
      null,
      null,
      null,
    ]);
  });
});

test("a table at a snapshot shows nothing of what came later", () => {
  const snapshot = (id: bigint, schemaId: number): Snapshot => ({
    snapshotId: 9_007_199_254_740_993n + id,
    sequenceNumber: id,
    ...(id > 1n ? { parentSnapshotId: 9_007_199_254_740_992n + id } : {}),
    timestampMs: 1000 * Number(id),
    manifestList: `file:///lake/t/metadata/${id}.avro`,
    operation: "append",
    summary: {},
    schemaId,
    firstRowId: id - 1n,
    addedRows: 1n,
  });
  const made = createTableMetadata({
    tableUuid: "0123abcd-4567-89ef-0123-456789abcdef",
    location: "file:///lake/t",
    schema: { schemaId: 0, fields: [{ id: 1, name: "a", required: false, type: { kind: "long" } }] },
    nowMs: 5000,
  });
  const snapshots = [snapshot(1n, 0), snapshot(2n, 0), snapshot(3n, 0)];
  const [first, second, third] = snapshots as [Snapshot, Snapshot, Snapshot];
  const metadata: TableMetadata = {
    ...made,
    lastSequenceNumber: 3n,
    nextRowId: 3n,
    snapshots,
    snapshotLog: snapshots.map(({ snapshotId, timestampMs }) => ({ snapshotId, timestampMs })),
    currentSnapshotId: third.snapshotId,
    refs: {
      [MAIN_BRANCH]: { type: "branch", snapshotId: third.snapshotId },
      early: { type: "tag", snapshotId: first.snapshotId },
      late: { type: "tag", snapshotId: third.snapshotId },
    },
  };
  // Through the text, whose parser checks what a table must be.
  const at = parseMetadata(printMetadata(metadataAt(metadata, second)));
  expect(at.currentSnapshotId).toBe(second.snapshotId);
  expect(at.snapshots.map((s) => s.snapshotId)).toEqual([first.snapshotId, second.snapshotId]);
  expect(at.snapshotLog.at(-1)?.snapshotId).toBe(second.snapshotId);
  expect(Object.keys(at.refs).toSorted()).toEqual(["early", MAIN_BRANCH]);
  expect(at.refs[MAIN_BRANCH]?.snapshotId).toBe(second.snapshotId);
});
