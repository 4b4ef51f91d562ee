/**
 * Column batches into a DuckDB table, 2048 rows at a time, by copying memory: no native call per
 * value. A long string's 16-byte `string_t` holds a pointer; all long strings of a chunk's column
 * are therefore given to the vector as *one* string, whose memory the vector then owns, and the
 * pointers into it are computed here. The memory lives until the chunk is reset, and the appender has
 * copied everything before `append_data_chunk` returns.
 * The layout is DuckDB's public `duckdb_string_t`: u32 length, then 12 bytes inline, or 4 bytes of
 * prefix and a pointer.
 */
import type { Column, ColumnBatch, ColumnSpec, FixedColumn, VarColumn } from "@spillway/base/columns";
import { isVarColumn } from "@spillway/base/columns";
import { assert, must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import duckdb, { VECTOR_ROWS, type Appender, type DataChunk, type Vector } from "./bindings.ts";
import { engineError } from "./errors.ts";
import { decimalBytes, logicalType } from "./types.ts";

const INLINE = 12;
const STRING_BYTES = 16;
const WORD = 2 ** 32;

export class BatchAppender {
  readonly #appender: Appender;
  readonly #columns: readonly ColumnSpec[];
  readonly #chunk: DataChunk;
  readonly #vectors: readonly Vector[];
  readonly #scratch = new ArrayBuffer(VECTOR_ROWS * STRING_BYTES);
  readonly #validity = new Uint8Array(VECTOR_ROWS / 8);
  #heap = new Uint8Array(64 * 1024);
  #closed = false;

  constructor(appender: Appender, columns: readonly ColumnSpec[]) {
    this.#appender = appender;
    this.#columns = columns;
    this.#chunk = duckdb.create_data_chunk(columns.map((c) => logicalType(storedShape(c))));
    this.#vectors = columns.map((_, i) => duckdb.data_chunk_get_vector(this.#chunk, i));
  }

  append(batch: ColumnBatch): void {
    assert(!this.#closed, "the appender is closed");
    assert(batch.columns.length === this.#columns.length, "a batch has other columns than its table");
    try {
      for (let start = 0; start < batch.length; start += VECTOR_ROWS) {
        this.#appendSlice(batch, start, Math.min(VECTOR_ROWS, batch.length - start));
      }
    } catch (error) {
      throw engineError(error);
    }
  }

  /** Makes the rows visible and frees the memory. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    try {
      duckdb.appender_close_sync(this.#appender);
    } catch (error) {
      throw engineError(error);
    }
  }

  #appendSlice(batch: ColumnBatch, start: number, rows: number): void {
    duckdb.data_chunk_reset(this.#chunk);
    batch.columns.forEach((column, i) => {
      const vector = must(this.#vectors[i], "vector");
      if (isVarColumn(column)) this.#strings(vector, column, start, rows);
      else this.#fixed(vector, column, start, rows);
      this.#nulls(vector, column, start, rows);
    });
    duckdb.data_chunk_set_size(this.#chunk, rows);
    duckdb.append_data_chunk(this.#appender, this.#chunk);
  }

  #fixed(vector: Vector, column: FixedColumn, start: number, rows: number): void {
    const { data, spec } = column;
    switch (spec.kind) {
      case "int16":
        return this.#widen(vector, data as Int16Array, start, rows);
      case "decimal":
        return this.#decimals(vector, column, start, rows);
      case "uuid":
        return this.#uuids(vector, data as Uint8Array, start, rows);
      default: {
        const width = data.BYTES_PER_ELEMENT;
        copyIn(vector, data.buffer as ArrayBuffer, data.byteOffset + start * width, rows * width);
      }
    }
  }

  #widen(vector: Vector, data: Int16Array, start: number, rows: number): void {
    const out = new Int32Array(this.#scratch, 0, rows);
    for (let i = 0; i < rows; i++) out[i] = data[start + i] ?? 0;
    copyIn(vector, this.#scratch, 0, rows * 4);
  }

  #decimals(vector: Vector, column: FixedColumn, start: number, rows: number): void {
    const source = column.data as BigInt64Array;
    const width = decimalBytes(column.spec.decimal?.precision ?? 38);
    if (width === 16) return copyIn(vector, source.buffer as ArrayBuffer, source.byteOffset + start * 16, rows * 16);
    const words = new Int32Array(source.buffer, source.byteOffset + start * 16, rows * 4);
    if (width === 2) {
      const out = new Int16Array(this.#scratch, 0, rows);
      for (let i = 0; i < rows; i++) out[i] = words[i * 4] ?? 0;
    } else {
      const out = new Int32Array(this.#scratch, 0, rows * (width / 4));
      if (width === 4) for (let i = 0; i < rows; i++) out[i] = words[i * 4] ?? 0;
      else {
        for (let i = 0; i < rows; i++) {
          out[i * 2] = words[i * 4] ?? 0;
          out[i * 2 + 1] = words[i * 4 + 1] ?? 0;
        }
      }
    }
    copyIn(vector, this.#scratch, 0, rows * width);
  }

  /** DuckDB orders UUIDs as signed 128-bit integers: little endian, the top bit flipped. */
  #uuids(vector: Vector, data: Uint8Array, start: number, rows: number): void {
    const out = new Uint8Array(this.#scratch);
    for (let i = 0; i < rows; i++) {
      const from = (start + i) * 16;
      for (let k = 0; k < 16; k++) out[i * 16 + 15 - k] = data[from + k] ?? 0;
      out[i * 16 + 15] = (out[i * 16 + 15] ?? 0) ^ 0x80;
    }
    copyIn(vector, this.#scratch, 0, rows * 16);
  }

  #strings(vector: Vector, column: VarColumn, start: number, rows: number): void {
    const { offsets, heap, validity } = column;
    let long = 0;
    for (let i = start; i < start + rows; i++) {
      const length = (offsets[i + 1] ?? 0) - (offsets[i] ?? 0);
      if (length > INLINE && (validity === null || validity[i] !== 0)) long += length;
    }
    const base = long === 0 ? 0 : this.#own(vector, column, start, rows, long);
    const words = new Uint32Array(this.#scratch, 0, rows * 4);
    const bytes = new Uint8Array(this.#scratch, 0, rows * STRING_BYTES);
    bytes.fill(0);
    // The address in two words: a remainder for each value would cost more than all else here.
    let low = base % WORD;
    let high = Math.floor(base / WORD);
    for (let i = 0; i < rows; i++) {
      const row = start + i;
      if (validity !== null && validity[row] === 0) continue;
      const from = offsets[row] ?? 0;
      const length = (offsets[row + 1] ?? 0) - from;
      words[i * 4] = length;
      const head = length > INLINE ? 4 : length;
      for (let k = 0; k < head; k++) bytes[i * 16 + 4 + k] = heap[from + k] ?? 0;
      if (length <= INLINE) continue;
      words[i * 4 + 2] = low;
      words[i * 4 + 3] = high;
      low += length;
      if (low >= WORD) {
        low -= WORD;
        high += 1;
      }
    }
    copyIn(vector, this.#scratch, 0, rows * STRING_BYTES);
    if (column.spec.kind === "text") this.#checkShort(column, start, rows);
  }

  /** Hands the long strings of a slice to the vector as one, and returns the address of their memory. */
  #own(vector: Vector, column: VarColumn, start: number, rows: number, total: number): number {
    const { offsets, heap, validity } = column;
    if (total > 0xffff_ffff) {
      throw new SpillwayError("limit_exceeded", "2048 rows of one column hold more than 4 GiB of text.");
    }
    if (this.#heap.length < total) this.#heap = new Uint8Array(Math.max(total, this.#heap.length * 2));
    let at = 0;
    let i = start;
    while (i < start + rows) {
      // A run of long strings is adjacent in the batch's heap as well: copy it at once.
      const from = offsets[i] ?? 0;
      let end = from;
      while (i < start + rows && (offsets[i + 1] ?? 0) - end > INLINE && isPresent(validity, i)) {
        end = offsets[i + 1] ?? 0;
        i += 1;
      }
      if (end > from) {
        this.#heap.set(heap.subarray(from, end), at);
        at += end - from;
      } else i += 1;
    }
    assert(at === total, "long strings were counted wrongly");
    duckdb.vector_assign_string_element_len(vector, 0, this.#heap.subarray(0, total));
    const view = duckdb.vector_get_data(vector, STRING_BYTES);
    const words = new DataView(view.buffer, view.byteOffset, STRING_BYTES);
    if (words.getUint32(0, true) !== total) throw notUtf8(column.spec.name);
    return words.getUint32(8, true) + words.getUint32(12, true) * 2 ** 32;
  }

  /** DuckDB checks the long strings as it takes them; strings written inline must be checked here. */
  #checkShort(column: VarColumn, start: number, rows: number): void {
    const { offsets, heap } = column;
    const from = offsets[start] ?? 0;
    const end = offsets[start + rows] ?? 0;
    let high = 0;
    for (let i = from; i < end; i++) high |= heap[i] ?? 0;
    if ((high & 0x80) === 0) return;
    for (let row = start; row < start + rows; row++) {
      const length = (offsets[row + 1] ?? 0) - (offsets[row] ?? 0);
      if (length === 0 || length > INLINE || (column.validity !== null && column.validity[row] === 0)) continue;
      if (!isUtf8(heap.subarray(offsets[row], offsets[row + 1]))) throw notUtf8(column.spec.name);
    }
  }

  #nulls(vector: Vector, column: Column, start: number, rows: number): void {
    if (column.validity === null) return;
    const bits = this.#validity.fill(0);
    let missing = false;
    for (let i = 0; i < rows; i++) {
      if (column.validity[start + i] === 0) missing = true;
      else bits[i >> 3] = (bits[i >> 3] ?? 0) | (1 << (i & 7));
    }
    if (!missing) return;
    duckdb.vector_ensure_validity_writable(vector);
    duckdb.copy_data_to_vector_validity(vector, 0, bits.buffer as ArrayBuffer, 0, bits.length);
  }
}

function storedShape(spec: ColumnSpec): ColumnSpec {
  return spec.kind === "int16" ? { name: spec.name, kind: "int32" } : spec;
}

function isPresent(validity: Uint8Array | null, row: number): boolean {
  return validity === null || validity[row] !== 0;
}

function copyIn(vector: Vector, buffer: ArrayBuffer, offset: number, length: number): void {
  duckdb.copy_data_to_vector(vector, 0, buffer, offset, length);
}

const strict = new TextDecoder("utf-8", { fatal: true });

function isUtf8(bytes: Uint8Array): boolean {
  try {
    strict.decode(bytes);
    return true;
  } catch {
    return false;
  }
}

function notUtf8(column: string): SpillwayError {
  return new SpillwayError("engine_value_refused", `Column ${JSON.stringify(column)} holds text that is not UTF-8.`, {
    remedy: "Find it with convert_from(convert_to(column, 'SQL_ASCII'), 'UTF8') and correct it.",
  });
}
