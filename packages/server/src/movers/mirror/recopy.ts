/**
 * A table that stopped is copied anew: its columns are followed as they are now, and when the new copy joins, it takes the
 * place of the old rows in one commit. Until then the lake shows the table as it was at its last F.
 */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { evolveSchema, type SchemaChange } from "@spillway/lake/evolve";
import { currentSchema } from "@spillway/lake/metadata";
import type { PrimitiveType, TableMetadata } from "@spillway/lake/model";
import { canWiden } from "@spillway/lake/evolve";
import {
  columnSignature,
  type Db,
  liveColumns,
  loadRelation,
  openOp,
  putColumns,
  type Relation,
  type RelationColumn,
  type TableColumn,
} from "../../catalog/catalog.ts";
import { icebergType } from "../../engine/engine.ts";
import { displayName, lockingTransaction, type MoverContext } from "../context.ts";
import { publish } from "../publish.ts";
import { withLockRetries } from "../register.ts";
import { readTableFacts } from "../table-facts.ts";
import { COPY_EPOCH, noteLeaves, planParts } from "./copy.ts";
import { requireMirrorable } from "./mirror-checks.ts";

/** Why a table stopped, where copying it again is all that is to be done: the worker does it by itself. */
export const COPIES_AGAIN: ReadonlySet<string> = new Set([
  "mirror_schema_ambiguous",
  "mirror_row_missing",
  "mirror_toast_missing",
  "mirror_resync",
]);

/** Puts the table back to where its copy begins. Throws `register_refused` when it cannot be mirrored as it is now. */
export async function restartCopy(ctx: MoverContext, relationId: bigint, serverVersion: number): Promise<void> {
  const relation = must(await ctx.pool.withClient((c) => loadRelation(c, relationId)), "relation");
  const facts = await ctx.pool.withClient((c) => readTableFacts(c, relation.relid));
  await ctx.pool.withClient((c) => requireMirrorable(c, facts, serverVersion));
  await followColumns(ctx, relation, facts.columns);
  const copyOp = await ctx.pool.withClient((c) =>
    openOp(c, {
      kind: "mirror-copy",
      relationId,
      lakeId: relation.lakeId,
      epoch: COPY_EPOCH,
      detail: { table: displayName(relation), again: true },
    }),
  );
  await withLockRetries(ctx, () =>
    lockingTransaction(ctx, async (tx) => {
      await abandonOldCopy(tx, relationId);
      await planParts(tx, relationId, relation.relid);
      await noteLeaves(tx, relationId, relation.relid);
      await tx.query(
        `update spillway.relation set schema_name = $2, table_name = $3, pk_attnums = $4::int2[] where relation_id = $1`,
        [relationId.toString(), facts.schemaName, facts.tableName, facts.primaryKey?.attnums ?? []],
      );
      await tx.query(
        `update spillway.mirror_table set phase = 'copying', hold_lsn = pg_current_wal_insert_lsn(), copy_op = $2, changed_at = now()
         where relation_id = $1`,
        [relationId.toString(), copyOp.toString()],
      );
    }),
  );
  ctx.log.info("mirror.copies_again", { table: displayName(relation) });
}

async function abandonOldCopy(tx: Db, relationId: bigint): Promise<void> {
  await tx.query(
    `update spillway.journal set phase = 'abandoned', ended_at = now()
     where phase = 'open' and op_id = (select copy_op from spillway.mirror_table where relation_id = $1)`,
    [relationId.toString()],
  );
}

/** The lake's schema as the table is now: by attnum where the old type can hold the new one, else a new field. */
async function followColumns(ctx: MoverContext, relation: Relation, now: readonly TableColumn[]): Promise<void> {
  const lakeId = must(relation.lakeId, "lake table");
  const opId = await ctx.pool.withClient((c) =>
    openOp(c, { kind: "follow", relationId: relation.relationId, lakeId, epoch: ctx.epoch }),
  );
  await publish(ctx, {
    opId,
    lakeId,
    stage: (base) => {
      const { changes, kept } = changesTo(relation, now, base);
      const evolved = evolveSchema(
        {
          formatVersion: base.formatVersion,
          schema: currentSchema(base),
          lastColumnId: base.lastColumnId,
          partitionSpecs: base.partitionSpecs,
          sortOrders: base.sortOrders,
        },
        changes,
      );
      const ids = new Map(evolved.schema.fields.map((f) => [f.name, f.id]));
      const columns = now.map((c): RelationColumn => ({
        attnum: c.attnum,
        fieldId: kept.get(c.attnum) ?? must(ids.get(c.name), `field of ${c.name}`),
        name: c.name,
        typeOid: c.typeOid,
        typmod: c.typmod,
        typeName: c.typeName,
        notNull: c.notNull,
        initialDefault: null,
        dropped: false,
      }));
      return Promise.resolve({
        updates:
          changes.length === 0
            ? []
            : [
                { action: "add-schema" as const, schema: evolved.schema, lastColumnId: evolved.lastColumnId },
                { action: "set-current-schema" as const, schemaId: -1 },
              ],
        commit: {
          detail: { changes: changes.map((c) => c.kind) },
          also: async (tx: Db) => {
            await tx.query("delete from spillway.relation_column where relation_id = $1", [
              relation.relationId.toString(),
            ]);
            await putColumns(tx, relation.relationId, columns);
            await tx.query("update spillway.relation set column_signature = $2 where relation_id = $1", [
              relation.relationId.toString(),
              await columnSignature(tx, relation.relid),
            ]);
          },
        },
      });
    },
  });
}

/** Pure: the changes, and the field ids of columns that stay, by attnum. */
export function changesTo(
  relation: Pick<Relation, "columns">,
  now: readonly TableColumn[],
  base: TableMetadata,
): { changes: SchemaChange[]; kept: Map<number, number> } {
  const types = new Map(currentSchema(base).fields.map((f) => [f.id, f]));
  const kept = new Map<number, number>();
  const changes: SchemaChange[] = [];
  const renames: SchemaChange[] = [];
  const later: SchemaChange[] = [];
  for (const was of liveColumns(relation)) {
    const field = types.get(was.fieldId);
    if (!field) continue;
    const is = now.find((c) => c.attnum === was.attnum);
    const wanted = is && icebergType(is.plan);
    const old = field.type as PrimitiveType;
    const fits = wanted && (JSON.stringify(old) === JSON.stringify(wanted) || canWiden(old, wanted));
    if (!is || !wanted || !fits) {
      changes.push({ kind: "drop", column: was.fieldId });
      continue;
    }
    kept.set(is.attnum, was.fieldId);
    if (field.name !== is.name) {
      changes.push({ kind: "rename", column: was.fieldId, to: `__renaming_${was.fieldId}` });
      renames.push({ kind: "rename", column: was.fieldId, to: is.name });
    }
    if (JSON.stringify(old) !== JSON.stringify(wanted)) later.push({ kind: "widen", column: was.fieldId, to: wanted });
    if (field.required && !is.notNull) later.push({ kind: "make-nullable", column: was.fieldId });
  }
  for (const c of now) {
    if (c.plan.fate === "refused") {
      throw new SpillwayError("register_refused", `column ${c.name} is of type ${c.typeName}: ${c.plan.reason ?? ""}`);
    }
    if (!kept.has(c.attnum)) later.push({ kind: "add", name: c.name, type: icebergType(c.plan) });
  }
  return { changes: [...changes, ...renames, ...later], kept };
}
