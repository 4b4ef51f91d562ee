/**
 * The columns of a table as Postgres has them now, each with its fate in the lake (`base/pg-types.ts`) and the type in
 * which a delta table stores it: the value's own base type where the lake holds the value, else text. So a delta
 * never depends on a user's type, and never stops somebody from dropping one.
 */
import { planPgType, type PgTypeFacts, type PgTypePlan } from "@spillway/base/pg-types";
import { type PgColumnPlan, planColumn } from "@spillway/pg/columns/plan";
import type { Db } from "./db.ts";

export interface TableColumn {
  readonly attnum: number;
  readonly name: string;
  readonly typeOid: number;
  readonly typmod: number;
  /** As Postgres writes the type. */
  readonly typeName: string;
  readonly notNull: boolean;
  readonly generated: "" | "s" | "v";
  readonly identity: "" | "a" | "d";
  /** The type's collation is not deterministic: equal texts may differ. */
  readonly looseCollation: boolean;
  /** What rows written before the column existed read, as canonical text; null = NULL, or the column is original. */
  readonly missingValue: string | null;
  readonly plan: PgTypePlan;
  /** How COPY sends it. */
  readonly copyPlan: PgColumnPlan;
  readonly typtype: string;
  readonly baseOid: number;
  /** The SQL type of the delta's column. */
  readonly deltaType: string;
}

/** As SQL answers, or as an event trigger says it. */
export interface RawColumn {
  attnum: number;
  attname: string;
  atttypid: string;
  atttypmod: number;
  type_name: string;
  attnotnull: boolean;
  attgenerated: "" | "s" | "v";
  attidentity: "" | "a" | "d";
  loose: boolean;
  missing: string | null;
}

export interface RawType {
  oid: string;
  typname: string;
  typtype: string;
  typcategory: string;
  nspname: string;
  typbasetype: string;
  typtypmod: number;
  typelem: string;
}

const TYPES = `
  with recursive t (oid) as (
    select distinct atttypid from pg_attribute where attrelid = $1 and attnum > 0 and not attisdropped
    union
    select n.oid from t join pg_type y on y.oid = t.oid
      cross join lateral (values (y.typbasetype), (y.typelem)) as n (oid) where n.oid <> 0
  )
  select y.oid::text, y.typname, y.typtype, y.typcategory, n.nspname, y.typbasetype::text, y.typtypmod, y.typelem::text
  from t join pg_type y on y.oid = t.oid join pg_namespace n on n.oid = y.typnamespace`;

const TYPES_OF = TYPES.replace(
  "select distinct atttypid from pg_attribute where attrelid = $1 and attnum > 0 and not attisdropped",
  "select oid from pg_type where oid = any ($1::oid[])",
);

const COLUMNS = `
  select a.attnum, a.attname, a.atttypid::text, a.atttypmod, format_type(a.atttypid, a.atttypmod) as type_name,
    a.attnotnull, a.attgenerated, a.attidentity,
    coalesce(not l.collisdeterministic, false) as loose,
    -- A partitioned table keeps none itself; its default partition was there whenever a column was added.
    case when a.atthasmissing then (a.attmissingval::text::text[])[1] else (
      select (b.attmissingval::text::text[])[1] from pg_attribute b
      where b.attrelid = p.partdefid and b.attname = a.attname and b.atthasmissing) end as missing
  from pg_attribute a left join pg_collation l on l.oid = a.attcollation
  left join pg_partitioned_table p on p.partrelid = a.attrelid
  where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped order by a.attnum`;

/** The columns of one table or partition. The connection must have the canonical text settings. */
export async function readTableColumns(db: Db, relid: number): Promise<TableColumn[]> {
  const types = (await db.query<RawType>(TYPES, [relid])).rows;
  return tableColumnsOf((await db.query<RawColumn>(COLUMNS, [relid])).rows, types);
}

/** What some columns' types are by now; empty names and flags stay as they are given. For columns that a table had. */
export async function readTypes(db: Db, oids: readonly number[]): Promise<RawType[]> {
  return (await db.query<RawType>(TYPES_OF, [[...oids]])).rows;
}

export function tableColumnsOf(columns: readonly RawColumn[], rawTypes: readonly RawType[]): TableColumn[] {
  const types = new Map(rawTypes.map((row) => [Number(row.oid), row]));
  return columns.map((raw) => {
    const facts = factsOf(types, Number(raw.atttypid), raw.atttypmod);
    const base = baseOf(facts);
    const plan = planPgType(facts);
    return {
      attnum: raw.attnum,
      name: raw.attname,
      typeOid: Number(raw.atttypid),
      typmod: raw.atttypmod,
      typeName: raw.type_name,
      notNull: raw.attnotnull,
      generated: raw.attgenerated,
      identity: raw.attidentity,
      looseCollation: raw.loose,
      missingValue: raw.missing,
      plan,
      copyPlan: planColumn(raw.attname, facts),
      typtype: facts.typtype,
      baseOid: base.oid,
      deltaType: plan.fate === "native" ? nativeType(base) : "text",
    };
  });
}

function factsOf(types: ReadonlyMap<number, RawType>, oid: number, typmod: number): PgTypeFacts {
  const raw = types.get(oid);
  if (!raw) return { oid, typmod, name: "unknown", typtype: "p", category: "X", schema: "pg_catalog" };
  const facts = {
    oid,
    typmod,
    name: raw.typname,
    typtype: raw.typtype,
    category: raw.typcategory,
    schema: raw.nspname,
  };
  if (raw.typtype === "d") return { ...facts, base: factsOf(types, Number(raw.typbasetype), raw.typtypmod) };
  if (raw.typcategory === "A" && Number(raw.typelem) !== 0) {
    return { ...facts, base: factsOf(types, Number(raw.typelem), typmod) };
  }
  return facts;
}

function baseOf(facts: PgTypeFacts): PgTypeFacts {
  return facts.typtype === "d" && facts.base ? baseOf(facts.base) : facts;
}

/** SQL of a native type: by name, with its modifier where the modifier says something. */
function nativeType(base: PgTypeFacts): string {
  const name = base.name === "char" ? '"char"' : base.name;
  if (base.typmod < 0) return base.oid === 1042 ? "bpchar" : name;
  if (base.oid === 1700) {
    const packed = base.typmod - 4;
    return `numeric(${(packed >> 16) & 0xffff}, ${packed & 0x7ff})`;
  }
  if (base.oid === 1042) return `char(${base.typmod - 4})`;
  // The length of varchar and the precision of times were enforced when the value was written.
  return name;
}
