/**
 * The portable serialization of roaring bitmaps, 32 and 64 bit, little endian.
 * Source: https://github.com/RoaringBitmap/RoaringFormatSpec
 */
import { SpillwayError } from "@spillway/base/errors";
import {
  ARRAY_MAX,
  BITMAP_BYTES,
  type Container,
  countRuns,
  fromValues,
  fromWords,
  lowsOf,
  setRange,
  toBitmap,
} from "./container.ts";

const COOKIE_NO_RUNS = 12346;
const COOKIE_RUNS = 12347;
/** With runs, the offsets are left out below this many containers. */
const OFFSETS_FROM = 4;

/** Containers by the high bits of their positions (position / 65 536), ascending. */
export type Containers = ReadonlyMap<number, Container>;

/** A 64-bit bitmap: how many 32-bit ones, then each with its key. Ascending, empty ones left out. */
export function encodeRoaring64(containers: Containers): Uint8Array {
  const byKey = new Map<number, [number, Container][]>();
  for (const [high, container] of [...containers].toSorted(([a], [b]) => a - b)) {
    if (container.size === 0) continue;
    const key = Math.floor(high / 65536);
    const list = byKey.get(key) ?? [];
    list.push([high % 65536, container]);
    byKey.set(key, list);
  }
  const parts = [...byKey].map(([key, list]) => [key, encodeRoaring32(list)] as const);
  const bytes = new Uint8Array(parts.reduce((sum, [, part]) => sum + 4 + part.length, 8));
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(parts.length), true);
  let at = 8;
  for (const [key, part] of parts) {
    view.setUint32(at, key, true);
    bytes.set(part, at + 4);
    at += 4 + part.length;
  }
  return bytes;
}

/** The reverse. Throws `puffin_invalid` for anything that is not exactly one bitmap. */
export function decodeRoaring64(bytes: Uint8Array): Map<number, Container> {
  const reader = new Reader(bytes);
  const containers = new Map<number, Container>();
  const count = reader.u64();
  let last = -1;
  for (let i = 0n; i < count; i++) {
    const key = reader.u32();
    if (key <= last) throw broken("keys that do not ascend");
    last = key;
    for (const [high, container] of decodeRoaring32(reader)) containers.set(key * 65536 + high, container);
  }
  if (!reader.atEnd) throw broken("bytes after its end");
  return containers;
}

type Plan = {
  readonly key: number;
  readonly container: Container;
  readonly runs: number | null;
  readonly bytes: number;
};

/** Each container in its smallest form. */
function encodeRoaring32(list: readonly (readonly [number, Container])[]): Uint8Array {
  const plans = list.map(([key, container]): Plan => {
    const plain = container.size <= ARRAY_MAX ? container.size * 2 : BITMAP_BYTES;
    const runs = countRuns(container);
    return 2 + runs * 4 < plain
      ? { key, container, runs, bytes: 2 + runs * 4 }
      : { key, container, runs: null, bytes: plain };
  });
  const hasRuns = plans.some((plan) => plan.runs !== null);
  const flagBytes = hasRuns ? Math.ceil(plans.length / 8) : 0;
  const hasOffsets = !hasRuns || plans.length >= OFFSETS_FROM;
  const head = (hasRuns ? 4 + flagBytes : 8) + plans.length * 4 + (hasOffsets ? plans.length * 4 : 0);
  const bytes = new Uint8Array(plans.reduce((sum, plan) => sum + plan.bytes, head));
  const view = new DataView(bytes.buffer);
  if (hasRuns) {
    view.setUint32(0, COOKIE_RUNS | ((plans.length - 1) << 16), true);
    plans.forEach((plan, i) => {
      if (plan.runs !== null) bytes[4 + (i >> 3)] = (bytes[4 + (i >> 3)] ?? 0) | (1 << (i & 7));
    });
  } else {
    view.setUint32(0, COOKIE_NO_RUNS, true);
    view.setUint32(4, plans.length, true);
  }
  let described = hasRuns ? 4 + flagBytes : 8;
  let offsets = described + plans.length * 4;
  let at = head;
  for (const plan of plans) {
    view.setUint16(described, plan.key, true);
    view.setUint16(described + 2, plan.container.size - 1, true);
    described += 4;
    if (hasOffsets) view.setUint32(offsets, at, true);
    offsets += 4;
    writeContainer(view, at, plan);
    at += plan.bytes;
  }
  return bytes;
}

function writeContainer(view: DataView, at: number, plan: Plan): void {
  if (plan.runs !== null) return writeRuns(view, at, plan.container, plan.runs);
  if (plan.container.size <= ARRAY_MAX) {
    let to = at;
    for (const low of lowsOf(plan.container)) {
      view.setUint16(to, low, true);
      to += 2;
    }
    return;
  }
  const { words } = toBitmap(plan.container);
  for (let i = 0; i < words.length; i++) view.setUint32(at + i * 4, words[i] ?? 0, true);
}

function writeRuns(view: DataView, at: number, container: Container, runs: number): void {
  view.setUint16(at, runs, true);
  let to = at + 2;
  let [start, end] = [-1, -1];
  const flush = (): void => {
    if (start < 0) return;
    view.setUint16(to, start, true);
    view.setUint16(to + 2, end - start, true);
    to += 4;
  };
  for (const low of lowsOf(container)) {
    if (start >= 0 && low === end + 1) {
      end = low;
      continue;
    }
    flush();
    [start, end] = [low, low];
  }
  flush();
}

function decodeRoaring32(reader: Reader): [number, Container][] {
  const cookie = reader.u32();
  const hasRuns = (cookie & 0xffff) === COOKIE_RUNS;
  if (!hasRuns && cookie !== COOKIE_NO_RUNS) throw broken("an unknown cookie");
  const count = hasRuns ? (cookie >>> 16) + 1 : reader.u32();
  if (count > 65536) throw broken(`${count} containers`);
  const flags = hasRuns ? reader.take(Math.ceil(count / 8)) : new Uint8Array(0);
  const described = Array.from({ length: count }, () => ({ key: reader.u16(), size: reader.u16() + 1 }));
  if (!hasRuns || count >= OFFSETS_FROM) reader.take(count * 4);
  let last = -1;
  return described.map(({ key, size }, i) => {
    if (key <= last) throw broken("containers that do not ascend");
    last = key;
    const isRun = ((flags[i >> 3] ?? 0) & (1 << (i & 7))) !== 0;
    const container = isRun ? readRuns(reader) : size <= ARRAY_MAX ? readArray(reader, size) : readBitmap(reader);
    if (container.size !== size) throw broken(`a container of ${container.size} values instead of ${size}`);
    return [key, container];
  });
}

function readArray(reader: Reader, size: number): Container {
  const values = new Uint16Array(size);
  for (let i = 0; i < size; i++) {
    values[i] = reader.u16();
    if (i > 0 && (values[i] ?? 0) <= (values[i - 1] ?? 0)) throw broken("values that do not ascend");
  }
  return fromValues(values);
}

function readBitmap(reader: Reader): Container {
  const words = new Uint32Array(BITMAP_BYTES / 4);
  for (let i = 0; i < words.length; i++) words[i] = reader.u32();
  return fromWords(words);
}

function readRuns(reader: Reader): Container {
  const runs = reader.u16();
  const words = new Uint32Array(BITMAP_BYTES / 4);
  let next = 0;
  for (let i = 0; i < runs; i++) {
    const start = reader.u16();
    const end = start + reader.u16();
    if (start < next || end > 0xffff) throw broken("runs that overlap");
    setRange(words, start, end);
    next = end + 1;
  }
  return fromWords(words);
}

class Reader {
  readonly #view: DataView;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get atEnd(): boolean {
    return this.#at === this.#view.byteLength;
  }

  u16(): number {
    return this.#view.getUint16(this.#step(2), true);
  }

  u32(): number {
    return this.#view.getUint32(this.#step(4), true);
  }

  u64(): bigint {
    return this.#view.getBigUint64(this.#step(8), true);
  }

  take(length: number): Uint8Array {
    const at = this.#step(length);
    return new Uint8Array(this.#view.buffer, this.#view.byteOffset + at, length);
  }

  #step(length: number): number {
    const at = this.#at;
    if (at + length > this.#view.byteLength) throw broken("an early end");
    this.#at += length;
    return at;
  }
}

function broken(what: string): SpillwayError {
  return new SpillwayError("puffin_invalid", `The roaring bitmap has ${what}.`);
}
