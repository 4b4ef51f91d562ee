/**
 * Hash of a key → ordinal of the row, in flat memory: 40 bits of hash and 32 of ordinal a slot, open addressing. A
 * multimap: keys that share the 40 bits are told apart by whoever has the rows (docs/internals/mirror.md §3).
 */
import { SpillwayError } from "@spillway/base/errors";

const EMPTY = 0;
const GONE = 0xffffffff;
/** Ordinals lie between these: 0 and the last one say that a slot is free. */
export const FIRST_ORDINAL = 1;
export const LAST_ORDINAL = GONE - 1;

const FIRST_BITS = 10;
const MAX_LOAD = 0.8;
const BYTES_PER_SLOT = 9;

export class KeyIndex {
  #bits: number;
  #tags: Uint32Array;
  #lows: Uint8Array;
  #ordinals: Uint32Array;
  #live = 0;
  /** Slots that are not empty: live ones and those that were removed. */
  #used = 0;
  readonly #maxBytes: number;

  constructor(expected = 0, maxBytes = Infinity) {
    this.#maxBytes = maxBytes;
    this.#bits = FIRST_BITS;
    while (expected > 2 ** this.#bits * MAX_LOAD) this.#bits++;
    this.#check(this.#bits);
    const size = 2 ** this.#bits;
    this.#tags = new Uint32Array(size);
    this.#lows = new Uint8Array(size);
    this.#ordinals = new Uint32Array(size);
  }

  get size(): number {
    return this.#live;
  }

  get memoryBytes(): number {
    return this.#ordinals.length * BYTES_PER_SLOT;
  }

  /** The first slot with this hash, or -1; `after` the next one behind it. `low` is 8 bits. */
  find(tag: number, low: number, after = -1): number {
    const mask = this.#ordinals.length - 1;
    let slot = after < 0 ? tag >>> (32 - this.#bits) : (after + 1) & mask;
    for (;;) {
      const ordinal = this.#ordinals[slot];
      if (ordinal === EMPTY) return -1;
      if (ordinal !== GONE && this.#tags[slot] === tag && this.#lows[slot] === low) return slot;
      slot = (slot + 1) & mask;
    }
  }

  ordinalAt(slot: number): number {
    return this.#ordinals[slot] ?? 0;
  }

  /** Gives the key of the slot another row. */
  replaceAt(slot: number, ordinal: number): void {
    this.#ordinals[slot] = ordinal;
  }

  removeAt(slot: number): void {
    this.#ordinals[slot] = GONE;
    this.#live--;
  }

  /** Throws `mirror_index_limit` when it would have to grow beyond its bound. */
  add(tag: number, low: number, ordinal: number): void {
    if (this.#used + 1 > this.#ordinals.length * MAX_LOAD) this.#grow();
    this.#put(tag, low, ordinal);
  }

  /** The slot of this hash with exactly this ordinal, or -1. */
  slotOf(tag: number, low: number, ordinal: number): number {
    let slot = this.find(tag, low);
    while (slot >= 0 && this.#ordinals[slot] !== ordinal) slot = this.find(tag, low, slot);
    return slot;
  }

  clear(): void {
    this.#ordinals.fill(EMPTY);
    this.#live = 0;
    this.#used = 0;
  }

  #put(tag: number, low: number, ordinal: number): void {
    const mask = this.#ordinals.length - 1;
    let slot = tag >>> (32 - this.#bits);
    while (this.#ordinals[slot] !== EMPTY) slot = (slot + 1) & mask;
    this.#tags[slot] = tag;
    this.#lows[slot] = low;
    this.#ordinals[slot] = ordinal;
    this.#live++;
    this.#used++;
  }

  /** Twice the room, or the same without the removed ones when there are many of those. */
  #grow(): void {
    const [tags, lows, ordinals] = [this.#tags, this.#lows, this.#ordinals];
    if (this.#live > ordinals.length * MAX_LOAD * 0.6) {
      this.#check(this.#bits + 1);
      this.#bits++;
    }
    const size = 2 ** this.#bits;
    this.#tags = new Uint32Array(size);
    this.#lows = new Uint8Array(size);
    this.#ordinals = new Uint32Array(size);
    this.#live = 0;
    this.#used = 0;
    for (let i = 0; i < ordinals.length; i++) {
      const ordinal = ordinals[i] ?? EMPTY;
      if (ordinal !== EMPTY && ordinal !== GONE) this.#put(tags[i] ?? 0, lows[i] ?? 0, ordinal);
    }
  }

  #check(bits: number): void {
    const bytes = 2 ** bits * BYTES_PER_SLOT;
    if (bytes <= this.#maxBytes && bits < 32) return;
    throw new SpillwayError("mirror_index_limit", `the key index would need ${bytes} bytes of ${this.#maxBytes}`);
  }
}
