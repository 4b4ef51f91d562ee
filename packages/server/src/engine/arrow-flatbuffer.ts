/**
 * As much of FlatBuffers as Arrow's messages need, written and read without generated code.
 * Source: https://flatbuffers.dev/internals/ . A buffer is written from its end to its beginning, so that
 * everything an offset points at exists before the offset.
 */
import { SpillwayError } from "@spillway/base/errors";

/** A value of a table: slot, alignment and how it is written. Absent slots read as their defaults. */
export type Slot =
  | readonly ["i8" | "i16" | "i32", number]
  | readonly ["i64", bigint]
  | readonly ["bool", boolean]
  | readonly ["offset", number]
  | null;

const WIDTH = { i8: 1, bool: 1, i16: 2, i32: 4, offset: 4, i64: 8 } as const;

export class FlatWriter {
  #bytes = Buffer.alloc(1024);
  /** Bytes written, counted from the end: what offsets refer to. */
  #used = 0;
  #align = 1;

  /** A table; slots in the order of the schema. Returns its offset. */
  table(slots: readonly Slot[]): number {
    const places: number[] = [];
    const start = this.#used;
    // Widest first, so that little is lost to alignment.
    const order = slots.map((slot, i) => ({ slot, i })).filter((s) => s.slot !== null);
    order.sort((a, b) => WIDTH[b.slot?.[0] ?? "i8"] - WIDTH[a.slot?.[0] ?? "i8"]);
    for (const { slot, i } of order.toReversed()) if (slot) places[i] = this.#slot(slot);
    this.#prepare(4, 0);
    const at = this.#push(4);
    // The vtable lies directly before the table.
    const entries = slots.length;
    this.#prepare(2, 0);
    for (let i = entries - 1; i >= 0; i--) {
      const place = places[i];
      this.#bytes.writeUInt16LE(place === undefined ? 0 : at - place, this.#at(this.#push(2)));
    }
    this.#bytes.writeUInt16LE(at - start, this.#at(this.#push(2)));
    this.#bytes.writeUInt16LE(4 + entries * 2, this.#at(this.#push(2)));
    this.#bytes.writeInt32LE(this.#used - at, this.#at(at));
    return at;
  }

  string(text: string): number {
    const bytes = Buffer.from(text, "utf8");
    this.#prepare(4, bytes.length + 1);
    const at = this.#push(bytes.length + 1);
    bytes.copy(this.#bytes, this.#at(at));
    return this.#count(bytes.length);
  }

  offsets(list: readonly number[]): number {
    this.#prepare(4, list.length * 4);
    for (const target of list.toReversed()) this.#reference(target);
    return this.#count(list.length);
  }

  /** Structs of 64-bit numbers, `values` in the order of the bytes. */
  longs(values: readonly number[], perStruct: number): number {
    this.#prepare(4, values.length * 8);
    this.#prepare(8, values.length * 8);
    const at = this.#at(this.#push(values.length * 8));
    values.forEach((value, i) => this.#bytes.writeBigInt64LE(BigInt(value), at + i * 8));
    return this.#count(values.length / perStruct);
  }

  /** The finished buffer with `root` as its root, a multiple of 8 bytes long. */
  finish(root: number): Buffer {
    this.#prepare(Math.max(this.#align, 8), 4);
    this.#reference(root);
    return this.#bytes.subarray(this.#bytes.length - this.#used);
  }

  #slot(slot: NonNullable<Slot>): number {
    const [type, value] = slot;
    const width = WIDTH[type];
    this.#prepare(width, 0);
    if (type === "offset") return this.#reference(value);
    const at = this.#push(width);
    const place = this.#at(at);
    if (type === "i64") this.#bytes.writeBigInt64LE(value, place);
    else if (type === "i32") this.#bytes.writeInt32LE(value, place);
    else if (type === "i16") this.#bytes.writeInt16LE(value, place);
    else this.#bytes.writeInt8(Number(value), place);
    return at;
  }

  #reference(target: number): number {
    this.#prepare(4, 0);
    const at = this.#push(4);
    this.#bytes.writeUInt32LE(at - target, this.#at(at));
    return at;
  }

  #count(count: number): number {
    const at = this.#push(4);
    this.#bytes.writeUInt32LE(count, this.#at(at));
    return at;
  }

  /** Pads so that after `more` bytes the position is a multiple of `align`. */
  #prepare(align: number, more: number): void {
    if (align > this.#align) this.#align = align;
    const pad = (align - ((this.#used + more) % align)) % align;
    this.#push(pad);
  }

  #push(count: number): number {
    while (this.#used + count > this.#bytes.length) {
      const grown = Buffer.alloc(this.#bytes.length * 2);
      this.#bytes.copy(grown, grown.length - this.#bytes.length);
      this.#bytes = grown;
    }
    this.#used += count;
    return this.#used;
  }

  #at(used: number): number {
    return this.#bytes.length - used;
  }
}

/** A table of a buffer that came from outside: every read is checked against its bounds. */
export class FlatTable {
  readonly #bytes: Buffer;
  readonly #at: number;
  readonly #vtable: number;
  readonly #slots: number;

  constructor(bytes: Buffer, at: number) {
    this.#bytes = bytes;
    this.#at = at;
    this.#vtable = at - guard(() => bytes.readInt32LE(at));
    this.#slots = (guard(() => bytes.readUInt16LE(this.#vtable)) - 4) >> 1;
  }

  static root(bytes: Buffer): FlatTable {
    return new FlatTable(
      bytes,
      guard(() => bytes.readUInt32LE(0)),
    );
  }

  i8(slot: number, absent = 0): number {
    return this.#read(slot, absent, (at) => this.#bytes.readInt8(at));
  }

  i16(slot: number, absent = 0): number {
    return this.#read(slot, absent, (at) => this.#bytes.readInt16LE(at));
  }

  i32(slot: number, absent = 0): number {
    return this.#read(slot, absent, (at) => this.#bytes.readInt32LE(at));
  }

  i64(slot: number): number {
    return this.#read(slot, 0, (at) => Number(this.#bytes.readBigInt64LE(at)));
  }

  bool(slot: number): boolean {
    return this.i8(slot) !== 0;
  }

  table(slot: number): FlatTable | null {
    return this.#read(slot, null, (at) => new FlatTable(this.#bytes, at + this.#bytes.readUInt32LE(at)));
  }

  text(slot: number): string | null {
    return this.#read(slot, null, (at) => {
      const start = at + this.#bytes.readUInt32LE(at);
      const length = this.#bytes.readUInt32LE(start);
      return this.#bytes.toString("utf8", start + 4, start + 4 + length);
    });
  }

  tables(slot: number): FlatTable[] {
    const { start, count } = this.vector(slot, 4);
    return Array.from({ length: count }, (_, i) => {
      const at = start + i * 4;
      return guard(() => new FlatTable(this.#bytes, at + this.#bytes.readUInt32LE(at)));
    });
  }

  /** 64-bit numbers of a vector of structs with two of them each. */
  pairs(slot: number): (readonly [number, number])[] {
    const { start, count } = this.vector(slot, 16);
    const long = (at: number): number => guard(() => Number(this.#bytes.readBigInt64LE(at)));
    return Array.from({ length: count }, (_, i) => [long(start + i * 16), long(start + i * 16 + 8)] as const);
  }

  vector(slot: number, width: number): { start: number; count: number } {
    return this.#read(slot, { start: 0, count: 0 }, (at) => {
      const start = at + this.#bytes.readUInt32LE(at);
      const count = this.#bytes.readUInt32LE(start);
      if (start + 4 + count * width > this.#bytes.length) throw new RangeError("a vector is longer than its buffer");
      return { start: start + 4, count };
    });
  }

  #read<T>(slot: number, absent: T, read: (at: number) => T): T {
    if (slot >= this.#slots) return absent;
    return guard(() => {
      const place = this.#bytes.readUInt16LE(this.#vtable + 4 + slot * 2);
      return place === 0 ? absent : read(this.#at + place);
    });
  }
}

function guard<T>(read: () => T): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof SpillwayError) throw error;
    throw new SpillwayError("arrow_invalid", "The metadata of an Arrow message is cut off or damaged.", {
      cause: error,
    });
  }
}
