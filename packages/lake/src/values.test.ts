import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { PrimitiveType, PrimitiveValue } from "./model.ts";
import { parsePrimitiveType, printPrimitiveType } from "./types.ts";
import { primitiveFromJson, primitiveToJson } from "./value-json.ts";
import { compareBytes, compareValues, decodeValue, encodeValue, truncateLower, truncateUpper } from "./values.ts";
import { parseJson, printJson } from "./json.ts";

const int64 = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n });
const text = fc.string({ unit: "binary", maxLength: 40 });
const bytes = (size: fc.IntArrayConstraints = { maxLength: 40 }): fc.Arbitrary<Uint8Array> => fc.uint8Array(size);

/** Every primitive type with a generator of its values. */
const TYPES: readonly (readonly [string, fc.Arbitrary<PrimitiveValue>])[] = [
  ["boolean", fc.boolean()],
  ["int", fc.integer()],
  ["long", int64],
  ["float", fc.float({ noNaN: true })],
  ["double", fc.double({ noNaN: true })],
  ["date", fc.integer({ min: -5_000_000, max: 5_000_000 })],
  ["time", fc.bigInt({ min: 0n, max: 86_399_999_999n })],
  ["timestamp", int64],
  ["timestamptz", int64],
  ["timestamp_ns", int64],
  ["timestamptz_ns", int64],
  ["string", text],
  ["uuid", bytes({ minLength: 16, maxLength: 16 })],
  ["fixed[7]", bytes({ minLength: 7, maxLength: 7 })],
  ["binary", bytes()],
  ["decimal(38, 10)", fc.bigInt({ min: -(10n ** 38n) + 1n, max: 10n ** 38n - 1n })],
  ["decimal(9, 0)", fc.bigInt({ min: -999_999_999n, max: 999_999_999n })],
];

describe.each(TYPES)("%s", (name, values) => {
  const type = parsePrimitiveType(name);

  test("its text form round-trips", () => expect(printPrimitiveType(type)).toBe(name));

  test("binary form round-trips", () => {
    fc.assert(
      fc.property(values, (v) => {
        expect(decodeValue(type, encodeValue(type, v))).toEqual(v);
      }),
    );
  });

  test("JSON form round-trips through text", () => {
    fc.assert(
      fc.property(values, (v) => {
        fc.pre(typeof v !== "number" || (Number.isFinite(v) && !Object.is(v, -0)));
        expect(primitiveFromJson(type, parseJson(printJson(primitiveToJson(type, v))))).toEqual(v);
      }),
    );
  });

  test("the order is total and agrees with equality", () => {
    fc.assert(
      fc.property(values, values, values, (a, b, c) => {
        const sign = (x: PrimitiveValue, y: PrimitiveValue): number => Math.sign(compareValues(type, x, y));
        expect(sign(a, a)).toBe(0);
        expect(sign(a, b) + sign(b, a)).toBe(0);
        if (sign(a, b) <= 0 && sign(b, c) <= 0) expect(sign(a, c)).toBeLessThanOrEqual(0);
      }),
    );
  });

  test("truncated bounds enclose the value", () => {
    fc.assert(
      fc.property(values, fc.integer({ min: 1, max: 20 }), (v, length) => {
        expect(compareValues(type, truncateLower(type, v, length), v)).toBeLessThanOrEqual(0);
        const upper = truncateUpper(type, v, length);
        if (upper !== undefined) {
          expect(compareValues(type, upper, v)).toBeGreaterThanOrEqual(0);
          expect(() => encodeValue(type, upper)).not.toThrow();
        }
      }),
    );
  });
});

describe("order", () => {
  const string: PrimitiveType = { kind: "string" };

  test("strings compare as their UTF-8 bytes", () => {
    const unit = fc.oneof(fc.constantFrom("\uffff", "\ue000", "\u{10000}", "\u{10ffff}", "a", "é"), text);
    fc.assert(
      fc.property(unit, unit, (a, b) => {
        const [x, y] = [encodeValue(string, a), encodeValue(string, b)];
        expect(Math.sign(compareValues(string, a, b))).toBe(Math.sign(compareBytes(x, y)));
      }),
    );
  });

  test("floats: -0 before 0, NaN last", () => {
    const sorted = [Number.NaN, 0, -0, Infinity, -1, -Infinity].toSorted((a, b) =>
      compareValues({ kind: "double" }, a, b),
    );
    expect(sorted).toEqual([-Infinity, -1, -0, 0, Infinity, Number.NaN]);
  });
});

describe("known bytes and texts", () => {
  test.each([
    ["decimal(9, 2)", 1420n, "058c", '"14.20"'],
    ["decimal(9, 2)", -1n, "ff", '"-0.01"'],
    ["int", 34, "22000000", "34"],
    ["long", 9007199254740993n, "0100000000002000", "9007199254740993"],
    ["date", 17486, "4e440000", '"2017-11-16"'],
    ["date", -719529, "5705f5ff", '"-0001-12-31"'],
    ["time", 81068123456n, "4057f5df12000000", '"22:31:08.123456"'],
    ["timestamp", 1510871468123456n, undefined, '"2017-11-16T22:31:08.123456"'],
    ["timestamptz", 1510871468000000n, undefined, '"2017-11-16T22:31:08+00:00"'],
    ["timestamp_ns", 1510871468123456789n, undefined, '"2017-11-16T22:31:08.123456789"'],
    ["timestamptz", -1n, "ffffffffffffffff", '"1969-12-31T23:59:59.999999+00:00"'],
    ["string", "ice", "696365", '"ice"'],
    ["fixed[4]", new Uint8Array([0, 1, 2, 3]), "00010203", '"00010203"'],
  ] as const)("%s %s", (name, value, hex, json) => {
    const type = parsePrimitiveType(name);
    if (hex !== undefined && name !== "time") expect(Buffer.from(encodeValue(type, value)).toString("hex")).toBe(hex);
    expect(printJson(primitiveToJson(type, value))).toBe(json);
  });

  test("bounds written before a promotion decode as what they were", () => {
    expect(decodeValue({ kind: "long" }, encodeValue({ kind: "int" }, -5))).toBe(-5n);
    expect(decodeValue({ kind: "double" }, encodeValue({ kind: "float" }, 1.5))).toBe(1.5);
    expect(decodeValue({ kind: "timestamp" }, encodeValue({ kind: "date" }, -1))).toBe(-86_400_000_000n);
    expect(decodeValue({ kind: "timestamp_ns" }, encodeValue({ kind: "date" }, 1))).toBe(86_400_000_000_000n);
  });

  test("values outside the type are refused", () => {
    expect(() => encodeValue({ kind: "decimal", precision: 3, scale: 0 }, 1000n)).toThrow(/precision/);
    expect(() => encodeValue({ kind: "long" }, 2n ** 63n)).toThrow(/64 bits/);
    expect(() => encodeValue({ kind: "int" }, 1.5)).toThrow(/32-bit/);
    expect(() => primitiveFromJson({ kind: "date" }, "2017-02-29")).toThrow(/not a date/);
  });
});
