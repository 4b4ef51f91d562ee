/**
 * The row checksum, version 1: an order-independent checksum of a multiset of rows, 64 bits, computed on columns.
 * It is journaled and compared with values computed later by other versions of this program, so this is a format;
 * what follows defines it completely.
 *
 * All arithmetic is on unsigned integers modulo 2^32 (words) or 2^64 (pairs: low word, high word).
 *
 *     F(x, k)      x ^= x >> 16;  x = x * k;  x ^= x >> 15
 *     P(a, b)      a += F(b, 0x7feb352d);  b ^= F(a, 0x846ca68b);  a += F(b, 0x9e3779b1);  b ^= F(a, 0x85ebca6b)
 *     seed(f, c)   P(f ^ 0x5350494c, c ^ 0x57415931), f the field id, c the class of the value
 *     absorb(w, v) a ^= w;  b ^= v;  (a, b) = P(a, b)
 *
 * The hash of a value starts from (a, b) = seed(field id, class) and is (a, b) after absorbing the value:
 *
 *     class 1  bool (0 or 1), int16, int32, int64, sign-extended to 64 bits     absorb(low, high)
 *     class 2  float32 (as the float64 of the same value), float64: the IEEE
 *              bits, every NaN as 0x7ff8000000000000; 0.0 and -0.0 differ        absorb(low, high)
 *     class 3  decimal: the unscaled value in 128 bits, without its scale        absorb(w0, w1), absorb(w2, w3)
 *     class 4  date (days), sign-extended to 64 bits                             absorb(low, high)
 *     class 5  time, timestamp, timestamptz (µs)                                 absorb(low, high)
 *     class 6  uuid: four little-endian words                                    absorb(w0, w1), absorb(w2, w3)
 *     class 7  text (UTF-8), bytes: a ^= byte length; then little-endian words, two at a time, the last pair
 *              filled up with zero bytes; at least one pair even when empty      absorb(w, v)…
 *     NULL     0, whatever the field
 *
 * Widening a column (int to long, float to double, a decimal's precision) leaves its hashes as they are.
 *
 *     row(r)       H(sum over the fields f of (hash(f, r[f]) - hash(f, initial default of f)))
 *     H(a, b)      P(P(a ^ 0x243f6a88, b ^ 0x85a308d3))
 *     sum          the sum of row(r) over the rows
 *
 * A field whose initial default is NULL subtracts nothing. So a field added to the schema changes no checksum of
 * rows that were written before it: they read the initial default, which contributes 0. H keeps the sum over rows
 * from being one sum over values: without it two rows could exchange values and keep the checksum.
 */
import { assert, must } from "./assert.ts";
import { isVarColumn, type Column, type ColumnBatch, type ColumnKind } from "./columns.ts";
import { BLOCK_BYTES, BLOCK_ROWS, HashKernels } from "./rowhash-kernels.ts";
import {
  addBytes,
  addPairs,
  addUuids,
  addWords,
  canonicalFloats,
  finalize,
  K1,
  K2,
  K3,
  K4,
  type Lane,
  mixed,
  partOfWord,
  wordsOf,
} from "./rowhash-loops.ts";

export const ROW_HASH_VERSION = 1;

/**
 * An initial default: boolean, number or bigint for the numeric kinds (days, µs and unscaled values as bigint or
 * number), 16 bytes for uuid, a string or bytes for text and bytes; null for none.
 */
export type HashDefault = boolean | number | bigint | string | Uint8Array | null;

export interface HashField {
  readonly fieldId: number;
  readonly kind: ColumnKind;
  readonly default?: HashDefault;
}

/** The hashes of a batch's rows: word pairs, row i is (lo[i], hi[i]). */
export interface RowHashes {
  readonly lo: Uint32Array;
  readonly hi: Uint32Array;
}

const CLASS_OF_KIND: Readonly<Record<ColumnKind, number>> = {
  bool: 1,
  int16: 1,
  int32: 1,
  int64: 1,
  float32: 2,
  float64: 2,
  decimal: 3,
  date: 4,
  time: 5,
  timestamp: 5,
  timestamptz: 5,
  uuid: 6,
  text: 7,
  bytes: 7,
};

/** The state (a, b) of the hash under way: the one place where two results are returned at once. */
let stateA = 0;
let stateB = 0;

/** absorb(w, v) on the state. */
function absorb(w: number, v: number): void {
  let a = stateA ^ w;
  let b = stateB ^ v;
  a = (a + mixed(b, K1)) | 0;
  b ^= mixed(a, K2);
  a = (a + mixed(b, K3)) | 0;
  b ^= mixed(a, K4);
  stateA = a;
  stateB = b;
}

interface FieldLane extends Lane {
  readonly field: HashField;
}

/** Rows below which the way into the kernels costs more than they save. */
const KERNEL_ROWS = 64;
const KERNELS = HashKernels.load([K1, K2, K3, K4]);

export class RowHasher {
  readonly #kernels: HashKernels | null;
  readonly #lanes: readonly FieldLane[];
  /** Minus the sum of the defaults' hashes: where each row's sum starts. */
  readonly #startLo: number;
  readonly #startHi: number;

  /** `fields` are the columns of the batches to come, in order. Without `kernels` all is hashed in JavaScript. */
  constructor(fields: readonly HashField[], kernels: HashKernels | null = KERNELS) {
    this.#kernels = kernels;
    this.#lanes = fields.map((field) => {
      stateA = 0;
      stateB = 0;
      absorb(field.fieldId ^ 0x5350494c, CLASS_OF_KIND[field.kind] ^ 0x57415931);
      return { field, seedA: stateA, seedB: stateB };
    });
    let start = 0n;
    for (const lane of this.#lanes) {
      const value = lane.field.default ?? null;
      if (value === null) continue;
      hashValue(lane, value);
      start -= pairToBigInt(stateA, stateB);
    }
    this.#startLo = Number(BigInt.asUintN(32, start)) | 0;
    this.#startHi = Number(BigInt.asUintN(32, start >> 32n)) | 0;
  }

  /** The hashes of the batch's rows. Columns may be wider forms of the fields' kinds, of the same class. */
  hashBatch(batch: ColumnBatch): RowHashes {
    const { length } = batch;
    const lo = new Int32Array(length);
    const hi = new Int32Array(length);
    if (this.#kernels !== null && length >= KERNEL_ROWS) this.#hashBlocks(this.#kernels, batch, lo, hi);
    else {
      lo.fill(this.#startLo);
      hi.fill(this.#startHi);
      this.#eachColumn(batch, (lane, column) => addColumn(lane, column, length, lo, hi));
      finalize(lo, hi, length);
    }
    return { lo: new Uint32Array(lo.buffer), hi: new Uint32Array(hi.buffer) };
  }

  #hashBlocks(kernels: HashKernels, batch: ColumnBatch, lo: Int32Array, hi: Int32Array): void {
    for (let start = 0; start < batch.length; start += BLOCK_ROWS) {
      const rows = Math.min(BLOCK_ROWS, batch.length - start);
      kernels.lo.fill(this.#startLo);
      kernels.hi.fill(this.#startHi);
      this.#eachColumn(batch, (lane, column) => addBlock(kernels, lane, column, start, rows));
      kernels.finish(rows);
      lo.set(kernels.lo.subarray(0, rows), start);
      hi.set(kernels.hi.subarray(0, rows), start);
    }
  }

  #eachColumn(batch: ColumnBatch, work: (lane: Lane, column: Column) => void): void {
    for (const [i, lane] of this.#lanes.entries()) {
      const column = must(batch.columns[i], `the column of field ${lane.field.fieldId}`);
      assert(
        CLASS_OF_KIND[column.spec.kind] === CLASS_OF_KIND[lane.field.kind],
        "a column is hashed as its field's class",
      );
      work(lane, column);
    }
  }
}

/** Rows [start, start + rows) of a column, added to the sums in the kernels' memory. */
function addBlock(kernels: HashKernels, lane: Lane, column: Column, start: number, rows: number): void {
  const { seedA, seedB } = lane;
  const end = start + rows;
  const validity = column.validity?.subarray(start, end) ?? null;
  if (isVarColumn(column)) {
    const offsets = column.offsets.subarray(start, end + 1);
    const fits = (offsets[rows] ?? 0) - (offsets[0] ?? 0) <= BLOCK_BYTES;
    if (fits) kernels.addBytes(seedA, seedB, offsets, column.heap, validity, rows);
    else addBytes(lane, offsets, column.heap, validity, rows, kernels.lo, kernels.hi);
    return;
  }
  const { data } = column;
  switch (column.spec.kind) {
    case "bool":
    case "int16":
      return kernels.add("words", seedA, seedB, Int32Array.from(data.subarray(start, end), Number), validity, rows);
    case "int32":
    case "date":
      return kernels.add("words", seedA, seedB, data.subarray(start, end), validity, rows);
    case "uuid":
      return kernels.add("wide", seedA, seedB, data.subarray(start * 16, end * 16), validity, rows);
    case "decimal":
      return kernels.add("wide", seedA, seedB, data.subarray(start * 2, end * 2), validity, rows);
    case "float32":
      return kernels.add("floats", seedA, seedB, Float64Array.from(data.subarray(start, end), Number), validity, rows);
    case "float64":
      return kernels.add("floats", seedA, seedB, data.subarray(start, end), validity, rows);
    default:
      return kernels.add("pairs", seedA, seedB, data.subarray(start, end), validity, rows);
  }
}

function addColumn(lane: Lane, column: Column, length: number, lo: Int32Array, hi: Int32Array): void {
  if (isVarColumn(column)) return addBytes(lane, column.offsets, column.heap, column.validity, length, lo, hi);
  switch (column.spec.kind) {
    case "bool":
    case "int16":
    case "int32":
    case "date":
      return addWords(lane, column.data as Int32Array, column.validity, length, lo, hi);
    case "uuid":
      return addUuids(lane, column.data as Uint8Array, column.validity, length, lo, hi);
    case "decimal":
      return addPairs(lane, wordsOf(column), 2, column.validity, length, lo, hi);
    case "float32":
      return addPairs(lane, canonicalFloats(column.data as Float32Array, length), 1, column.validity, length, lo, hi);
    case "float64":
      return addPairs(lane, canonicalFloats(column.data as Float64Array, length), 1, column.validity, length, lo, hi);
    default:
      return addPairs(lane, wordsOf(column), 1, column.validity, length, lo, hi);
  }
}

function absorbBytes(view: DataView, start: number, end: number): void {
  stateA ^= end - start;
  for (let at = start; at < end || at === start; at += 8)
    absorb(partOfWord(view, at, end), partOfWord(view, at + 4, end));
}

/** Hashes one value, for the defaults; the result is the state. */
function hashValue({ field, seedA, seedB }: FieldLane, value: Exclude<HashDefault, null>): void {
  stateA = seedA;
  stateB = seedB;
  switch (CLASS_OF_KIND[field.kind]) {
    case 2: {
      const double = Float64Array.of(Number(value));
      const words = canonicalFloats(double, 1);
      return absorb(words[0] ?? 0, words[1] ?? 0);
    }
    case 3: {
      const wide = toBigInt(value);
      absorbBigInt(wide);
      return absorbBigInt(wide >> 64n);
    }
    case 6: {
      const bytes = new Uint8Array(value as Uint8Array);
      assert(bytes.length === 16, "the default of a uuid is its 16 bytes");
      const view = new DataView(bytes.buffer);
      absorb(view.getInt32(0, true), view.getInt32(4, true));
      return absorb(view.getInt32(8, true), view.getInt32(12, true));
    }
    case 7: {
      const bytes = typeof value === "string" ? new TextEncoder().encode(value) : (value as Uint8Array);
      return absorbBytes(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), 0, bytes.byteLength);
    }
    default:
      return absorbBigInt(toBigInt(value));
  }
}

function toBigInt(value: Exclude<HashDefault, null>): bigint {
  if (typeof value === "boolean") return value ? 1n : 0n;
  assert(typeof value === "bigint" || typeof value === "number", "the default of a number is a number");
  return BigInt(value);
}

function absorbBigInt(value: bigint): void {
  absorb(Number(BigInt.asIntN(32, value)), Number(BigInt.asIntN(32, value >> 32n)));
}

function pairToBigInt(low: number, high: number): bigint {
  return (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);
}

/** The checksum of a multiset of rows: rows are added and taken away in any order. */
export class Checksum {
  #rows: bigint;
  #sum: bigint;

  constructor(rows = 0n, sum = 0n) {
    this.#rows = rows;
    this.#sum = BigInt.asUintN(64, sum);
  }

  /** How many rows were added, less those removed. */
  get rows(): bigint {
    return this.#rows;
  }

  /** The sum of the row hashes, in [0, 2^64). */
  get sum(): bigint {
    return this.#sum;
  }

  /** Adds the rows [start, end), all by default. */
  add(hashes: RowHashes, start = 0, end = hashes.lo.length): this {
    this.#rows += BigInt(end - start);
    this.#sum = BigInt.asUintN(64, this.#sum + sumOf(hashes, start, end));
    return this;
  }

  /** Takes the rows [start, end) away, all by default. */
  remove(hashes: RowHashes, start = 0, end = hashes.lo.length): this {
    this.#rows -= BigInt(end - start);
    this.#sum = BigInt.asUintN(64, this.#sum - sumOf(hashes, start, end));
    return this;
  }

  /** Adds all rows of another checksum. */
  merge(other: Checksum): this {
    this.#rows += other.#rows;
    this.#sum = BigInt.asUintN(64, this.#sum + other.#sum);
    return this;
  }

  /** Takes all rows of another checksum away. */
  subtract(other: Checksum): this {
    this.#rows -= other.#rows;
    this.#sum = BigInt.asUintN(64, this.#sum - other.#sum);
    return this;
  }

  equals(other: Checksum): boolean {
    return this.#rows === other.#rows && this.#sum === other.#sum;
  }

  /** `v1:<rows>:<sum as 16 hexadecimal digits>`. */
  toString(): string {
    return `v${ROW_HASH_VERSION}:${this.#rows}:${this.#sum.toString(16).padStart(16, "0")}`;
  }

  /** The checksum of `toString`'s text, or null when it is none, or of another version. */
  static parse(text: string): Checksum | null {
    const match = /^v1:(-?\d+):([0-9a-f]{16})$/.exec(text);
    return match ? new Checksum(BigInt(match[1] ?? ""), BigInt(`0x${match[2]}`)) : null;
  }
}

/** Words summed as doubles are exact for 2^21 of them. */
const EXACT_ROWS = 1 << 20;

function sumOf({ lo, hi }: RowHashes, start: number, end: number): bigint {
  let sum = 0n;
  for (let from = start; from < end; from += EXACT_ROWS) {
    const to = Math.min(end, from + EXACT_ROWS);
    let low = 0;
    let high = 0;
    for (let i = from; i < to; i++) {
      low += lo[i] ?? 0;
      high += hi[i] ?? 0;
    }
    sum += BigInt(low) + (BigInt(high) << 32n);
  }
  return sum;
}
