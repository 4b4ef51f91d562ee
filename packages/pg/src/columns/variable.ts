/** Builders of the variable-width kinds, and of every type that the lake holds as Postgres's text. */
import type { Column } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import { BuilderBase, shrink } from "./builder.ts";
import { hexDigit } from "./fixed.ts";
import { numericToText } from "./parse.ts";

const FIRST_HEAP_BYTES = 4096;
/** Below this a loop beats the call that copies memory. */
const LOOP_BYTES = 48;
/** Offsets are 32 bits; batches are cut long before. */
const MAX_HEAP_BYTES = 0xffffffff;

/** text, and every type whose binary form is its text (json, name, enums, xml). */
export class TextBuilder extends BuilderBase {
  protected heap: Buffer = Buffer.alloc(0);
  protected used = 0;
  #offsets = new Uint32Array(1);
  #wantedHeap = FIRST_HEAP_BYTES;

  appendBinary(buffer: Buffer, start: number, end: number): void {
    this.append(buffer, start, end);
  }
  appendText(buffer: Buffer, start: number, end: number): void {
    this.append(buffer, start, end);
  }

  protected append(buffer: Buffer, start: number, end: number): void {
    const size = end - start;
    this.reserve(size);
    const { heap, used } = this;
    if (size <= LOOP_BYTES) {
      for (let i = 0; i < size; i++) heap[used + i] = buffer[start + i] ?? 0;
    } else {
      buffer.copy(heap, used, start, end);
    }
    this.commit(size);
  }

  /** Makes room for `size` more bytes. */
  protected reserve(size: number): void {
    const need = this.used + size;
    if (need <= this.heap.length) return;
    if (need > MAX_HEAP_BYTES) {
      throw new SpillwayError("limit_exceeded", `column ${JSON.stringify(this.spec.name)}: a batch over 4 GiB`);
    }
    const first = this.heap.length === 0 ? this.#wantedHeap : this.heap.length * 2;
    // Unzeroed memory: every byte that is handed out was written.
    const grown = Buffer.allocUnsafeSlow(Math.min(Math.max(need, first), MAX_HEAP_BYTES));
    this.heap.copy(grown, 0, 0, this.used);
    this.heap = grown;
  }

  /** Counts a value whose `size` bytes were written at `used`. */
  protected commit(size: number): void {
    if (this.length === this.capacity) this.grow();
    this.used += size;
    this.#offsets[++this.length] = this.used;
  }

  protected override skip(): void {
    this.#offsets[++this.length] = this.used;
  }

  protected resize(capacity: number): void {
    const old = this.#offsets;
    this.#offsets = new Uint32Array(capacity + 1);
    this.#offsets.set(old);
  }

  protected take(validity: Uint8Array | null): Column {
    const offsets = shrink(this.#offsets, this.length + 1);
    const heap = shrink(new Uint8Array(this.heap.buffer, this.heap.byteOffset, this.heap.length), this.used);
    this.#wantedHeap = Math.max(FIRST_HEAP_BYTES, Math.ceil(this.used * 1.05));
    this.heap = Buffer.alloc(0);
    this.used = 0;
    this.#offsets = new Uint32Array(1);
    return { spec: this.spec, validity, offsets, heap };
  }

  override reset(): void {
    super.reset();
    this.used = 0;
  }

  byteLength(): number {
    return this.used + (this.length + 1) * 4;
  }
}

/** jsonb: a version byte before the text. */
export class JsonbBuilder extends TextBuilder {
  override appendBinary(buffer: Buffer, start: number, end: number): void {
    if (buffer[start] !== 1) throw this.mismatch(`version ${buffer[start]} of the binary form is not known`);
    this.append(buffer, start + 1, end);
  }
}

/** numeric without a bound, as the text that casts back to the same value. */
export class NumericTextBuilder extends TextBuilder {
  override appendBinary(buffer: Buffer, start: number, end: number): void {
    const text = numericToText(buffer, start, end);
    if (text === null) throw this.fault("malformed");
    this.reserve(text.length);
    this.commit(this.heap.write(text, this.used, "latin1"));
  }
}

/** "char": one byte; what is not ASCII is written as a backslash and three octal digits, as Postgres 16 does. */
export class CharBuilder extends TextBuilder {
  protected override append(buffer: Buffer, start: number, end: number): void {
    const byte = buffer[start] ?? 0;
    if (end - start !== 1 || byte < 128) {
      return super.append(buffer, start, byte === 0 ? start : end);
    }
    const text = Buffer.from(`\\${byte.toString(8).padStart(3, "0")}`, "latin1");
    super.append(text, 0, text.length);
  }
}

export class BytesBuilder extends TextBuilder {
  override appendText(buffer: Buffer, start: number, end: number): void {
    if (buffer[start] !== 92 || buffer[start + 1] !== 120 || (end - start) % 2 !== 0) throw this.fault("malformed");
    const size = (end - start - 2) >> 1;
    this.reserve(size);
    const { heap, used } = this;
    for (let i = 0, at = start + 2; i < size; i++, at += 2) {
      const byte = (hexDigit(buffer[at] ?? 0) << 4) | hexDigit(buffer[at + 1] ?? 0);
      if (byte < 0) throw this.fault("malformed");
      heap[used + i] = byte;
    }
    this.commit(size);
  }
}
