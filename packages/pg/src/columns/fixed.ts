/**
 * Builders of the fixed-width kinds.
 * Source of the binary forms: the send functions in src/backend/utils/adt; all are big-endian.
 */
import { INFINITY_DAYS, NEG_INFINITY_DAYS, type Column, type ColumnSpec, type FixedData } from "@spillway/base/columns";
import { BuilderBase, shrink } from "./builder.ts";
import {
  fitsInt64,
  limbs,
  parseDecimalText,
  parseInteger,
  parseNumericBinary,
  parseSmall,
  type ParseFault,
} from "./parse.ts";
import { EPOCH_DAYS, EPOCH_US_HIGH, EPOCH_US_LOW, parseDate, parsed, parseTime, parseTimestamp } from "./parse-time.ts";

const TWO_32 = 4294967296;

/** A 32-bit word, big-endian, signed. */
function word(buffer: Buffer, at: number): number {
  return (
    ((buffer[at] ?? 0) << 24) | ((buffer[at + 1] ?? 0) << 16) | ((buffer[at + 2] ?? 0) << 8) | (buffer[at + 3] ?? 0)
  );
}

abstract class FixedBuilder<T extends FixedData> extends BuilderBase {
  protected data: T;
  readonly #make: new (length: number) => T;
  readonly #perRow: number;

  constructor(spec: ColumnSpec, make: new (length: number) => T, perRow = 1) {
    super(spec);
    this.#make = make;
    this.#perRow = perRow;
    this.data = new make(0);
  }

  protected resize(capacity: number): void {
    const old = this.data;
    this.data = new this.#make(capacity * this.#perRow);
    this.data.set(old as never);
  }

  protected take(validity: Uint8Array | null): Column {
    const data = shrink(this.data, this.length * this.#perRow);
    this.data = new this.#make(0);
    return { spec: this.spec, validity, data };
  }

  byteLength(): number {
    return this.length * this.#perRow * this.data.BYTES_PER_ELEMENT;
  }
}

/** Kinds of 64 bits and more are written as 32-bit lanes, low first: no bigint is made. */
abstract class LaneBuilder<T extends BigInt64Array | Float64Array> extends FixedBuilder<T> {
  protected lanes: Int32Array = new Int32Array(0);

  protected override resize(capacity: number): void {
    super.resize(capacity);
    this.lanes = new Int32Array(this.data.buffer);
  }

  protected override take(validity: Uint8Array | null): Column {
    this.lanes = new Int32Array(0);
    return super.take(validity);
  }

  protected put64(low: number, high: number): void {
    if (this.length === this.capacity) this.grow();
    const at = this.length++ * 2;
    this.lanes[at] = low;
    this.lanes[at + 1] = high;
  }

  protected putLimbs64(fault: ParseFault): void {
    if (fault !== null) throw this.fault(fault);
    if (!fitsInt64()) throw this.fault("out of range");
    this.put64(limbs[0] ?? 0, limbs[1] ?? 0);
  }
}

export class BoolBuilder extends FixedBuilder<Uint8Array> {
  constructor(spec: ColumnSpec) {
    super(spec, Uint8Array);
  }
  appendBinary(buffer: Buffer, start: number, end: number): void {
    this.expectSize(start, end, 1);
    if (this.length === this.capacity) this.grow();
    this.data[this.length++] = buffer[start] === 0 ? 0 : 1;
  }
  appendText(buffer: Buffer, start: number, end: number): void {
    const byte = buffer[start];
    if (end - start !== 1 || (byte !== 116 && byte !== 102)) throw this.fault("malformed");
    if (this.length === this.capacity) this.grow();
    this.data[this.length++] = byte === 116 ? 1 : 0;
  }
}

export class Int16Builder extends FixedBuilder<Int16Array> {
  constructor(spec: ColumnSpec) {
    super(spec, Int16Array);
  }
  appendBinary(buffer: Buffer, start: number, end: number): void {
    this.expectSize(start, end, 2);
    if (this.length === this.capacity) this.grow();
    this.data[this.length++] = ((buffer[start] ?? 0) << 8) | (buffer[start + 1] ?? 0);
  }
  appendText(buffer: Buffer, start: number, end: number): void {
    const value = parseSmall(buffer, start, end);
    if (!(value >= -32768 && value <= 32767)) throw this.fault("malformed");
    if (this.length === this.capacity) this.grow();
    this.data[this.length++] = value;
  }
}

export class Int32Builder extends FixedBuilder<Int32Array> {
  constructor(spec: ColumnSpec) {
    super(spec, Int32Array);
  }
  appendBinary(buffer: Buffer, start: number, end: number): void {
    this.expectSize(start, end, 4);
    if (this.length === this.capacity) this.grow();
    this.data[this.length++] = word(buffer, start);
  }
  appendText(buffer: Buffer, start: number, end: number): void {
    const value = parseSmall(buffer, start, end);
    if (!(value >= -2147483648 && value <= 2147483647)) throw this.fault("malformed");
    if (this.length === this.capacity) this.grow();
    this.data[this.length++] = value;
  }
}

export class DateBuilder extends FixedBuilder<Int32Array> {
  constructor(spec: ColumnSpec) {
    super(spec, Int32Array);
  }
  appendBinary(buffer: Buffer, start: number, end: number): void {
    this.expectSize(start, end, 4);
    const days = word(buffer, start);
    if (this.length === this.capacity) this.grow();
    this.data[this.length++] =
      days === 2147483647 ? INFINITY_DAYS : days === -2147483648 ? NEG_INFINITY_DAYS : days + EPOCH_DAYS;
  }
  appendText(buffer: Buffer, start: number, end: number): void {
    const days = parseDate(buffer, start, end);
    if (Number.isNaN(days)) throw this.fault("malformed");
    if (this.length === this.capacity) this.grow();
    this.data[this.length++] = Number.isFinite(days) ? days : days > 0 ? INFINITY_DAYS : NEG_INFINITY_DAYS;
  }
}

export class Int64Builder extends LaneBuilder<BigInt64Array> {
  constructor(spec: ColumnSpec) {
    super(spec, BigInt64Array);
  }
  appendBinary(buffer: Buffer, start: number, end: number): void {
    this.expectSize(start, end, 8);
    this.put64(word(buffer, start + 4), word(buffer, start));
  }
  appendText(buffer: Buffer, start: number, end: number): void {
    this.putLimbs64(parseInteger(buffer, start, end));
  }
}

/** oid: unsigned 32 bits. */
export class OidBuilder extends LaneBuilder<BigInt64Array> {
  constructor(spec: ColumnSpec) {
    super(spec, BigInt64Array);
  }
  appendBinary(buffer: Buffer, start: number, end: number): void {
    this.expectSize(start, end, 4);
    this.put64(word(buffer, start), 0);
  }
  appendText(buffer: Buffer, start: number, end: number): void {
    this.putLimbs64(parseInteger(buffer, start, end));
  }
}

export class TimeBuilder extends LaneBuilder<BigInt64Array> {
  constructor(spec: ColumnSpec) {
    super(spec, BigInt64Array);
  }
  appendBinary(buffer: Buffer, start: number, end: number): void {
    this.expectSize(start, end, 8);
    this.put64(word(buffer, start + 4), word(buffer, start));
  }
  appendText(buffer: Buffer, start: number, end: number): void {
    const micros = parseTime(buffer, start, end);
    if (Number.isNaN(micros)) throw this.fault("malformed");
    this.put64((micros % TWO_32) | 0, Math.floor(micros / TWO_32));
  }
}

/** timestamp and timestamptz: µs since 2000 on the wire, since 1970 in the column. */
export class TimestampBuilder extends LaneBuilder<BigInt64Array> {
  constructor(spec: ColumnSpec) {
    super(spec, BigInt64Array);
  }
  appendBinary(buffer: Buffer, start: number, end: number): void {
    this.expectSize(start, end, 8);
    const high = word(buffer, start);
    const low = word(buffer, start + 4);
    if (high === 2147483647 && low === -1) return this.put64(-1, 2147483647);
    if (high === -2147483648 && low === 0) return this.put64(1, -2147483648);
    const sum = (low >>> 0) + EPOCH_US_LOW;
    const shifted = high + EPOCH_US_HIGH + (sum >= TWO_32 ? 1 : 0);
    // Postgres counts from 2000 and so reaches 29 years further than µs since 1970 do.
    if (shifted > 2147483647) throw this.fault("out of range");
    this.put64(sum | 0, shifted);
  }
  appendText(buffer: Buffer, start: number, end: number): void {
    parseTimestamp(buffer, start, end);
    const { days, micros } = parsed;
    if (days === Number.POSITIVE_INFINITY) return this.put64(-1, 2147483647);
    if (days === Number.NEGATIVE_INFINITY) return this.put64(1, -2147483648);
    const wholeSeconds = Math.floor(micros / 1e6);
    const seconds = days * 86_400 + wholeSeconds;
    if (Number.isNaN(seconds)) throw this.fault("malformed");
    // seconds * 10^6 in two steps of 22 bits, each exact in a double.
    const upper = Math.floor(seconds / 4194304) * 1e6;
    const lower = (seconds - Math.floor(seconds / 4194304) * 4194304) * 1e6 + (micros - wholeSeconds * 1e6);
    const low = (upper - Math.floor(upper / 1024) * 1024) * 4194304 + lower;
    const high = Math.floor(upper / 1024) + Math.floor(low / TWO_32);
    if (high > 2147483647) throw this.fault("out of range");
    this.put64((low % TWO_32) | 0, high);
  }
}

export class Float32Builder extends FixedBuilder<Float32Array> {
  #lanes: Int32Array = new Int32Array(0);
  constructor(spec: ColumnSpec) {
    super(spec, Float32Array);
  }
  protected override resize(capacity: number): void {
    super.resize(capacity);
    this.#lanes = new Int32Array(this.data.buffer);
  }
  appendBinary(buffer: Buffer, start: number, end: number): void {
    this.expectSize(start, end, 4);
    if (this.length === this.capacity) this.grow();
    this.#lanes[this.length++] = word(buffer, start);
  }
  appendText(buffer: Buffer, start: number, end: number): void {
    const value = Number(buffer.toString("latin1", start, end));
    if (Number.isNaN(value) && buffer[start] !== 78) throw this.fault("malformed");
    if (this.length === this.capacity) this.grow();
    this.data[this.length++] = value;
  }
}

export class Float64Builder extends LaneBuilder<Float64Array> {
  constructor(spec: ColumnSpec) {
    super(spec, Float64Array);
  }
  appendBinary(buffer: Buffer, start: number, end: number): void {
    this.expectSize(start, end, 8);
    this.put64(word(buffer, start + 4), word(buffer, start));
  }
  appendText(buffer: Buffer, start: number, end: number): void {
    const value = Number(buffer.toString("latin1", start, end));
    if (Number.isNaN(value) && buffer[start] !== 78) throw this.fault("malformed");
    if (this.length === this.capacity) this.grow();
    this.data[this.length++] = value;
  }
}

export class DecimalBuilder extends FixedBuilder<BigInt64Array> {
  readonly #scale: number;
  #lanes: Uint32Array = new Uint32Array(0);
  constructor(spec: ColumnSpec) {
    super(spec, BigInt64Array, 2);
    this.#scale = spec.decimal?.scale ?? 0;
  }
  protected override resize(capacity: number): void {
    super.resize(capacity);
    this.#lanes = new Uint32Array(this.data.buffer);
  }
  appendBinary(buffer: Buffer, start: number, end: number): void {
    this.#put(parseNumericBinary(buffer, start, end, this.#scale));
  }
  appendText(buffer: Buffer, start: number, end: number): void {
    this.#put(parseDecimalText(buffer, start, end, this.#scale));
  }
  #put(fault: ParseFault): void {
    if (fault !== null) throw this.fault(fault);
    if (this.length === this.capacity) this.grow();
    const at = this.length++ * 4;
    const lanes = this.#lanes;
    lanes[at] = limbs[0] ?? 0;
    lanes[at + 1] = limbs[1] ?? 0;
    lanes[at + 2] = limbs[2] ?? 0;
    lanes[at + 3] = limbs[3] ?? 0;
  }
}

export class UuidBuilder extends FixedBuilder<Uint8Array> {
  constructor(spec: ColumnSpec) {
    super(spec, Uint8Array, 16);
  }
  appendBinary(buffer: Buffer, start: number, end: number): void {
    this.expectSize(start, end, 16);
    if (this.length === this.capacity) this.grow();
    const { data } = this;
    const to = this.length++ * 16;
    for (let i = 0; i < 16; i++) data[to + i] = buffer[start + i] ?? 0;
  }
  appendText(buffer: Buffer, start: number, end: number): void {
    if (end - start !== 36) throw this.fault("malformed");
    if (this.length === this.capacity) this.grow();
    const to = this.length * 16;
    let at = start;
    for (let i = 0; i < 16; i++) {
      if (buffer[at] === 45) at++;
      const byte = (hexDigit(buffer[at] ?? 0) << 4) | hexDigit(buffer[at + 1] ?? 0);
      if (byte < 0) throw this.fault("malformed");
      this.data[to + i] = byte;
      at += 2;
    }
    this.length++;
  }
}

/** The value of a hexadecimal digit, or -1. */
export function hexDigit(byte: number): number {
  if (byte >= 48 && byte <= 57) return byte - 48;
  const lower = byte | 32;
  return lower >= 97 && lower <= 102 ? lower - 87 : -1;
}
