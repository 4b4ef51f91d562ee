/**
 * What becomes of every Postgres type: the one table from which `register`, COPY, the reads and
 * `docs/reference/types.md` take a column's fate. A column is either
 *
 * - `native`: the lake holds the value itself,
 * - `text`: the lake holds Postgres's own text of the value, which casts back to the same value (the
 *   text is made under the settings of `CANONICAL_TEXT_SETTINGS`, so that it means one thing), or
 * - `refused`, with the reason.
 *
 * Nothing is approximated: no type loses precision, a zone, a null or a trailing digit.
 */
import type { ColumnKind, DecimalShape } from "./columns.ts";

/**
 * The settings under which every session of ours prints and reads values as text: dates inside ranges,
 * composites and arrays, intervals, floats and bytea depend on them.
 */
export const CANONICAL_TEXT_SETTINGS: Readonly<Record<string, string>> = {
  DateStyle: "ISO, YMD",
  IntervalStyle: "postgres",
  TimeZone: "UTC",
  extra_float_digits: "1",
  bytea_output: "hex",
  client_encoding: "UTF8",
  lc_monetary: "C",
};

/** A column's type as the system catalogs describe it (pg_type, pg_attribute). */
export interface PgTypeFacts {
  readonly oid: number;
  /** `atttypmod`; -1 when there is none. */
  readonly typmod: number;
  /** `pg_type.typname`, without the schema. */
  readonly name: string;
  /** `pg_type.typtype`: b(ase), c(omposite), d(omain), e(num), p(seudo), r(ange), m(ultirange). */
  readonly typtype: string;
  /** `pg_type.typcategory`; `A` is an array. */
  readonly category: string;
  /** The schema of the type. */
  readonly schema: string;
  /** For a domain: the facts of its base type, with the domain's typmod. For an array: those of its elements. */
  readonly base?: PgTypeFacts;
}

export type TypeFate = "native" | "text" | "refused";

export interface PgTypePlan {
  readonly fate: TypeFate;
  /** The physical form; `text` when refused. */
  readonly kind: ColumnKind;
  readonly decimal?: DecimalShape;
  /** Why it is refused, as a clause: "its text …". */
  readonly reason?: string;
}

interface NativeRow {
  readonly oid: number;
  readonly name: string;
  readonly kind: ColumnKind;
  readonly note?: string;
}

/** Types that the lake holds as themselves. `numeric` is decided by its typmod. */
export const NATIVE_TYPES: readonly NativeRow[] = [
  { oid: 16, name: "bool", kind: "bool" },
  { oid: 21, name: "int2", kind: "int16", note: "held as a 32-bit int; Iceberg has no smaller one" },
  { oid: 23, name: "int4", kind: "int32" },
  { oid: 20, name: "int8", kind: "int64" },
  { oid: 26, name: "oid", kind: "int64" },
  { oid: 700, name: "float4", kind: "float32", note: "NaN and infinities kept; a zero's sign may be lost" },
  { oid: 701, name: "float8", kind: "float64", note: "NaN and infinities kept; a zero's sign may be lost" },
  { oid: 1082, name: "date", kind: "date", note: "infinity is the largest 32-bit number, -infinity its negative" },
  { oid: 1083, name: "time", kind: "time", note: "24:00:00 is 86 400 000 000 µs" },
  {
    oid: 1114,
    name: "timestamp",
    kind: "timestamp",
    note: "no zone; infinities are the largest 64-bit number and its negative",
  },
  { oid: 1184, name: "timestamptz", kind: "timestamptz", note: "an instant; infinities as of timestamp" },
  { oid: 2950, name: "uuid", kind: "uuid" },
  { oid: 25, name: "text", kind: "text" },
  { oid: 1043, name: "varchar", kind: "text" },
  { oid: 1042, name: "bpchar", kind: "text", note: "char(n) with its trailing spaces" },
  { oid: 19, name: "name", kind: "text" },
  { oid: 18, name: "char", kind: "text" },
  { oid: 114, name: "json", kind: "text", note: "byte for byte" },
  { oid: 17, name: "bytea", kind: "bytes" },
];

/** Built-in types whose text casts back to exactly the same value. */
export const TEXT_TYPES: readonly string[] = [
  "jsonb", "jsonpath", "xml", "interval", "timetz", "money", "inet", "cidr", "macaddr", "macaddr8", "bit", "varbit",
  "tsvector", "tsquery", "point", "line", "lseg", "box", "path", "polygon", "circle", "pg_lsn", "tid", "xid", "xid8",
  "cid", "pg_snapshot", "txid_snapshot", "refcursor", "oidvector", "int2vector",
]; // prettier-ignore

/** Built-in types that are refused, and why. */
export const REFUSED_TYPES: Readonly<Record<string, string>> = {
  aclitem: "its text names roles, which can be renamed or dropped",
  pg_node_tree: "Postgres cannot read its text back",
  pg_ndistinct: "Postgres cannot read its text back",
  pg_dependencies: "Postgres cannot read its text back",
  pg_mcv_list: "Postgres cannot read its text back",
  pg_brin_bloom_summary: "Postgres cannot read its text back",
  pg_brin_minmax_multi_summary: "Postgres cannot read its text back",
  gtsvector: "Postgres cannot read its text back",
  pg_ddl_command: "Postgres cannot read its text back",
};

/** `regclass`, `regproc` and the like: their text names objects and depends on the search path. */
const REG_TYPES = new Set([
  "regclass", "regproc", "regprocedure", "regoper", "regoperator", "regtype", "regrole", "regnamespace", "regconfig",
  "regdictionary", "regcollation", "regdatabase",
]); // prettier-ignore

const REG_REASON = "its text names a database object, which can be renamed or dropped, and depends on the search path";

/** DuckDB's and Iceberg's bound on a decimal's digits. */
export const MAX_DECIMAL_PRECISION = 38;

const NATIVE_BY_OID = new Map(NATIVE_TYPES.map((row) => [row.oid, row]));
const TEXT = new Set(TEXT_TYPES);

const NUMERIC_OID = 1700;

/** What becomes of a column of this type. */
export function planPgType(facts: PgTypeFacts): PgTypePlan {
  if (facts.typtype === "d") return facts.base ? planPgType(facts.base) : refused("its base type is unknown");
  if (facts.typtype === "p") return refused("it is a pseudo-type");
  if (facts.oid === NUMERIC_OID) return planNumeric(facts.typmod);
  const native = NATIVE_BY_OID.get(facts.oid);
  if (native) return { fate: "native", kind: native.kind };
  if (facts.schema === "pg_catalog") {
    const reason = REFUSED_TYPES[facts.name] ?? (REG_TYPES.has(facts.name) ? REG_REASON : undefined);
    if (reason !== undefined) return refused(reason);
  }
  if (facts.category === "A" && facts.base) {
    const element = planPgType(facts.base);
    if (element.fate === "refused") return refused(`of its elements: ${element.reason ?? "they are refused"}`);
    return { fate: "text", kind: "text" };
  }
  if (facts.typtype !== "b" || facts.schema !== "pg_catalog" || TEXT.has(facts.name) || facts.category === "A") {
    return { fate: "text", kind: "text" };
  }
  return refused("this program does not know whether its text can be read back exactly");
}

/**
 * numeric(p,s) with 1 <= p <= 38 and 0 <= s <= p is a decimal; every other numeric is exact text.
 * The typmod is ((precision << 16) | (scale & 0x7ff)) + 4, the scale signed since Postgres 15
 * (src/backend/utils/adt/numeric.c).
 */
export function planNumeric(typmod: number): PgTypePlan {
  if (typmod < 4) return { fate: "text", kind: "text" };
  const packed = typmod - 4;
  const precision = (packed >> 16) & 0xffff;
  const scale = ((packed & 0x7ff) ^ 1024) - 1024;
  if (precision > MAX_DECIMAL_PRECISION || scale < 0 || scale > precision) return { fate: "text", kind: "text" };
  return { fate: "native", kind: "decimal", decimal: { precision, scale } };
}

function refused(reason: string): PgTypePlan {
  return { fate: "refused", kind: "text", reason };
}

/** The type of Postgres whose values are those of a kind. */
export const OID_OF_KIND: Readonly<Record<ColumnKind, number>> = {
  bool: 16,
  int16: 21,
  int32: 23,
  int64: 20,
  float32: 700,
  float64: 701,
  date: 1082,
  time: 1083,
  timestamp: 1114,
  timestamptz: 1184,
  decimal: 1700,
  uuid: 2950,
  text: 25,
  bytes: 17,
};

/** numeric(p, s) as pg_attribute.atttypmod; -1 for everything else. */
export function typmodOfDecimal(decimal: DecimalShape | undefined): number {
  return decimal ? ((decimal.precision << 16) | decimal.scale) + 4 : -1;
}
