import { expect, test } from "vitest";
import { applyUpdates } from "../commit.ts";
import { createTableMetadata } from "../metadata.ts";
import type { SnapshotRef, TableMetadata } from "../model.ts";
import { type ExpireRequest, stageExpire } from "./expire.ts";

/** Snapshots 1 to 6 on main, one each 1000 ms from 1000 on. */
function table(): TableMetadata {
  let metadata = createTableMetadata({
    tableUuid: "u",
    location: "file:///lake/t",
    schema: { schemaId: 0, fields: [{ id: 1, name: "a", required: false, type: { kind: "int" } }] },
    formatVersion: 2,
    nowMs: 0,
  });
  for (let i = 1; i <= 6; i += 1) {
    const parent = metadata.currentSnapshotId;
    const snapshot = {
      snapshotId: BigInt(i),
      ...(parent === undefined ? {} : { parentSnapshotId: parent }),
      sequenceNumber: BigInt(i),
      timestampMs: i * 1000,
      manifestList: `file:///lake/t/metadata/snap-${i}.avro`,
      operation: "append" as const,
      summary: {},
    };
    metadata = applyUpdates(
      metadata,
      [{ action: "add-snapshot", snapshot }, ref("main", { snapshotId: BigInt(i) })],
      i * 1000,
    );
  }
  return metadata;
}

function ref(refName: string, to: Partial<SnapshotRef> & Pick<SnapshotRef, "snapshotId">) {
  return { action: "set-snapshot-ref" as const, refName, ref: { type: "branch" as const, ...to } };
}

function removed(metadata: TableMetadata, request: Partial<ExpireRequest>): bigint[] {
  const plan = stageExpire({ metadata, nowMs: 10_000, olderThanMs: 9000, ...request });
  const after = applyUpdates(metadata, plan.updates, 10_000);
  expect(after.currentSnapshotId).toBe(metadata.currentSnapshotId);
  expect(Object.keys(metadata.refs).filter((name) => !(name in after.refs))).toEqual(plan.removedRefs);
  return [...plan.removedSnapshotIds];
}

test("the head always stays", () => {
  expect(removed(table(), {})).toEqual([1n, 2n, 3n, 4n, 5n]);
  expect(removed(table(), { minKeep: 0 })).toEqual([1n, 2n, 3n, 4n, 5n]);
});

test("age, the last few, pins, and a further reason", () => {
  expect(removed(table(), { olderThanMs: 4000 })).toEqual([1n, 2n, 3n]);
  expect(removed(table(), { minKeep: 3 })).toEqual([1n, 2n, 3n]);
  const pinned = { protectedSnapshotIds: new Set([2n]), keep: (s: { snapshotId: bigint }) => s.snapshotId === 3n };
  expect(removed(table(), { ...pinned, minKeep: 2 })).toEqual([1n, 4n]);
});

test("a branch's own limits come first, a tag holds one snapshot until it is too old itself", () => {
  const limits = applyUpdates(
    table(),
    [ref("main", { snapshotId: 6n, minSnapshotsToKeep: 2, maxSnapshotAgeMs: 6500 })],
    7000,
  );
  expect(removed(limits, {})).toEqual([1n, 2n, 3n]);
  const tagged = applyUpdates(
    table(),
    [
      ref("young", { snapshotId: 2n, type: "tag", maxRefAgeMs: 9000 }),
      ref("old", { snapshotId: 3n, type: "tag", maxRefAgeMs: 5000 }),
    ],
    7000,
  );
  expect(removed(tagged, {})).toEqual([1n, 3n, 4n, 5n]);
});

test("thinned once, a table can be thinned again: snapshots beyond a gap go by age and reason alone", () => {
  const even = (s: { snapshotId: bigint }): boolean => s.snapshotId % 2n === 0n;
  const plan = stageExpire({ metadata: table(), nowMs: 10_000, olderThanMs: 9000, keep: even });
  const thinned = applyUpdates(table(), plan.updates, 10_000);
  expect(thinned.snapshots.map((s) => s.snapshotId)).toEqual([2n, 4n, 6n]);
  expect(removed(thinned, { keep: even })).toEqual([]);
  expect(removed(thinned, { olderThanMs: 3000 })).toEqual([2n]);
});
