/** A set of row positions of one data file, compressed. Positions are integers from 0 below 2^48. */
import { assert } from "@spillway/base/assert";
import {
  addLow,
  addLowRange,
  cloneContainer,
  type Container,
  emptyContainer,
  hasLow,
  lowsOf,
  unionContainers,
} from "./container.ts";
import { decodeRoaring64, encodeRoaring64 } from "./roaring.ts";

/** Iceberg itself stays below 2^63; a Parquet file has fewer rows than this, and doubles hold them exactly. */
const POSITION_END = 2 ** 48;
const CONTAINER_SPAN = 65536;

export class PositionSet {
  /** By position / 65 536. */
  readonly #containers: Map<number, Container>;

  constructor(positions?: Iterable<number | bigint>) {
    this.#containers = new Map();
    if (positions) this.addAll(positions);
  }

  /** From the portable 64-bit roaring form. Throws `puffin_invalid`. */
  static decode(bytes: Uint8Array): PositionSet {
    const set = new PositionSet();
    for (const [high, container] of decodeRoaring64(bytes)) set.#containers.set(high, container);
    return set;
  }

  /** The portable 64-bit roaring form, each container in its smallest encoding. */
  encode(): Uint8Array {
    return encodeRoaring64(this.#containers);
  }

  add(position: number | bigint): void {
    const at = Number(position);
    assert(Number.isInteger(at) && at >= 0 && at < POSITION_END, () => `not a row position: ${position}`);
    const high = Math.floor(at / CONTAINER_SPAN);
    const old = this.#containers.get(high) ?? emptyContainer();
    const next = addLow(old, at % CONTAINER_SPAN);
    if (next !== old || old.size === 1) this.#containers.set(high, next);
  }

  addAll(positions: Iterable<number | bigint>): void {
    for (const position of positions) this.add(position);
  }

  /** Every position from `start` up to, not including, `end`. */
  addRange(start: number, end: number): void {
    assert(start >= 0 && end <= POSITION_END, () => `not row positions: ${start} to ${end}`);
    for (let at = start; at < end;) {
      const high = Math.floor(at / CONTAINER_SPAN);
      const stop = Math.min(end, (high + 1) * CONTAINER_SPAN);
      const old = this.#containers.get(high) ?? emptyContainer();
      this.#containers.set(high, addLowRange(old, at % CONTAINER_SPAN, (stop - 1) % CONTAINER_SPAN));
      at = stop;
    }
  }

  has(position: number | bigint): boolean {
    const at = Number(position);
    const container = this.#containers.get(Math.floor(at / CONTAINER_SPAN));
    return container !== undefined && hasLow(container, at % CONTAINER_SPAN);
  }

  /** A new set; both stay as they are. */
  union(other: PositionSet): PositionSet {
    const result = this.clone();
    for (const [high, container] of other.#containers) {
      const own = result.#containers.get(high);
      result.#containers.set(high, own ? unionContainers(own, container) : cloneContainer(container));
    }
    return result;
  }

  clone(): PositionSet {
    const result = new PositionSet();
    for (const [high, container] of this.#containers) result.#containers.set(high, cloneContainer(container));
    return result;
  }

  get cardinality(): number {
    let sum = 0;
    for (const container of this.#containers.values()) sum += container.size;
    return sum;
  }

  get isEmpty(): boolean {
    return this.cardinality === 0;
  }

  /** Bytes that it takes in memory, roughly. */
  get memoryBytes(): number {
    let sum = 64;
    for (const container of this.#containers.values()) {
      sum += 80 + (container.kind === "array" ? container.values.byteLength : container.words.byteLength);
    }
    return sum;
  }

  /** Ascending. */
  *[Symbol.iterator](): Generator<number> {
    for (const high of [...this.#containers.keys()].toSorted((a, b) => a - b)) {
      const container = this.#containers.get(high);
      if (container) for (const low of lowsOf(container)) yield high * CONTAINER_SPAN + low;
    }
  }

  /** The largest position, or -1. */
  get last(): number {
    let high = -1;
    for (const [key, container] of this.#containers) if (container.size > 0 && key > high) high = key;
    let last = -1;
    const container = this.#containers.get(high);
    if (container) for (const low of lowsOf(container)) last = high * CONTAINER_SPAN + low;
    return last;
  }

  /** Ascending, as doubles: exact for every position. */
  toSorted(): Float64Array {
    const sorted = new Float64Array(this.cardinality);
    let i = 0;
    for (const position of this) sorted[i++] = position;
    return sorted;
  }

  /** Ascending, as unsigned 32-bit integers. A position beyond that is a caller's bug. */
  toSortedUint32(): Uint32Array {
    assert(this.last < 2 ** 32, "positions beyond 32 bits");
    return Uint32Array.from(this.toSorted());
  }

  /** Ascending, as 64-bit integers. */
  toSortedBigInt(): BigInt64Array {
    const sorted = new BigInt64Array(this.cardinality);
    let i = 0;
    for (const position of this) sorted[i++] = BigInt(position);
    return sorted;
  }
}
