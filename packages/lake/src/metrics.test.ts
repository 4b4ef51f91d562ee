import { expect, test } from "vitest";
import { fileMetrics } from "./metrics.ts";
import type { Schema } from "./model.ts";
import { decodeValue } from "./values.ts";

const SCHEMA: Schema = {
  schemaId: 0,
  fields: [
    { id: 1, name: "i", required: false, type: { kind: "int" } },
    { id: 2, name: "s", required: false, type: { kind: "string" } },
    { id: 3, name: "d", required: false, type: { kind: "double" } },
    {
      id: 4,
      name: "l",
      required: false,
      type: { kind: "list", elementId: 5, elementRequired: false, element: { kind: "long" } },
    },
  ],
};

test("counts and bounds by field id; what is unknown is left out", () => {
  const metrics = fileMetrics(
    SCHEMA,
    new Map([
      [1, { values: 10n, nulls: 0n, min: 0, max: 5, size: 40n }],
      [2, { values: 10n, nulls: 2n, min: "x".repeat(30), max: "x".repeat(30) }],
      [3, { values: 10n, nans: 1n, min: 0, max: -0 }],
      [5, { values: 30n, min: -1n, max: 2n }],
    ]),
  );
  expect(metrics.columnSizes).toEqual(new Map([[1, 40n]]));
  expect(metrics.valueCounts).toEqual(
    new Map([
      [1, 10n],
      [2, 10n],
      [3, 10n],
      [5, 30n],
    ]),
  );
  expect(metrics.nanValueCounts).toEqual(new Map([[3, 1n]]));
  const text = { kind: "string" } as const;
  expect(decodeValue(text, metrics.lowerBounds?.get(2) ?? new Uint8Array())).toBe("x".repeat(16));
  expect(decodeValue(text, metrics.upperBounds?.get(2) ?? new Uint8Array())).toBe(`${"x".repeat(15)}y`);
  const double = { kind: "double" } as const;
  expect(decodeValue(double, metrics.lowerBounds?.get(3) ?? new Uint8Array())).toBe(-0);
  expect(decodeValue(double, metrics.upperBounds?.get(3) ?? new Uint8Array())).toBe(0);
  expect(decodeValue({ kind: "int" }, metrics.lowerBounds?.get(1) ?? new Uint8Array())).toBe(0);
});

test("NaN is no bound, an all-maximal string has no upper bound, a nested column has none", () => {
  const metrics = fileMetrics(
    SCHEMA,
    new Map([
      [2, { min: "a", max: "\u{10ffff}".repeat(17) }],
      [3, { min: Number.NaN, max: Number.NaN }],
    ]),
  );
  expect([...(metrics.lowerBounds?.keys() ?? [])]).toEqual([2]);
  expect([...(metrics.upperBounds?.keys() ?? [])]).toEqual([]);
  expect(() => fileMetrics(SCHEMA, new Map([[4, { min: 1 }]]))).toThrow(/no primitive column/);
});
