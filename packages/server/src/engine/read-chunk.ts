/**
 * DuckDB result chunks into column batches by copying memory. Long strings are fetched by their
 * pointers: strings that lie one behind the other in DuckDB's memory are read with one native call,
 * and a pointer seen before (a dictionary) is copied from the batch itself.
 */
import type { Column, ColumnBatch, ColumnKind, ColumnSpec, FixedData } from "@spillway/base/columns";
import { unreachable } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import duckdb, { type DataChunk, type LogicalType, type Vector } from "./bindings.ts";
import { decimalBytes } from "./types.ts";

/** How the raw values of a vector become a batch column. */
type Decode = "raw" | "int8" | "uint8" | "uint16" | "uint32" | "uint64" | "decimal" | "uuid" | "string";

export interface ResultShape {
  readonly spec: ColumnSpec;
  /** Null for a type that no batch holds: cast it to VARCHAR first. */
  readonly decode: Decode | null;
  /** Bytes of one raw value. */
  readonly width: number;
}

const { Type } = duckdb;

const RAW: ReadonlyMap<number, readonly [ColumnKind, number]> = new Map([
  [Type.BOOLEAN, ["bool", 1]],
  [Type.SMALLINT, ["int16", 2]],
  [Type.INTEGER, ["int32", 4]],
  [Type.BIGINT, ["int64", 8]],
  [Type.FLOAT, ["float32", 4]],
  [Type.DOUBLE, ["float64", 8]],
  [Type.DATE, ["date", 4]],
  [Type.TIME, ["time", 8]],
  [Type.TIMESTAMP, ["timestamp", 8]],
  [Type.TIMESTAMP_TZ, ["timestamptz", 8]],
] as const);

const HUGE = { precision: 38, scale: 0 };

export function shapeOfType(name: string, type: LogicalType): ResultShape {
  const id = duckdb.get_type_id(type);
  const raw = RAW.get(id);
  if (raw) return { spec: { name, kind: raw[0] }, decode: "raw", width: raw[1] };
  switch (id) {
    case Type.TINYINT:
      return { spec: { name, kind: "int16" }, decode: "int8", width: 1 };
    case Type.UTINYINT:
      return { spec: { name, kind: "int16" }, decode: "uint8", width: 1 };
    case Type.USMALLINT:
      return { spec: { name, kind: "int32" }, decode: "uint16", width: 2 };
    case Type.UINTEGER:
      return { spec: { name, kind: "int64" }, decode: "uint32", width: 4 };
    case Type.UBIGINT:
      return { spec: { name, kind: "decimal", decimal: HUGE }, decode: "uint64", width: 8 };
    case Type.HUGEINT:
      return { spec: { name, kind: "decimal", decimal: HUGE }, decode: "decimal", width: 16 };
    case Type.DECIMAL: {
      const decimal = { precision: duckdb.decimal_width(type), scale: duckdb.decimal_scale(type) };
      return { spec: { name, kind: "decimal", decimal }, decode: "decimal", width: decimalBytes(decimal.precision) };
    }
    case Type.UUID:
      return { spec: { name, kind: "uuid" }, decode: "uuid", width: 16 };
    case Type.VARCHAR:
      return { spec: { name, kind: "text" }, decode: "string", width: 16 };
    case Type.BLOB:
      return { spec: { name, kind: "bytes" }, decode: "string", width: 16 };
    default:
      return { spec: { name, kind: "text" }, decode: null, width: 16 };
  }
}

export function readChunk(chunk: DataChunk, shapes: readonly ResultShape[]): ColumnBatch {
  const length = duckdb.data_chunk_get_size(chunk);
  const columns = shapes.map((shape, i) => readColumn(duckdb.data_chunk_get_vector(chunk, i), shape, length));
  return { length, columns };
}

function readColumn(vector: Vector, shape: ResultShape, rows: number): Column {
  if (shape.decode === null) {
    throw new SpillwayError(
      "engine_failed",
      `The column ${JSON.stringify(shape.spec.name)} has a type without a batch form.`,
    );
  }
  const validity = readValidity(vector, rows);
  const bytes = duckdb.vector_get_data(vector, rows * shape.width);
  if (shape.decode === "string") return { spec: shape.spec, validity, ...readStrings(bytes, validity, rows) };
  return { spec: shape.spec, validity, data: decodeFixed(bytes, shape, rows) };
}

function readValidity(vector: Vector, rows: number): Uint8Array | null {
  const bits = duckdb.vector_get_validity(vector, Math.ceil(rows / 64) * 8) as Uint8Array | null;
  if (bits === null || bits.length === 0) return null;
  const full = rows >> 3;
  let all = true;
  for (let i = 0; i < full && all; i++) all = bits[i] === 0xff;
  for (let i = full * 8; i < rows && all; i++) all = (((bits[i >> 3] ?? 0) >> (i & 7)) & 1) === 1;
  if (all) return null;
  const out = new Uint8Array(rows);
  for (let i = 0; i < rows; i++) out[i] = ((bits[i >> 3] ?? 0) >> (i & 7)) & 1;
  return out;
}

function decodeFixed(bytes: Uint8Array, shape: ResultShape, rows: number): FixedData {
  const { buffer, byteOffset } = bytes;
  switch (shape.decode) {
    case "raw":
      return rawView(shape.spec.kind, buffer as ArrayBuffer, byteOffset, rows);
    case "int8":
      return Int16Array.from(new Int8Array(buffer, byteOffset, rows));
    case "uint8":
      return Int16Array.from(bytes);
    case "uint16":
      return Int32Array.from(new Uint16Array(buffer, byteOffset, rows));
    case "uint32": {
      const out = new Uint32Array(rows * 2);
      const source = new Uint32Array(buffer, byteOffset, rows);
      for (let i = 0; i < rows; i++) out[i * 2] = source[i] ?? 0;
      return new BigInt64Array(out.buffer);
    }
    case "uint64": {
      const out = new BigInt64Array(rows * 2);
      const source = new BigInt64Array(buffer, byteOffset, rows);
      for (let i = 0; i < rows; i++) out[i * 2] = source[i] ?? 0n;
      return out;
    }
    case "decimal":
      return decimalPairs(bytes, shape.width, rows);
    case "uuid":
      return uuidBytes(bytes, rows);
    default:
      throw new SpillwayError("engine_failed", `No fixed form of ${String(shape.decode)}.`);
  }
}

function rawView(kind: ColumnKind, buffer: ArrayBuffer, offset: number, rows: number): FixedData {
  switch (kind) {
    case "bool":
      return new Uint8Array(buffer, offset, rows);
    case "int16":
      return new Int16Array(buffer, offset, rows);
    case "int32":
    case "date":
      return new Int32Array(buffer, offset, rows);
    case "float32":
      return new Float32Array(buffer, offset, rows);
    case "float64":
      return new Float64Array(buffer, offset, rows);
    case "int64":
    case "time":
    case "timestamp":
    case "timestamptz":
      return new BigInt64Array(buffer, offset, rows);
    case "decimal":
    case "uuid":
    case "text":
    case "bytes":
      throw new SpillwayError("engine_failed", `No raw form of ${kind}.`);
    default:
      return unreachable(kind);
  }
}

function decimalPairs(bytes: Uint8Array, width: number, rows: number): BigInt64Array {
  const { buffer, byteOffset } = bytes;
  if (width === 16) return new BigInt64Array(buffer, byteOffset, rows * 2);
  const out = new Int32Array(rows * 4);
  if (width === 8) {
    const source = new Int32Array(buffer, byteOffset, rows * 2);
    for (let i = 0; i < rows; i++) {
      const high = source[i * 2 + 1] ?? 0;
      out[i * 4] = source[i * 2] ?? 0;
      out[i * 4 + 1] = high;
      out[i * 4 + 2] = out[i * 4 + 3] = high >> 31;
    }
  } else {
    const source = width === 4 ? new Int32Array(buffer, byteOffset, rows) : new Int16Array(buffer, byteOffset, rows);
    for (let i = 0; i < rows; i++) {
      const value = source[i] ?? 0;
      out[i * 4] = value;
      out[i * 4 + 1] = out[i * 4 + 2] = out[i * 4 + 3] = value >> 31;
    }
  }
  return new BigInt64Array(out.buffer);
}

function uuidBytes(bytes: Uint8Array, rows: number): Uint8Array {
  const out = new Uint8Array(rows * 16);
  for (let i = 0; i < rows; i++) {
    for (let k = 0; k < 16; k++) out[i * 16 + k] = bytes[i * 16 + 15 - k] ?? 0;
    out[i * 16] = (out[i * 16] ?? 0) ^ 0x80;
  }
  return out;
}

const INLINE = 12;

function readStrings(
  raw: Uint8Array,
  validity: Uint8Array | null,
  rows: number,
): { offsets: Uint32Array; heap: Uint8Array } {
  const words = new Uint32Array(raw.buffer, raw.byteOffset, rows * 4);
  const offsets = new Uint32Array(rows + 1);
  let total = 0;
  for (let i = 0; i < rows; i++) {
    if (validity === null || validity[i] === 1) total += words[i * 4] ?? 0;
    offsets[i + 1] = total;
  }
  const heap = new Uint8Array(total);
  fillHeap(raw, words, offsets, heap, validity);
  return { offsets, heap };
}

function fillHeap(
  raw: Uint8Array,
  words: Uint32Array,
  offsets: Uint32Array,
  heap: Uint8Array,
  validity: Uint8Array | null,
): void {
  const rows = offsets.length - 1;
  const seen = new Map<number, number>();
  const run = new PointerRun(raw, heap);
  const repeats: number[] = [];
  for (let i = 0; i < rows; i++) {
    const length = words[i * 4] ?? 0;
    if (length === 0 || (validity !== null && validity[i] === 0)) continue;
    const to = offsets[i] ?? 0;
    if (length <= INLINE) {
      for (let k = 0; k < length; k++) heap[to + k] = raw[i * 16 + 4 + k] ?? 0;
      continue;
    }
    const pointer = (words[i * 4 + 2] ?? 0) + (words[i * 4 + 3] ?? 0) * 2 ** 32;
    if (run.extend(pointer, to, length)) continue;
    const first = seen.get(pointer);
    // The same pointer with another length would be a view into a longer string: only equal ones are reused.
    if (first !== undefined && words[first * 4] === length) {
      repeats.push(first, i);
      continue;
    }
    run.flush();
    run.begin(pointer, i * 16 + 8, to, length);
    seen.set(pointer, i);
  }
  run.flush();
  for (let r = 0; r < repeats.length; r += 2) {
    const from = offsets[repeats[r] ?? 0] ?? 0;
    const to = offsets[repeats[r + 1] ?? 0] ?? 0;
    heap.copyWithin(to, from, from + (words[(repeats[r] ?? 0) * 4] ?? 0));
  }
}

/** Strings that are adjacent in DuckDB's memory, to be read at once and put where the batch wants them. */
class PointerRun {
  readonly #raw: Uint8Array;
  readonly #heap: Uint8Array;
  /** Triples of source offset in the run, target and length; adjacent ones merged. */
  readonly #pieces: number[] = [];
  #pointerAt = 0;
  #end = -1;
  #length = 0;

  constructor(raw: Uint8Array, heap: Uint8Array) {
    this.#raw = raw;
    this.#heap = heap;
  }

  begin(pointer: number, pointerAt: number, to: number, length: number): void {
    this.#pointerAt = pointerAt;
    this.#end = pointer + length;
    this.#length = length;
    this.#pieces.push(0, to, length);
  }

  extend(pointer: number, to: number, length: number): boolean {
    if (pointer !== this.#end) return false;
    const last = this.#pieces.length - 3;
    const target = (this.#pieces[last + 1] ?? 0) + (this.#pieces[last + 2] ?? 0);
    if (target === to) this.#pieces[last + 2] = (this.#pieces[last + 2] ?? 0) + length;
    else this.#pieces.push(this.#length, to, length);
    this.#end += length;
    this.#length += length;
    return true;
  }

  flush(): void {
    if (this.#pieces.length === 0) return;
    const at = this.#raw.byteOffset + this.#pointerAt;
    const bytes = duckdb.get_data_from_pointer(this.#raw.buffer as ArrayBuffer, at, this.#length);
    for (let p = 0; p < this.#pieces.length; p += 3) {
      const from = this.#pieces[p] ?? 0;
      this.#heap.set(bytes.subarray(from, from + (this.#pieces[p + 2] ?? 0)), this.#pieces[p + 1]);
    }
    this.#pieces.length = 0;
    this.#end = -1;
  }
}
