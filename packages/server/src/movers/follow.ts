/**
 * Following ALTER TABLE on both tiers: the Iceberg schema, the delta's columns, the capture functions and the catalog change in
 * one transaction. Until then captures take their slow path, so nothing is lost and no client sees an error.
 */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { evolveSchema } from "@spillway/lake/evolve";
import { currentSchema } from "@spillway/lake/metadata";
import type { PrimitiveType, TableMetadata } from "@spillway/lake/model";
import { quoteQualified } from "@spillway/pg/quote";
import { inTransaction } from "@spillway/pg/transaction";
import {
  abandonOp,
  captureSpecOf,
  createCaptureFunctions,
  columnSignature,
  type Db,
  deltaColumn,
  deltaTable,
  loadBands,
  loadRelation,
  noteLandingFile,
  openOp,
  putColumns,
  readPartitions,
  readTableColumns,
  type Relation,
  type RelationColumn,
  type TableColumn,
} from "../catalog/catalog.ts";
import { displayName, lockingTransaction, type MoverContext } from "./context.ts";
import { keyTypeFault } from "./register-checks.ts";
import { type FollowPlan, planFollow } from "./follow-plan.ts";
import { publish } from "./publish.ts";
import { type Drift, schemaDrift } from "./schema-drift.ts";
import type { TieredRelation } from "./tiered.ts";

/** True when something was followed: the relation has to be loaded again. Throws `table_gone`, `schema_change_unsupported`. */
export async function follow(ctx: MoverContext, relation: TieredRelation): Promise<boolean> {
  const renamed = await followName(ctx, relation);
  const { now, drift } = await ctx.pool.withClient((c) =>
    inTransaction(c, { isolation: "repeatable read" }, async (tx) => {
      const columns = await readTableColumns(tx, relation.relid);
      await requireSameKey(tx, relation, columns);
      const found = schemaDrift(relation, columns);
      if (found === null) await noteLandingFile(tx, relation.relationId);
      return { now: columns, drift: found };
    }),
  );
  if (drift === null) {
    await drainExtras(ctx, relation, now);
    return renamed;
  }
  await followColumns(ctx, relation, drift, now);
  return true;
}

/** By the primary key a row is found in either tier: another one, or another equality of it, cannot be followed. */
async function requireSameKey(db: Db, relation: TieredRelation, now: readonly TableColumn[]): Promise<void> {
  const stop = (why: string): never => {
    throw new SpillwayError("schema_change_unsupported", `${displayName(relation)}: ${why}`);
  };
  const { rows } = await db.query<{ pk: number[] | null; deferrable: boolean }>(
    `select (select array_agg(k::int order by k) from unnest(i.indkey::int2[]) with ordinality x (k, o)
         where o <= i.indnkeyatts) as pk, not i.indimmediate as deferrable
     from pg_index i where i.indrelid = $1 and i.indisprimary`,
    [relation.relid],
  );
  const pk = rows[0]?.pk ?? [];
  if (pk.length === 0) stop("its primary key was dropped");
  if (pk.join() !== [...relation.pkAttnums].toSorted((a, b) => a - b).join())
    stop("its primary key is of other columns than before");
  if (rows[0]?.deferrable === true) stop("its primary key became deferrable");
  for (const column of now.filter((c) => pk.includes(c.attnum))) {
    const fault = keyTypeFault(column);
    if (fault !== null) stop(`column ${column.name} of its primary key ${fault}`);
  }
}

async function followName(ctx: MoverContext, relation: TieredRelation): Promise<boolean> {
  const { rows } = await ctx.pool.withClient((c) =>
    c.query<{ nspname: string; relname: string }>(
      "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = $1",
      [relation.relid],
    ),
  );
  const found = rows[0];
  if (!found) throw new SpillwayError("table_gone", `${displayName(relation)} was dropped`);
  if (found.nspname === relation.schemaName && found.relname === relation.tableName) return false;
  await lockingTransaction(ctx, async (tx) => {
    await tx.query("update spillway.relation set schema_name = $2, table_name = $3 where relation_id = $1", [
      relation.relationId.toString(),
      found.nspname,
      found.relname,
    ]);
    await regenerate(tx, relation.relationId);
  });
  ctx.log.info("follow.renamed", { table: displayName(relation), to: `${found.nspname}.${found.relname}` });
  return true;
}

async function followColumns(
  ctx: MoverContext,
  relation: TieredRelation,
  drift: Drift,
  now: readonly TableColumn[],
): Promise<void> {
  const facts = await ctx.pool.withClient((c) =>
    inTransaction(c, { isolation: "repeatable read" }, (tx) => columnFacts(tx, relation, drift)),
  );
  const opId = await ctx.pool.withClient((c) =>
    openOp(c, { kind: "follow", relationId: relation.relationId, lakeId: relation.lakeId, epoch: ctx.epoch }),
  );
  try {
    await publish(ctx, {
      opId,
      lakeId: relation.lakeId,
      stage: (base) => {
        const planned = planFollow({
          ...facts,
          drift,
          now,
          columns: relation.columns,
          pkAttnums: relation.pkAttnums,
          formatVersion: base.formatVersion,
          hasOldRows: facts.hasDelta || base.currentSnapshotId !== undefined,
          lakeTypes: lakeTypes(base),
        });
        if ("refused" in planned) {
          throw new SpillwayError(
            "schema_change_unsupported",
            `${displayName(relation)}: ${planned.refused.join("; ")}`,
          );
        }
        return Promise.resolve(stageFollow(relation, planned.plan, base));
      },
    });
  } catch (error) {
    await ctx.pool.withClient((c) => abandonOp(c, opId, "not followed")).catch(() => {});
    throw error;
  }
  ctx.log.info("follow.done", {
    table: displayName(relation),
    added: drift.added.map((c) => c.name).join(","),
    dropped: drift.dropped.map((c) => c.name).join(","),
    renamed: drift.renamed.map((c) => c.to.name).join(","),
    retyped: drift.retyped.map((c) => c.to.name).join(","),
  });
}

function lakeTypes(metadata: TableMetadata): Map<number, PrimitiveType> {
  return new Map(currentSchema(metadata).fields.map((f) => [f.id, f.type as PrimitiveType]));
}

function stageFollow(relation: TieredRelation, plan: FollowPlan, base: TableMetadata) {
  const evolved = evolveSchema(
    {
      formatVersion: base.formatVersion,
      schema: currentSchema(base),
      lastColumnId: base.lastColumnId,
      partitionSpecs: base.partitionSpecs,
      sortOrders: base.sortOrders,
    },
    plan.changes,
  );
  const idOf = new Map(evolved.schema.fields.map((f) => [f.name, f.id]));
  const columns = plan.columns.map((c): RelationColumn =>
    c.fieldId === 0 ? { ...c, fieldId: must(idOf.get(c.name), `field id of ${c.name}`) } : c,
  );
  return {
    updates: [
      { action: "add-schema" as const, schema: evolved.schema, lastColumnId: evolved.lastColumnId },
      { action: "set-current-schema" as const, schemaId: -1 },
    ],
    commit: {
      detail: { changes: plan.changes.map((c) => c.kind) },
      also: (tx: Db) => applyFollow(tx, relation, plan, columns),
    },
  };
}

/** Everything in Postgres, under a lock that keeps further ALTERs away. */
async function applyFollow(
  tx: Db,
  relation: TieredRelation,
  plan: FollowPlan,
  columns: readonly RelationColumn[],
): Promise<void> {
  const table = quoteQualified(relation.schemaName, relation.tableName);
  await tx.query(`lock table only ${table} in share update exclusive mode`);
  const now = await readTableColumns(tx, relation.relid);
  if (schemaDrift({ columns }, now) !== null) {
    throw new SpillwayError("mover_busy", `${displayName(relation)} was altered again while it was followed`);
  }
  const delta = deltaTable(relation.relationId);
  for (const { text, values } of plan.deltaSql) await tx.query(text.replaceAll("@", delta), [...values]);
  // Every column is known now: what else is in x belongs to columns that came and went unseen.
  await tx.query(`update ${delta} set x = null where x is not null`);
  await putColumns(tx, relation.relationId, columns);
  await tx.query("update spillway.relation set column_signature = $2 where relation_id = $1", [
    relation.relationId.toString(),
    await columnSignature(tx, relation.relid),
  ]);
  await noteLandingFile(tx, relation.relationId);
  await regenerate(tx, relation.relationId);
}

/** The functions of the landing and of every captured leaf, for the columns and names as the catalog has them now. */
export async function regenerate(tx: Db, relationId: bigint): Promise<void> {
  const relation: Relation = must(await loadRelation(tx, relationId), "relation");
  const spec = captureSpecOf(relation, await readTableColumns(tx, relation.relid));
  const bands = await loadBands(tx, relationId);
  const captured = new Set(bands.flatMap((b) => (b.leaf === null ? [] : [b.leaf])));
  for (const partition of await readPartitions(tx, relation.relid, must(relation.keyKind, "kind"))) {
    const isLanding = partition.oid === relation.landing;
    if (!isLanding && !captured.has(partition.oid)) continue;
    for (const sql of createCaptureFunctions(spec, { ...partition, isLanding })) await tx.query(sql);
  }
}

/** A capture that began before the change was followed may end after it: its extras are put in their place. */
async function drainExtras(ctx: MoverContext, relation: TieredRelation, now: readonly TableColumn[]): Promise<void> {
  const delta = deltaTable(relation.relationId);
  const { rows } = await ctx.pool.withClient((c) =>
    c.query<{ any: boolean }>(`select exists (select from ${delta} where x is not null) as any`),
  );
  if (rows[0]?.any !== true) return;
  await lockingTransaction(ctx, async (tx) => {
    for (const c of now) {
      await tx.query(
        `update ${delta} set ${deltaColumn(c.attnum)} = (x ->> $1)::${c.deltaType}, version = nextval('spillway.delta_version')
         where x ? $1`,
        [String(c.attnum)],
      );
    }
    await tx.query(`update ${delta} set x = null where x is not null`);
  });
}

interface ColumnFacts {
  readonly hasDelta: boolean;
  readonly initialDefaults: ReadonlyMap<number, string>;
  readonly unknownDefaults: ReadonlySet<number>;
}

/**
 * What old rows read in the added columns. Postgres keeps it with each partition that existed then (`attmissingval`), and a
 * rewrite of the partition forgets it: a rewriting ALTER, VACUUM FULL, CLUSTER, or a default that is computed row by row. So
 * only the landing can tell, which was there whenever a column was added, and only while its file is the one of the last time.
 */
async function columnFacts(db: Db, relation: TieredRelation, drift: Drift): Promise<ColumnFacts> {
  const initialDefaults = new Map<number, string>();
  const unknownDefaults = new Set<number>();
  for (const column of drift.added) {
    const { rows } = await db.query<{ missing: string | null; same: boolean }>(
      `select case when a.atthasmissing then (a.attmissingval::text::text[])[1] end as missing,
         coalesce(c.relfilenode = x.landing_filenode, false) as same
       from spillway.relation x left join pg_class c on c.oid = x.landing
       left join pg_attribute a on a.attrelid = x.landing and a.attname = $2 and not a.attisdropped
       where x.relation_id = $1`,
      [relation.relationId.toString(), column.name],
    );
    const { missing = null, same = false } = rows[0] ?? {};
    if (missing !== null) initialDefaults.set(column.attnum, missing);
    else if (!same) unknownDefaults.add(column.attnum);
  }
  const { rows } = await db.query<{ any: boolean }>(
    `select exists (select from ${deltaTable(relation.relationId)} where op = 'U') as any`,
  );
  return { hasDelta: rows[0]?.any === true, initialDefaults, unknownDefaults };
}
