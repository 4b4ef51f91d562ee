/** What is worth rewriting, and where deleted rows are after it. */
import { PositionSet } from "@spillway/lake/puffin/position-set";
import type { ScanTask } from "@spillway/lake/scan/scan";
import fc from "fast-check";
import { expect, test } from "vitest";
import { type CompactionRules, FILE_ROWS, planCompaction } from "./compact-plan.ts";
import { Remap } from "./compact-remap.ts";

function task(path: string, rows: number, bytes: number, partition: number | null = null): ScanTask {
  return {
    dataFile: {
      content: "data",
      path,
      format: "parquet",
      specId: 0,
      partition: partition === null ? [] : [partition],
      recordCount: BigInt(rows),
      fileSizeBytes: BigInt(bytes),
    },
    sequenceNumber: 1n,
    deletes: [],
    residual: { op: "true" },
  };
}

const RULES: CompactionRules = {
  deletes: { minRows: 10, minRatio: 0.1 },
  small: { belowBytes: 1000, minFiles: 4 },
  bytesPerRow: 100,
};

test("small files are packed within a partition, once there are enough", () => {
  const few = [1, 2, 3].map((i) => task(`a${i}`, 10, 100, 1));
  const other = [1, 2, 3, 4].map((i) => task(`b${i}`, 10, 100, 2));
  const units = planCompaction([...few, ...other], () => 0, RULES);
  expect(units.map((u) => [u.reason, u.tasks.map((t) => t.dataFile.path)])).toEqual([
    ["small", ["b1", "b2", "b3", "b4"]],
  ]);
});

test("files with many deletes are rewritten alone or together; few deletes are left", () => {
  const tasks = [task("x", 1000, 50_000), task("y", 50, 50_000), task("z", 1000, 50_000)];
  const deleted = (t: ScanTask): number => ({ x: 200, y: 9, z: 50 })[t.dataFile.path] ?? 0;
  expect(planCompaction(tasks, deleted, RULES).map((u) => u.tasks.map((t) => t.dataFile.path))).toEqual([["x"]]);
  expect(planCompaction(tasks, deleted, { ...RULES, deletes: null })).toEqual([]);
});

test("packing comes to an end: what it makes is not packed again", () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 1, max: 400_000 }), { minLength: 4, maxLength: 60 }),
      fc.integer({ min: 10, max: 2000 }),
      (rows, width) => {
        const rules = { ...RULES, small: { belowBytes: 1 << 40, minFiles: 4 }, bytesPerRow: width };
        let tasks = rows.map((n, i) => task(`f${String(i).padStart(3, "0")}`, n, n * 10));
        for (let round = 0; round < 10; round++) {
          const units = planCompaction(tasks, () => 0, rules);
          if (units.length === 0) return;
          const gone = new Set(units.flatMap((u) => u.tasks));
          const perFile = Math.min(FILE_ROWS, Math.floor((64 << 20) / width));
          const made = units.flatMap((u, n) => {
            let left = u.tasks.reduce((sum, t) => sum + Number(t.dataFile.recordCount), 0);
            const files: ScanTask[] = [];
            for (let i = 0; left > 0; i++, left -= perFile) {
              files.push(task(`r${round}-${n}-${i}`, Math.min(left, perFile), Math.min(left, perFile) * 10));
            }
            return files;
          });
          const next = [...tasks.filter((t) => !gone.has(t)), ...made];
          expect(next.length).toBeLessThan(tasks.length);
          tasks = next;
        }
        throw new Error("it goes on for ever");
      },
    ),
    { numRuns: 200 },
  );
});

test("a row that is deleted after the rewrite began is deleted at its new place, whatever was deleted before", () => {
  const file = fc.record({
    rows: fc.integer({ min: 1, max: 60 }),
    gone: fc.array(fc.nat(59)),
    later: fc.array(fc.nat(59)),
  });
  fc.assert(
    fc.property(fc.array(file, { minLength: 1, maxLength: 6 }), fc.integer({ min: 1, max: 40 }), (files, perFile) => {
      // The model: every row by name, copied in order into new files of `perFile` rows.
      const old = files.map((f, i) => ({
        path: `f${i}`,
        rows: BigInt(f.rows),
        deleted: new PositionSet(f.gone.filter((p) => p < f.rows)),
      }));
      const copied = old.flatMap((f) =>
        Array.from({ length: Number(f.rows) }, (_, p) => p)
          .filter((p) => !f.deleted.has(p))
          .map((p) => `${f.path}:${p}`),
      );
      const newRows: bigint[] = [];
      for (let at = 0; at < copied.length; at += perFile) newRows.push(BigInt(Math.min(perFile, copied.length - at)));
      const now = new Map(
        old.map((f, i) => {
          const later = (files[i]?.later ?? []).filter((p) => p < Number(f.rows));
          return [f.path, f.deleted.union(new PositionSet(later))] as const;
        }),
      );
      const remap = new Remap(old, newRows);
      expect(remap.total).toBe(copied.length);
      const carried = [...remap.remap(now)].flatMap(([n, set]) => [...set].map((p) => copied[n * perFile + p]));
      const wanted = old.flatMap((f) =>
        [...(now.get(f.path) ?? [])].filter((p) => !f.deleted.has(p)).map((p) => `${f.path}:${p}`),
      );
      expect(carried.toSorted()).toEqual(wanted.toSorted());
      for (const f of old) {
        const since = remap.since(f.path, now.get(f.path) ?? new PositionSet());
        expect(since.map((p) => `${f.path}:${p}`).toSorted()).toEqual(
          wanted.filter((w) => w.startsWith(`${f.path}:`)).toSorted(),
        );
      }
    }),
  );
});
