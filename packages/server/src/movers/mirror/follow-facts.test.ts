import { expect, test } from "vitest";
import type { Drift } from "../schema-drift.ts";
import { keepsValues } from "./follow-facts.ts";

const NONE: Drift = { added: [], dropped: [], renamed: [], retyped: [], madeNullable: [] };
const retyped = (from: number, to: number): Drift =>
  ({ ...NONE, retyped: [{ from: { typeOid: from }, to: { typeOid: to } }] }) as unknown as Drift;

test("only a plain widening rewrites rows without changing a value", () => {
  expect(keepsValues({ reason: 4, plain: true }, retyped(23, 20))).toBe(true);
  expect(keepsValues({ reason: 4, plain: false }, retyped(23, 20))).toBe(false);
  // An expression of the same type: nothing drifted.
  expect(keepsValues({ reason: 4, plain: true }, null)).toBe(false);
  // varchar(100) to varchar(5) cuts off blanks.
  expect(keepsValues({ reason: 4, plain: true }, retyped(1043, 1043))).toBe(false);
});

test("a default that differs from row to row, and a column that came with a rewrite, are not known", () => {
  expect(keepsValues({ reason: 2, plain: true }, NONE)).toBe(false);
  expect(keepsValues({ reason: 1, plain: true }, { ...NONE, added: [{}] } as unknown as Drift)).toBe(false);
  expect(keepsValues({ reason: 8, plain: false }, null)).toBe(true);
});
