/**
 * Batches as pages of uncompressed Parquet that DuckDB reads about as fast as memory: fixed-width values lie in them as they
 * do in the batch, strings as their lengths and the batch's heap. Nothing is copied that can be handed to the file as it is.
 * Sources: parquet-format's README.md, Encodings.md, LogicalTypes.md and parquet.thrift.
 */
import { isAscii, isUtf8 } from "node:buffer";
import { assert, unreachable } from "@spillway/base/assert";
import { type Column, type FixedColumn, isVarColumn, type VarColumn } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import { ThriftStruct, varint, zigzag } from "./thrift.ts";
import type { LakeField } from "./types.ts";

const [BOOLEAN, INT32, INT64, FLOAT, DOUBLE, BYTE_ARRAY, FIXED] = [0, 1, 2, 4, 5, 6, 7] as const;
const [PLAIN, RLE, DELTA_LENGTH] = [0, 3, 6] as const;
const OPTIONAL = 1;
const DATA_PAGE = 0;
const MICROS = new ThriftStruct().struct(2, new ThriftStruct());

/** Columns whose values are lengths and a heap. */
function isVar(field: LakeField): boolean {
  return field.kind === "text" || field.kind === "bytes";
}

export function physicalType(field: LakeField): number {
  switch (field.kind) {
    case "bool":
      return BOOLEAN;
    case "int16":
    case "int32":
    case "date":
      return INT32;
    case "int64":
    case "time":
    case "timestamp":
    case "timestamptz":
      return INT64;
    case "float32":
      return FLOAT;
    case "float64":
      return DOUBLE;
    case "decimal":
      return precisionOf(field) <= 9 ? INT32 : precisionOf(field) <= 18 ? INT64 : FIXED;
    case "uuid":
      return FIXED;
    case "text":
    case "bytes":
      return BYTE_ARRAY;
    default:
      return unreachable(field.kind);
  }
}

function precisionOf(field: LakeField): number {
  return field.decimal?.precision ?? 38;
}

/** The field's entry in the footer's schema. */
export function schemaElement(field: LakeField): ThriftStruct {
  const type = physicalType(field);
  const element = new ThriftStruct().i32(1, type);
  if (type === FIXED) element.i32(2, 16);
  element.i32(3, OPTIONAL).text(4, field.name);
  switch (field.kind) {
    case "text":
      return element.i32(6, 0);
    case "date":
      return element.i32(6, 6);
    case "decimal": {
      element.i32(6, 5);
      return element.i32(7, field.decimal?.scale ?? 0).i32(8, precisionOf(field));
    }
    case "time":
      return element.struct(10, logicalTime(7, false));
    case "timestamp":
    case "timestamptz":
      return element.struct(10, logicalTime(8, field.kind === "timestamptz"));
    case "uuid":
      return element.struct(10, new ThriftStruct().struct(14, new ThriftStruct()));
    default:
      return element;
  }
}

function logicalTime(kind: 7 | 8, isUtc: boolean): ThriftStruct {
  return new ThriftStruct().struct(kind, new ThriftStruct().bool(1, isUtc).struct(2, MICROS));
}

/** The entry of one column in a row group: where its pages are. */
export function columnChunk(field: LakeField, rows: number, start: number, bytes: number): ThriftStruct {
  const meta = new ThriftStruct()
    .i32(1, physicalType(field))
    .numbers(2, [encodingOf(field), RLE])
    .texts(3, [field.name])
    .i32(4, 0)
    .i64(5, rows)
    .i64(6, bytes)
    .i64(7, bytes)
    .i64(9, start);
  return new ThriftStruct().i64(2, start).struct(3, meta);
}

function encodingOf(field: LakeField): number {
  return isVar(field) ? DELTA_LENGTH : PLAIN;
}

/**
 * One data page: the rows [start, end) of a column. The parts may share the column's memory. Throws `engine_value_refused`
 * for text that is not UTF-8.
 */
export function pageOf(field: LakeField, column: Column, start: number, end: number): Uint8Array[] {
  assert(column.spec.kind === field.kind, "a column has its field's kind");
  const present = presentRows(column.validity, start, end);
  const values = isVarColumn(column)
    ? stringsOf(field, column, start, end, present)
    : fixedOf(field, column, start, end, present);
  const levels = levelsOf(column.validity, start, end, present);
  const size = values.reduce((sum, part) => sum + part.byteLength, levels.byteLength);
  const header = new ThriftStruct().i32(1, DATA_PAGE).i32(2, size).i32(3, size);
  const encoding = encodingOf(field);
  header.struct(
    5,
    new ThriftStruct()
      .i32(1, end - start)
      .i32(2, encoding)
      .i32(3, RLE)
      .i32(4, RLE),
  );
  return [Uint8Array.from(header.bytes()), levels, ...values];
}

/** The rows that are not NULL; null when all are. */
function presentRows(validity: Uint8Array | null, start: number, end: number): Uint32Array | null {
  if (validity === null) return null;
  let count = 0;
  for (let i = start; i < end; i++) count += validity[i] === 0 ? 0 : 1;
  if (count === end - start) return null;
  const rows = new Uint32Array(count);
  let at = 0;
  for (let i = start; i < end; i++) if (validity[i] !== 0) rows[at++] = i;
  return rows;
}

/** Definition levels: one run of ones, or a bit for each row. */
function levelsOf(
  validity: Uint8Array | null,
  start: number,
  end: number,
  present: Uint32Array | null,
): Uint8Array<ArrayBuffer> {
  const rows = end - start;
  if (present === null || validity === null) return withLength([...varint(rows * 2), 1], 0);
  const groups = Math.ceil(rows / 8);
  const head = varint(groups * 2 + 1);
  const out = withLength(head, groups);
  const first = 4 + head.length;
  for (let i = 0; i < rows; i++) {
    if (validity[start + i] !== 0) out[first + (i >> 3)] = (out[first + (i >> 3)] ?? 0) | (1 << (i & 7));
  }
  return out;
}

function withLength(head: readonly number[], more: number): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(4 + head.length + more);
  new DataView(out.buffer).setUint32(0, head.length + more, true);
  out.set(head, 4);
  return out;
}

function fixedOf(
  field: LakeField,
  column: FixedColumn,
  start: number,
  end: number,
  present: Uint32Array | null,
): Uint8Array[] {
  const rows = present ?? rangeOf(start, end);
  switch (field.kind) {
    case "bool":
      return [bitsOf(column.data as Uint8Array, rows)];
    case "int16":
      return [bytesOf(Int32Array.from(rows, (row) => (column.data as Int16Array)[row] ?? 0))];
    case "decimal":
      return [decimalsOf(field, column.data as BigInt64Array, rows)];
    case "uuid": {
      const data = column.data as Uint8Array;
      return [present === null ? data.subarray(start * 16, end * 16) : pickWords(wordsOf(data), 4, present)];
    }
    default: {
      const { data } = column;
      if (present === null) return [bytesOf(data.subarray(start, end))];
      return [pickWords(wordsOf(data), data.BYTES_PER_ELEMENT / 4, present)];
    }
  }
}

/** Rows [start, end) as a list would be one too many to make: only small columns ask for it. */
function rangeOf(start: number, end: number): Uint32Array {
  const rows = new Uint32Array(end - start);
  for (let i = 0; i < rows.length; i++) rows[i] = start + i;
  return rows;
}

function bytesOf(data: ArrayBufferView): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

function wordsOf(data: ArrayBufferView): Int32Array {
  if (data.byteOffset % 4 === 0) return new Int32Array(data.buffer, data.byteOffset, data.byteLength / 4);
  return new Int32Array(bytesOf(data).slice().buffer);
}

function pickWords(words: Int32Array, perRow: number, rows: Uint32Array): Uint8Array {
  const out = new Int32Array(rows.length * perRow);
  for (let i = 0; i < rows.length; i++) {
    const from = (rows[i] ?? 0) * perRow;
    for (let k = 0; k < perRow; k++) out[i * perRow + k] = words[from + k] ?? 0;
  }
  return bytesOf(out);
}

function bitsOf(data: Uint8Array, rows: Uint32Array): Uint8Array {
  const out = new Uint8Array(Math.ceil(rows.length / 8));
  for (let i = 0; i < rows.length; i++) {
    if (data[rows[i] ?? 0] !== 0) out[i >> 3] = (out[i >> 3] ?? 0) | (1 << (i & 7));
  }
  return out;
}

/** Unscaled values: 4 or 8 bytes little-endian, or 16 big-endian, by precision. */
function decimalsOf(field: LakeField, pairs: BigInt64Array, rows: Uint32Array): Uint8Array {
  const words = wordsOf(pairs);
  const type = physicalType(field);
  if (type === FIXED) {
    const out = new DataView(new ArrayBuffer(rows.length * 16));
    for (let i = 0; i < rows.length; i++) {
      for (let k = 0; k < 4; k++) out.setInt32(i * 16 + 12 - 4 * k, words[(rows[i] ?? 0) * 4 + k] ?? 0);
    }
    return bytesOf(out);
  }
  const perRow = type === INT64 ? 2 : 1;
  const out = new Int32Array(rows.length * perRow);
  for (let i = 0; i < rows.length; i++) {
    const from = (rows[i] ?? 0) * 4;
    out[i * perRow] = words[from] ?? 0;
    if (perRow === 2) out[i * 2 + 1] = words[from + 1] ?? 0;
  }
  return bytesOf(out);
}

/** DELTA_LENGTH_BYTE_ARRAY: the lengths, then the bytes of all values. */
function stringsOf(
  field: LakeField,
  column: VarColumn,
  start: number,
  end: number,
  present: Uint32Array | null,
): Uint8Array[] {
  const { offsets } = column;
  const lengths = new Uint32Array(present?.length ?? end - start);
  let total = 0;
  for (let i = 0; i < lengths.length; i++) {
    const row = present === null ? start + i : (present[i] ?? 0);
    total += lengths[i] = (offsets[row + 1] ?? 0) - (offsets[row] ?? 0);
  }
  const whole = column.heap.subarray(offsets[start] ?? 0, offsets[end] ?? 0);
  // NULLs mostly take no bytes: then the heap is what remains without them.
  const heap = whole.length === total || present === null ? whole : pickStrings(column, present, total);
  if (field.kind === "text") checkUtf8(field, heap, lengths);
  return [...lengthsOf(lengths), heap];
}

function pickStrings({ offsets, heap }: VarColumn, rows: Uint32Array, total: number): Uint8Array {
  const out = new Uint8Array(total);
  let at = 0;
  for (const row of rows) {
    const value = heap.subarray(offsets[row], offsets[row + 1]);
    out.set(value, at);
    at += value.length;
  }
  return out;
}

/** All at once: valid text cut between characters is valid text. */
function checkUtf8(field: LakeField, heap: Uint8Array, lengths: Uint32Array): void {
  if (isAscii(heap)) return;
  let valid = isUtf8(heap);
  for (let i = 0, at = 0; i < lengths.length && valid; i++) {
    const length = lengths[i] ?? 0;
    valid = length === 0 || ((heap[at] ?? 0) & 0xc0) !== 0x80;
    at += length;
  }
  if (valid) return;
  throw new SpillwayError(
    "engine_value_refused",
    `Column ${JSON.stringify(field.name)} holds text that is not UTF-8.`,
    {
      remedy: "Find it with convert_from(convert_to(column, 'SQL_ASCII'), 'UTF8') and correct it.",
    },
  );
}

/** Blocks are of so many values; a miniblock's are a multiple of 32. */
const BLOCK_VALUES = 128;

/**
 * DELTA_BINARY_PACKED, in one block with one miniblock of 32 bits a value: each is the difference to the length before,
 * raised by the longest length so that it is not negative.
 */
function lengthsOf(lengths: Uint32Array): Uint8Array[] {
  const count = lengths.length;
  let longest = 0;
  for (let i = 0; i < count; i++) longest = Math.max(longest, lengths[i] ?? 0);
  const block = Math.max(BLOCK_VALUES, Math.ceil((count - 1) / BLOCK_VALUES) * BLOCK_VALUES);
  const head = [...varint(block), 1, ...varint(count), ...zigzag(lengths[0] ?? 0)];
  if (count <= 1) return [Uint8Array.from(head)];
  const deltas = new Uint32Array(block);
  for (let i = 1; i < count; i++) deltas[i - 1] = (lengths[i] ?? 0) - (lengths[i - 1] ?? 0) + longest;
  return [Uint8Array.from([...head, ...zigzag(-longest), 32]), bytesOf(deltas)];
}
