import fc from "fast-check";
import { expect, test } from "vitest";
import { parseJson, printJson } from "./json.ts";

const leaf = fc.oneof(
  fc.string({ unit: "binary" }),
  fc.boolean(),
  fc.constant(null),
  fc.double({ noNaN: true, noDefaultInfinity: true }).filter((n) => !Object.is(n, -0) && Math.abs(n) < 2 ** 53),
  fc.bigInt({ min: 2n ** 53n, max: 2n ** 64n }),
);
const { tree } = fc.letrec((tie) => ({
  tree: fc.oneof({ depthSize: "small" }, leaf, fc.array(tie("tree")), fc.dictionary(fc.string(), tie("tree"))),
}));

test("everything round-trips, with and without indentation", () => {
  fc.assert(
    fc.property(tree, fc.constantFrom(0, 2), (value, indent) => {
      expect(parseJson(`[${printJson(value, indent)},1234567890123456789]`)).toEqual([value, 1234567890123456789n]);
    }),
  );
});

/** Integers at and beyond 2^53 written out, which are bigints here and rounded by JSON.parse. */
const exact = (value: unknown): unknown => {
  if (typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value)) {
    return String(value).includes("e") ? value : BigInt(String(value));
  }
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map(exact);
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, exact(v)]));
};

test("it agrees with JSON.parse, but for integers that are not safe", () => {
  fc.assert(
    fc.property(fc.json(), (text) => {
      const whole = `[${text}, "0123456789012345678"]`;
      expect(parseJson(whole)).toEqual(exact(JSON.parse(whole)));
    }),
    {
      examples: [
        ["9007199254740992"],
        ["-9007199254740992"],
        ["9007199254740991"],
        ["100000000000000000000"],
        ["1e22"],
      ],
      numRuns: 1000,
    },
  );
});

test("64-bit integers are exact", () => {
  expect(parseJson('{"a": 9223372036854775807, "b": [-9007199254740993, 9007199254740991, 1e3]}')).toEqual({
    a: 9223372036854775807n,
    b: [-9007199254740993n, 9007199254740991, 1000],
  });
  expect(printJson({ a: 9223372036854775807n, b: undefined })).toBe('{"a":9223372036854775807}');
});

test.each(['{"a":1,}', "[1 2]", '{"a"}', '"\u0001"', "1 1", "01", "{", "[".repeat(300), "tru", "-", ""])(
  "refuses %s",
  (text) => {
    expect(() => parseJson(text)).toThrow();
    expect(() => parseJson(`[${text},1234567890123456789]`)).toThrow();
  },
);

test("a key named __proto__ is plain data", () => {
  const parsed = parseJson('{"__proto__": {"x": 1}, "n": 1234567890123456789}') as Record<string, unknown>;
  expect(Object.hasOwn(parsed, "__proto__")).toBe(true);
});
