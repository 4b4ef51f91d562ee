import { expect, test } from "vitest";
import { Model, type PairState, type SeenRow } from "./seam-model.ts";
import { schedule } from "./seam-faults.ts";

const state = (stamp: number, keys: [number, number] = [10, 20]): PairState => ({ stamp, keys });
const rows = (...seen: [id: number, key: number, stamp: number][]): SeenRow[] =>
  seen.map(([id, key, stamp]) => ({ id, key, stamp }));

/** Pair 1 (rows 2 and 3): stamp 5 since 100..110, stamp 6 with a moved key since 200..210, gone since 300..310. */
function model(): Model {
  const m = new Model();
  m.commit(1, { state: state(5), startMs: 100, endMs: 110 });
  m.commit(1, { state: state(6, [10, 70]), startMs: 200, endMs: 210 });
  m.commit(1, { state: null, startMs: 300, endMs: 310 });
  return m;
}
const kinds = (startMs: number, endMs: number, seen: SeenRow[], low = 0, high = 100): string[] =>
  model()
    .check({ startMs, endMs, low, high, rows: seen })
    .map((fault) => fault.kind);

test("what was committed when the read ran is right", () => {
  expect(kinds(0, 50, [])).toEqual([]);
  expect(kinds(150, 160, rows([2, 10, 5], [3, 20, 5]))).toEqual([]);
  expect(kinds(250, 260, rows([2, 10, 6], [3, 70, 6]))).toEqual([]);
  expect(kinds(400, 410, [])).toEqual([]);
});

test("while a commit is under way both states are right, and between them none", () => {
  const both = [rows([2, 10, 5], [3, 20, 5]), rows([2, 10, 6], [3, 70, 6])];
  for (const seen of both) expect(kinds(150, 205, seen)).toEqual([]);
  for (const seen of both) expect(kinds(205, 207, seen)).toEqual([]);
  expect(kinds(150, 205, [])).toEqual(["lost"]);
});

test("what is missing, old, back again, twice or torn is found", () => {
  expect(kinds(150, 160, [])).toEqual(["lost"]);
  expect(kinds(250, 260, rows([2, 10, 5], [3, 20, 5]))).toEqual(["lost"]);
  expect(kinds(400, 410, rows([2, 10, 6], [3, 70, 6]))).toEqual(["doubled"]);
  expect(kinds(250, 260, rows([2, 10, 6], [3, 70, 6], [3, 20, 5]))).toEqual(["doubled"]);
  expect(kinds(150, 205, rows([2, 10, 5], [3, 70, 6]))).toEqual(["torn"]);
  expect(kinds(150, 205, rows([2, 10, 5]))).toEqual(["lost"]);
  expect(kinds(250, 305, rows([2, 10, 6]))).toEqual(["torn"]);
  expect(kinds(150, 160, rows([2, 10, 5], [3, 20, 5], [8, 1, 1]))).toEqual(["doubled"]);
});

test("only the rows of the range are expected", () => {
  expect(kinds(150, 160, rows([2, 10, 5]), 0, 15)).toEqual([]);
  expect(kinds(250, 260, [], 15, 70)).toEqual([]);
  expect(kinds(250, 260, rows([3, 20, 5]), 15, 70)).toEqual(["lost"]);
});

test("a seed determines the faults", () => {
  expect(schedule(7, 60_000)).toEqual(schedule(7, 60_000));
  expect(schedule(7, 60_000)).not.toEqual(schedule(8, 60_000));
  expect(schedule(7, 60_000).length).toBeGreaterThan(15);
});
