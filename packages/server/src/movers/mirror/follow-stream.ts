/**
 * Columns that changed, followed in the stream where that is unambiguous: what the stream describes is what the table has by
 * now, no value of an old row was changed (no leaf was rewritten), and the lake can express it.
 */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { evolveSchema } from "@spillway/lake/evolve";
import { currentSchema } from "@spillway/lake/metadata";
import type { PrimitiveType, Schema } from "@spillway/lake/model";
import type { PgRelation } from "@spillway/pg/replication/pgoutput";
import { type Db, readTableColumns, type RelationColumn, type TableColumn } from "../../catalog/catalog.ts";
import { displayName, type MoverContext } from "../context.ts";
import { planFollow } from "../follow-plan.ts";
import { type Drift, schemaDrift } from "../schema-drift.ts";
import { leafChange, loadLeaves, readLeaves } from "./leaves.ts";
import { LakeState } from "./lake-state.ts";
import type { MirrorTable } from "./mirror-table.ts";

/** Sets what the next flush takes along. Throws `mirror_schema_ambiguous` when the table has to be copied again. */
export async function followStream(ctx: MoverContext, table: MirrorTable, relation: PgRelation): Promise<void> {
  const { now, rewritten, missing } = await ctx.pool.withClient(async (c) => ({
    now: await readTableColumns(c, relation.oid),
    rewritten: await isRewritten(c, table),
    missing: await missingValues(c, relation.oid),
  }));
  const ambiguous = (why: string): SpillwayError =>
    new SpillwayError("mirror_schema_ambiguous", `the columns of ${displayName(table.relation)} changed: ${why}`);
  if (rewritten) throw ambiguous("rows were rewritten");
  if (!isSame(relation, now)) throw ambiguous("they have changed again since");
  const drift = schemaDrift(table.relation, now);
  if (drift === null) throw ambiguous("the stream has other columns than the table");
  await followDrift(ctx, table, { drift, now, missing });
}

export interface FoundDrift {
  readonly drift: Drift;
  readonly now: readonly TableColumn[];
  /** What old rows read, by attnum. */
  readonly missing: ReadonlyMap<number, string>;
}

/** The columns as the next flush is to have them. Throws `mirror_schema_ambiguous` for what the lake cannot express. */
export async function followDrift(
  ctx: MoverContext,
  table: MirrorTable,
  { drift, now, missing }: FoundDrift,
): Promise<void> {
  const state = (table.state ??= await LakeState.load(ctx, must(table.relation.lakeId, "lake table")));
  const before: Schema = table.pending?.schema ?? currentSchema(state.metadata);
  const planned = planFollow({
    drift,
    now,
    columns: table.relation.columns,
    pkAttnums: table.relation.pkAttnums,
    formatVersion: state.metadata.formatVersion,
    hasOldRows: true,
    initialDefaults: missing,
    unknownDefaults: new Set(),
    lakeTypes: new Map(before.fields.map((f) => [f.id, f.type as PrimitiveType])),
  });
  if ("refused" in planned) {
    throw new SpillwayError(
      "mirror_schema_ambiguous",
      `the columns of ${displayName(table.relation)} changed: ${planned.refused.join("; ")}`,
    );
  }
  const evolved = evolveSchema(
    {
      formatVersion: state.metadata.formatVersion,
      schema: before,
      lastColumnId: table.pending?.lastColumnId ?? state.metadata.lastColumnId,
      partitionSpecs: state.metadata.partitionSpecs,
      sortOrders: state.metadata.sortOrders,
    },
    planned.plan.changes,
  );
  const ids = new Map(evolved.schema.fields.map((f) => [f.name, f.id]));
  const columns = planned.plan.columns.map((c): RelationColumn =>
    c.fieldId === 0 ? { ...c, fieldId: must(ids.get(c.name), `field of ${c.name}`) } : c,
  );
  const changes = planned.plan.changes.length > 0 || table.pending !== null;
  table.pending = {
    schema: evolved.schema,
    lastColumnId: evolved.lastColumnId,
    updates: changes
      ? [
          { action: "add-schema", schema: evolved.schema, lastColumnId: evolved.lastColumnId },
          { action: "set-current-schema", schemaId: -1 },
        ]
      : [],
    columns,
  };
  table.relation = { ...table.relation, columns };
  ctx.log.info("mirror.followed", {
    table: displayName(table.relation),
    changes: planned.plan.changes.map((c) => c.kind).join(","),
  });
}

/** A leaf has another file than when it was last looked at; a TRUNCATE that is on its way looks the same. */
async function isRewritten(db: Db, table: MirrorTable): Promise<boolean> {
  const { leaves: before, truncated } = await loadLeaves(db, table.relation.relationId);
  const seen = (await readLeaves(db, [table.relation.relid])).get(table.relation.relid);
  const change = leafChange(before, seen?.leaves ?? new Map());
  const explained = truncated || table.feed.truncates > 0;
  return change !== null && ((change.rewritten.length > 0 && !explained) || change.gone.length > 0);
}

/** What rows from before a column read in it, by attnum; of a partitioned table as any of its leaves has it. */
async function missingValues(db: Db, relid: number): Promise<Map<number, string>> {
  const { rows } = await db.query<{ attnum: number; missing: string }>(
    `select p.attnum, min((a.attmissingval::text::text[])[1]) as missing
     from pg_attribute p join (select $1::oid as oid union select relid from pg_partition_tree($1::oid::regclass)) t on true
     join pg_attribute a on a.attrelid = t.oid and a.attname = p.attname and a.atthasmissing and not a.attisdropped
     where p.attrelid = $1 and p.attnum > 0 and not p.attisdropped group by p.attnum`,
    [relid],
  );
  return new Map(rows.map((r) => [r.attnum, r.missing]));
}

function isSame(relation: PgRelation, now: readonly TableColumn[]): boolean {
  return (
    relation.columns.length === now.length &&
    relation.columns.every(
      (c, i) => c.name === now[i]?.name && c.typeOid === now[i].typeOid && c.typmod === now[i].typmod,
    )
  );
}
