/**
 * GetSqlInfo and GetXdbcTypeInfo (FlightSql.proto, `SqlInfo` and `CommandGetXdbcTypeInfo`): the whole set when nothing is asked for, for
 * clients that do not know what to ask.
 */
import {
  Bool,
  DenseUnion,
  Field,
  Int32,
  Int64,
  List,
  makeData,
  Map_,
  RecordBatch,
  Schema,
  Struct,
  Table,
  tableToIPC,
  Uint32,
  Utf8,
  vectorFromArray,
} from "apache-arrow";
import { type SmallColumn, type SmallResult, smallResult, split } from "./small-results.ts";

type InfoValue = string | boolean | bigint | number | readonly string[];

const FUNCTIONS = {
  numeric: [
    "abs",
    "ceil",
    "exp",
    "floor",
    "ln",
    "log",
    "mod",
    "pi",
    "power",
    "random",
    "round",
    "sign",
    "sqrt",
    "trunc",
  ],
  string: [
    "concat",
    "left",
    "length",
    "lower",
    "lpad",
    "ltrim",
    "replace",
    "right",
    "rtrim",
    "substring",
    "trim",
    "upper",
  ],
  system: ["current_database", "current_schema", "current_user", "version"],
  datetime: ["current_date", "current_timestamp", "date_part", "date_trunc", "extract", "now"],
};

/** By the numbers of `SqlInfo`. A number is int32, a bigint is int64. */
export function sqlInfoValues(version: string): ReadonlyMap<number, InfoValue> {
  return new Map<number, InfoValue>([
    [0, "Spillway"],
    [1, version],
    [2, "1.3"],
    [3, false],
    [4, true],
    [5, false],
    // Transactions and savepoints.
    [8, 2],
    [9, true],
    [10, true],
    [11, true],
    [100, 0],
    [101, 0],
    [500, false],
    [501, true],
    [502, true],
    // Names without quotes are folded to lower case; quoted ones keep their case.
    [503, 3],
    [504, '"'],
    [505, 1],
    [506, true],
    // NULLs sort high.
    [507, 0],
    [508, ["qualify", "pivot", "unpivot", "summarize", "asof", "semi", "anti", "exclude", "replace"]],
    [509, FUNCTIONS.numeric],
    [510, FUNCTIONS.string],
    [511, FUNCTIONS.system],
    [512, FUNCTIONS.datetime],
    [513, "\\"],
    [514, "$"],
    [515, true],
    [516, true],
    [518, true],
    [519, false],
    [520, true],
    [521, true],
    [522, 3],
    [523, true],
    [524, true],
    [525, 7],
    [526, 7],
    [527, false],
    [528, 7],
    [529, "schema"],
    [530, "procedure"],
    [531, "database"],
    [532, true],
    [533, 31],
    [534, 0],
    [535, 0],
    [536, false],
    [537, false],
    [538, 15],
    [539, true],
    [540, 3],
    [541, 0n],
    [542, 0n],
    [543, 63n],
    [548, 0n],
    [549, 0n],
    [553, 63n],
    [555, 0n],
    [557, 0n],
    [558, 0n],
    [559, 63n],
    [560, 0n],
    // REPEATABLE READ: one point in time for every statement of a transaction.
    [563, 3],
    [564, true],
    [565, 12],
    [566, false],
    [567, false],
    [572, true],
    [573, true],
    [574, false],
  ]);
}

const MEMBERS = [
  new Field("string_value", new Utf8(), true),
  new Field("bool_value", new Bool(), true),
  new Field("bigint_value", new Int64(), true),
  new Field("int32_bitmask", new Int32(), true),
  new Field("string_list", new List(new Field("item", new Utf8(), true)), true),
  new Field(
    "int32_to_int32_list_map",
    new Map_(
      new Field(
        "entries",
        new Struct<{ key: Int32; value: List<Int32> }>([
          new Field("key", new Int32(), false),
          new Field("value", new List(new Field("item", new Int32(), true)), true),
        ]),
        false,
      ),
    ),
    true,
  ),
];

/** `wanted` empty: everything. Numbers that are not known are left out, as the specification says. */
export function sqlInfo(wanted: readonly number[], version: string): SmallResult {
  const all = sqlInfoValues(version);
  const names = wanted.length === 0 ? [...all.keys()] : wanted.filter((n) => all.has(n));
  const kept: InfoValue[][] = MEMBERS.map(() => []);
  const typeIds = new Int8Array(names.length);
  const offsets = new Int32Array(names.length);
  names.forEach((name, i) => {
    const value = all.get(name) ?? "";
    const member = memberOf(value);
    typeIds[i] = member;
    offsets[i] = kept[member]?.length ?? 0;
    kept[member]?.push(value);
  });
  const type = new DenseUnion([0, 1, 2, 3, 4, 5], MEMBERS);
  const children = MEMBERS.map((field, i) => {
    const [data] = vectorFromArray((kept[i] ?? []) as never[], field.type).data;
    return data ?? makeData({ type: field.type as Utf8, length: 0, nullCount: 0 });
  });
  const union = makeData({ type, length: names.length, typeIds, valueOffsets: offsets, children: children as never });
  const info = makeData({ type: new Uint32(), length: names.length, nullCount: 0, data: Uint32Array.from(names) });
  const schema = new Schema([new Field("info_name", new Uint32(), false), new Field("value", type, false)]);
  const struct = makeData({
    type: new Struct(schema.fields),
    length: names.length,
    nullCount: 0,
    children: [info, union] as never,
  });
  return split(tableToIPC(new Table(schema, [new RecordBatch(schema, struct as never)]), "stream"));
}

function memberOf(value: InfoValue): number {
  if (typeof value === "string") return 0;
  if (typeof value === "boolean") return 1;
  if (typeof value === "bigint") return 2;
  return typeof value === "number" ? 3 : 4;
}

const XDBC: readonly SmallColumn[] = [
  { name: "type_name", type: new Utf8(), nullable: false },
  { name: "data_type", type: new Int32(), nullable: false },
  { name: "column_size", type: new Int32(), nullable: true },
  { name: "literal_prefix", type: new Utf8(), nullable: true },
  { name: "literal_suffix", type: new Utf8(), nullable: true },
  { name: "create_params", type: new List(new Field("item", new Utf8(), false)), nullable: true },
  { name: "nullable", type: new Int32(), nullable: false },
  { name: "case_sensitive", type: new Bool(), nullable: false },
  { name: "searchable", type: new Int32(), nullable: false },
  { name: "unsigned_attribute", type: new Bool(), nullable: true },
  { name: "fixed_prec_scale", type: new Bool(), nullable: false },
  { name: "auto_increment", type: new Bool(), nullable: true },
  { name: "local_type_name", type: new Utf8(), nullable: true },
  { name: "minimum_scale", type: new Int32(), nullable: true },
  { name: "maximum_scale", type: new Int32(), nullable: true },
  { name: "sql_data_type", type: new Int32(), nullable: false },
  { name: "datetime_subcode", type: new Int32(), nullable: true },
  { name: "num_prec_radix", type: new Int32(), nullable: true },
  { name: "interval_precision", type: new Int32(), nullable: true },
];

interface TypeFacts {
  readonly name: string;
  /** `XdbcDataType`. */
  readonly code: number;
  readonly size: number | null;
  readonly quote?: boolean;
  readonly params?: readonly string[];
  readonly scale?: number;
  readonly radix?: number;
  readonly subcode?: number;
}

const TYPES: readonly TypeFacts[] = [
  { name: "boolean", code: -7, size: 1 },
  { name: "bytea", code: -3, size: null, quote: true },
  { name: "bigint", code: -5, size: 19, radix: 10, scale: 0 },
  { name: "text", code: -1, size: null, quote: true },
  { name: "numeric", code: 2, size: 38, params: ["precision", "scale"], radix: 10, scale: 37 },
  { name: "integer", code: 4, size: 10, radix: 10, scale: 0 },
  { name: "smallint", code: 5, size: 5, radix: 10, scale: 0 },
  { name: "real", code: 7, size: 24, radix: 2 },
  { name: "double precision", code: 8, size: 53, radix: 2 },
  { name: "character varying", code: 12, size: null, quote: true, params: ["length"] },
  { name: "date", code: 91, size: 10, quote: true, subcode: 1 },
  { name: "time without time zone", code: 92, size: 15, quote: true, scale: 6, subcode: 2 },
  { name: "timestamp without time zone", code: 93, size: 26, quote: true, scale: 6, subcode: 3 },
  { name: "timestamp with time zone", code: 93, size: 32, quote: true, scale: 6, subcode: 5 },
];

export function xdbcTypeInfo(code: number | null): SmallResult {
  const rows = TYPES.filter((t) => code === null || t.code === code)
    .toSorted((a, b) => a.code - b.code)
    .map((t) => {
      const isTime = t.subcode !== undefined;
      const quote = t.quote === true ? "'" : null;
      return [
        t.name,
        t.code,
        t.size,
        quote,
        quote,
        t.params ?? null,
        1,
        t.code === -1 || t.code === 12,
        3,
        t.radix === undefined ? null : false,
        false,
        t.radix === 10 ? false : null,
        t.name,
        t.scale === undefined ? null : 0,
        t.scale ?? null,
        isTime ? 9 : t.code,
        t.subcode ?? null,
        t.radix ?? null,
        null,
      ];
    });
  return smallResult(XDBC, rows);
}
