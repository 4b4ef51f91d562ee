import { expect, test } from "vitest";
import { diffRows, expectSameRows, type RowSet } from "./rows.ts";

const set = (...rows: (string | null)[][]): RowSet => ({ columns: ["id", "v"], key: ["id"], rows });

test("rows in another order are the same rows", () => {
  expect(diffRows(set(["1", "a"], ["2", null]), set(["2", null], ["1", "a"]))).toBeNull();
  expect(() => expectSameRows(set(["1", "a"]), set(["1", "a"]))).not.toThrow();
});

test("NULL, the empty string and the word NULL differ", () => {
  expect(diffRows(set(["1", null]), set(["1", ""]))).toContain('v: expected NULL, got ""');
  expect(diffRows(set(["1", null]), set(["1", "NULL"]))).toContain('got "NULL"');
});

test("missing, doubled and surplus rows are named with their key", () => {
  expect(diffRows(set(["1", "a"], ["2", "b"]), set(["1", "a"]))).toContain('("2"): missing: ("2", "b")');
  expect(diffRows(set(["1", "a"]), set(["1", "a"], ["1", "a"]))).toContain('("1"): too many');
  expect(diffRows(set(), set(["3", "c"]))).toContain('("3"): too many');
  expect(diffRows(set(["1", "a"], ["1", "b"]), set(["1", "b"], ["1", "a"]))).toBeNull();
});

test("the report is bounded, the count is not", () => {
  const many = Array.from({ length: 50 }, (_, i) => [String(i), "x"]);
  const report = diffRows(set(...many), set(), 3);
  expect(report).toContain("50 differences");
  expect(report?.split("\n")).toHaveLength(5);
});

test("different columns are no match", () => {
  expect(diffRows(set(), { ...set(), columns: ["id", "w"] })).toContain("columns differ");
});
