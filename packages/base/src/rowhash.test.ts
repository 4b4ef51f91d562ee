import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { concatBatches, sliceBatch, takeRows } from "./batch.ts";
import type { Column, ColumnBatch, ColumnKind } from "./columns.ts";
import { Checksum, RowHasher, type HashDefault, type HashField } from "./rowhash.ts";

type Value = boolean | number | bigint | string | Uint8Array | null;

// ---- the specification in the head of rowhash.ts, once more, in nothing but BigInt ----

const M32 = 0xffffffffn;
const M64 = 0xffffffffffffffffn;
type Pair = [bigint, bigint];

function F(x: bigint, k: bigint): bigint {
  x ^= x >> 16n;
  x = (x * k) & M32;
  return x ^ (x >> 15n);
}
function P([a, b]: Pair): Pair {
  a = (a + F(b, 0x7feb352dn)) & M32;
  b ^= F(a, 0x846ca68bn);
  a = (a + F(b, 0x9e3779b1n)) & M32;
  b ^= F(a, 0x85ebca6bn);
  return [a, b];
}
function absorb([a, b]: Pair, w: bigint, v: bigint): Pair {
  return P([a ^ w, b ^ v]);
}
function words(value: bigint, count: number): bigint[] {
  return Array.from({ length: count }, (_, i) => (value >> BigInt(32 * i)) & M32);
}
function floatBits(value: number): bigint {
  if (Number.isNaN(value)) return 0x7ff8000000000000n;
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, value);
  return view.getBigUint64(0);
}
const CLASS: Record<ColumnKind, bigint> = {
  bool: 1n, int16: 1n, int32: 1n, int64: 1n, float32: 2n, float64: 2n, decimal: 3n, date: 4n, time: 5n,
  timestamp: 5n, timestamptz: 5n, uuid: 6n, text: 7n, bytes: 7n,
}; // prettier-ignore

function oracleValue(fieldId: number, kind: ColumnKind, value: Value): bigint {
  if (value === null) return 0n;
  let state = P([BigInt(fieldId) ^ 0x5350494cn, CLASS[kind] ^ 0x57415931n]);
  let stream: bigint[];
  if (typeof value === "string" || value instanceof Uint8Array) {
    const bytes = typeof value === "string" ? [...Buffer.from(value, "utf8")] : [...value];
    if (kind !== "uuid") state = [state[0] ^ BigInt(bytes.length), state[1]];
    while (bytes.length % 8 !== 0 || bytes.length === 0) bytes.push(0);
    stream = [];
    for (let i = 0; i < bytes.length; i += 4) {
      stream.push(bytes.slice(i, i + 4).reduce((sum, byte, at) => sum | (BigInt(byte) << BigInt(8 * at)), 0n));
    }
  } else if (kind === "float32" || kind === "float64") stream = words(floatBits(Number(value)), 2);
  else if (kind === "decimal") stream = words(BigInt.asUintN(128, value as bigint), 4);
  else stream = words(BigInt.asUintN(64, BigInt(value)), 2);
  for (let i = 0; i < stream.length; i += 2) state = absorb(state, stream[i] ?? 0n, stream[i + 1] ?? 0n);
  return state[0] | (state[1] << 32n);
}

function oracleRow(fields: readonly HashField[], row: readonly Value[]): bigint {
  let sum = 0n;
  for (const [i, { fieldId, kind, default: base = null }] of fields.entries()) {
    sum += oracleValue(fieldId, kind, row[i] ?? null) - oracleValue(fieldId, kind, base as Value);
  }
  sum &= M64;
  const [a, b] = P(P([(sum & M32) ^ 0x243f6a88n, (sum >> 32n) ^ 0x85a308d3n]));
  return a | (b << 32n);
}

// ---- batches out of values ----

function column(kind: ColumnKind, values: readonly Value[]): Column {
  const validity = values.includes(null) ? Uint8Array.from(values, (v) => (v === null ? 0 : 1)) : null;
  const spec = kind === "decimal" ? { name: "c", kind, decimal: { precision: 38, scale: 2 } } : { name: "c", kind };
  if (kind === "text" || kind === "bytes") {
    const parts = values.map((v) => (v === null ? Buffer.alloc(0) : Buffer.from(v as string)));
    const offsets = new Uint32Array(values.length + 1);
    for (const [i, part] of parts.entries()) offsets[i + 1] = (offsets[i] ?? 0) + part.length;
    return { spec, validity, offsets, heap: new Uint8Array(Buffer.concat(parts)) };
  }
  const numbers = values.map((v) => (v === null ? 0 : Number(v)));
  const bigints = (): bigint[] => values.map((v) => (v === null ? 0n : BigInt(v as bigint)));
  const data = {
    bool: () => Uint8Array.from(numbers),
    int16: () => Int16Array.from(numbers),
    int32: () => Int32Array.from(numbers),
    date: () => Int32Array.from(numbers),
    float32: () => Float32Array.from(numbers),
    float64: () => Float64Array.from(numbers),
    uuid: () => Uint8Array.from(values.flatMap((v) => [...((v as Uint8Array | null) ?? new Uint8Array(16))])),
    decimal: () => BigInt64Array.from(bigints().flatMap((v) => [BigInt.asIntN(64, v), BigInt.asIntN(64, v >> 64n)])),
  } as unknown as Partial<Record<ColumnKind, () => Uint8Array>>;
  return { spec, validity, data: data[kind]?.() ?? BigInt64Array.from(bigints()) };
}

function batchOf(fields: readonly HashField[], rows: readonly (readonly Value[])[]): ColumnBatch {
  const columns = fields.map((field, i) =>
    column(
      field.kind,
      rows.map((row) => row[i] ?? null),
    ),
  );
  return { length: rows.length, columns };
}

function hashesOf(fields: readonly HashField[], rows: readonly (readonly Value[])[]): bigint[] {
  const { lo, hi } = new RowHasher(fields).hashBatch(batchOf(fields, rows));
  return [...lo].map((low, i) => BigInt(low) | (BigInt(hi[i] ?? 0) << 32n));
}

function checksumOf(fields: readonly HashField[], rows: readonly (readonly Value[])[]): Checksum {
  return new Checksum().add(new RowHasher(fields).hashBatch(batchOf(fields, rows)));
}

const int64 = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n });
const VALUES: Record<ColumnKind, fc.Arbitrary<Exclude<Value, null>>> = {
  bool: fc.boolean(),
  int16: fc.integer({ min: -32768, max: 32767 }),
  int32: fc.integer(),
  date: fc.integer(),
  int64,
  time: int64,
  timestamp: int64,
  timestamptz: int64,
  float32: fc.float(),
  float64: fc.double(),
  decimal: fc.bigInt({ min: -(10n ** 38n) + 1n, max: 10n ** 38n - 1n }),
  uuid: fc.uint8Array({ minLength: 16, maxLength: 16 }),
  text: fc.string({ unit: "grapheme", maxLength: 40 }),
  bytes: fc.uint8Array({ maxLength: 40 }),
};
const KINDS = Object.keys(VALUES) as ColumnKind[];

const tableOf = (minLength: number, maxLength: number, columns = 6) =>
  fc.array(fc.tuple(fc.constantFrom(...KINDS), fc.boolean()), { minLength: 1, maxLength: columns }).chain((shape) =>
    fc.record({
      fields: fc.tuple(
        ...shape.map(([kind, hasDefault], i) =>
          (hasDefault ? VALUES[kind] : fc.constant(null)).map((base): HashField => ({
            fieldId: i * 7 + 1,
            kind,
            default: base as HashDefault,
          })),
        ),
      ),
      rows: fc.array(fc.tuple(...shape.map(([kind]) => fc.option(VALUES[kind]))), { minLength, maxLength }),
    }),
  );
const table = tableOf(0, 20);

describe("the row checksum", () => {
  test("equals its specification", () => {
    fc.assert(
      fc.property(table, ({ fields, rows }) => {
        expect(hashesOf(fields, rows)).toEqual(rows.map((row) => oracleRow(fields, row)));
      }),
      { numRuns: 300 },
    );
  });

  test("of a batch that is long enough for the kernels equals its specification", () => {
    const long = tableOf(64, 90, 3);
    fc.assert(
      fc.property(long, ({ fields, rows }) => {
        expect(hashesOf(fields, rows)).toEqual(rows.map((row) => oracleRow(fields, row)));
      }),
      { numRuns: 60 },
    );
  });

  test("of many rows, wherever they lie in memory, is the same in the kernels and in JavaScript", () => {
    const fields = KINDS.map((kind, i): HashField => ({ fieldId: i + 1, kind }));
    const some = fc.sample(fc.tuple(...KINDS.map((kind) => fc.option(VALUES[kind], { freq: 9 }))), {
      numRuns: 700,
      seed: 3,
    });
    const whole = batchOf(fields, [...some, ...some, ...some, ...some, ...some, ...some, ...some]);
    // No NULL at all is a path of its own.
    const full: ColumnBatch = { ...whole, columns: whole.columns.map((c) => Object.assign({}, c, { validity: null })) };
    for (const batch of [whole, full]) {
      for (const [start, end] of [
        [0, 4900],
        [1, 4098],
        [3, 2052],
        [7, 72],
      ] as const) {
        // prettier-ignore
        const part = sliceBatch(batch, start, end);
        const fast = new RowHasher(fields).hashBatch(part);
        expect(fast).toEqual(new RowHasher(fields, null).hashBatch(part));
      }
    }
  });

  test("of texts that are longer than the kernels' memory, and of some that fill it", () => {
    const fields: HashField[] = [{ fieldId: 1, kind: "text" }];
    for (const length of [1 << 14, 9000, 10_000]) {
      const rows = Array.from({ length: 105 }, (_, i) => ["x".repeat(i % 7 === 0 ? 0 : length + i)]);
      const batch = batchOf(fields, rows);
      expect(new RowHasher(fields).hashBatch(batch)).toEqual(new RowHasher(fields, null).hashBatch(batch));
    }
  });

  test("every NaN is one value in the kernels, too", () => {
    const data = new Float64Array(64);
    new BigUint64Array(data.buffer).fill(0xfff8000000000001n).set([0x7ff0000000000123n, 0x7ff8000000000000n]);
    const batch = { length: 64, columns: [{ spec: { name: "c", kind: "float64" as const }, validity: null, data }] };
    const { lo } = new RowHasher([{ fieldId: 1, kind: "float64" }]).hashBatch(batch);
    expect(new Set(lo).size).toBe(1);
  });

  test("is the format that was journaled: known values", () => {
    const fields: HashField[] = [
      { fieldId: 1, kind: "int64" },
      { fieldId: 2, kind: "text" },
      { fieldId: 3, kind: "decimal", default: 500n },
      { fieldId: 4, kind: "float64" },
    ];
    const rows = [
      [1n, "héllo wörld", 12345n, 0.5],
      [-1n, "", null, Number.NaN],
      [null, null, 500n, null],
    ];
    expect(checksumOf(fields, rows).toString()).toBe("v1:3:437a37d798474b85");
  });

  test("does not depend on the order of rows, nor on how they are cut into batches", () => {
    fc.assert(
      fc.property(table, fc.nat(), fc.infiniteStream(fc.nat()), ({ fields, rows }, cut, random) => {
        const batch = batchOf(fields, rows);
        const hasher = new RowHasher(fields);
        const whole = new Checksum().add(hasher.hashBatch(batch));
        const at = cut % (rows.length + 1);
        const [head, tail] = [sliceBatch(batch, 0, at), sliceBatch(batch, at, rows.length)];
        const parts = new Checksum().add(hasher.hashBatch(head)).merge(new Checksum().add(hasher.hashBatch(tail)));
        expect(parts.equals(whole)).toBe(true);
        const order = rows.map((_, i) => i).toSorted(() => ((random.next().value as number) % 3) - 1);
        expect(new Checksum().add(hasher.hashBatch(takeRows(batch, order))).equals(whole)).toBe(true);
        expect(new Checksum().add(hasher.hashBatch(concatBatches([tail, head]))).equals(whole)).toBe(true);
        expect(whole.remove(hasher.hashBatch(tail)).equals(new Checksum().add(hasher.hashBatch(head)))).toBe(true);
      }),
      { numRuns: 200 },
    );
  });

  test("stays valid when a column is added, with a default or without", () => {
    fc.assert(
      fc.property(
        table,
        fc.constantFrom(...KINDS),
        fc.boolean(),
        fc.infiniteStream(fc.nat()),
        (t, kind, has, random) => {
          const base = has ? fc.sample(VALUES[kind], { numRuns: 1, seed: random.next().value as number })[0] : null;
          const added: HashField = { fieldId: 99, kind, default: (base ?? null) as HashDefault };
          const before = checksumOf(t.fields, t.rows);
          const after = checksumOf(
            [...t.fields, added],
            t.rows.map((row) => [...row, base ?? null]),
          );
          expect(after.equals(before)).toBe(true);
        },
      ),
    );
  });

  test("tells NULL from the default, and the default from nothing", () => {
    const plain: HashField[] = [{ fieldId: 1, kind: "int32" }];
    const withDefault: HashField[] = [{ fieldId: 1, kind: "int32", default: 5 }];
    expect(hashesOf(withDefault, [[5]])).toEqual(hashesOf(plain, [[null]]));
    expect(hashesOf(withDefault, [[null]])).not.toEqual(hashesOf(withDefault, [[5]]));
    expect(hashesOf(plain, [[0]])).not.toEqual(hashesOf(plain, [[null]]));
  });

  test("widening keeps it: int to long, float to double", () => {
    const as = (kind: ColumnKind, values: Value[]): bigint[] =>
      hashesOf(
        [{ fieldId: 3, kind }],
        values.map((v) => [v]),
      );
    expect(as("int64", [-5n, 32767n])).toEqual(as("int16", [-5, 32767]));
    expect(as("int64", [-5n, 2147483647n])).toEqual(as("int32", [-5, 2147483647]));
    expect(as("float64", [0.5, -0, Number.NaN, 1 / 0])).toEqual(as("float32", [0.5, -0, Number.NaN, 1 / 0]));
    expect(as("float64", [0])).not.toEqual(as("float64", [-0]));
  });

  test("every NaN is one value", () => {
    const data = new Float64Array(2);
    new BigUint64Array(data.buffer).set([0xfff8000000000001n, 0x7ff0000000000123n]);
    const batch = { length: 2, columns: [{ spec: { name: "c", kind: "float64" as const }, validity: null, data }] };
    const { lo, hi } = new RowHasher([{ fieldId: 1, kind: "float64" }]).hashBatch(batch);
    expect([lo[0], hi[0]]).toEqual([lo[1], hi[1]]);
    expect(hashesOf([{ fieldId: 1, kind: "float64" }], [[Number.NaN]])).toEqual([
      BigInt(lo[0] ?? 0) | (BigInt(hi[0] ?? 0) << 32n),
    ]);
  });

  test("sees values that rows or fields have exchanged", () => {
    const fields: HashField[] = [
      { fieldId: 1, kind: "int32" },
      { fieldId: 2, kind: "int32" },
    ];
    const sum = (rows: Value[][]): string => checksumOf(fields, rows).toString();
    expect(sum([[1, 10], [2, 20]])).not.toBe(sum([[1, 20], [2, 10]])); // prettier-ignore
    expect(sum([[1, 2]])).not.toBe(sum([[2, 1]]));
    expect(sum([[1, 2], [1, 2]])).not.toBe(sum([])); // prettier-ignore
  });

  test("a text's end is part of it", () => {
    const fields: HashField[] = [{ fieldId: 1, kind: "text" }];
    const texts = ["", "\0", "\0\0", "a", "a\0", "aaaaaaaa", "aaaaaaaa\0", "aaaaaaaa\0\0\0\0\0\0\0\0"];
    expect(
      new Set(
        hashesOf(
          fields,
          texts.map((t) => [t]),
        ),
      ).size,
    ).toBe(texts.length);
  });

  test("is read back from its text", () => {
    const sum = new Checksum(12n, 0xfedcn);
    expect(Checksum.parse(sum.toString())?.equals(sum)).toBe(true);
    expect(Checksum.parse("v2:1:0000000000000000")).toBeNull();
  });
});

/** Flips each input bit of many values, and counts how often each output bit follows. */
function avalanche(kind: ColumnKind, samples: number, make: (i: number) => Value, bits: number): number {
  const fields: HashField[] = [{ fieldId: 4, kind }];
  let worst = 0;
  for (let bit = 0; bit < bits; bit++) {
    const rows = Array.from({ length: samples }, (_, i) => make(i));
    const flipped = rows.map((v) => {
      if (typeof v === "bigint") return BigInt.asIntN(64, v ^ (1n << BigInt(bit)));
      if (typeof v === "number") return v ^ (1 << bit);
      const bytes = Uint8Array.from(v as Uint8Array);
      bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      return bytes;
    });
    const before = hashesOf(
      fields,
      rows.map((v) => [v]),
    );
    const after = hashesOf(
      fields,
      flipped.map((v) => [v]),
    );
    const counts = Array.from({ length: 64 }, () => 0);
    for (const [i, hash] of before.entries()) {
      const difference = hash ^ (after[i] ?? 0n);
      for (let out = 0; out < 64; out++) if ((difference >> BigInt(out)) & 1n) counts[out] = (counts[out] ?? 0) + 1;
    }
    for (const count of counts) worst = Math.max(worst, Math.abs(count / samples - 0.5));
  }
  return worst;
}

describe("the row checksum mixes well", () => {
  // Standard deviation of a fair coin over 2000 throws is 0.011; the worst of 4096 such coins is below 5.5 of them. The
  // texts differ in few digits, which widens the tail; a bit that is not mixed would be 0.5 off.
  test("every input bit flips every output bit half the time, for sequential and random values", () => {
    expect(avalanche("int64", 2000, (i) => BigInt(i), 64)).toBeLessThan(0.065);
    expect(avalanche("int64", 2000, () => (BigInt(Math.floor(Math.random() * 2 ** 32)) << 31n) + 7n, 64)).toBeLessThan(
      0.065,
    );
    expect(avalanche("int32", 2000, (i) => i * 1000, 32)).toBeLessThan(0.065);
    const text = (i: number): Uint8Array => Uint8Array.from(Buffer.from(`customer ${String(i).padStart(6, "0")}`));
    expect(avalanche("bytes", 2000, text, 120)).toBeLessThan(0.1);
  });

  test("small, dense domains do not collide", () => {
    const fields: HashField[] = [
      { fieldId: 1, kind: "int32" },
      { fieldId: 2, kind: "int32" },
    ];
    const rows = Array.from({ length: 200_000 }, (_, i): Value[] => [i % 500, Math.floor(i / 500)]);
    const { lo, hi } = new RowHasher(fields).hashBatch(batchOf(fields, rows));
    expect(new Set([...lo].map((low, i) => `${low}:${hi[i]}`)).size).toBe(rows.length);
    // The lower half alone behaves like a random 32-bit number: about n²/2^33 pairs meet.
    const meets = rows.length - new Set(lo).size;
    expect(meets).toBeLessThan(20);
  });
});
