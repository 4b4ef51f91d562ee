/** Putting a relation into the catalog, and the objects that belong to it into the database. In the caller's transaction. */
import { must } from "@spillway/base/assert";
import {
  type CaptureSpec,
  type CaptureTarget,
  createCaptureTriggers,
  createDelta,
  createParentTrigger,
  createTruncateFunction,
} from "./capture.ts";
import type { Db } from "./db.ts";
import type { KeyKind } from "./key.ts";
import { liveColumns } from "./relations.ts";
import {
  big,
  type Mode,
  type Relation,
  type RelationColumn,
  type RelationOptions,
  type RelationState,
} from "./rows.ts";
import { readTableColumns, type TableColumn } from "./table-columns.ts";

export interface NewRelation {
  readonly relid: number;
  readonly schemaName: string;
  readonly tableName: string;
  readonly mode: Mode;
  readonly keepHeap: boolean;
  readonly state: RelationState;
  readonly keyAttnum: number | null;
  readonly keyKind: KeyKind | null;
  readonly pkAttnums: readonly number[];
  readonly landing: number | null;
  readonly landingCreated: boolean;
  readonly lakeId: bigint | null;
  readonly lag: bigint | null;
  readonly lakeRetention: bigint | null;
  readonly heapRetention: bigint | null;
  readonly partitionWidth: bigint | null;
  readonly partitionMonths: number | null;
  readonly lakePartition: string | null;
  readonly options: RelationOptions;
  readonly columnSignature: string;
  readonly columns: readonly RelationColumn[];
  /** The cut-line to begin with; null for mirrored tables. */
  readonly t: bigint | null;
}

/** Inserts the relation with its columns and its seam; returns its id. */
export async function insertRelation(tx: Db, r: NewRelation): Promise<bigint> {
  const { rows } = await tx.query<{ relation_id: string }>(
    `insert into spillway.relation (relid, schema_name, table_name, mode, keep_heap, state, key_attnum, key_kind,
       pk_attnums, landing, landing_created, lake_id, lag, lake_retention, heap_retention, partition_width,
       partition_months, lake_partition, options, column_signature, landing_filenode)
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
       (select c.relfilenode from pg_class c where c.oid = $10))
     returning relation_id`,
    [
      r.relid,
      r.schemaName,
      r.tableName,
      r.mode,
      r.keepHeap,
      r.state,
      r.keyAttnum,
      r.keyKind,
      [...r.pkAttnums],
      r.landing,
      r.landingCreated,
      text(r.lakeId),
      text(r.lag),
      text(r.lakeRetention),
      text(r.heapRetention),
      text(r.partitionWidth),
      r.partitionMonths,
      r.lakePartition,
      JSON.stringify(r.options),
      r.columnSignature,
    ],
  );
  const relationId = big(rows[0]?.relation_id);
  await putColumns(tx, relationId, r.columns);
  const t = text(r.t);
  await tx.query(
    `with s as (insert into spillway.seam (relation_id, t) values ($1, $2))
     insert into spillway.seam_guard (relation_id, t) values ($1, $2)`,
    [relationId.toString(), t],
  );
  return relationId;
}

/** Writes the columns as they are followed now. */
export async function putColumns(tx: Db, relationId: bigint, columns: readonly RelationColumn[]): Promise<void> {
  for (const c of columns) {
    await tx.query(
      `insert into spillway.relation_column
         (relation_id, attnum, field_id, name, type_oid, typmod, type_name, not_null, initial_default, dropped)
       values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
       on conflict (relation_id, attnum) do update set name = excluded.name, type_oid = excluded.type_oid,
         typmod = excluded.typmod, type_name = excluded.type_name, not_null = excluded.not_null,
         initial_default = excluded.initial_default, dropped = excluded.dropped`,
      [
        relationId.toString(),
        c.attnum,
        c.fieldId,
        c.name,
        c.typeOid,
        c.typmod,
        c.typeName,
        c.notNull,
        c.initialDefault,
        c.dropped,
      ],
    );
  }
}

/** The capture of a relation as it was last followed. `now` are the table's columns as Postgres has them. */
export function captureSpecOf(relation: Relation, now: readonly TableColumn[]): CaptureSpec {
  const byAttnum = new Map(now.map((c) => [c.attnum, c]));
  const followed = liveColumns(relation).flatMap((c) => byAttnum.get(c.attnum) ?? []);
  return {
    relationId: relation.relationId,
    relid: relation.relid,
    schemaName: relation.schemaName,
    tableName: relation.tableName,
    mode: relation.mode,
    keepHeap: relation.keepHeap,
    hasRetention: relation.lakeRetention !== null,
    historicalInserts: relation.options.historicalInserts ?? "upsert",
    keyKind: must(relation.keyKind, "the tier key's kind"),
    keyAttnum: must(relation.keyAttnum, "the tier key"),
    pkAttnums: relation.pkAttnums,
    signature: relation.columnSignature,
    columns: followed.map((c) => ({
      attnum: c.attnum,
      name: c.name,
      deltaType: c.deltaType,
      isText: c.plan.fate === "text",
    })),
  };
}

export async function loadCaptureSpec(db: Db, relation: Relation): Promise<CaptureSpec> {
  return captureSpecOf(relation, await readTableColumns(db, relation.relid));
}

/** To be called in the snapshot in which the columns were read that are followed now. */
export async function noteLandingFile(tx: Db, relationId: bigint): Promise<void> {
  await tx.query(
    `update spillway.relation x set landing_filenode = c.relfilenode from pg_class c
     where x.relation_id = $1 and c.oid = x.landing and x.landing_filenode is distinct from c.relfilenode`,
    [relationId.toString()],
  );
}

/** The current signature of a table's columns; `""` for a table that is gone. */
export async function columnSignature(db: Db, relid: number): Promise<string> {
  const { rows } = await db.query<{ s: string }>("select spillway.column_signature($1) as s", [relid]);
  return rows[0]?.s ?? "";
}

/** The delta and the functions of a newly registered table, and the capture of its landing. */
export async function installRelation(tx: Db, spec: CaptureSpec, landing: CaptureTarget): Promise<void> {
  await tx.query(createDelta(spec));
  await tx.query(createTruncateFunction(spec));
  for (const sql of createCaptureTriggers(spec, landing)) await tx.query(sql);
  for (const sql of createParentTrigger(spec)) await tx.query(sql);
}

export async function installCapture(tx: Db, spec: CaptureSpec, target: CaptureTarget): Promise<void> {
  for (const sql of createCaptureTriggers(spec, target)) await tx.query(sql);
}

function text(value: bigint | null): string | null {
  return value === null ? null : value.toString();
}
