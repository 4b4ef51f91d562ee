/** The loops of the row checksum (rowhash.ts defines it), on columns, in JavaScript. */
import type { FixedColumn } from "./columns.ts";

/** The four constants of P. */
export const [K1, K2, K3, K4] = [0x7feb352d, 0x846ca68b | 0, 0x9e3779b1 | 0, 0x85ebca6b | 0];

/** F(x, k) */
export function mixed(x: number, k: number): number {
  const y = Math.imul(x ^ (x >>> 16), k);
  return y ^ (y >>> 15);
}

/** One field's constants, and the accumulation of its column into the row sums. */
export interface Lane {
  readonly seedA: number;
  readonly seedB: number;
}

export function wordsOf({ data }: FixedColumn): Int32Array {
  return new Int32Array(data.buffer, data.byteOffset, data.byteLength / 4);
}

/** The bits of the values as float64, with one NaN. A copy only where something must change. */
export function canonicalFloats(data: Float32Array | Float64Array, length: number): Int32Array {
  let doubles = data instanceof Float64Array ? data : Float64Array.from(data.subarray(0, length));
  for (let i = 0; i < length; i++) {
    const value = doubles[i] ?? 0;
    if (!Number.isNaN(value)) continue;
    if (doubles === data) doubles = doubles.slice(0, length);
    doubles[i] = Number.NaN;
  }
  const words = new Int32Array(doubles.buffer, doubles.byteOffset, length * 2);
  // What bits Number.NaN is stored with is the engine's choice.
  for (let i = 0; i < length; i++) {
    if (!Number.isNaN(doubles[i])) continue;
    words[2 * i] = 0;
    words[2 * i + 1] = 0x7ff80000;
  }
  return words;
}

// The loops keep the state in variables of their own, which is more than twice as fast as `absorb`.

/** Adds the hash (a, b) to the sum of row i. The carry is made of bits: unsigned words are a slower kind of number. */
function addHash(lo: Int32Array, hi: Int32Array, i: number, a: number, b: number): void {
  const x = lo[i] ?? 0;
  const sum = (x + a) | 0;
  lo[i] = sum;
  hi[i] = ((hi[i] ?? 0) + b + (((x & a) | ((x | a) & ~sum)) >>> 31)) | 0;
}

/** Values of at most 32 bits, sign-extended. */
export function addWords(
  { seedA, seedB }: Lane,
  data: Uint8Array | Int16Array | Int32Array,
  validity: Uint8Array | null,
  length: number,
  lo: Int32Array,
  hi: Int32Array,
): void {
  for (let i = 0; i < length; i++) {
    if (validity !== null && validity[i] === 0) continue;
    const word = data[i] ?? 0;
    let a = seedA ^ word;
    let b = seedB ^ (word >> 31);
    a = (a + mixed(b, K1)) | 0;
    b ^= mixed(a, K2);
    a = (a + mixed(b, K3)) | 0;
    b ^= mixed(a, K4);
    addHash(lo, hi, i, a, b);
  }
}

/** Values of `pairs` times 64 bits, as word pairs: two of them for 128 bits. */
export function addPairs(
  { seedA, seedB }: Lane,
  words: Int32Array,
  pairs: 1 | 2,
  validity: Uint8Array | null,
  length: number,
  lo: Int32Array,
  hi: Int32Array,
): void {
  for (let i = 0; i < length; i++) {
    if (validity !== null && validity[i] === 0) continue;
    let a = seedA;
    let b = seedB;
    for (let at = 2 * pairs * i; at < 2 * pairs * (i + 1); at += 2) {
      a ^= words[at] ?? 0;
      b ^= words[at + 1] ?? 0;
      a = (a + mixed(b, K1)) | 0;
      b ^= mixed(a, K2);
      a = (a + mixed(b, K3)) | 0;
      b ^= mixed(a, K4);
    }
    addHash(lo, hi, i, a, b);
  }
}

export function addUuids(
  lane: Lane,
  data: Uint8Array,
  validity: Uint8Array | null,
  length: number,
  lo: Int32Array,
  hi: Int32Array,
): void {
  // A view of another buffer may lie at any offset, where 32-bit words cannot be read.
  const aligned = data.byteOffset % 4 === 0 ? data : data.slice(0, length * 16);
  addPairs(lane, new Int32Array(aligned.buffer, aligned.byteOffset, length * 4), 2, validity, length, lo, hi);
}

export function addBytes(
  { seedA, seedB }: Lane,
  offsets: Uint32Array,
  heap: Uint8Array,
  validity: Uint8Array | null,
  length: number,
  lo: Int32Array,
  hi: Int32Array,
): void {
  const view = new DataView(heap.buffer, heap.byteOffset, heap.byteLength);
  for (let i = 0; i < length; i++) {
    if (validity !== null && validity[i] === 0) continue;
    const start = offsets[i] ?? 0;
    const end = offsets[i + 1] ?? 0;
    let a = seedA ^ (end - start);
    let b = seedB;
    for (let at = start; at < end || at === start; at += 8) {
      const whole = at + 8 <= end;
      a ^= whole ? view.getInt32(at, true) : partOfWord(view, at, end);
      b ^= whole ? view.getInt32(at + 4, true) : partOfWord(view, at + 4, end);
      a = (a + mixed(b, K1)) | 0;
      b ^= mixed(a, K2);
      a = (a + mixed(b, K3)) | 0;
      b ^= mixed(a, K4);
    }
    addHash(lo, hi, i, a, b);
  }
}

/** The word at `at`, filled up with zero bytes from `end` on. */
export function partOfWord(view: DataView, at: number, end: number): number {
  if (at + 4 <= end) return view.getInt32(at, true);
  let word = 0;
  for (let shift = 0; at < end; at++, shift += 8) word |= view.getUint8(at) << shift;
  return word;
}

/** H on every row's sum. */
export function finalize(lo: Int32Array, hi: Int32Array, length: number): void {
  for (let i = 0; i < length; i++) {
    let a = (lo[i] ?? 0) ^ 0x243f6a88;
    let b = (hi[i] ?? 0) ^ 0x85a308d3;
    for (let round = 0; round < 2; round++) {
      a = (a + mixed(b, K1)) | 0;
      b ^= mixed(a, K2);
      a = (a + mixed(b, K3)) | 0;
      b ^= mixed(a, K4);
    }
    lo[i] = a;
    hi[i] = b;
  }
}
