/**
 * A column under construction. Values go from the wire straight into the column's own memory; nothing is allocated
 * for a value. The memory grows by doubling, and `finish` hands it over without copying where it is mostly used.
 */
import { SpillwayError } from "@spillway/base/errors";
import type { Column, ColumnSpec } from "@spillway/base/columns";
import type { ParseFault } from "./parse.ts";

export interface ColumnBuilder {
  readonly spec: ColumnSpec;
  readonly length: number;
  appendNull(): void;
  /** A value in Postgres's binary form. Throws pg_value_unrepresentable or pg_type_mismatch, naming the column. */
  appendBinary(buffer: Buffer, start: number, end: number): void;
  /** A value in Postgres's text form, under the canonical settings. Throws as `appendBinary`. */
  appendText(buffer: Buffer, start: number, end: number): void;
  /** The values so far, as a column; the builder is empty then, with new memory when it is next used. */
  finish(): Column;
  /** Forgets the values and keeps the memory. */
  reset(): void;
  /** Bytes that the values take. */
  byteLength(): number;
}

const FIRST_CAPACITY = 256;

if (new Uint8Array(new Uint32Array([1]).buffer)[0] !== 1) {
  throw new SpillwayError("internal", "column batches need a little-endian processor");
}

/** What all builders share: the count, the room, and which values are NULL. */
export abstract class BuilderBase implements ColumnBuilder {
  readonly spec: ColumnSpec;
  length = 0;
  protected capacity = 0;
  /** Filled with 1 up to the capacity from the first NULL on; values that are present need not touch it. */
  protected validity: Uint8Array | null = null;
  #wanted = FIRST_CAPACITY;

  constructor(spec: ColumnSpec) {
    this.spec = spec;
  }

  abstract appendBinary(buffer: Buffer, start: number, end: number): void;
  abstract appendText(buffer: Buffer, start: number, end: number): void;
  abstract byteLength(): number;
  protected abstract resize(capacity: number): void;
  /** The column of the first `length` values; gives the memory away. */
  protected abstract take(validity: Uint8Array | null): Column;

  appendNull(): void {
    if (this.length === this.capacity) this.grow();
    this.validity ??= new Uint8Array(this.capacity).fill(1);
    this.validity[this.length] = 0;
    this.skip();
  }

  /** Counts a value that is NULL. */
  protected skip(): void {
    this.length++;
  }

  protected grow(): void {
    this.capacity = this.capacity === 0 ? this.#wanted : this.capacity * 2;
    this.resize(this.capacity);
    if (this.validity) {
      const old = this.validity;
      this.validity = new Uint8Array(this.capacity).fill(1, old.length);
      this.validity.set(old);
    }
  }

  finish(): Column {
    const column = this.take(this.validity ? shrink(this.validity, this.length) : null);
    // The next batch is probably as long as this one.
    this.#wanted = Math.max(FIRST_CAPACITY, this.length);
    this.validity = null;
    this.capacity = 0;
    this.length = 0;
    return column;
  }

  reset(): void {
    this.length = 0;
    this.validity = null;
  }

  /** Throws unless the value's size is the type's. */
  protected expectSize(start: number, end: number, size: number): void {
    if (end - start !== size) throw this.mismatch(`a value of ${end - start} bytes instead of ${size}`);
  }

  protected mismatch(what: string): SpillwayError {
    const text = `column ${JSON.stringify(this.spec.name)}: ${what}`;
    return new SpillwayError("pg_type_mismatch", text, { details: { column: this.spec.name, kind: this.spec.kind } });
  }

  protected fault(fault: Exclude<ParseFault, null>): SpillwayError {
    if (fault === "malformed") return this.mismatch(`not a value of ${this.spec.kind}`);
    const { name, kind } = this.spec;
    const what = fault === "out of range" ? "a value out of range" : `a value that is ${fault}`;
    const text = `column ${JSON.stringify(name)} has ${what} for ${kind}`;
    return new SpillwayError("pg_value_unrepresentable", text, { details: { column: name, kind, fault } });
  }
}

type Numbers = Uint8Array | Int16Array | Int32Array | Uint32Array | BigInt64Array | Float32Array | Float64Array;

/** The first `length` elements: a view when most of the memory is used, else a copy, so that little is wasted. */
export function shrink<T extends Numbers>(data: T, length: number): T {
  const view = length * 4 >= data.length * 3 ? data.subarray(0, length) : data.slice(0, length);
  return view as T;
}
