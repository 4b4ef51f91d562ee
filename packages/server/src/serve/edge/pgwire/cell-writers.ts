/**
 * Values of column batches as DataRow fields: length word and bytes, in text or binary format. One writer per column and batch,
 * straight from the column's memory: no object is made for a row.
 * Source: https://www.postgresql.org/docs/current/protocol-message-formats.html (DataRow); the send functions of each type.
 */
import {
  type Column,
  INFINITY_DAYS,
  INFINITY_I64,
  isVarColumn,
  NEG_INFINITY_DAYS,
  NEG_INFINITY_I64,
} from "@spillway/base/columns";
import { textOf } from "@spillway/pg/columns/text-out";
import type { WireColumn } from "../../session/session.ts";
import { float4Text, float8Text } from "./float-text.ts";
import { writeNumeric } from "./numeric-binary.ts";
import type { OutBuffer } from "./out-buffer.ts";
import { OID, TEXTUAL } from "./types.ts";
import { pgError } from "./wire-errors.ts";
import { offsetText, zoneOffset } from "./zone.ts";

/** Writes the field of one row. */
export type CellWriter = (row: number, out: OutBuffer) => void;

export type Format = 0 | 1;

/** What the text of values depends on. */
export interface TextSettings {
  readonly timeZone: string;
}

const POSTGRES_EPOCH_DAYS = 10_957;
const POSTGRES_EPOCH_US = 946_684_800_000_000n;
const MAX_I64 = 9_223_372_036_854_775_807n;
const MIN_I64 = -9_223_372_036_854_775_808n;

export function cellWriter(column: Column, wire: WireColumn, format: Format, settings: TextSettings): CellWriter {
  const write = format === 1 ? binaryWriter(column, wire) : textWriter(column, wire, settings);
  const { validity } = column;
  if (validity === null) return write;
  return (row, out) => {
    if (validity[row] === 0) out.null();
    else write(row, out);
  };
}

/** Refused before the first row: a client that gets text where it asked for binary misreads it. */
export function requireBinary(wire: WireColumn): void {
  if (wire.kind !== "text" || TEXTUAL.has(wire.typeOid)) return;
  if (wire.typeOid === OID.jsonb || wire.typeOid === OID.numeric) return;
  throw pgError("42883", `no binary output function available for type ${wire.typeOid} of column "${wire.name}"`);
}

function textWriter(column: Column, wire: WireColumn, settings: TextSettings): CellWriter {
  if (isVarColumn(column)) return column.spec.kind === "bytes" ? hexWriter(column) : rawWriter(column);
  const { data } = column;
  switch (column.spec.kind) {
    case "bool":
      return (row, out) => out.ascii(data[row] === 0 ? "f" : "t");
    case "float32":
      return (row, out) => out.ascii(float4Text(Number(data[row])));
    case "float64":
      return (row, out) => out.ascii(float8Text(Number(data[row])));
    case "int16":
    case "int32":
    case "int64":
      return (row, out) => out.ascii(String(data[row]));
    case "timestamptz":
      return zonedWriter(column, wire, settings.timeZone);
    default:
      return (row, out) => out.ascii(textOf(column, row) ?? "");
  }
}

type Heap = Column & { readonly heap: Uint8Array; readonly offsets: Uint32Array };

function rawWriter({ heap, offsets }: Heap): CellWriter {
  return (row, out) => {
    const start = offsets[row] ?? 0;
    const end = offsets[row + 1] ?? 0;
    const size = end - start;
    out.int32(size);
    out.room(size);
    const { buffer, at } = out;
    // For short values a loop is faster than a call.
    if (size < 32) for (let i = 0; i < size; i++) buffer[at + i] = heap[start + i] ?? 0;
    else buffer.set(heap.subarray(start, end), at);
    out.at = at + size;
  };
}

function hexWriter({ heap, offsets }: Heap): CellWriter {
  const bytes = Buffer.from(heap.buffer, heap.byteOffset, heap.byteLength);
  return (row, out) => out.ascii(`\\x${bytes.toString("hex", offsets[row] ?? 0, offsets[row + 1] ?? 0)}`);
}

/** timestamptz as the wall clock of a zone, its offset behind the time and before the era. */
function zonedWriter(column: Column, wire: WireColumn, timeZone: string): CellWriter {
  const offsetAt = zoneOffset(timeZone);
  const source = (column as { data: BigInt64Array }).data;
  const spec = { name: wire.name, kind: "timestamp" as const };
  const local = new BigInt64Array(1);
  const shown: Column = { spec, validity: null, data: local };
  return (row, out) => {
    const value = source[row] ?? 0n;
    const infinite = value === INFINITY_I64 || value === NEG_INFINITY_I64;
    const seconds = infinite ? 0 : offsetAt(Number(value));
    local[0] = infinite ? value : value + BigInt(seconds) * 1_000_000n;
    const text = textOf(shown, 0) ?? "";
    const zone = infinite ? "" : offsetText(seconds);
    out.ascii(text.endsWith(" BC") ? `${text.slice(0, -3)}${zone} BC` : text + zone);
  };
}

function binaryWriter(column: Column, wire: WireColumn): CellWriter {
  if (isVarColumn(column)) {
    if (column.spec.kind === "bytes") return rawWriter(column);
    if (wire.typeOid === OID.numeric) return (row, out) => writeNumeric(out, textOf(column, row) ?? "0");
    if (wire.typeOid === OID.char) return charWriter(column);
    return wire.typeOid === OID.jsonb ? jsonbWriter(column) : rawWriter(column);
  }
  const { data } = column;
  switch (column.spec.kind) {
    case "bool":
      return (row, out) => void out.int32(1).byte(data[row] === 0 ? 0 : 1);
    case "int16":
    case "int32":
    case "int64":
      return integerWriter(data, wire.typeOid, column.spec.kind);
    case "float32":
      return (row, out) => {
        out.int32(4).room(4);
        out.at = out.buffer.writeFloatBE(Number(data[row]), out.at);
      };
    case "float64":
      return (row, out) => {
        out.int32(8).room(8);
        out.at = out.buffer.writeDoubleBE(Number(data[row]), out.at);
      };
    case "date":
      return (row, out) => void out.int32(4).int32(dateOf(Number(data[row])));
    case "time":
      return (row, out) => void out.int32(8).int64(BigInt(data[row] ?? 0));
    case "timestamp":
    case "timestamptz":
      return (row, out) => void out.int32(8).int64(timestampOf(BigInt(data[row] ?? 0)));
    case "decimal":
      return (row, out) => writeNumeric(out, textOf(column, row) ?? "0");
    default:
      return (row, out) => void out.int32(16).bytes((data as Uint8Array).subarray(row * 16, row * 16 + 16));
  }
}

/** "char" is always one byte: the empty one is a zero. */
function charWriter(column: Heap): CellWriter {
  const { heap, offsets } = column;
  return (row, out) => {
    const start = offsets[row] ?? 0;
    out.int32(1).byte((offsets[row + 1] ?? 0) > start ? (heap[start] ?? 0) : 0);
  };
}

function jsonbWriter(column: Heap): CellWriter {
  const { heap, offsets } = column;
  return (row, out) => {
    const bytes = heap.subarray(offsets[row] ?? 0, offsets[row + 1] ?? 0);
    out
      .int32(bytes.length + 1)
      .byte(1)
      .bytes(bytes);
  };
}

/** The width is that of the type the column was described as: DuckDB computes in wider ones. */
function integerWriter(data: ArrayLike<unknown>, oid: number, kind: string): CellWriter {
  const width = oid === OID.int2 ? 2 : oid === OID.int4 || oid === OID.oid ? 4 : oid === OID.int8 ? 8 : 0;
  const own = kind === "int16" ? 2 : kind === "int32" ? 4 : 8;
  switch (width === 0 ? own : width) {
    case 2:
      return (row, out) => void out.int32(2).int16(Number(data[row]));
    case 4:
      return (row, out) => void out.int32(4).int32(Number(data[row]));
    default:
      return (row, out) => void out.int32(8).int64(BigInt(data[row] as number | bigint));
  }
}

function dateOf(days: number): number {
  if (days === INFINITY_DAYS) return 2_147_483_647;
  return days === NEG_INFINITY_DAYS ? -2_147_483_648 : days - POSTGRES_EPOCH_DAYS;
}

function timestampOf(micros: bigint): bigint {
  if (micros === INFINITY_I64) return MAX_I64;
  return micros === NEG_INFINITY_I64 ? MIN_I64 : micros - POSTGRES_EPOCH_US;
}
