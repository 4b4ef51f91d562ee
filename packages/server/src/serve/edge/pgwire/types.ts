/** Postgres types by oid, as far as the wire must know them. Source: `pg_type.dat` of the Postgres sources. */
import { unreachable } from "@spillway/base/assert";
import type { ColumnKind } from "@spillway/base/columns";

export const OID = {
  bool: 16,
  bytea: 17,
  char: 18,
  name: 19,
  int8: 20,
  int2: 21,
  int4: 23,
  text: 25,
  oid: 26,
  json: 114,
  xml: 142,
  float4: 700,
  float8: 701,
  unknown: 705,
  bpchar: 1042,
  varchar: 1043,
  date: 1082,
  time: 1083,
  timestamp: 1114,
  timestamptz: 1184,
  interval: 1186,
  numeric: 1700,
  uuid: 2950,
  jsonb: 3802,
} as const;

/** `pg_type.typlen` of types of fixed length; all others are -1. */
const LENGTHS: Readonly<Record<number, number>> = {
  [OID.bool]: 1,
  [OID.char]: 1,
  [OID.name]: 64,
  [OID.int8]: 8,
  [OID.int2]: 2,
  [OID.int4]: 4,
  [OID.oid]: 4,
  [OID.float4]: 4,
  [OID.float8]: 8,
  [OID.unknown]: -2,
  [OID.date]: 4,
  [OID.time]: 8,
  [OID.timestamp]: 8,
  [OID.timestamptz]: 8,
  [OID.interval]: 16,
  [OID.uuid]: 16,
};

export function typeLength(oid: number): number {
  return LENGTHS[oid] ?? -1;
}

/** The type of a column of this kind, where nothing nearer is known. */
export function oidOfKind(kind: ColumnKind): number {
  switch (kind) {
    case "bool":
      return OID.bool;
    case "int16":
      return OID.int2;
    case "int32":
      return OID.int4;
    case "int64":
      return OID.int8;
    case "float32":
      return OID.float4;
    case "float64":
      return OID.float8;
    case "date":
      return OID.date;
    case "time":
      return OID.time;
    case "timestamp":
      return OID.timestamp;
    case "timestamptz":
      return OID.timestamptz;
    case "decimal":
      return OID.numeric;
    case "uuid":
      return OID.uuid;
    case "text":
      return OID.text;
    case "bytes":
      return OID.bytea;
    default:
      return unreachable(kind);
  }
}

/** Types whose binary form is the bytes of their text. */
export const TEXTUAL: ReadonlySet<number> = new Set([
  OID.text,
  OID.varchar,
  OID.bpchar,
  OID.name,
  OID.char,
  OID.json,
  OID.xml,
  OID.unknown,
]);
