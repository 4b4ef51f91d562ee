import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Shape } from "./codec.ts";
import { readAvro, writeAvro, type AvroCodec } from "./container.ts";
import { avroName, logicalMap, optionalField, requiredField, type AvroRecord, type AvroSchema } from "./schema.ts";
import { unsnappy } from "./snappy.ts";

interface Case {
  readonly schema: AvroSchema;
  readonly value: fc.Arbitrary<unknown>;
}

const int64 = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n });
const leaves: Case[] = [
  { schema: "boolean", value: fc.boolean() },
  { schema: "int", value: fc.integer() },
  {
    schema: "long",
    value: fc.oneof(int64, fc.bigInt({ min: -300n, max: 300n }), fc.bigInt({ min: -(2n ** 36n), max: 2n ** 36n })),
  },
  { schema: "float", value: fc.float() },
  { schema: "double", value: fc.double() },
  { schema: "bytes", value: fc.uint8Array() },
  { schema: "string", value: fc.string({ unit: "binary" }) },
  { schema: { type: "fixed", name: "f", size: 5 }, value: fc.uint8Array({ minLength: 5, maxLength: 5 }) },
  { schema: { type: "int", logicalType: "date" }, value: fc.integer() },
  { schema: { type: "enum", name: "e", symbols: ["A", "B"] }, value: fc.constantFrom("A", "B") },
];

/** Random schemas with generators of their values. */
const anyCase: fc.Arbitrary<Case> = fc.letrec<{ node: Case }>((tie) => ({
  node: fc.oneof(
    { depthSize: "small", withCrossShrink: true },
    fc.constantFrom(...leaves),
    tie("node").map((c): Case => ({
      schema: { type: "array", items: c.schema },
      value: fc.array(c.value, { maxLength: 5 }),
    })),
    tie("node")
      .filter((c) => !Array.isArray(c.schema))
      .map((c): Case => ({ schema: ["null", c.schema], value: fc.option(c.value) })),
    tie("node").map((c): Case => ({
      schema: logicalMap(1, "int", 2, c.schema),
      value: fc.array(fc.tuple(fc.integer(), c.value), { maxLength: 5 }).map((entries) => new Map(entries)),
    })),
    fc.array(tie("node"), { minLength: 1, maxLength: 4 }).map(recordCase),
  ),
})).node;

function recordCase(cases: Case[]): Case {
  const fields = cases.map((c, i) => requiredField(i, `f${i}`, c.schema));
  return {
    schema: { type: "record", name: "r", fields },
    value: fc.tuple(...cases.map((c) => c.value)).map((values) => values as unknown[]),
  };
}

const codecs = fc.constantFrom<AvroCodec>("null", "deflate");

test("whatever the schema, values round-trip", () => {
  const file = fc.array(anyCase, { minLength: 1, maxLength: 5 }).map(recordCase);
  fc.assert(
    fc.property(
      file.chain((c) =>
        fc.tuple(fc.constant(c.schema), fc.array(c.value as fc.Arbitrary<unknown[]>, { maxLength: 20 })),
      ),
      codecs,
      ([schema, records], codec) => {
        const read = readAvro(writeAvro(schema, records, { codec, metadata: { k: "välue" } }));
        expect(read.records).toEqual(records);
        expect(read.metadata.get("k")).toBe("välue");
        expect(read.schema).toEqual(schema);
      },
    ),
  );
});

const WRITTEN: AvroRecord = {
  type: "record",
  name: "w",
  fields: [
    requiredField(1, "a", "long"),
    optionalField(2, "b", {
      type: "record",
      name: "inner",
      fields: [requiredField(5, "x", "int"), requiredField(6, "y", "string")],
    }),
    requiredField(3, "skipped", logicalMap(10, "int", 11, { type: "array", items: ["null", "bytes"] })),
    requiredField(4, "c", "string"),
  ],
};

test("a shape picks fields by id, in its own order, and leaves the missing undefined", () => {
  const shape: Shape = {
    fields: [
      { id: 4, name: "renamed" },
      { id: 99, name: "missing" },
      { id: 2, name: "b", shape: { fields: [{ id: 6, name: "y" }] } },
    ],
  };
  const records = [
    [1n, [7, "seven"], new Map([[1, [new Uint8Array([1]), null]]]), "c1"],
    [2n, null, new Map(), "c2"],
  ];
  expect(readAvro(writeAvro(WRITTEN, records), () => shape).records).toEqual([
    ["c1", undefined, ["seven"]],
    ["c2", undefined, null],
  ]);
});

test("references to named types are resolved", () => {
  const schema = {
    type: "record",
    name: "outer",
    namespace: "n",
    fields: [
      { name: "one", type: { type: "fixed", name: "four", size: 4 } },
      { name: "two", type: "four" },
      { name: "three", type: { type: "array", items: "n.four" } },
    ],
  } as unknown as AvroSchema;
  const resolved = readAvro(writeAvro({ type: "record", name: "x", fields: [] }, [])).schema;
  expect(resolved).toEqual({ type: "record", name: "x", fields: [] });
  const four = new Uint8Array([1, 2, 3, 4]);
  const flat: AvroSchema = {
    type: "record",
    name: "outer",
    fields: ["one", "two"].map((name) => ({ name, type: { type: "fixed" as const, name: "four", size: 4 } })),
  };
  const bytes = writeAvro(flat, [[four, four]], { codec: "null" });
  const header = JSON.stringify(flat);
  const referring = header.replace(/(.*)\{"type":"fixed","name":"four","size":4\}/, '$1"four"').padEnd(header.length);
  const patched = Buffer.from(Buffer.from(bytes).toString("latin1").replace(header, referring), "latin1");
  expect(readAvro(patched).records).toEqual([[four, four]]);
  expect(schema).toBeDefined();
});

describe("damage is found", () => {
  const good = writeAvro(WRITTEN, [[1n, null, new Map(), "text"]], { codec: "null" });

  test("truncation at any byte is an error, or loses whole blocks only", () => {
    for (let end = 0; end < good.length; end += 1) {
      let records: unknown[] = [];
      try {
        records = readAvro(good.subarray(0, end)).records;
      } catch (error) {
        expect(error).toMatchObject({ code: "lake_file_corrupt" });
      }
      expect(records).toEqual([]);
    }
  });

  test("random bytes never crash or hang the reader", () => {
    fc.assert(
      fc.property(fc.nat(good.length - 1), fc.nat(255), (at, byte) => {
        const bad = good.slice();
        bad[at] = byte;
        try {
          readAvro(bad);
        } catch (error) {
          expect(["lake_file_corrupt", "lake_format_unsupported"]).toContain((error as { code?: string }).code);
        }
      }),
      { numRuns: 500 },
    );
  });
});

test("snappy literals and overlapping copies", () => {
  // "abcd" as a literal, then a copy of 8 bytes from 4 back: it overlaps itself.
  const packed = new Uint8Array([12, 3 << 2, 97, 98, 99, 100, ((8 - 4) << 2) | 1, 4]);
  expect(Buffer.from(unsnappy(packed, 100)).toString()).toBe("abcdabcdabcd");
  expect(() => unsnappy(packed.subarray(0, 5), 100)).toThrow(RangeError);
  expect(() => unsnappy(packed, 5)).toThrow(RangeError);
});

test("names are made valid", () => {
  expect(avroName("a b")).toBe("a_x20b");
  expect(avroName("9lives")).toBe("_9lives");
  expect(avroName("plain_1")).toBe("plain_1");
});
