import { isSpillwayError } from "@spillway/base/errors";
import { formatLsn } from "@spillway/base/lsn";
import type { Snapshot } from "@spillway/lake/model";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { requireSnapshotAtLsn, snapshotAtLsn } from "./lsn-view.ts";

function snapshot(id: number, lsn: number | null, parent: number | null, more: Record<string, string> = {}): Snapshot {
  return {
    snapshotId: BigInt(id),
    sequenceNumber: BigInt(id),
    ...(parent === null ? {} : { parentSnapshotId: BigInt(parent) }),
    timestampMs: id,
    manifestList: "",
    operation: "append",
    summary: { ...(lsn === null ? {} : { "spillway.lsn": formatLsn(BigInt(lsn)) }), ...more },
  };
}

const idOf = (snapshots: readonly Snapshot[], lsn: number, frontier: number): bigint | string => {
  const found = snapshotAtLsn({ snapshots }, BigInt(lsn), BigInt(frontier));
  return found.kind === "snapshot" ? found.snapshot.snapshotId : found.kind;
};

describe("the lake as of a position", () => {
  const all = [snapshot(1, 100, null), snapshot(2, 120, 1), snapshot(3, null, 2), snapshot(4, 160, 3)];

  test("is the last flush at or before it, compaction included", () => {
    expect([99, 100, 119, 120, 159, 160, 200, 201].map((lsn) => idOf(all, lsn, 200))).toEqual(
      ["gone", 1n, 1n, 3n, 3n, 4n, 4n, "ahead"],
    ); // prettier-ignore
  });

  test("is refused between two snapshots of which one in the middle may be gone", () => {
    const thin = [snapshot(1, 100, null), snapshot(4, 160, 3)];
    expect([100, 101, 159, 160, 200].map((lsn) => idOf(thin, lsn, 200))).toEqual([1n, "gone", "gone", 4n, 4n]);
    // A compaction whose parent is gone and that has no position: nobody knows what it is as of.
    expect(idOf([snapshot(1, 100, null), snapshot(4, null, 3)], 130, 200)).toBe("gone");
  });

  test("is refused between a table's last flush and a copy that came later", () => {
    const copied = [snapshot(1, 100, null), snapshot(2, 160, 1, { "spillway.copied": "true" })];
    expect([100, 130, 160].map((lsn) => idOf(copied, lsn, 200))).toEqual([1n, "gone", 2n]);
  });

  test("the error names what can be read instead", () => {
    const thin = { snapshots: [snapshot(1, 0x100, null), snapshot(4, 0x160, 3)] };
    const error = ((): unknown => {
      try {
        return requireSnapshotAtLsn(thin, 0x130n, 0x200n, "t");
      } catch (e) {
        return e;
      }
    })();
    expect(isSpillwayError(error, "as_of_lsn_gone") && error.message).toContain("kept nearby: 0/100 and 0/160");
    expect(() => requireSnapshotAtLsn(thin, 0x201n, 0x200n, "t")).toThrow(/up to 0\/200, not up to 0\/201/);
  });

  // The oracle is the history of states itself: whatever was thinned out, an answer is the state at that position.
  test("whatever is thinned out, an answer is never another moment's", () => {
    const steps = fc.array(fc.record({ gap: fc.integer({ min: 1, max: 9 }), compact: fc.boolean() }), {
      minLength: 1,
      maxLength: 12,
    });
    fc.assert(
      fc.property(steps, fc.array(fc.boolean(), { maxLength: 12 }), fc.boolean(), (history, kept, carries) => {
        const snapshots: Snapshot[] = [];
        const states: { lsn: number; state: number }[] = [];
        let lsn = 0;
        history.forEach(({ gap, compact }, i) => {
          const isFlush = i === 0 || !compact;
          if (isFlush) states.push({ lsn: (lsn += gap), state: i });
          const own = isFlush || carries ? lsn : null;
          snapshots.push(snapshot(i, own, i === 0 ? null : i - 1, { state: String(states.at(-1)?.state) }));
        });
        const left = snapshots.filter((_, i) => i === snapshots.length - 1 || (kept[i] ?? true));
        const frontier = lsn + 3;
        for (let at = 0; at <= frontier; at++) {
          const found = snapshotAtLsn({ snapshots: left }, BigInt(at), BigInt(frontier));
          if (found.kind !== "snapshot") continue;
          expect(found.snapshot.summary["state"]).toBe(String(states.findLast((s) => s.lsn <= at)?.state));
        }
      }),
    );
  });
});
