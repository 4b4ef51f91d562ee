/**
 * Arrow schemas and the kinds of columns. Source: https://arrow.apache.org/docs/format/Columnar.html and format/Schema.fbs,
 * format/Message.fbs of Apache Arrow.
 */
import type { ColumnKind, ColumnSpec } from "@spillway/base/columns";
import { unreachable } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { FlatTable, FlatWriter, type Slot } from "./arrow-flatbuffer.ts";

/** A column of an Arrow schema that is written. */
export interface ArrowColumn extends ColumnSpec {
  /** Default true. */
  readonly nullable?: boolean;
  /** Key and value texts of the field. */
  readonly metadata?: Readonly<Record<string, string>>;
}

/** How the buffers of a column that was sent to us are laid out. */
export type ArrowLayout =
  | { readonly form: "null" | "bool" | "utf8" | "large-utf8" | "decimal256" }
  | { readonly form: "int"; readonly bits: number; readonly signed: boolean }
  | { readonly form: "float"; readonly bits: number }
  | { readonly form: "fixed"; readonly width: number; readonly scale: bigint; readonly divide: boolean };

/** A column of an Arrow schema that was read. */
export interface ArrowField {
  readonly spec: ColumnSpec;
  readonly nullable: boolean;
  readonly layout: ArrowLayout;
  readonly metadata: ReadonlyMap<string, string>;
}

/** `Message.header`. */
export const HEADER = { schema: 1, dictionary: 2, batch: 3 } as const;
const V5 = 4;
const CONTINUATION = 0xffffffff;

const TYPE = {
  null: 1,
  int: 2,
  float: 3,
  binary: 4,
  utf8: 5,
  bool: 6,
  decimal: 7,
  date: 8,
  time: 9,
  timestamp: 10,
  fixedBinary: 15,
  largeBinary: 19,
  largeUtf8: 20,
} as const;

/** An encapsulated message: continuation, length, metadata, and room for `bodyBytes` behind it. */
export function encapsulate(metadata: Buffer, bodyBytes: number): { message: Buffer; body: number } {
  const message = Buffer.allocUnsafeSlow(8 + metadata.length + bodyBytes);
  message.writeUInt32LE(CONTINUATION, 0);
  message.writeInt32LE(metadata.length, 4);
  metadata.copy(message, 8);
  return { message, body: 8 + metadata.length };
}

/** The parts of an encapsulated message, as Flight sends them. Throws `arrow_invalid`. */
export function splitMessage(message: Buffer): { metadata: Buffer; body: Buffer } {
  const start = message.length >= 8 && message.readUInt32LE(0) === CONTINUATION ? 8 : 4;
  const length = message.length >= start ? message.readInt32LE(start - 4) : -1;
  if (length < 0 || start + length > message.length) {
    throw new SpillwayError("arrow_invalid", "An Arrow message is shorter than it says.");
  }
  return { metadata: message.subarray(start, start + length), body: message.subarray(start + length) };
}

export function messageMetadata(writer: FlatWriter, header: number, root: number, bodyBytes: number): Buffer {
  return writer.finish(
    writer.table([["i16", V5], ["i8", header], ["offset", root], bodyBytes === 0 ? null : ["i64", BigInt(bodyBytes)]]),
  );
}

/** The schema message of a stream. */
export function encodeArrowSchema(columns: readonly ArrowColumn[]): Buffer {
  const writer = new FlatWriter();
  const fields = columns.map((column) => encodeField(writer, column));
  const schema = writer.table([null, ["offset", writer.offsets(fields)]]);
  return encapsulate(messageMetadata(writer, HEADER.schema, schema, 0), 0).message;
}

function encodeField(writer: FlatWriter, column: ArrowColumn): number {
  const extension =
    column.kind === "uuid" ? { "ARROW:extension:name": "arrow.uuid", "ARROW:extension:metadata": "" } : {};
  const pairs = Object.entries({ ...extension, ...column.metadata }).map(([key, value]) => {
    const [k, v] = [writer.string(key), writer.string(value)];
    return writer.table([
      ["offset", k],
      ["offset", v],
    ]);
  });
  const metadata = pairs.length === 0 ? null : (["offset", writer.offsets(pairs)] as const);
  const name = writer.string(column.name);
  const [type, table] = encodeType(writer, column);
  const children = writer.offsets([]);
  return writer.table([
    ["offset", name],
    ["bool", column.nullable ?? true],
    ["i8", type],
    ["offset", table],
    null,
    ["offset", children],
    metadata,
  ]);
}

function encodeType(writer: FlatWriter, spec: ColumnSpec): readonly [number, number] {
  const typed = (type: number, slots: readonly Slot[]): readonly [number, number] => [type, writer.table(slots)];
  const micro: Slot = ["i16", 2];
  switch (spec.kind) {
    case "bool":
      return typed(TYPE.bool, []);
    case "int16":
      return typed(TYPE.int, [
        ["i32", 16],
        ["bool", true],
      ]);
    case "int32":
      return typed(TYPE.int, [
        ["i32", 32],
        ["bool", true],
      ]);
    case "int64":
      return typed(TYPE.int, [
        ["i32", 64],
        ["bool", true],
      ]);
    case "float32":
      return typed(TYPE.float, [["i16", 1]]);
    case "float64":
      return typed(TYPE.float, [["i16", 2]]);
    case "date":
      return typed(TYPE.date, [["i16", 0]]);
    case "time":
      return typed(TYPE.time, [micro, ["i32", 64]]);
    case "timestamp":
      return typed(TYPE.timestamp, [micro]);
    case "timestamptz": {
      const zone = writer.string("UTC");
      return typed(TYPE.timestamp, [micro, ["offset", zone]]);
    }
    case "decimal":
      return typed(TYPE.decimal, [
        ["i32", spec.decimal?.precision ?? 38],
        ["i32", spec.decimal?.scale ?? 0],
        ["i32", 128],
      ]);
    case "uuid":
      return typed(TYPE.fixedBinary, [["i32", 16]]);
    case "text":
      return typed(TYPE.utf8, []);
    case "bytes":
      return typed(TYPE.binary, []);
    default:
      return unreachable(spec.kind);
  }
}

/** Reads a schema message. Throws `arrow_invalid`, and `arrow_unsupported` naming the column whose type no kind holds. */
export function decodeArrowSchema(message: Buffer): ArrowField[] {
  const root = FlatTable.root(splitMessage(message).metadata);
  const schema = root.table(2);
  if (root.i8(1) !== HEADER.schema || !schema) {
    throw new SpillwayError("arrow_invalid", "The first Arrow message is not a schema.");
  }
  return schema.tables(1).map(decodeField);
}

function decodeField(field: FlatTable): ArrowField {
  const name = field.text(0) ?? "";
  const metadata = new Map(field.tables(6).map((pair) => [pair.text(0) ?? "", pair.text(1) ?? ""]));
  const type = field.table(3);
  const decoded = field.table(4) === null && type ? decodeType(field.i8(2), type, metadata) : null;
  if (!decoded) {
    throw new SpillwayError(
      "arrow_unsupported",
      `The column ${JSON.stringify(name)} has an Arrow type that is not taken.`,
    );
  }
  return { spec: { name, ...decoded.shape }, nullable: field.bool(1), layout: decoded.layout, metadata };
}

interface Decoded {
  readonly shape: Omit<ColumnSpec, "name">;
  readonly layout: ArrowLayout;
}

function decodeType(type: number, table: FlatTable, metadata: ReadonlyMap<string, string>): Decoded | null {
  const fixed = (kind: ColumnKind, width: number, scale = 1n, divide = false): Decoded => ({
    shape: { kind },
    layout: { form: "fixed", width, scale, divide },
  });
  switch (type) {
    case TYPE.null:
      return { shape: { kind: "text" }, layout: { form: "null" } };
    case TYPE.bool:
      return { shape: { kind: "bool" }, layout: { form: "bool" } };
    case TYPE.int:
      return decodeInt(table.i32(0), table.bool(1));
    case TYPE.float: {
      const bits = ([16, 32, 64] as const)[table.i16(0)];
      return bits === undefined
        ? null
        : { shape: { kind: bits === 64 ? "float64" : "float32" }, layout: { form: "float", bits } };
    }
    case TYPE.utf8:
      return { shape: { kind: "text" }, layout: { form: "utf8" } };
    case TYPE.binary:
      return { shape: { kind: "bytes" }, layout: { form: "utf8" } };
    case TYPE.largeUtf8:
      return { shape: { kind: "text" }, layout: { form: "large-utf8" } };
    case TYPE.largeBinary:
      return { shape: { kind: "bytes" }, layout: { form: "large-utf8" } };
    case TYPE.date:
      return table.i16(0, 1) === 0 ? fixed("date", 4) : fixed("date", 8, 86_400_000n, true);
    case TYPE.time:
      return decodeTime(table.i16(0, 1), table.i32(1, 32));
    case TYPE.timestamp: {
      const [scale, divide] = unitOf(table.i16(0));
      return fixed((table.text(1) ?? "") === "" ? "timestamp" : "timestamptz", 8, scale, divide);
    }
    case TYPE.decimal: {
      const decimal = { precision: table.i32(0), scale: table.i32(1) };
      if (table.i32(2, 128) !== 128 || decimal.scale < 0) return null;
      return { shape: { kind: "decimal", decimal }, layout: { form: "fixed", width: 16, scale: 1n, divide: false } };
    }
    case TYPE.fixedBinary: {
      const isUuid = metadata.get("ARROW:extension:name") === "arrow.uuid" && table.i32(0) === 16;
      return isUuid ? fixed("uuid", 16) : fixed("bytes", table.i32(0));
    }
    default:
      return null;
  }
}

function decodeInt(bits: number, signed: boolean): Decoded | null {
  if (![8, 16, 32, 64].includes(bits)) return null;
  const layout = { form: "int", bits, signed } as const;
  if (bits === 64 && !signed) return { shape: { kind: "decimal", decimal: { precision: 20, scale: 0 } }, layout };
  const kind = bits <= (signed ? 16 : 8) ? "int16" : bits <= (signed ? 32 : 16) ? "int32" : "int64";
  return { shape: { kind }, layout };
}

/** From the unit of a time to microseconds: a factor, or a divisor. */
function unitOf(unit: number): readonly [bigint, boolean] {
  const units = [
    [1_000_000n, false],
    [1000n, false],
    [1n, false],
    [1000n, true],
  ] as const;
  return units[unit] ?? [1n, false];
}

function decodeTime(unit: number, bits: number): Decoded {
  const [scale, divide] = unitOf(unit);
  return { shape: { kind: "time" }, layout: { form: "fixed", width: bits / 8, scale, divide } };
}
