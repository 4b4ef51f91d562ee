/** What is done to column batches as wholes: size, join, cut, pick. Shapes and rules are in `columns.ts`. */
import { assert, must } from "./assert.ts";
import {
  isVarColumn,
  type Column,
  type ColumnBatch,
  type ColumnSpec,
  type FixedColumn,
  type FixedData,
  type VarColumn,
} from "./columns.ts";

/** Elements of the typed array for one row. */
export function elementsPerRow(spec: ColumnSpec): number {
  return spec.kind === "uuid" ? 16 : spec.kind === "decimal" ? 2 : 1;
}

/** Bytes that the batch's arrays take. */
export function estimateBytes(batch: ColumnBatch): number {
  let sum = 0;
  for (const column of batch.columns) {
    sum += column.validity?.byteLength ?? 0;
    sum += isVarColumn(column) ? column.offsets.byteLength + column.heap.byteLength : column.data.byteLength;
  }
  return sum;
}

/** Rows [start, end). Fixed-width columns and heaps share the batch's memory. */
export function sliceBatch(batch: ColumnBatch, start: number, end: number): ColumnBatch {
  assert(start >= 0 && start <= end && end <= batch.length, "a slice must lie inside its batch");
  return { length: end - start, columns: batch.columns.map((column) => sliceColumn(column, start, end)) };
}

function sliceColumn(column: Column, start: number, end: number): Column {
  const validity = column.validity?.subarray(start, end) ?? null;
  if (!isVarColumn(column)) {
    const width = elementsPerRow(column.spec);
    return { spec: column.spec, validity, data: column.data.subarray(start * width, end * width) };
  }
  const base = column.offsets[start] ?? 0;
  const offsets = column.offsets.slice(start, end + 1);
  for (let i = 0; i < offsets.length; i++) offsets[i] = (offsets[i] ?? 0) - base;
  return { spec: column.spec, validity, offsets, heap: column.heap.subarray(base, column.offsets[end] ?? base) };
}

/** The rows of all batches, in order. They must have the same columns; one batch is returned as it is. */
export function concatBatches(batches: readonly ColumnBatch[]): ColumnBatch {
  const first = must(batches[0], "a batch to concatenate");
  if (batches.length === 1) return first;
  const length = batches.reduce((sum, batch) => sum + batch.length, 0);
  const columns = first.columns.map((column, i) => {
    const parts = batches.map((batch) => must(batch.columns[i], "the same columns in every batch"));
    assert(
      parts.every((part) => part.spec.kind === column.spec.kind),
      "batches to concatenate have columns of the same kinds",
    );
    const validity = concatValidity(parts, batches, length);
    return isVarColumn(column)
      ? concatVar(column.spec, parts as VarColumn[], batches, validity, length)
      : concatFixed(column, parts as FixedColumn[], batches, validity, length);
  });
  return { length, columns };
}

function concatValidity(parts: readonly Column[], batches: readonly ColumnBatch[], length: number): Uint8Array | null {
  if (parts.every((part) => part.validity === null)) return null;
  const out = new Uint8Array(length).fill(1);
  let at = 0;
  for (const [i, part] of parts.entries()) {
    const rows = batches[i]?.length ?? 0;
    if (part.validity) out.set(part.validity.subarray(0, rows), at);
    at += rows;
  }
  return out;
}

function sameType(data: FixedData, elements: number): FixedData {
  const make = data.constructor as new (length: number) => FixedData;
  return new make(elements);
}

function concatFixed(
  column: FixedColumn,
  parts: readonly FixedColumn[],
  batches: readonly ColumnBatch[],
  validity: Uint8Array | null,
  length: number,
): FixedColumn {
  const width = elementsPerRow(column.spec);
  const data = sameType(column.data, length * width);
  let at = 0;
  for (const [i, part] of parts.entries()) {
    const elements = (batches[i]?.length ?? 0) * width;
    data.set(part.data.subarray(0, elements) as never, at);
    at += elements;
  }
  return { spec: column.spec, validity, data };
}

function concatVar(
  spec: ColumnSpec,
  parts: readonly VarColumn[],
  batches: readonly ColumnBatch[],
  validity: Uint8Array | null,
  length: number,
): VarColumn {
  const bytes = parts.reduce((sum, { offsets }, i) => sum + heapRange(offsets, batches[i]?.length ?? 0).bytes, 0);
  assert(bytes <= 0xffffffff, "a column of one batch holds at most 4 GiB");
  const offsets = new Uint32Array(length + 1);
  const heap = new Uint8Array(bytes);
  let row = 0;
  let used = 0;
  for (const [i, part] of parts.entries()) {
    const rows = batches[i]?.length ?? 0;
    const range = heapRange(part.offsets, rows);
    heap.set(part.heap.subarray(range.base, range.base + range.bytes), used);
    for (let r = 1; r <= rows; r++) offsets[row + r] = (part.offsets[r] ?? 0) - range.base + used;
    row += rows;
    used += range.bytes;
  }
  return { spec, validity, offsets, heap };
}

function heapRange(offsets: Uint32Array, rows: number): { base: number; bytes: number } {
  const base = offsets[0] ?? 0;
  return { base, bytes: (offsets[rows] ?? base) - base };
}

/** The rows at `indexes`, in that order; an index may come more than once. */
export function takeRows(batch: ColumnBatch, indexes: Uint32Array | Int32Array | readonly number[]): ColumnBatch {
  for (const index of indexes) assert(index >= 0 && index < batch.length, "a row to take is in the batch");
  return { length: indexes.length, columns: batch.columns.map((column) => takeColumn(column, indexes)) };
}

function takeColumn(column: Column, indexes: ArrayLike<number>): Column {
  const validity = column.validity ? takeElements(column.validity, indexes, 1) : null;
  if (!isVarColumn(column)) {
    return { spec: column.spec, validity, data: takeElements(column.data, indexes, elementsPerRow(column.spec)) };
  }
  const { offsets: from, heap: source } = column;
  const offsets = new Uint32Array(indexes.length + 1);
  let used = 0;
  for (let i = 0; i < indexes.length; i++) {
    const row = indexes[i] ?? 0;
    used += (from[row + 1] ?? 0) - (from[row] ?? 0);
    assert(used <= 0xffffffff, "a column of one batch holds at most 4 GiB");
    offsets[i + 1] = used;
  }
  const heap = new Uint8Array(used);
  for (let i = 0; i < indexes.length; i++) {
    const row = indexes[i] ?? 0;
    const start = from[row] ?? 0;
    const size = (from[row + 1] ?? 0) - start;
    const to = offsets[i] ?? 0;
    if (size > 24) heap.set(source.subarray(start, start + size), to);
    else for (let b = 0; b < size; b++) heap[to + b] = source[start + b] ?? 0;
  }
  return { spec: column.spec, validity, offsets, heap };
}

function takeElements<T extends FixedData>(data: T, indexes: ArrayLike<number>, width: number): T {
  // 64-bit elements are moved as pairs of 32-bit ones: reading them as bigints would allocate.
  if (data instanceof BigInt64Array) {
    const out = new BigInt64Array(indexes.length * width);
    const from = new Uint32Array(data.buffer, data.byteOffset, data.length * 2);
    pick(from, new Uint32Array(out.buffer), indexes, width * 2);
    return out as T;
  }
  const out = sameType(data, indexes.length * width) as T;
  pick(data as Uint8Array, out as Uint8Array, indexes, width);
  return out;
}

function pick<T extends Exclude<FixedData, BigInt64Array> | Uint32Array>(
  from: T,
  to: T,
  indexes: ArrayLike<number>,
  width: number,
): void {
  if (width === 1) {
    for (let i = 0; i < indexes.length; i++) to[i] = from[indexes[i] ?? 0] ?? 0;
    return;
  }
  for (let i = 0; i < indexes.length; i++) {
    const start = (indexes[i] ?? 0) * width;
    for (let e = 0; e < width; e++) to[i * width + e] = from[start + e] ?? 0;
  }
}
