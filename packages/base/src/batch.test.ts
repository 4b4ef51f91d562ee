import fc from "fast-check";
import { expect, test } from "vitest";
import { concatBatches, estimateBytes, sliceBatch, takeRows } from "./batch.ts";
import type { ColumnBatch } from "./columns.ts";

type Row = [number | null, bigint | null, string | null, Uint8Array, bigint];

function batchOf(rows: readonly Row[]): ColumnBatch {
  const validity = (at: number): Uint8Array | null =>
    rows.some((r) => r[at] === null) ? Uint8Array.from(rows, (r) => (r[at] === null ? 0 : 1)) : null;
  const texts = rows.map((r) => Buffer.from(r[2] ?? ""));
  const offsets = new Uint32Array(rows.length + 1);
  for (const [i, text] of texts.entries()) offsets[i + 1] = (offsets[i] ?? 0) + text.length;
  return {
    length: rows.length,
    columns: [
      { spec: { name: "i", kind: "int32" }, validity: validity(0), data: Int32Array.from(rows, (r) => r[0] ?? 0) },
      { spec: { name: "l", kind: "int64" }, validity: validity(1), data: BigInt64Array.from(rows, (r) => r[1] ?? 0n) },
      { spec: { name: "t", kind: "text" }, validity: validity(2), offsets, heap: new Uint8Array(Buffer.concat(texts)) },
      { spec: { name: "u", kind: "uuid" }, validity: null, data: Uint8Array.from(rows.flatMap((r) => [...r[3]])) },
      {
        spec: { name: "d", kind: "decimal", decimal: { precision: 38, scale: 0 } },
        validity: null,
        data: BigInt64Array.from(rows.flatMap((r) => [BigInt.asIntN(64, r[4]), r[4] >> 64n])),
      },
    ],
  };
}

function rowsOf({ length, columns }: ColumnBatch): Row[] {
  const [i, l, t, u, d] = columns;
  if (!i || !l || !t || !u || !d || !("heap" in t)) throw new Error("not the batch of this test");
  const data = (c: typeof i): never[] => ("data" in c ? (c.data as unknown as never[]) : []);
  return Array.from({ length }, (_, r): Row => [
    i.validity?.[r] === 0 ? null : (data(i)[r] ?? 0),
    l.validity?.[r] === 0 ? null : (data(l)[r] ?? 0n),
    t.validity?.[r] === 0 ? null : Buffer.from(t.heap.subarray(t.offsets[r], t.offsets[r + 1])).toString(),
    Uint8Array.from(data(u).slice(r * 16, r * 16 + 16)),
    (BigInt(data(d)[r * 2 + 1] ?? 0) << 64n) | BigInt.asUintN(64, data(d)[r * 2] ?? 0n),
  ]);
}

const row: fc.Arbitrary<Row> = fc.tuple(
  fc.option(fc.integer()),
  fc.option(fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n })),
  fc.option(fc.string({ unit: "grapheme", maxLength: 60 })),
  fc.uint8Array({ minLength: 16, maxLength: 16 }),
  fc.bigInt({ min: -(10n ** 38n), max: 10n ** 38n }),
);

test("batches are cut, joined and picked as lists of rows are", () => {
  fc.assert(
    fc.property(
      fc.array(row, { maxLength: 30 }),
      fc.array(row, { maxLength: 30 }),
      fc.nat(),
      fc.nat(),
      (a, b, x, y) => {
        const all = [...a, ...b];
        const joined = concatBatches([batchOf(a), batchOf(b)]);
        expect(rowsOf(joined)).toEqual(all);
        const [from, to] = [x % (all.length + 1), y % (all.length + 1)].toSorted((p, q) => p - q) as [number, number];
        const cut = sliceBatch(joined, from, to);
        expect(rowsOf(cut)).toEqual(all.slice(from, to));
        expect(rowsOf(sliceBatch(cut, 0, Math.min(1, cut.length)))).toEqual(all.slice(from, to).slice(0, 1));
        expect(rowsOf(concatBatches([cut, cut]))).toEqual([...all.slice(from, to), ...all.slice(from, to)]);
        const indexes = cut.length === 0 ? [] : Array.from({ length: 10 }, (_, i) => (i * 7 + x) % cut.length);
        expect(rowsOf(takeRows(cut, indexes))).toEqual(indexes.map((i) => all[from + i]));
      },
    ),
  );
});

test("the size is that of the arrays", () => {
  const batch = batchOf([[1, null, "abc", new Uint8Array(16), 1n]]);
  expect(estimateBytes(batch)).toBe(4 + (8 + 1) + (8 + 3) + 16 + 16);
});

test("rows outside the batch are a bug", () => {
  const batch = batchOf([[1, null, "abc", new Uint8Array(16), 1n]]);
  expect(() => sliceBatch(batch, 0, 2)).toThrow(/inside/);
  expect(() => takeRows(batch, [1])).toThrow(/in the batch/);
});
