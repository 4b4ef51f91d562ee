/** What `register` has to know of a table, read from the system catalogs in a few statements. */
import { SpillwayError } from "@spillway/base/errors";
import { quoteQualified } from "@spillway/pg/quote";
import {
  type Db,
  KEY_TYPES,
  type Partition,
  readPartitions,
  readTableColumns,
  type TableColumn,
} from "../catalog/catalog.ts";

export interface TableFacts {
  readonly relid: number;
  readonly schemaName: string;
  readonly tableName: string;
  readonly relkind: string;
  readonly persistence: string;
  readonly isPartition: boolean;
  readonly rowSecurity: boolean;
  readonly hasRules: boolean;
  readonly isOwner: boolean;
  readonly canCreateInSchema: boolean;
  /** `r`, `l`, `h`; null when it is not partitioned. */
  readonly strategy: string | null;
  /** 0 for an expression. */
  readonly partitionAttnums: readonly number[];
  readonly primaryKey: { readonly attnums: readonly number[]; readonly deferrable: boolean } | null;
  readonly columns: readonly TableColumn[];
  readonly leaves: readonly Partition[];
  readonly defaultPartition: Partition | null;
  /** Of leaves: what would block a drop, or cannot be moved. */
  readonly leafFaults: readonly string[];
  /** Incoming foreign keys of other tables, by name. */
  readonly incomingKeys: readonly string[];
  /** Row triggers of the user's that fire on DELETE. */
  readonly deleteTriggers: readonly string[];
}

interface RawTable {
  relid: number;
  nspname: string;
  relname: string;
  relkind: string;
  relpersistence: string;
  relispartition: boolean;
  relrowsecurity: boolean;
  relhasrules: boolean;
  is_owner: boolean;
  can_create: boolean;
  strategy: string | null;
  partition_attnums: number[] | null;
  pk: number[] | null;
  pk_deferrable: boolean | null;
}

const TABLE = `
  select c.oid::bigint::int8 as relid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relispartition,
    c.relrowsecurity, c.relhasrules,
    pg_has_role(current_user, c.relowner, 'USAGE') as is_owner,
    has_schema_privilege(current_user, n.oid, 'CREATE') as can_create,
    p.partstrat as strategy, p.partattrs::int2[]::int[] as partition_attnums,
    (select array_agg(k::int order by o) from unnest(i.indkey::int2[]) with ordinality x (k, o)
      where o <= i.indnkeyatts) as pk,
    not i.indimmediate as pk_deferrable
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  left join pg_partitioned_table p on p.partrelid = c.oid
  left join pg_index i on i.indrelid = c.oid and i.indisprimary
  where c.oid = $1`;

/** Leaves that cannot be moved, and objects that a DROP of a leaf would have to take along. */
const LEAF_FAULTS = `
  with leaf as (select c.* from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = $1)
  select format('partition %s is itself partitioned', oid::regclass) as fault from leaf where relkind = 'p'
  union all select format('partition %s is a foreign table', oid::regclass) from leaf where relkind = 'f'
  union all select format('partition %s is unlogged or temporary', oid::regclass) from leaf where relpersistence <> 'p'
  union all select format('partition %s has row-level security', oid::regclass) from leaf where relrowsecurity
  union all select format('partition %s has rules', oid::regclass) from leaf where relhasrules
  union all select distinct format('partition %s is used by view %s', leaf.oid::regclass, r.ev_class::regclass)
    from leaf join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = leaf.oid and d.deptype = 'n'
      and d.classid = 'pg_rewrite'::regclass join pg_rewrite r on r.oid = d.objid
  union all select distinct format('partition %s is used by function %s', leaf.oid::regclass, d.objid::regprocedure)
    from leaf join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = leaf.oid and d.deptype = 'n'
      and d.classid = 'pg_proc'::regclass`;

const INCOMING = `
  select distinct format('%s of table %s', c.conname, c.conrelid::regclass) as name from pg_constraint c
  where c.contype = 'f' and c.conparentid = 0
    and (c.confrelid = $1 or c.confrelid in (select inhrelid from pg_inherits where inhparent = $1))`;

const DELETE_TRIGGERS = `
  select tgname as name from pg_trigger where tgrelid = $1 and not tgisinternal and tgtype & 1 = 1 and tgtype & 8 = 8`;

/** The oid of a table named as in SQL, or else letter by letter. Throws `table_unknown`. */
export async function findTable(db: Db, name: string): Promise<number> {
  const lookUp = async (text: string): Promise<number | null> => {
    const { rows } = await db.query<{ oid: string | null }>("select to_regclass($1)::oid::text as oid", [text]);
    const oid = rows[0]?.oid;
    return oid === null || oid === undefined ? null : Number(oid);
  };
  const asGiven = await lookUp(name).catch(() => null);
  if (asGiven !== null) return asGiven;
  const parts = name.split(".");
  const [schema, table] = parts.length === 2 ? parts : ["public", name];
  const literal = schema && table ? await lookUp(quoteQualified(schema, table)) : null;
  if (literal === null) throw new SpillwayError("table_unknown", `there is no table ${name}`);
  return literal;
}

export async function readTableFacts(db: Db, relid: number): Promise<TableFacts> {
  const { rows } = await db.query<RawTable>(TABLE, [relid]);
  const raw = rows[0];
  if (!raw) throw new SpillwayError("table_unknown", `there is no table with oid ${relid}`);
  const columns = await readTableColumns(db, relid);
  const partitionAttnums = raw.partition_attnums ?? [];
  const key = columns.find((c) => c.attnum === partitionAttnums[0]);
  const kind = key ? KEY_TYPES.get(key.typeOid) : undefined;
  const partitions =
    raw.strategy === "r" && partitionAttnums.length === 1 && kind ? await readPartitions(db, relid, kind) : [];
  const texts = async (sql: string, column: "fault" | "name"): Promise<string[]> =>
    (await db.query<Record<string, string>>(sql, [relid])).rows.map((row) => row[column] ?? "");
  return {
    relid,
    schemaName: raw.nspname,
    tableName: raw.relname,
    relkind: raw.relkind,
    persistence: raw.relpersistence,
    isPartition: raw.relispartition,
    rowSecurity: raw.relrowsecurity,
    hasRules: raw.relhasrules,
    isOwner: raw.is_owner,
    canCreateInSchema: raw.can_create,
    strategy: raw.strategy,
    partitionAttnums,
    primaryKey: raw.pk ? { attnums: raw.pk, deferrable: raw.pk_deferrable === true } : null,
    columns,
    leaves: partitions.filter((p) => !p.isDefault),
    defaultPartition: partitions.find((p) => p.isDefault) ?? null,
    leafFaults: await texts(LEAF_FAULTS, "fault"),
    incomingKeys: await texts(INCOMING, "name"),
    deleteTriggers: await texts(DELETE_TRIGGERS, "name"),
  };
}
