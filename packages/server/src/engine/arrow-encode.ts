/** Column batches into Arrow record batches of 256 KiB to 1 MiB, by copying memory. */
import { estimateBytes, sliceBatch } from "@spillway/base/batch";
import { type Column, type ColumnBatch, type ColumnSpec, isVarColumn } from "@spillway/base/columns";
import { FlatWriter } from "./arrow-flatbuffer.ts";
import { encapsulate, HEADER, messageMetadata } from "./arrow-schema.ts";

/** A message is sent when it has grown to this: below 600 KiB each byte costs the edge three times as much. */
const TARGET_BYTES = 768 << 10;
/** A chunk beyond this is cut. */
const MAX_BYTES = 1 << 20;

/** Gathers chunks until they make a message. */
export class ArrowBatcher {
  #held: ColumnBatch[] = [];
  #bytes = 0;
  readonly #target: number;

  constructor(targetBytes = TARGET_BYTES) {
    this.#target = targetBytes;
  }

  /** The messages that are full now. */
  add(batch: ColumnBatch): Buffer[] {
    if (batch.length === 0) return [];
    const bytes = estimateBytes(batch);
    if (bytes > MAX_BYTES && batch.length > 1) {
      const out = this.flush();
      const half = batch.length >> 1;
      return [...out, ...this.add(sliceBatch(batch, 0, half)), ...this.add(sliceBatch(batch, half, batch.length))];
    }
    const out = this.#bytes > 0 && this.#bytes + bytes > MAX_BYTES ? this.flush() : [];
    this.#held.push(batch);
    this.#bytes += bytes;
    return this.#bytes >= this.#target ? [...out, ...this.flush()] : out;
  }

  flush(): Buffer[] {
    const held = this.#held;
    if (held.length === 0) return [];
    this.#held = [];
    this.#bytes = 0;
    return [encodeArrowBatch(held)];
  }
}

/** One record batch of all the batches' rows, which have the same columns. */
export function encodeArrowBatch(batches: readonly ColumnBatch[]): Buffer {
  const rows = batches.reduce((sum, b) => sum + b.length, 0);
  const parts = (batches[0]?.columns ?? []).map((column, i) => {
    const pieces = batches.flatMap((b) => b.columns[i] ?? []);
    return layoutOf(column.spec, pieces, batches);
  });
  const nodes: number[] = [];
  const buffers: number[] = [];
  let at = 0;
  const places: number[] = [];
  for (const part of parts) {
    nodes.push(rows, part.nullCount);
    for (const size of part.sizes) {
      buffers.push(at, size);
      places.push(at);
      at += (size + 7) & ~7;
    }
  }
  const writer = new FlatWriter();
  const [nodeVector, bufferVector] = [writer.longs(nodes, 2), writer.longs(buffers, 2)];
  const batch = writer.table([
    ["i64", BigInt(rows)],
    ["offset", nodeVector],
    ["offset", bufferVector],
  ]);
  const { message, body } = encapsulate(messageMetadata(writer, HEADER.batch, batch, at), at);
  let next = 0;
  for (const part of parts) {
    const targets = part.sizes.map((size) => {
      const start = body + (places[next++] ?? 0);
      const end = start + ((size + 7) & ~7);
      message.fill(0, start + size, end);
      return message.subarray(start, start + size);
    });
    part.write(targets);
  }
  return message;
}

interface Layout {
  readonly nullCount: number;
  readonly sizes: readonly number[];
  write(targets: readonly Buffer[]): void;
}

function layoutOf(spec: ColumnSpec, pieces: readonly Column[], batches: readonly ColumnBatch[]): Layout {
  const rowsOf = (i: number): number => batches[i]?.length ?? 0;
  const rows = batches.reduce((sum, b) => sum + b.length, 0);
  const nullCount = pieces.reduce((sum, p, i) => sum + nullsOf(p.validity, rowsOf(i)), 0);
  const validity = nullCount === 0 ? 0 : (rows + 7) >> 3;
  const writeValidity = (target: Buffer | undefined): void => {
    if (validity > 0 && target) packBits(target, batches, (i) => pieces[i]?.validity ?? null);
  };
  if (spec.kind === "text" || spec.kind === "bytes") {
    const heap = pieces.reduce(
      (sum, p, i) => sum + (isVarColumn(p) ? (p.offsets[rowsOf(i)] ?? 0) - (p.offsets[0] ?? 0) : 0),
      0,
    );
    return {
      nullCount,
      sizes: [validity, (rows + 1) * 4, heap],
      write: ([bits, offsets, bytes]) => {
        writeValidity(bits);
        if (offsets && bytes) writeHeaps(offsets, bytes, pieces, batches);
      },
    };
  }
  if (spec.kind === "bool") {
    return {
      nullCount,
      sizes: [validity, (rows + 7) >> 3],
      write: ([bits, data]) => {
        writeValidity(bits);
        if (data) packBits(data, batches, (i) => fixedBytes(pieces[i], rowsOf(i)));
      },
    };
  }
  const width = widthOf(spec);
  return {
    nullCount,
    sizes: [validity, rows * width],
    write: ([bits, data]) => {
      writeValidity(bits);
      let at = 0;
      pieces.forEach((piece, i) => {
        data?.set(fixedBytes(piece, rowsOf(i)).subarray(0, rowsOf(i) * width), at);
        at += rowsOf(i) * width;
      });
    },
  };
}

function nullsOf(validity: Uint8Array | null, rows: number): number {
  if (validity === null) return 0;
  let nulls = rows;
  for (let i = 0; i < rows; i++) nulls -= validity[i] ?? 1;
  return nulls;
}

function widthOf({ kind }: ColumnSpec): number {
  if (kind === "int16") return 2;
  if (kind === "int32" || kind === "float32" || kind === "date") return 4;
  return kind === "decimal" || kind === "uuid" ? 16 : 8;
}

function fixedBytes(column: Column | undefined, rows: number): Uint8Array {
  if (!column || isVarColumn(column)) return new Uint8Array(rows);
  const { data } = column;
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/** A byte per row into a bit per row; null: all ones. */
function packBits(target: Buffer, batches: readonly ColumnBatch[], bytesOf: (i: number) => Uint8Array | null): void {
  target.fill(0);
  let row = 0;
  batches.forEach((batch, i) => {
    const bytes = bytesOf(i);
    for (let r = 0; r < batch.length; r++, row++) {
      if (bytes === null || bytes[r] === 1) target[row >> 3] = (target[row >> 3] ?? 0) | (1 << (row & 7));
    }
  });
}

function writeHeaps(offsets: Buffer, heap: Buffer, pieces: readonly Column[], batches: readonly ColumnBatch[]): void {
  // Buffers of a message lie at multiples of 8 from the body, the body at one from its own memory's start.
  const out = new Int32Array(offsets.buffer, offsets.byteOffset, offsets.length >> 2);
  let row = 0;
  let at = 0;
  out[0] = 0;
  pieces.forEach((piece, i) => {
    if (!isVarColumn(piece)) return;
    const rows = batches[i]?.length ?? 0;
    const source = piece.offsets;
    const first = source[0] ?? 0;
    const shift = at - first;
    for (let r = 1; r <= rows; r++) out[row + r] = (source[r] ?? 0) + shift;
    const end = source[rows] ?? first;
    heap.set(piece.heap.subarray(first, end), at);
    at += end - first;
    row += rows;
  });
}
