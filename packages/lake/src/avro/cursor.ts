/** Reading and growing byte buffers in Avro's binary encoding. */
import { SpillwayError } from "@spillway/base/errors";

const decoder = new TextDecoder("utf-8", { fatal: true });

export class Cursor {
  readonly bytes: Uint8Array;
  readonly #view: DataView;
  readonly #buffer: Buffer;
  at = 0;

  constructor(bytes: Uint8Array) {
    // Views must be plain Uint8Arrays also when a Buffer is read.
    this.bytes = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get done(): boolean {
    return this.at >= this.bytes.length;
  }

  byte(): number {
    const value = this.bytes[this.at];
    if (value === undefined) this.#short();
    this.at += 1;
    return value;
  }

  /** An int, or a count or length that must fit a double. */
  int(): number {
    const bytes = this.bytes;
    let at = this.at;
    let byte = bytes[at++] ?? 256;
    let value = byte & 0x7f;
    let shift = 7;
    // Up to four bytes stay inside 28 bits: plain integer arithmetic.
    while (byte & 0x80 && shift < 28) {
      byte = bytes[at++] ?? 256;
      value |= (byte & 0x7f) << shift;
      shift += 7;
    }
    if (byte === 256) this.#short();
    if (byte & 0x80) return this.#wideInt();
    this.at = at;
    return (value >>> 1) ^ -(value & 1);
  }

  #wideInt(): number {
    const value = this.long();
    if (value > 9007199254740991n || value < -9007199254740991n) this.corrupt("a number out of range");
    return Number(value);
  }

  long(): bigint {
    let low = 0;
    let high = 0;
    let shift = 0;
    for (; shift < 28; shift += 7) {
      const byte = this.byte();
      low |= (byte & 0x7f) << shift;
      if (byte < 0x80) return BigInt((low >>> 1) ^ -(low & 1));
    }
    for (; shift < 70; shift += 7) {
      const byte = this.byte();
      // Beyond 28 bits, two halves: 28 below and up to 36 above.
      high += (byte & 0x7f) * 2 ** (shift - 28);
      if (byte < 0x80) return zigzag(low, high);
    }
    return this.corrupt("a variable-length number without an end");
  }

  skipLong(): void {
    this.skipLongs(1);
  }

  /** Skips that many variable-length numbers: what a manifest has most of. */
  skipLongs(count: number): void {
    const bytes = this.bytes;
    let at = this.at;
    for (let left = count; left > 0; left -= 1) {
      const limit = at + 10;
      while ((bytes[at] ?? 256) >= 0x80 && at < limit) {
        if (at >= bytes.length) this.#short();
        at += 1;
      }
      if (at === limit) this.corrupt("a variable-length number without an end");
      at += 1;
    }
    this.at = at;
  }

  /** Skips that many pairs of a variable-length number and a length-prefixed blob. */
  skipKeyedBlobs(count: number): void {
    for (let left = count; left > 0; left -= 1) {
      this.skipLongs(1);
      this.skipBlob();
    }
  }

  float(): number {
    return this.#view.getFloat32(this.#take(4), true);
  }

  double(): number {
    return this.#view.getFloat64(this.#take(8), true);
  }

  /** A view of the next bytes, not a copy. */
  take(length: number): Uint8Array {
    const start = this.#take(length);
    return this.bytes.subarray(start, start + length);
  }

  blob(): Uint8Array {
    return this.take(this.#length());
  }

  text(): string {
    const length = this.#length();
    const start = this.#take(length);
    const bytes = this.bytes;
    for (let i = start; i < start + length; i += 1) {
      if ((bytes[i] ?? 0) >= 0x80) return this.#wideText(start, length);
    }
    return this.#buffer.toString("latin1", start, start + length);
  }

  #wideText(start: number, length: number): string {
    try {
      return decoder.decode(this.bytes.subarray(start, start + length));
    } catch {
      return this.corrupt("text that is not UTF-8");
    }
  }

  #length(): number {
    const length = this.int();
    return length >= 0 ? length : this.corrupt("a negative length");
  }

  skipBlob(): void {
    this.#take(this.#length());
  }

  skip(length: number): void {
    this.#take(length);
  }

  #take(length: number): number {
    const start = this.at;
    if (start + length > this.bytes.length) this.#short();
    this.at = start + length;
    return start;
  }

  #short(): never {
    return this.corrupt("an early end");
  }

  corrupt(what: string): never {
    throw new SpillwayError("lake_file_corrupt", `Avro data with ${what} at byte ${this.at}`);
  }
}

function zigzag(low28: number, high: number): bigint {
  const raw = BigInt.asUintN(64, (BigInt(high) << 28n) | BigInt(low28));
  return (raw >> 1n) ^ -(raw & 1n);
}

/** Bytes that grow. */
export class Sink {
  #bytes = new Uint8Array(1024);
  #view = new DataView(this.#bytes.buffer);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  #room(more: number): number {
    const at = this.#length;
    if (at + more > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(this.#bytes.length * 2, at + more));
      grown.set(this.#bytes.subarray(0, at));
      this.#bytes = grown;
      this.#view = new DataView(grown.buffer);
    }
    this.#length = at + more;
    return at;
  }

  byte(value: number): void {
    const at = this.#room(1);
    this.#bytes[at] = value;
  }

  int(value: number): void {
    if ((value | 0) !== value) return this.long(BigInt(value));
    let raw = ((value << 1) ^ (value >> 31)) >>> 0;
    while (raw >= 0x80) {
      this.byte((raw & 0x7f) | 0x80);
      raw >>>= 7;
    }
    this.byte(raw);
  }

  long(value: bigint): void {
    let raw = BigInt.asUintN(64, (value << 1n) ^ (value >> 63n));
    while (raw >= 0x80n) {
      this.byte(Number(raw & 0x7fn) | 0x80);
      raw >>= 7n;
    }
    this.byte(Number(raw));
  }

  float(value: number): void {
    const at = this.#room(4);
    this.#view.setFloat32(at, value, true);
  }

  double(value: number): void {
    const at = this.#room(8);
    this.#view.setFloat64(at, value, true);
  }

  raw(bytes: Uint8Array): void {
    const at = this.#room(bytes.length);
    this.#bytes.set(bytes, at);
  }

  blob(bytes: Uint8Array): void {
    this.int(bytes.length);
    this.raw(bytes);
  }

  text(text: string): void {
    this.blob(Buffer.from(text, "utf8"));
  }

  /** A view of what was written; the next write may move it. */
  view(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  clear(): void {
    this.#length = 0;
  }
}
