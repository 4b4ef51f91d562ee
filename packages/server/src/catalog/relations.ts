/** Registered tables, as the catalog has them. */
import type { Db } from "./db.ts";
import type { KeyKind } from "./key.ts";
import {
  big,
  bigOrNull,
  type Mode,
  type Relation,
  type RelationColumn,
  type RelationOptions,
  type RelationState,
} from "./rows.ts";

interface Raw {
  relation_id: string;
  relid: string | number;
  schema_name: string;
  table_name: string;
  mode: Mode;
  keep_heap: boolean;
  state: RelationState;
  stop_code: string | null;
  stop_reason: string | null;
  stopped_at: string | null;
  key_attnum: number | null;
  key_kind: KeyKind | null;
  pk_attnums: number[];
  landing: string | number | null;
  landing_created: boolean;
  lake_id: string | null;
  lag: string | null;
  lake_retention: string | null;
  heap_retention: string | null;
  partition_width: string | null;
  partition_months: number | null;
  lake_partition: string | null;
  policy: Record<string, unknown>;
  options: RelationOptions;
  column_signature: string;
  t: string | null;
  s: string | null;
  s_sequence: string | null;
  r: string | null;
  f_lsn: string | null;
  f_timeline: number | null;
  columns: RawColumn[] | null;
}

interface RawColumn {
  attnum: number;
  field_id: number;
  name: string;
  type_oid: number | string;
  typmod: number;
  type_name: string;
  not_null: boolean;
  initial_default: string | null;
  dropped: boolean;
}

/** bigints inside json would lose digits: they are read as columns; of columns only small numbers. */
const SELECT = `
  select x.*, x.pk_attnums::int[] as pk_attnums, s.t, s.s, s.s_sequence, s.r, s.f_lsn::text as f_lsn, s.f_timeline,
    (select json_agg(json_build_object('attnum', c.attnum, 'field_id', c.field_id, 'name', c.name,
       'type_oid', c.type_oid::bigint, 'typmod', c.typmod, 'type_name', c.type_name, 'not_null', c.not_null,
       'initial_default', c.initial_default, 'dropped', c.dropped) order by c.attnum)
     from spillway.relation_column c where c.relation_id = x.relation_id) as columns
  from spillway.relation x left join spillway.seam s using (relation_id)`;

/** All registered tables, in the order of registration. */
export async function loadRelations(db: Db): Promise<Relation[]> {
  const { rows } = await db.query<Raw>(`${SELECT} order by x.relation_id`);
  return rows.map(toRelation);
}

/** One of them; null when there is none. */
export async function loadRelation(db: Db, relationId: bigint): Promise<Relation | null> {
  const { rows } = await db.query<Raw>(`${SELECT} where x.relation_id = $1`, [relationId.toString()]);
  return rows[0] ? toRelation(rows[0]) : null;
}

export async function loadRelationByOid(db: Db, relid: number): Promise<Relation | null> {
  const { rows } = await db.query<Raw>(`${SELECT} where x.relid = $1`, [relid]);
  return rows[0] ? toRelation(rows[0]) : null;
}

/** By the name it was last followed under: for a table that is gone, or was renamed since. */
export async function loadRelationByName(db: Db, schema: string, table: string): Promise<Relation | null> {
  const { rows } = await db.query<Raw>(`${SELECT} where x.schema_name = $1 and x.table_name = $2`, [schema, table]);
  return rows[0] ? toRelation(rows[0]) : null;
}

function toRelation(raw: Raw): Relation {
  const relationId = big(raw.relation_id);
  return {
    relationId,
    relid: Number(raw.relid),
    schemaName: raw.schema_name,
    tableName: raw.table_name,
    mode: raw.mode,
    keepHeap: raw.keep_heap,
    state: raw.state,
    stopCode: raw.stop_code,
    stopReason: raw.stop_reason,
    stoppedAt: raw.stopped_at,
    keyAttnum: raw.key_attnum,
    keyKind: raw.key_kind,
    pkAttnums: raw.pk_attnums,
    landing: raw.landing === null ? null : Number(raw.landing),
    landingCreated: raw.landing_created,
    lakeId: bigOrNull(raw.lake_id),
    lag: bigOrNull(raw.lag),
    lakeRetention: bigOrNull(raw.lake_retention),
    heapRetention: bigOrNull(raw.heap_retention),
    partitionWidth: bigOrNull(raw.partition_width),
    partitionMonths: raw.partition_months,
    lakePartition: raw.lake_partition,
    policy: raw.policy,
    options: raw.options,
    columnSignature: raw.column_signature,
    columns: (raw.columns ?? []).map(toColumn),
    seam: {
      relationId,
      t: bigOrNull(raw.t),
      s: bigOrNull(raw.s),
      sSequence: bigOrNull(raw.s_sequence) ?? 0n,
      r: bigOrNull(raw.r),
      fLsn: raw.f_lsn,
      fTimeline: raw.f_timeline,
    },
  };
}

function toColumn(raw: RawColumn): RelationColumn {
  return {
    attnum: raw.attnum,
    fieldId: raw.field_id,
    name: raw.name,
    typeOid: Number(raw.type_oid),
    typmod: raw.typmod,
    typeName: raw.type_name,
    notNull: raw.not_null,
    initialDefault: raw.initial_default,
    dropped: raw.dropped,
  };
}

/** Columns that the table has now, in its order. */
export function liveColumns(relation: Pick<Relation, "columns">): RelationColumn[] {
  return relation.columns.filter((c) => !c.dropped);
}

/** Stops a table: no movement touches it until an operator or a later pass clears the reason. Idempotent. */
export async function stopRelation(db: Db, relationId: bigint, code: string, reason: string): Promise<void> {
  await db.query(
    `update spillway.relation set state = 'stopped', stop_code = $2, stop_reason = $3,
       stopped_at = case when state = 'stopped' then stopped_at else now() end
     where relation_id = $1 and state in ('active', 'stopped')`,
    [relationId.toString(), code, reason],
  );
}

export async function resumeRelation(db: Db, relationId: bigint): Promise<void> {
  await db.query(
    `update spillway.relation set state = 'active', stop_code = null, stop_reason = null, stopped_at = null
     where relation_id = $1 and state = 'stopped'`,
    [relationId.toString()],
  );
}
