/**
 * The loops of the row checksum (rowhash.ts defines it) in WebAssembly, four rows at a time: about five times as fast as in
 * JavaScript. Absent where the processor has no SIMD; the loops in JavaScript are the same function.
 */
import {
  add,
  and,
  any,
  type Bytes,
  constant,
  floatsDiffer,
  get,
  type Kernel,
  lane,
  larger,
  less,
  lessThan,
  lessUnsigned,
  load,
  load32Zero,
  load64Lane,
  minus,
  moduleOf,
  notEqual,
  plus,
  repeatWhile,
  select,
  set,
  shiftLeft,
  shiftRight,
  shiftRightSigned,
  shiftedLeft,
  shiftedRight,
  shuffle,
  smaller,
  splat,
  store,
  times,
  vectorOf,
  when,
  widenBytes,
  xor,
} from "./wasm.ts";

/** Rows of one call. All that they take stays in the processor's cache. */
export const BLOCK_ROWS = 2048;
/** Bytes of text of one call's rows; more of it is for the loops in JavaScript. */
export const BLOCK_BYTES = 1 << 20;

/** Where in the memory what lies. After the text there is room for a word that is read past its end. */
const LO = 0;
const HI = LO + BLOCK_ROWS * 4;
const VALIDITY = HI + BLOCK_ROWS * 4;
const MASKS = VALIDITY + BLOCK_ROWS;
const OFFSETS = MASKS + 128;
const DATA = OFFSETS + BLOCK_ROWS * 4 + 64;
const PAGES = Math.ceil((DATA + BLOCK_BYTES + 64) / 65_536);

type Call = (rows: number, seedA: number, seedB: number, hasNulls: number) => void;

interface Exports {
  readonly memory: { readonly buffer: ArrayBuffer };
  readonly words: Call;
  readonly pairs: Call;
  readonly floats: Call;
  readonly wide: Call;
  readonly bytes: Call;
  readonly finish: (rows: number) => void;
}

/** What is used of the global `WebAssembly`, whose types come with a browser's only. */
interface Host {
  validate(code: Uint8Array<ArrayBuffer>): boolean;
  readonly Module: new (code: Uint8Array<ArrayBuffer>) => object;
  readonly Instance: new (module: object) => { readonly exports: unknown };
}

type KernelName = "words" | "pairs" | "floats" | "wide" | "bytes";

// Parameters of every kernel, then its locals: `at` is four times the row in hand.
const [ROWS, SEED_A, SEED_B, NULLS, AT, END] = [0, 1, 2, 3, 4, 5];
const [A, B, MASK, X, Y, Z, W, STARTS, ENDS, ACTIVE, OLD_A, OLD_B, LOW, HIGH] = [
  6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
];
const LOCALS = { parameters: 4, words: 2, vectors: 14 };
const ALL = vectorOf([-1, -1, -1, -1]);
const ZERO = vectorOf([0, 0, 0, 0]);
const EVEN = [0, 2, 4, 6] as const;
const ODD = [1, 3, 5, 7] as const;

/** F(x, k), x in local X. */
function mixed(source: Bytes, k: number): Bytes {
  return [
    ...set(X, source),
    ...set(X, times(xor(get(X), shiftRight(get(X), 16)), splat(constant(k)))),
    ...xor(get(X), shiftRight(get(X), 15)),
  ];
}

/** P on the locals A and B, with `a` and `b` in them. */
function mix(constants: readonly number[]): Bytes {
  const [k1 = 0, k2 = 0, k3 = 0, k4 = 0] = constants;
  return [
    ...set(A, plus(mixed(get(B), k1), get(A))),
    ...set(B, xor(mixed(get(A), k2), get(B))),
    ...set(A, plus(mixed(get(B), k3), get(A))),
    ...set(B, xor(mixed(get(A), k4), get(B))),
  ];
}

const seedValues: Bytes = [...set(A, splat(get(SEED_A))), ...set(B, splat(get(SEED_B)))];

/** A loop over the rows, four by four; `body` leaves the values' hashes in A and B, which are added to the rows' sums. */
function overRows(body: Bytes): Bytes {
  const validity = widenBytes(load32Zero(shiftedRight(get(AT), 2), VALIDITY));
  return [
    ...set(END, shiftedLeft(get(ROWS), 2)),
    ...set(MASK, ALL),
    ...repeatWhile(
      lessThan(get(AT), get(END)),
      body,
      when(get(NULLS), set(MASK, notEqual(validity, ZERO))),
      set(A, and(get(A), get(MASK))),
      set(B, and(get(B), get(MASK))),
      set(X, plus(load(get(AT), LO), get(A))),
      store(get(AT), LO, get(X)),
      // A sum that is less than what was added went over: the mask of that is -1, the carry.
      store(get(AT), HI, minus(plus(load(get(AT), HI), get(B)), lessUnsigned(get(X), get(A)))),
      set(AT, add(get(AT), constant(16))),
    ),
  ];
}

function kernel(name: KernelName, body: Bytes): Kernel {
  return { name, ...LOCALS, body: overRows(body) };
}

/** Four 64-bit values: their words in Y and Z. */
function loadPairs(isFloat: boolean): Bytes {
  const address = shiftedLeft(get(AT), 1);
  const nan = vectorOf([0, 0x7ff80000, 0, 0x7ff80000]);
  const canonical = (local: number): Bytes =>
    isFloat ? set(local, select(nan, get(local), floatsDiffer(get(local), get(local)))) : [];
  return [
    ...set(Y, load(address, DATA)),
    ...set(Z, load(address, DATA + 16)),
    ...canonical(Y),
    ...canonical(Z),
    ...set(W, shuffle(get(Y), get(Z), ODD)),
    ...set(Y, shuffle(get(Y), get(Z), EVEN)),
    ...set(Z, get(W)),
  ];
}

const absorbYZ: Bytes = [...set(A, xor(get(A), get(Y))), ...set(B, xor(get(B), get(Z)))];

/** Four 128-bit values: first their lower, then their upper halves. */
function wideBody(constants: readonly number[]): Bytes {
  const address = shiftedLeft(get(AT), 2);
  const half = (lanes: readonly [number, number, number, number]): Bytes => [
    ...set(Y, shuffle(load(address, DATA), load(address, DATA + 16), lanes)),
    ...set(Z, shuffle(load(address, DATA + 32), load(address, DATA + 48), lanes)),
    ...set(W, shuffle(get(Y), get(Z), ODD)),
    ...set(Y, shuffle(get(Y), get(Z), EVEN)),
    ...set(Z, get(W)),
    ...absorbYZ,
    ...mix(constants),
  ];
  return [...seedValues, ...half([0, 1, 4, 5]), ...half([2, 3, 6, 7])];
}

/** Four texts in step, 8 bytes a turn, until the longest is over; those that are over keep what they have. */
function bytesBody(constants: readonly number[]): Bytes {
  const eightOf = (base: number, at: Bytes, first: number, second: number): Bytes => {
    const low = load64Lane(lane(at, 1), base, load64Lane(lane(at, 0), base, ZERO, 0), 1);
    const high = load64Lane(lane(at, 3), base, load64Lane(lane(at, 2), base, ZERO, 0), 1);
    return [...set(first, low), ...set(second, high)];
  };
  // How many of the next 8 bytes are the text's: each number has its mask in memory.
  const left = smaller(larger(minus(get(ENDS), get(STARTS)), ZERO), splat(constant(8)));
  return [
    ...set(STARTS, load(get(AT), OFFSETS)),
    ...set(ENDS, load(get(AT), OFFSETS + 4)),
    ...seedValues,
    ...set(A, xor(get(A), minus(get(ENDS), get(STARTS)))),
    ...set(ACTIVE, ALL),
    ...repeatWhile(
      any(get(ACTIVE)),
      set(OLD_A, get(A)),
      set(OLD_B, get(B)),
      set(X, shiftLeft(left, 3)),
      eightOf(MASKS, get(X), LOW, HIGH),
      set(X, smaller(get(STARTS), get(ENDS))),
      eightOf(DATA, get(X), Y, Z),
      set(LOW, and(get(LOW), get(Y))),
      set(HIGH, and(get(HIGH), get(Z))),
      set(A, xor(get(A), shuffle(get(LOW), get(HIGH), EVEN))),
      set(B, xor(get(B), shuffle(get(LOW), get(HIGH), ODD))),
      mix(constants),
      set(A, select(get(A), get(OLD_A), get(ACTIVE))),
      set(B, select(get(B), get(OLD_B), get(ACTIVE))),
      set(STARTS, plus(get(STARTS), splat(constant(8)))),
      set(ACTIVE, less(get(STARTS), get(ENDS))),
    ),
  ];
}

function finishBody(constants: readonly number[]): Bytes {
  return [
    ...set(END, shiftedLeft(get(ROWS), 2)),
    ...repeatWhile(
      lessThan(get(AT), get(END)),
      set(A, xor(load(get(AT), LO), splat(constant(0x243f6a88)))),
      set(B, xor(load(get(AT), HI), splat(constant(0x85a308d3)))),
      mix(constants),
      mix(constants),
      store(get(AT), LO, get(A)),
      store(get(AT), HI, get(B)),
      set(AT, add(get(AT), constant(16))),
    ),
  ];
}

function kernelsOf(constants: readonly number[]): Kernel[] {
  const words: Bytes = [
    ...set(Y, load(get(AT), DATA)),
    ...set(Z, shiftRightSigned(get(Y), 31)),
    ...seedValues,
    ...absorbYZ,
    ...mix(constants),
  ];
  const pairs = (isFloat: boolean): Bytes => [...loadPairs(isFloat), ...seedValues, ...absorbYZ, ...mix(constants)];
  return [
    kernel("words", words),
    kernel("pairs", pairs(false)),
    kernel("floats", pairs(true)),
    kernel("wide", wideBody(constants)),
    kernel("bytes", bytesBody(constants)),
    { name: "finish", ...LOCALS, body: finishBody(constants) },
  ];
}

/** The kernels and the memory that they work in. */
export class HashKernels {
  readonly lo: Int32Array;
  readonly hi: Int32Array;
  readonly #exports: Exports;
  readonly #validity: Uint8Array;
  readonly #offsets: Uint32Array;
  readonly #data: Uint8Array;

  private constructor(exports: Exports) {
    const { buffer } = exports.memory;
    this.#exports = exports;
    this.lo = new Int32Array(buffer, LO, BLOCK_ROWS);
    this.hi = new Int32Array(buffer, HI, BLOCK_ROWS);
    this.#validity = new Uint8Array(buffer, VALIDITY, BLOCK_ROWS);
    this.#offsets = new Uint32Array(buffer, OFFSETS, BLOCK_ROWS + 4);
    this.#data = new Uint8Array(buffer, DATA, BLOCK_BYTES);
    const masks = new Uint8Array(buffer, MASKS, 72);
    for (let bytes = 1; bytes <= 8; bytes++) masks.fill(0xff, bytes * 8, bytes * 8 + bytes);
  }

  /** Null where they cannot run. `constants` are the four of P. */
  static load(constants: readonly number[]): HashKernels | null {
    const host = (globalThis as { readonly WebAssembly?: Host }).WebAssembly;
    const code = moduleOf(PAGES, kernelsOf(constants));
    if (host?.validate(code) !== true) return null;
    return new HashKernels(new host.Instance(new host.Module(code)).exports as Exports);
  }

  /** Adds the hashes of at most BLOCK_ROWS fixed-width values: words, pairs or pairs of pairs. */
  add(
    name: Exclude<KernelName, "bytes">,
    seedA: number,
    seedB: number,
    values: ArrayBufferView,
    validity: Uint8Array | null,
    rows: number,
  ): void {
    this.#data.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    if (validity !== null) this.#validity.set(validity);
    this.#exports[name](rows, seedA, seedB, validity === null ? 0 : 1);
  }

  /** The same for texts; `offsets` has one more than rows. Their bytes are at most BLOCK_BYTES. */
  addBytes(
    seedA: number,
    seedB: number,
    offsets: Uint32Array,
    heap: Uint8Array,
    validity: Uint8Array | null,
    rows: number,
  ): void {
    const base = offsets[0] ?? 0;
    const end = offsets[rows] ?? base;
    this.#data.set(heap.subarray(base, end));
    const own = this.#offsets;
    for (let i = 0; i <= rows; i++) own[i] = (offsets[i] ?? 0) - base;
    // Rows up to the next multiple of four are hashed too, as empty ones.
    own.fill(end - base, rows + 1, rows + 4);
    if (validity !== null) this.#validity.set(validity);
    this.#exports.bytes(rows, seedA, seedB, validity === null ? 0 : 1);
  }

  /** H on the sums of so many rows. */
  finish(rows: number): void {
    this.#exports.finish(rows);
  }
}
