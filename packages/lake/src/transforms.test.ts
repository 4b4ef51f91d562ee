import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { PrimitiveType, PrimitiveValue } from "./model.ts";
import {
  applyTransform,
  hashValue,
  parseTransform,
  partitionPathSegment,
  printPartitionValue,
  printTransform,
} from "./transforms.ts";
import { parsePrimitiveType } from "./types.ts";
import { primitiveFromJson } from "./value-json.ts";

const value = (type: string, json: string | number): [PrimitiveType, PrimitiveValue] => {
  const parsed = parsePrimitiveType(type);
  return [parsed, primitiveFromJson(parsed, json)];
};

test.each([
  ["int", 34, 2017239379],
  ["long", 34, 2017239379],
  ["decimal(9,2)", "14.20", -500754589],
  ["date", "2017-11-16", -653330422],
  ["time", "22:31:08", -662762989],
  ["timestamp", "2017-11-16T22:31:08", -2047944441],
  ["timestamp", "2017-11-16T22:31:08.000001", -1207196810],
  ["timestamptz", "2017-11-16T14:31:08-08:00", -2047944441],
  ["timestamptz", "2017-11-16T14:31:08.000001-08:00", -1207196810],
  ["timestamp_ns", "2017-11-16T22:31:08", -2047944441],
  ["timestamp_ns", "2017-11-16T22:31:08.000001001", -1207196810],
  ["timestamptz_ns", "2017-11-16T14:31:08.000001001-08:00", -1207196810],
  ["string", "iceberg", 1210000089],
  ["uuid", "f79c3e09-677c-4bbd-a479-3f349cb785e7", 1488055340],
  ["fixed[4]", "00010203", -188683207],
  ["binary", "00010203", -188683207],
])("the specification's hash of %s %s", (type, json, hash) => {
  expect(hashValue(...value(type, json))).toBe(hash);
});

describe("applyTransform", () => {
  test.each([
    ["year", "date", "1969-12-31", -1, "1969"],
    ["year", "timestamptz", "2017-11-16T22:31:08+00:00", 47, "2017"],
    ["month", "date", "1969-12-01", -1, "1969-12"],
    ["month", "date", "1970-02-01", 1, "1970-02"],
    ["month", "timestamp_ns", "2017-11-16T22:31:08.123456789", 574, "2017-11"],
    ["day", "timestamp", "1969-12-31T23:59:59.999999", -1, "1969-12-31"],
    ["day", "date", "2017-11-16", 17486, "2017-11-16"],
    ["hour", "timestamp", "1969-12-31T23:59:59.999999", -1, "1969-12-31-23"],
    ["hour", "timestamptz", "2017-11-16T22:31:08+00:00", 419686, "2017-11-16-22"],
    ["truncate[10]", "int", -1, -10, "-10"],
    ["truncate[10]", "long", 19, 10n, "10"],
    ["truncate[50]", "decimal(9,2)", "10.65", 1050n, "10.50"],
    ["truncate[3]", "string", "iceberg", "ice", "ice"],
    ["truncate[2]", "string", "😀é!", "😀é", "😀é"],
    ["bucket[16]", "long", 34, 2017239379 % 16, "3"],
    ["identity", "string", "a/b", "a/b", "a/b"],
    ["void", "string", "x", null, "null"],
  ] as const)("%s of %s %s", (name, type, json, expected, printed) => {
    const transform = parseTransform(name);
    expect(printTransform(transform)).toBe(name);
    const [source, v] = value(type, json);
    const result = applyTransform(transform, source, v);
    expect(result).toEqual(expected);
    expect(printPartitionValue(transform, source, result)).toBe(printed);
  });

  test("binary truncates to bytes", () => {
    const [source, v] = value("binary", "0102030405");
    expect(applyTransform({ kind: "truncate", width: 3 }, source, v)).toEqual(new Uint8Array([1, 2, 3]));
  });

  test("null stays null, and a wrong source type is refused", () => {
    expect(applyTransform({ kind: "bucket", buckets: 4 }, { kind: "int" }, null)).toBeNull();
    expect(() => applyTransform({ kind: "hour" }, { kind: "date" }, 1)).toThrow(/does not apply/);
    expect(() => applyTransform({ kind: "bucket", buckets: 4 }, { kind: "double" }, 1)).toThrow(/does not apply/);
  });

  test("time transforms are monotonic and agree with the platform's calendar", () => {
    const micros = fc.bigInt({ min: -(10n ** 17n), max: 10n ** 17n });
    fc.assert(
      fc.property(micros, micros, (a, b) => {
        const [low, high] = a < b ? [a, b] : [b, a];
        for (const name of ["year", "month", "day", "hour"]) {
          const of = (v: bigint): number => applyTransform(parseTransform(name), { kind: "timestamp" }, v) as number;
          expect(of(low)).toBeLessThanOrEqual(of(high));
        }
        const date = new Date(Number(low / 1000n) - (low % 1000n < 0n ? 1 : 0));
        const month = (date.getUTCFullYear() - 1970) * 12 + date.getUTCMonth();
        expect(applyTransform({ kind: "month" }, { kind: "timestamp" }, low)).toBe(month);
      }),
    );
  });

  test("paths are percent-encoded", () => {
    expect(partitionPathSegment("a b", "x/y=z'")).toBe("a%20b=x%2Fy%3Dz%27");
  });
});
