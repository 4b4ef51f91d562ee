/**
 * How values arrive from node-postgres: exact, and set for each client, never for the process. bigint for int8;
 * text for numeric, dates and times, whose JavaScript counterparts lose digits; the rest as node-postgres does it.
 */
import pg from "pg";

const OID = {
  int8: 20,
  date: 1082,
  time: 1083,
  timestamp: 1114,
  timestamptz: 1184,
  interval: 1186,
  timetz: 1266,
  numeric: 1700,
  textArray: 1009,
} as const;
/** Array types whose elements stay text, with the oids of `pg_type`. */
const TEXT_ARRAYS = {
  date: 1182,
  timestamp: 1115,
  timestamptz: 1185,
  interval: 1187,
  numeric: 1231,
  name: 1003,
} as const;
const INT8_ARRAY = 1016;

type Parse = (text: string) => unknown;

const parseTextArray = textArrayParser();
const asText: Parse = (text) => text;
const PARSERS = new Map<number, Parse>([
  [OID.int8, BigInt],
  [INT8_ARRAY, (text) => parseTextArray(text).map((item) => (item === null ? null : BigInt(item)))],
  ...[OID.date, OID.time, OID.timestamp, OID.timestamptz, OID.interval, OID.timetz, OID.numeric].map(
    (oid) => [oid, asText] as const,
  ),
  ...Object.values(TEXT_ARRAYS).map((oid) => [oid, parseTextArray] as const),
]);

function textArrayParser(): (text: string) => (string | null)[] {
  // The package's types list no arrays; its table has them.
  const get = pg.types.getTypeParser as (oid: number, format: "text") => unknown;
  return get(OID.textArray, "text") as (text: string) => (string | null)[];
}

/** For the `types` option of a client. */
export const EXACT_TYPES: pg.CustomTypesConfig = {
  getTypeParser: (oid: number, format?: "text" | "binary") =>
    (format === "binary" ? undefined : PARSERS.get(oid)) ?? pg.types.getTypeParser(oid, format ?? "text"),
} as pg.CustomTypesConfig;
