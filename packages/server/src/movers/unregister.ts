/**
 * Unregistering: the delta is folded first, so that nothing is lost; then one transaction takes away everything that register put
 * into the user's schema and the catalog. The lake table stays, readable through the REST catalog, unless it is to be
 * dropped too. For a table that nobody knows it cleans what a former registration may have left, and is content.
 */
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { faultPoint } from "@spillway/base/fault";
import { readMetadata } from "@spillway/lake/metadata";
import type { TableMetadata } from "@spillway/lake/model";
import { unreferencedFiles } from "@spillway/lake/snapshot/expire";
import { storeSource } from "@spillway/lake/snapshot/source";
import { quoteIdent, quoteQualified } from "@spillway/pg/quote";
import type pg from "pg";
import {
  abandonOp,
  appendFileLog,
  CAPTURE_TRIGGER,
  type Db,
  deltaTable,
  dropCaptureFunction,
  dropDelta,
  dropTruncateFunction,
  keyLiteral,
  type LakeTableRow,
  loadBands,
  loadLakeTable,
  loadLakeTableByName,
  loadRelation,
  loadRelationByName,
  loadRelationByOid,
  openOp,
  PARENT_TRUNCATE_TRIGGER,
  type Partition,
  readPartitions,
  type Relation,
  requireOwnership,
  TRUNCATE_TRIGGER,
} from "../catalog/catalog.ts";
import { displayName, fileLog, lockingTransaction, type MoverContext, typedError } from "./context.ts";
import { dropLeaves } from "./drop-leaves.ts";
import { foldRelation } from "./fold.ts";
import { follow } from "./follow.ts";
import { dropLeftSlot, leavePublication } from "./mirror/leave.ts";
import { hasRows } from "./premake.ts";
import { withLockRetries } from "./register.ts";
import { findTable } from "./table-facts.ts";
import { asTiered } from "./tiered.ts";

export interface UnregisterOptions {
  readonly table: string;
  readonly dropLake?: boolean;
  /** Loses rows that are only in the lake. */
  readonly yes?: boolean;
  /** How long to wait for readers of the lake table that is to be dropped. Default 120 s. */
  readonly pinWaitMs?: number;
}

export interface UnregisterResult {
  readonly table: string;
  readonly outcome: "unregistered" | "unknown";
  /** What was found and taken away although no such table is registered. */
  readonly cleaned: readonly string[];
  /** The metadata file of the lake table that stays; null when it was dropped, or there is none. */
  readonly metadataLocation: string | null;
  readonly lakeDropped: boolean;
  readonly notes: readonly string[];
}

const PIN_WAIT_MS = 120_000;
const FOLD_ROUNDS = 20;

/** Throws `unregister_unconfirmed`, `pins_live`, and what the fold throws; running it again goes on. */
export async function unregister(ctx: MoverContext, options: UnregisterOptions): Promise<UnregisterResult> {
  await ctx.pool.withClient((c) => requireOwnership(c, ctx.store, ctx.warehouse));
  const relation = await ctx.pool.withClient((c) => findRelation(c, options.table));
  if (relation === null) return cleanLeftovers(ctx, options);
  const lake =
    relation.lakeId === null ? null : await ctx.pool.withClient((c) => loadLakeTable(c, relation.lakeId ?? 0n));
  if (options.dropLake && !options.yes) refuseLoss(relation);
  const opId = await ctx.pool.withClient((c) =>
    openOp(c, {
      kind: "unregister",
      relationId: relation.relationId,
      lakeId: relation.lakeId,
      epoch: ctx.epoch,
      detail: { table: displayName(relation), drop_lake: options.dropLake === true },
    }),
  );
  try {
    faultPoint("unregister.journaled");
    if (options.dropLake && lake) await awaitPins(ctx, options.pinWaitMs ?? PIN_WAIT_MS);
    const notes = await takeApart(ctx, relation, options, opId);
    if (relation.mode === "mirrored") await dropLeftSlot(ctx);
    ctx.log.info("unregister.done", { table: displayName(relation), lake_dropped: options.dropLake === true });
    const kept = lake && !options.dropLake ? await ctx.pool.withClient((c) => loadLakeTable(c, lake.lakeId)) : null;
    return {
      table: displayName(relation),
      outcome: "unregistered",
      cleaned: [],
      metadataLocation: kept?.metadataLocation ?? null,
      lakeDropped: options.dropLake === true,
      notes,
    };
  } catch (error) {
    await ctx.pool.withClient((c) => abandonOp(c, opId, "unregister failed")).catch(() => {});
    throw typedError(error, `unregistering ${displayName(relation)}`);
  }
}

/** By oid while the table exists, else by the name that it was last known by. */
async function findRelation(db: Db, name: string): Promise<Relation | null> {
  try {
    return await loadRelationByOid(db, await findTable(db, name));
  } catch (error) {
    if (!isSpillwayError(error, "table_unknown")) throw error;
    return loadRelationByName(db, ...splitName(name));
  }
}

function splitName(name: string): [string, string] {
  const parts = name.split(".").map((part) => part.replace(/^"(.*)"$/, "$1"));
  return parts.length === 2 ? [parts[0] ?? "", parts[1] ?? ""] : ["public", parts[0] ?? ""];
}

function refuseLoss(relation: Relation): void {
  if (relation.keepHeap || relation.mode === "mirrored" || relation.seam.s === null) return;
  throw new SpillwayError(
    "unregister_unconfirmed",
    `the lake has rows of ${displayName(relation)} that are nowhere else`,
  );
}

/** Readers that began before now; later ones find no table to read. */
async function awaitPins(ctx: MoverContext, waitMs: number): Promise<void> {
  const endMs = ctx.clock.monotonicMs() + waitMs;
  const { rows } = await ctx.pool.withClient((c) => c.query<{ x: string }>("select pg_current_xact_id()::text as x"));
  for (;;) {
    const { rows: live } = await ctx.pool.withClient((c) =>
      c.query<{ n: number }>(
        "select count(*)::int as n from spillway.pin where expires_at > clock_timestamp() and floor <= $1::xid8",
        [rows[0]?.x],
      ),
    );
    const n = live[0]?.n ?? 0;
    if (n === 0) return;
    if (ctx.clock.monotonicMs() > endMs || ctx.signal?.aborted) {
      throw new SpillwayError("pins_live", `${n} readers may still use the lake table after ${waitMs} ms`);
    }
    await ctx.clock.sleep(250, ctx.signal);
  }
}

/** Folds until the final transaction, under its locks, finds nothing left to fold. */
async function takeApart(
  ctx: MoverContext,
  relation: Relation,
  options: UnregisterOptions,
  opId: bigint,
): Promise<string[]> {
  for (let round = 1; ; round++) {
    // What is to be dropped with the lake need not be folded into it.
    const isLost = options.dropLake === true && !relation.keepHeap;
    if (!isLost) await settle(ctx, relation);
    faultPoint("unregister.after_fold");
    const doomed = options.dropLake && relation.lakeId !== null ? await lakeFiles(ctx, relation.lakeId) : [];
    const notes = await withLockRetries(ctx, () =>
      lockingTransaction(ctx, (tx) => remove(tx, { relation, options, opId, doomed, mayLose: isLost })),
    );
    if (notes !== null) return notes;
    if (round >= FOLD_ROUNDS) {
      throw new SpillwayError("mover_busy", `${displayName(relation)} is corrected faster than it can be folded`);
    }
  }
}

async function settle(ctx: MoverContext, first: Relation): Promise<void> {
  const load = async (): Promise<ReturnType<typeof asTiered>> => {
    const now = await ctx.pool.withClient((c) => loadRelation(c, first.relationId));
    return now === null ? null : asTiered(now);
  };
  let relation = await load();
  if (relation === null) return;
  try {
    if (await follow(ctx, relation)) relation = (await load()) ?? relation;
    await dropLeaves(ctx, relation);
  } catch (error) {
    // A table that is gone, altered or changed behind a capture is unregistered all the same.
    if (!isSpillwayError(error, "table_gone", "schema_change_unsupported", "partition_changed")) throw error;
  }
  await foldRelation(ctx, relation);
}

/** Every file of a lake table. */
async function lakeFiles(ctx: MoverContext, lakeId: bigint): Promise<string[]> {
  const row = await ctx.pool.withClient((c) => loadLakeTable(c, lakeId));
  if (row === null) return [];
  const metadata = await readMetadata(ctx.store, row.metadataLocation);
  const nothing: TableMetadata = {
    ...metadata,
    snapshots: [],
    metadataLog: [],
    statistics: [],
    partitionStatistics: [],
  };
  const files: string[] = [];
  for await (const path of unreferencedFiles(metadata, nothing, storeSource(ctx.store))) files.push(path);
  return [...files, row.metadataLocation];
}

interface Removal {
  readonly relation: Relation;
  readonly options: UnregisterOptions;
  readonly opId: bigint;
  readonly doomed: readonly string[];
  /** Corrections that are not folded may go. */
  readonly mayLose: boolean;
}

/** Null when something came in between that has to be folded first; then nothing was changed. */
async function remove(tx: pg.Client, removal: Removal): Promise<string[] | null> {
  const { relation } = removal;
  const notes: string[] = [];
  // Waits for a movement's commit that is under way, and keeps others away.
  await tx.query("select 1 from spillway.lake_table where lake_id = $1 for update", [
    relation.lakeId?.toString() ?? null,
  ]);
  const partitions = relation.mode === "mirrored" ? null : await tablePartitions(tx, relation);
  if (relation.mode === "mirrored") {
    await leavePublication(tx, relation);
  } else if (partitions !== null) {
    const captured = await capturedPartitions(tx, relation, partitions);
    for (const p of captured)
      await tx.query(`lock table only ${quoteQualified(p.schemaName, p.name)} in share row exclusive mode`);
    if (!removal.mayLose && (await hasBacklog(tx, relation))) return null;
    await dropTriggers(tx, relation, captured);
    notes.push(...(await dropLanding(tx, relation, partitions)));
  } else if (!removal.mayLose && (await hasBacklog(tx, relation))) return null;
  if (relation.mode !== "mirrored") await dropObjects(tx, relation);
  await tx.query("delete from spillway.relation where relation_id = $1", [relation.relationId.toString()]);
  if (removal.options.dropLake && relation.lakeId !== null) await doomLake(tx, removal, relation.lakeId);
  const { rowCount } = await tx.query(
    `update spillway.journal set phase = 'committed', ended_at = now(),
       detail = detail || jsonb_build_object('doomed', $2::int) where op_id = $1 and phase = 'open'`,
    [removal.opId.toString(), removal.doomed.length],
  );
  if (rowCount !== 1) throw new SpillwayError("op_abandoned", `operation ${removal.opId} was abandoned`);
  faultPoint("unregister.before_commit");
  return notes;
}

/** Null when the table is gone. */
async function tablePartitions(db: Db, relation: Relation): Promise<Partition[] | null> {
  const { rows } = await db.query("select 1 from pg_class where oid = $1 and relkind = 'p'", [relation.relid]);
  return rows.length === 0 ? null : readPartitions(db, relation.relid, relation.keyKind ?? "int");
}

async function capturedPartitions(db: Db, relation: Relation, all: readonly Partition[]): Promise<Partition[]> {
  const { rows } = await db.query<{ oid: string }>(
    "select tgrelid::text as oid from pg_trigger where tgname = $1 and tgrelid = any ($2::oid[])",
    [CAPTURE_TRIGGER, all.map((p) => p.oid)],
  );
  const captured = new Set(rows.map((row) => Number(row.oid)));
  return all.filter((p) => captured.has(p.oid) || p.oid === relation.landing);
}

async function hasBacklog(db: Db, relation: Relation): Promise<boolean> {
  const { rows } = await db.query<{ any: boolean }>(
    `select exists (select from ${deltaTable(relation.relationId)} where key < $1) as any`,
    [(relation.seam.t ?? 0n).toString()],
  );
  return rows[0]?.any === true;
}

async function dropTriggers(tx: Db, relation: Relation, captured: readonly Partition[]): Promise<void> {
  const { rows } = await tx.query<{ name: string }>("select $1::oid::regclass::text as name", [relation.relid]);
  await tx.query(`drop trigger if exists ${quoteIdent(PARENT_TRUNCATE_TRIGGER)} on ${rows[0]?.name}`);
  for (const p of captured) {
    for (const trigger of [CAPTURE_TRIGGER, TRUNCATE_TRIGGER]) {
      await tx.query(`drop trigger if exists ${quoteIdent(trigger)} on ${quoteQualified(p.schemaName, p.name)}`);
    }
  }
}

/** The landing that register made goes; one that has rows above the cut-line stays, as a plain default partition. */
async function dropLanding(tx: Db, relation: Relation, all: readonly Partition[]): Promise<string[]> {
  const landing = all.find((p) => p.oid === relation.landing);
  if (!landing || !relation.landingCreated) return [];
  const name = quoteQualified(landing.schemaName, landing.name);
  if (!relation.keepHeap) {
    // Leftovers below the cut-line: the lake has their truth.
    const key = relation.columns.find((c) => c.attnum === relation.keyAttnum)?.name;
    if (key !== undefined && relation.keyKind !== null && relation.seam.t !== null) {
      await tx.query(
        `delete from only ${name} where ${quoteIdent(key)} < ${keyLiteral(relation.keyKind, relation.seam.t)}`,
      );
    }
  }
  if (await hasRows(tx, landing))
    return [`${landing.schemaName}.${landing.name} has rows and stays as the default partition`];
  await tx.query(`drop table ${name}`);
  return [];
}

async function dropObjects(tx: Db, relation: Relation): Promise<void> {
  const bands = await loadBands(tx, relation.relationId);
  const oids = new Set([relation.landing, ...bands.map((b) => b.leaf)].filter((oid) => oid !== null));
  for (const oid of oids) await tx.query(dropCaptureFunction(relation.relationId, oid));
  await tx.query(dropTruncateFunction(relation.relationId));
  await tx.query(dropDelta(relation.relationId));
}

/** The table leaves the catalog now; its files leave the store when no reader and no restore can need them. */
async function doomLake(tx: Db, removal: Removal, lakeId: bigint): Promise<void> {
  await tx.query(
    `insert into spillway.doomed_file (path, lake_id, op_id, doomed_xid)
     select p, $2, $3, pg_current_xact_id() from unnest($1::text[]) p on conflict (path) do nothing`,
    [[...removal.doomed], lakeId.toString(), removal.opId.toString()],
  );
  await tx.query("delete from spillway.lake_table where lake_id = $1", [lakeId.toString()]);
}

/** An unregistered table: triggers of a former registration (of a dump, say), and with --drop-lake a lake table of its name. */
async function cleanLeftovers(ctx: MoverContext, options: UnregisterOptions): Promise<UnregisterResult> {
  const cleaned: string[] = [];
  const relid = await ctx.pool.withClient((c) => findTable(c, options.table)).catch(() => null);
  if (relid !== null)
    cleaned.push(...(await withLockRetries(ctx, () => lockingTransaction(ctx, (tx) => dropStrayTriggers(tx, relid)))));
  const [schema, table] = splitName(options.table);
  const lake = await ctx.pool.withClient((c) => loadLakeTableByName(c, schema, table));
  const dropped = lake !== null && options.dropLake === true && (await dropFormerLake(ctx, lake, options));
  if (dropped) cleaned.push(`lake table ${schema}.${table}`);
  return {
    table: options.table,
    outcome: "unknown",
    cleaned,
    metadataLocation: dropped ? null : (lake?.metadataLocation ?? null),
    lakeDropped: dropped,
    notes: [],
  };
}

async function dropStrayTriggers(tx: Db, relid: number): Promise<string[]> {
  const { rows } = await tx.query<{ trigger: string; name: string }>(
    `select t.tgname as trigger, format('%I.%I', n.nspname, c.relname) as name
     from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
     where t.tgname = any ($1::name[]) and (c.oid = $2 or c.oid in (select inhrelid from pg_inherits where inhparent = $2))`,
    [[CAPTURE_TRIGGER, TRUNCATE_TRIGGER, PARENT_TRUNCATE_TRIGGER], relid],
  );
  for (const { trigger, name } of rows) await tx.query(`drop trigger if exists ${quoteIdent(trigger)} on ${name}`);
  return rows.map((row) => `trigger ${row.trigger} on ${row.name}`);
}

async function dropFormerLake(ctx: MoverContext, lake: LakeTableRow, options: UnregisterOptions): Promise<boolean> {
  if (!options.yes) {
    throw new SpillwayError(
      "unregister_unconfirmed",
      `the lake table ${lake.namespace}.${lake.name} may have rows that are nowhere else`,
    );
  }
  await awaitPins(ctx, options.pinWaitMs ?? PIN_WAIT_MS);
  const doomed = await lakeFiles(ctx, lake.lakeId);
  const opId = await ctx.pool.withClient((c) =>
    openOp(c, { kind: "drop-lake", relationId: null, lakeId: lake.lakeId, epoch: ctx.epoch }),
  );
  await appendFileLog(fileLog(ctx), { op: opId, doomed });
  await lockingTransaction(ctx, async (tx) => {
    await tx.query("select 1 from spillway.lake_table where lake_id = $1 for update", [lake.lakeId.toString()]);
    await tx.query(
      `insert into spillway.doomed_file (path, lake_id, op_id, doomed_xid)
       select p, $2, $3, pg_current_xact_id() from unnest($1::text[]) p on conflict (path) do nothing`,
      [doomed, lake.lakeId.toString(), opId.toString()],
    );
    await tx.query("delete from spillway.lake_table where lake_id = $1", [lake.lakeId.toString()]);
    await tx.query("update spillway.journal set phase = 'committed', ended_at = now() where op_id = $1", [
      opId.toString(),
    ]);
  });
  return true;
}
