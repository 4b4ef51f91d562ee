/**
 * Bound parameters: text stays as it is, binary becomes the text of its type, so that one form reaches the plan.
 * Sources: https://www.postgresql.org/docs/current/protocol-message-formats.html (Bind); the recv functions of each type.
 */
import { textOf } from "@spillway/pg/columns/text-out";
import { INFINITY_DAYS, INFINITY_I64, NEG_INFINITY_DAYS, NEG_INFINITY_I64 } from "@spillway/base/columns";
import { utf8 } from "./frontend-reader.ts";
import { float4Text, float8Text } from "./float-text.ts";
import { readNumeric } from "./numeric-binary.ts";
import { OID, TEXTUAL } from "./types.ts";
import { pgError } from "./wire-errors.ts";

/** The text of a binary parameter of the type. Throws 22P03 for bytes that are none, 0A000 for types that are not read. */
export function parameterText(bytes: Buffer, oid: number): string {
  const sized = (size: number): void => {
    if (bytes.length !== size) throw pgError("22P03", "incorrect binary data format in bind parameter");
  };
  if (oid === OID.char && bytes.length === 1 && bytes[0] === 0) return "";
  if (TEXTUAL.has(oid) || oid === 0) return utf8(bytes);
  switch (oid) {
    case OID.bool:
      sized(1);
      return bytes[0] === 0 ? "f" : "t";
    case OID.int2:
      sized(2);
      return String(bytes.readInt16BE(0));
    case OID.int4:
      sized(4);
      return String(bytes.readInt32BE(0));
    case OID.oid:
      sized(4);
      return String(bytes.readUInt32BE(0));
    case OID.int8:
      sized(8);
      return String(bytes.readBigInt64BE(0));
    case OID.float4:
      sized(4);
      return float4Text(bytes.readFloatBE(0));
    case OID.float8:
      sized(8);
      return float8Text(bytes.readDoubleBE(0));
    case OID.numeric:
      return readNumeric(bytes);
    case OID.bytea:
      return `\\x${bytes.toString("hex")}`;
    case OID.uuid:
      sized(16);
      return uuidText(bytes);
    case OID.jsonb:
      if (bytes[0] !== 1) throw pgError("22P03", "unsupported jsonb version number");
      return utf8(bytes.subarray(1));
    default:
      return timeText(bytes, oid, sized);
  }
}

const EPOCH_US = 946_684_800_000_000n;

function timeText(bytes: Buffer, oid: number, sized: (size: number) => void): string {
  switch (oid) {
    case OID.date: {
      sized(4);
      const days = bytes.readInt32BE(0);
      const shown =
        days === 2_147_483_647 ? INFINITY_DAYS : days === -2_147_483_648 ? NEG_INFINITY_DAYS : days + 10_957;
      return textOf({ spec: { name: "", kind: "date" }, validity: null, data: Int32Array.of(shown) }, 0) ?? "";
    }
    case OID.time: {
      sized(8);
      const data = BigInt64Array.of(bytes.readBigInt64BE(0));
      return textOf({ spec: { name: "", kind: "time" }, validity: null, data }, 0) ?? "";
    }
    case OID.timestamp:
    case OID.timestamptz: {
      sized(8);
      const micros = bytes.readBigInt64BE(0);
      const top = micros === 9_223_372_036_854_775_807n;
      const bottom = micros === -9_223_372_036_854_775_808n;
      const data = BigInt64Array.of(top ? INFINITY_I64 : bottom ? NEG_INFINITY_I64 : micros + EPOCH_US);
      const kind = oid === OID.timestamp ? "timestamp" : "timestamptz";
      return textOf({ spec: { name: "", kind }, validity: null, data }, 0) ?? "";
    }
    case OID.interval: {
      sized(16);
      const micros = bytes.readBigInt64BE(0);
      return `${bytes.readInt32BE(12)} months ${bytes.readInt32BE(8)} days ${micros} microseconds`;
    }
    default:
      throw pgError("42883", `no binary input function available for type ${oid}`);
  }
}

function uuidText(bytes: Buffer): string {
  const hex = bytes.toString("hex");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
