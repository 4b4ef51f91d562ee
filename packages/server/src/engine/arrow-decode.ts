/**
 * Arrow record batches into column batches: views of the message where the layouts are the same, copies where they are
 * not. Offsets that come from outside are checked before anything is read through them.
 */
import type { Column, ColumnBatch, ColumnSpec, FixedData } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import { FlatTable } from "./arrow-flatbuffer.ts";
import { type ArrowField, type ArrowLayout, HEADER, splitMessage } from "./arrow-schema.ts";

/** The fields of a stream of ours, whose schema is known from its columns. */
export function ownArrowFields(columns: readonly ColumnSpec[]): ArrowField[] {
  return columns.map((spec) => ({ spec, nullable: true, layout: ownLayout(spec), metadata: new Map() }));
}

function ownLayout({ kind }: ColumnSpec): ArrowLayout {
  switch (kind) {
    case "bool":
      return { form: "bool" };
    case "text":
    case "bytes":
      return { form: "utf8" };
    case "int16":
      return { form: "int", bits: 16, signed: true };
    case "int32":
      return { form: "int", bits: 32, signed: true };
    case "int64":
      return { form: "int", bits: 64, signed: true };
    case "float32":
      return { form: "float", bits: 32 };
    case "float64":
      return { form: "float", bits: 64 };
    default:
      return {
        form: "fixed",
        width: kind === "date" ? 4 : kind === "decimal" || kind === "uuid" ? 16 : 8,
        scale: 1n,
        divide: false,
      };
  }
}

const MAX_ROWS = 1 << 27;

/** Rows of a record batch message. Throws `arrow_invalid`, `arrow_unsupported` (compression). */
export function decodeArrowBatch(fields: readonly ArrowField[], message: Buffer): ColumnBatch {
  const { metadata, body } = splitMessage(message);
  return decodeArrowParts(fields, metadata, body);
}

/** The same of a Flight message's parts. */
export function decodeArrowParts(fields: readonly ArrowField[], metadata: Buffer, body: Buffer): ColumnBatch {
  const root = FlatTable.root(metadata);
  const batch = root.table(2);
  if (root.i8(1) !== HEADER.batch || !batch) throw invalid("it is no record batch");
  if (batch.table(3) !== null) {
    throw new SpillwayError("arrow_unsupported", "A compressed Arrow record batch is not taken.");
  }
  const length = batch.i64(0);
  const nodes = batch.pairs(1);
  const buffers = batch.pairs(2);
  if (length < 0 || length > MAX_ROWS || nodes.length !== fields.length)
    throw invalid("its columns are not those of its schema");
  let next = 0;
  const take = (bytes: number, align: number): Buffer => {
    const [at = 0, size = 0] = buffers[next++] ?? [];
    if (at < 0 || size < 0 || at + size > body.length || size < bytes) throw invalid("a buffer lies outside of it");
    const slice = body.subarray(at, at + bytes);
    if (slice.byteOffset % align === 0) return slice;
    const copy = Buffer.allocUnsafeSlow(bytes);
    slice.copy(copy);
    return copy;
  };
  const columns = fields.map((field, i) => {
    const nulls = nodes[i]?.[1] ?? 0;
    if (nodes[i]?.[0] !== length) throw invalid("a column has another length");
    if (field.layout.form === "null") return nullColumn(field.spec, length);
    const bits = take(nulls === 0 ? 0 : (length + 7) >> 3, 1);
    const validity = nulls === 0 ? null : unpackBits(bits, length);
    return decodeColumn(field, length, validity, take, buffers[next]?.[1] ?? 0);
  });
  return { length, columns };
}

type Take = (bytes: number, align: number) => Buffer;

function decodeColumn(
  { spec, layout }: ArrowField,
  length: number,
  validity: Uint8Array | null,
  take: Take,
  firstSize: number,
): Column {
  switch (layout.form) {
    case "bool":
      return { spec, validity, data: unpackBits(take((length + 7) >> 3, 1), length) };
    case "utf8": {
      // A column without rows may come without its one offset.
      const offsets =
        length === 0 && firstSize === 0
          ? (take(0, 4), new Uint32Array(1))
          : view(Uint32Array, take((length + 1) * 4, 4));
      return varColumn(spec, validity, offsets, take);
    }
    case "large-utf8": {
      const longs =
        length === 0 && firstSize === 0
          ? (take(0, 8), new BigInt64Array(1))
          : view(BigInt64Array, take((length + 1) * 8, 8));
      return varColumn(spec, validity, Uint32Array.from(longs, Number), take);
    }
    case "int":
      return {
        spec,
        validity,
        data: decodeInts(layout.bits, layout.signed, take((length * layout.bits) >> 3, layout.bits >> 3), length),
      };
    case "float":
      return { spec, validity, data: decodeFloats(layout.bits, take((length * layout.bits) >> 3, layout.bits >> 3)) };
    case "fixed":
      return decodeFixed(spec, layout, validity, take(length * layout.width, 8), length);
    default:
      throw invalid(`a column has the layout ${layout.form}`);
  }
}

function varColumn(spec: ColumnSpec, validity: Uint8Array | null, offsets: Uint32Array, take: Take): Column {
  const end = offsets.at(-1) ?? 0;
  for (let i = 1; i < offsets.length; i++) {
    if ((offsets[i] ?? 0) < (offsets[i - 1] ?? 0)) throw invalid("its offsets run backwards");
  }
  return { spec, validity, offsets, heap: plain(take(end, 1)) };
}

/** A `slice` of a Buffer would be no copy. */
function plain(bytes: Buffer): Uint8Array {
  return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length);
}

type Viewed<T> = new (buffer: ArrayBufferLike, offset: number, length: number) => T;

function view<T extends { readonly BYTES_PER_ELEMENT: number }>(
  type: Viewed<T> & { readonly BYTES_PER_ELEMENT: number },
  bytes: Buffer,
): T {
  return new type(bytes.buffer, bytes.byteOffset, bytes.length / type.BYTES_PER_ELEMENT);
}

function decodeInts(bits: number, signed: boolean, bytes: Buffer, length: number): FixedData {
  if (bits === 8) return Int16Array.from(signed ? view(Int8Array, bytes) : bytes);
  if (bits === 16) return signed ? view(Int16Array, bytes) : Int32Array.from(view(Uint16Array, bytes));
  if (bits === 32) return signed ? view(Int32Array, bytes) : BigInt64Array.from(view(Uint32Array, bytes), BigInt);
  if (signed) return view(BigInt64Array, bytes);
  const out = new BigInt64Array(length * 2);
  view(BigInt64Array, bytes).forEach((value, i) => (out[i * 2] = value));
  return out;
}

function decodeFloats(bits: number, bytes: Buffer): FixedData {
  if (bits === 64) return view(Float64Array, bytes);
  return bits === 32 ? view(Float32Array, bytes) : Float32Array.from(view(Uint16Array, bytes), halfToFloat);
}

/** IEEE 754 binary16. */
function halfToFloat(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 0x1f;
  const fraction = half & 0x3ff;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : Number.NaN;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function decodeFixed(
  spec: ColumnSpec,
  layout: Extract<ArrowLayout, { form: "fixed" }>,
  validity: Uint8Array | null,
  bytes: Buffer,
  length: number,
): Column {
  if (spec.kind === "uuid") return { spec, validity, data: plain(bytes) };
  if (spec.kind === "bytes") {
    return {
      spec,
      validity,
      heap: plain(bytes),
      offsets: Uint32Array.from({ length: length + 1 }, (_, i) => i * layout.width),
    };
  }
  const isSame = layout.scale === 1n && (layout.width !== 4 || spec.kind === "date");
  if (isSame)
    return { spec, validity, data: layout.width === 4 ? view(Int32Array, bytes) : view(BigInt64Array, bytes) };
  const values = layout.width === 4 ? BigInt64Array.from(view(Int32Array, bytes), BigInt) : view(BigInt64Array, bytes);
  const scaled = values.map((v) => (layout.divide ? floorDiv(v, layout.scale) : v * layout.scale));
  return { spec, validity, data: spec.kind === "date" ? Int32Array.from(scaled, Number) : scaled };
}

function floorDiv(value: bigint, by: bigint): bigint {
  const quotient = value / by;
  return value < 0n && quotient * by !== value ? quotient - 1n : quotient;
}

function nullColumn(spec: ColumnSpec, length: number): Column {
  return { spec, validity: new Uint8Array(length), offsets: new Uint32Array(length + 1), heap: new Uint8Array(0) };
}

function unpackBits(bits: Buffer, length: number): Uint8Array {
  const out = new Uint8Array(length);
  for (let i = 0; i < length; i++) out[i] = ((bits[i >> 3] ?? 0) >> (i & 7)) & 1;
  return out;
}

function invalid(what: string): SpillwayError {
  return new SpillwayError("arrow_invalid", `An Arrow message cannot be read: ${what}.`);
}
