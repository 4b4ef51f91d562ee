/**
 * The containers of a roaring bitmap: the low 16 bits of a run of 65 536 positions, as a sorted array
 * while there are at most 4096 of them, as a bitmap beyond.
 * Source: https://github.com/RoaringBitmap/RoaringFormatSpec
 */

/** The most values that an array container holds. */
export const ARRAY_MAX = 4096;
export const BITMAP_BYTES = 8192;
const BITMAP_WORDS = BITMAP_BYTES / 4;
const FIRST_ARRAY = 4;

export interface ArrayContainer {
  readonly kind: "array";
  /** Sorted; only the first `size` count. */
  values: Uint16Array;
  size: number;
}

export interface BitmapContainer {
  readonly kind: "bitmap";
  readonly words: Uint32Array;
  size: number;
}

export type Container = ArrayContainer | BitmapContainer;

export function emptyContainer(): Container {
  return { kind: "array", values: new Uint16Array(FIRST_ARRAY), size: 0 };
}

export function cloneContainer(from: Container): Container {
  return from.kind === "array"
    ? { kind: "array", values: from.values.slice(0, Math.max(from.size, FIRST_ARRAY)), size: from.size }
    : { kind: "bitmap", words: from.words.slice(), size: from.size };
}

export function hasLow(container: Container, low: number): boolean {
  if (container.kind === "bitmap") return ((container.words[low >>> 5] ?? 0) & (1 << (low & 31))) !== 0;
  return container.values[lowerBound(container, low)] === low && lowerBound(container, low) < container.size;
}

/** The container with `low` in it: the same one changed, or the bitmap that took its place. */
export function addLow(container: Container, low: number): Container {
  if (container.kind === "bitmap") {
    setBit(container, low);
    return container;
  }
  const last = container.size === 0 ? -1 : (container.values[container.size - 1] ?? 0);
  const at = low > last ? container.size : lowerBound(container, low);
  if (at < container.size && container.values[at] === low) return container;
  if (container.size === ARRAY_MAX) {
    const bitmap = toBitmap(container);
    setBit(bitmap, low);
    return bitmap;
  }
  if (container.size === container.values.length) grow(container);
  container.values.copyWithin(at + 1, at, container.size);
  container.values[at] = low;
  container.size++;
  return container;
}

/** The container with every value of [from, to] in it. */
export function addLowRange(container: Container, from: number, to: number): Container {
  if (container.size + to - from < ARRAY_MAX && to - from < 64) {
    let grown = container;
    for (let low = from; low <= to; low++) grown = addLow(grown, low);
    return grown;
  }
  const words = container.kind === "bitmap" ? container.words : toBitmap(container).words;
  setRange(words, from, to);
  return fromWords(words);
}

/** Sets the bits of [from, to]. */
export function setRange(words: Uint32Array, from: number, to: number): void {
  for (let low = from; low <= to;) {
    if ((low & 31) === 0 && low + 31 <= to) {
      words[low >>> 5] = 0xffffffff;
      low += 32;
    } else {
      words[low >>> 5] = ((words[low >>> 5] ?? 0) | (1 << (low & 31))) >>> 0;
      low++;
    }
  }
}

export function unionContainers(a: Container, b: Container): Container {
  if (a.kind === "bitmap" || b.kind === "bitmap" || a.size + b.size > ARRAY_MAX) {
    const bitmap = a.kind === "bitmap" ? (cloneContainer(a) as BitmapContainer) : toBitmap(a);
    if (b.kind === "array") for (const low of lowsOf(b)) setBit(bitmap, low);
    else orWords(bitmap, b);
    return bitmap.size <= ARRAY_MAX ? toArray(bitmap) : bitmap;
  }
  return { kind: "array", ...mergeSorted(a, b) };
}

export function* lowsOf(container: Container): Generator<number> {
  if (container.kind === "array") {
    for (let i = 0; i < container.size; i++) yield container.values[i] ?? 0;
    return;
  }
  for (let i = 0; i < BITMAP_WORDS; i++) {
    for (let word = container.words[i] ?? 0; word !== 0; word &= word - 1)
      yield i * 32 + (31 - Math.clz32(word & -word));
  }
}

/** How many runs of consecutive values there are. */
export function countRuns(container: Container): number {
  let runs = 0;
  if (container.kind === "array") {
    for (let i = 0; i < container.size; i++) {
      if (i === 0 || container.values[i] !== (container.values[i - 1] ?? 0) + 1) runs++;
    }
    return runs;
  }
  let carry = 0;
  for (const word of container.words) {
    runs += popcount(word & ~((word << 1) | carry));
    carry = word >>> 31;
  }
  return runs;
}

export function fromValues(values: Uint16Array): Container {
  return { kind: "array", values, size: values.length };
}

export function fromWords(words: Uint32Array): Container {
  let size = 0;
  for (const word of words) size += popcount(word);
  const bitmap: BitmapContainer = { kind: "bitmap", words, size };
  return size <= ARRAY_MAX ? toArray(bitmap) : bitmap;
}

export function toBitmap(container: Container): BitmapContainer {
  if (container.kind === "bitmap") return container;
  const bitmap: BitmapContainer = { kind: "bitmap", words: new Uint32Array(BITMAP_WORDS), size: 0 };
  for (let i = 0; i < container.size; i++) setBit(bitmap, container.values[i] ?? 0);
  return bitmap;
}

function toArray(bitmap: BitmapContainer): ArrayContainer {
  const values = new Uint16Array(Math.max(bitmap.size, FIRST_ARRAY));
  let at = 0;
  for (const low of lowsOf(bitmap)) values[at++] = low;
  return { kind: "array", values, size: bitmap.size };
}

function mergeSorted(a: ArrayContainer, b: ArrayContainer): { values: Uint16Array; size: number } {
  const values = new Uint16Array(Math.max(a.size + b.size, FIRST_ARRAY));
  let [i, j, size] = [0, 0, 0];
  while (i < a.size || j < b.size) {
    const x = i < a.size ? (a.values[i] ?? 0) : Infinity;
    const y = j < b.size ? (b.values[j] ?? 0) : Infinity;
    values[size++] = Math.min(x, y);
    if (x <= y) i++;
    if (y <= x) j++;
  }
  return { values, size };
}

function orWords(into: BitmapContainer, from: BitmapContainer): void {
  let size = 0;
  for (let i = 0; i < BITMAP_WORDS; i++) {
    const word = ((into.words[i] ?? 0) | (from.words[i] ?? 0)) >>> 0;
    into.words[i] = word;
    size += popcount(word);
  }
  into.size = size;
}

function setBit(bitmap: BitmapContainer, low: number): void {
  const word = bitmap.words[low >>> 5] ?? 0;
  const next = (word | (1 << (low & 31))) >>> 0;
  if (next === word) return;
  bitmap.words[low >>> 5] = next;
  bitmap.size++;
}

function grow(container: ArrayContainer): void {
  const values = new Uint16Array(Math.min(ARRAY_MAX, container.values.length * 2));
  values.set(container.values);
  container.values = values;
}

/** The first index whose value is not below `low`. */
function lowerBound(container: ArrayContainer, low: number): number {
  let [from, to] = [0, container.size];
  while (from < to) {
    const middle = (from + to) >>> 1;
    if ((container.values[middle] ?? 0) < low) from = middle + 1;
    else to = middle;
  }
  return from;
}

function popcount(word: number): number {
  let bits = word - ((word >>> 1) & 0x55555555);
  bits = (bits & 0x33333333) + ((bits >>> 2) & 0x33333333);
  return Math.imul((bits + (bits >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}
