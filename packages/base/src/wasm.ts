/**
 * The few instructions of WebAssembly, fixed-width SIMD among them, that the row checksum's kernels are made of, as bytes.
 * An expression is a list of bytes that leaves one value on the stack. Source: the WebAssembly 2.0 core specification, §5.
 */
export type Bytes = readonly number[];

const I32 = 0x7f;
const V128 = 0x7b;

/** Unsigned LEB128. */
function u32(value: number): number[] {
  const bytes: number[] = [];
  let rest = value >>> 0;
  for (; rest > 127; rest >>>= 7) bytes.push((rest & 127) | 128);
  bytes.push(rest);
  return bytes;
}

/** Signed LEB128 of a 32-bit number. */
function s32(value: number): number[] {
  const bytes: number[] = [];
  let rest = value | 0;
  for (;;) {
    const byte = rest & 127;
    rest >>= 7;
    if ((rest === 0 && (byte & 64) === 0) || (rest === -1 && (byte & 64) !== 0)) return [...bytes, byte];
    bytes.push(byte | 128);
  }
}

export const get = (local: number): Bytes => [0x20, ...u32(local)];
export const set = (local: number, value: Bytes): Bytes => [...value, 0x21, ...u32(local)];
export const constant = (value: number): Bytes => [0x41, ...s32(value)];
export const add = (a: Bytes, b: Bytes): Bytes => [...a, ...b, 0x6a];
export const shiftedLeft = (a: Bytes, bits: number): Bytes => [...a, ...constant(bits), 0x74];
export const shiftedRight = (a: Bytes, bits: number): Bytes => [...a, ...constant(bits), 0x76];
export const lessThan = (a: Bytes, b: Bytes): Bytes => [...a, ...b, 0x49];
/** Statements that run while `condition`, looked at after each turn, is not 0. */
export const repeatWhile = (condition: Bytes, ...body: readonly Bytes[]): Bytes => [
  0x03,
  0x40,
  ...body.flat(),
  ...condition,
  0x0d,
  0x00,
  0x0b,
];
export const when = (condition: Bytes, ...body: readonly Bytes[]): Bytes => [
  ...condition,
  0x04,
  0x40,
  ...body.flat(),
  0x0b,
];

const simd = (code: number, ...operands: readonly Bytes[]): Bytes => [...operands.flat(), 0xfd, ...u32(code)];
/** Alignments are hints: 1 byte is always true. */
const memarg = (offset: number): Bytes => [0, ...u32(offset)];

export const load = (address: Bytes, offset = 0): Bytes => [...simd(0x00, address), ...memarg(offset)];
/** 4 bytes into the lowest lane, the others zero. */
export const load32Zero = (address: Bytes, offset = 0): Bytes => [...simd(0x5c, address), ...memarg(offset)];
/** `vector` with 8 bytes of memory in its half 0 or 1. */
export const load64Lane = (address: Bytes, offset: number, vector: Bytes, lane: 0 | 1): Bytes => [
  ...simd(0x57, address, vector),
  ...memarg(offset),
  lane,
];
export const store = (address: Bytes, offset: number, value: Bytes): Bytes => [
  ...simd(0x0b, address, value),
  ...memarg(offset),
];
export const splat = (value: Bytes): Bytes => simd(0x11, value);
export const lane = (vector: Bytes, index: number): Bytes => [...simd(0x1b, vector), index];
/** Four lanes out of the eight of two vectors. */
export const shuffle = (a: Bytes, b: Bytes, lanes: readonly [number, number, number, number]): Bytes => [
  ...simd(0x0d, a, b),
  ...lanes.flatMap((l) => [l * 4, l * 4 + 1, l * 4 + 2, l * 4 + 3]),
];
export const vectorOf = (words: readonly [number, number, number, number]): Bytes => [
  ...simd(0x0c),
  ...new Uint8Array(Int32Array.from(words).buffer),
];
export const notEqual = (a: Bytes, b: Bytes): Bytes => simd(0x38, a, b);
export const less = (a: Bytes, b: Bytes): Bytes => simd(0x39, a, b);
export const lessUnsigned = (a: Bytes, b: Bytes): Bytes => simd(0x3a, a, b);
/** Of two 64-bit floats: all ones where they differ, NaN from itself too. */
export const floatsDiffer = (a: Bytes, b: Bytes): Bytes => simd(0x48, a, b);
export const and = (a: Bytes, b: Bytes): Bytes => simd(0x4e, a, b);
export const xor = (a: Bytes, b: Bytes): Bytes => simd(0x51, a, b);
/** Bits of `a` where the mask has ones, of `b` elsewhere. */
export const select = (a: Bytes, b: Bytes, mask: Bytes): Bytes => simd(0x52, a, b, mask);
export const any = (vector: Bytes): Bytes => simd(0x53, vector);
/** The lowest four bytes as four words. */
export const widenBytes = (vector: Bytes): Bytes => simd(0xa9, simd(0x89, vector));
export const shiftLeft = (vector: Bytes, bits: number): Bytes => simd(0xab, vector, constant(bits));
export const shiftRight = (vector: Bytes, bits: number): Bytes => simd(0xad, vector, constant(bits));
export const shiftRightSigned = (vector: Bytes, bits: number): Bytes => simd(0xac, vector, constant(bits));
export const plus = (a: Bytes, b: Bytes): Bytes => simd(0xae, a, b);
export const minus = (a: Bytes, b: Bytes): Bytes => simd(0xb1, a, b);
export const times = (a: Bytes, b: Bytes): Bytes => simd(0xb5, a, b);
export const smaller = (a: Bytes, b: Bytes): Bytes => simd(0xb6, a, b);
export const larger = (a: Bytes, b: Bytes): Bytes => simd(0xb8, a, b);

export interface Kernel {
  readonly name: string;
  /** All of them I32. */
  readonly parameters: number;
  /** I32 locals after the parameters, then V128 ones. */
  readonly words: number;
  readonly vectors: number;
  readonly body: Bytes;
}

/** Magic and version. */
const HEADER = [0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0];

/** A module with `memory` of so many pages of 64 KiB, and functions without results, all exported. */
export function moduleOf(pages: number, kernels: readonly Kernel[]): Uint8Array<ArrayBuffer> {
  const vector = (items: readonly Bytes[]): Bytes => [...u32(items.length), ...items.flat()];
  const section = (id: number, content: Bytes): Bytes => [id, ...u32(content.length), ...content];
  const text = (value: string): Bytes => vector([...Buffer.from(value, "latin1")].map((byte) => [byte]));
  const types = kernels.map((k) => [0x60, ...vector(Array.from({ length: k.parameters }, () => [I32])), 0]);
  const exported = kernels.map((k, i) => [...text(k.name), 0, ...u32(i)]);
  const bodies = kernels.map((k) => {
    const locals = vector([
      [...u32(k.words), I32],
      [...u32(k.vectors), V128],
    ]);
    const code = [...locals, ...k.body, 0x0b];
    return [...u32(code.length), ...code];
  });
  return Uint8Array.from([
    ...HEADER,
    ...section(1, vector(types)),
    ...section(3, vector(kernels.map((_, i) => u32(i)))),
    ...section(5, vector([[1, ...u32(pages), ...u32(pages)]])),
    ...section(7, vector([[...text("memory"), 2, 0], ...exported])),
    ...section(10, vector(bodies)),
  ]);
}
