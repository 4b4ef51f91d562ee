/**
 * Keeps empty future partitions ready, and gives rows of the landing that are at or above the cut-line the partition that they lack.
 * A partition is made apart and attached: writers of the table go on; only writers of the landing wait, briefly.
 */
import { SpillwayError } from "@spillway/base/errors";
import { assertEpoch } from "@spillway/pg/lease";
import { quoteIdent, quoteQualified } from "@spillway/pg/quote";
import type pg from "pg";
import {
  type Db,
  deltaTable,
  KEY_MIN,
  KEY_INFINITY,
  keyExpression,
  keyLiteral,
  keyText,
  type Partition,
  readPartitions,
  type Relation,
} from "../catalog/catalog.ts";
import { displayName, lockingTransaction, type MoverContext } from "./context.ts";
import { type NewPartition, planPremake, stepOf } from "./premake-plan.ts";
import { refuseOldSnapshots } from "./old-snapshots.ts";
import { freeName, isLockTimeout, withLockRetries } from "./register.ts";
import { createSibling } from "./sibling.ts";
import { type TieredRelation } from "./tiered.ts";

/** Landed keys that are looked at in one pass: the rest comes with the next one. */
const LANDED_LIMIT = 1000;
/** In one pass; each blocks writers behind it for a moment. */
const LOCK_TRIES = 3;
/** Passes in vain after which a partition is attached without keeping writers of the whole table out. */
const PATIENCE = 20;

/** Makes what is missing; returns what was made. Throws `premake_failed`. */
export async function premake(ctx: MoverContext, relation: TieredRelation): Promise<NewPartition[]> {
  const [plan, failures] = await ctx.pool.withClient(async (c) => [
    await planFor(ctx, c, relation),
    await failuresSoFar(c, relation),
  ]);
  const patient = failures < PATIENCE;
  const made: NewPartition[] = [];
  let waiting: unknown = null;
  for (const partition of plan) {
    if (ctx.signal?.aborted) break;
    try {
      await withLockRetries(ctx, () => makePartition(ctx, relation, partition, patient), LOCK_TRIES);
    } catch (error) {
      // One that has to wait, because rows of the landing belong to it, holds up no other.
      if (!isLockTimeout(error)) throw error;
      waiting ??= error;
      continue;
    }
    made.push(partition);
    ctx.log.info("premake.made", {
      table: displayName(relation),
      partition: partition.name,
      from: keyText(relation.keyKind, partition.lo),
      to: keyText(relation.keyKind, partition.hi),
    });
  }
  if (waiting !== null) throw waiting;
  return made;
}

/** Passes in which the table's lock was not to be had. */
async function failuresSoFar(db: Db, relation: TieredRelation): Promise<number> {
  const { rows } = await db.query<{ attempts: number }>(
    "select attempts from spillway.relation_wait where relation_id = $1 and step = 'premake'",
    [relation.relationId.toString()],
  );
  return rows[0]?.attempts ?? 0;
}

async function planFor(ctx: MoverContext, db: Db, relation: TieredRelation): Promise<NewPartition[]> {
  const all = await readPartitions(db, relation.relid, relation.keyKind);
  const leaves = all.filter((p) => !p.isDefault);
  const landing = all.find((p) => p.isDefault);
  const told = { width: relation.partitionWidth, months: relation.partitionMonths };
  // When every partition was tiered away, the last bands still tell the width.
  const known = leaves.length > 0 ? leaves : await lastBands(db, relation);
  const step = stepOf(relation.keyKind, told, known);
  const landed = landing ? await landedKeys(db, relation, landing) : [];
  if (step === null) {
    if (landed.length === 0 && (leaves.at(-1)?.unbounded === true || ctx.premake === 0)) return [];
    throw new SpillwayError("premake_failed", `${displayName(relation)}: its partitions have no common width`, {
      remedy: "Register it with --partition-width, or make its future partitions by hand.",
    });
  }
  return planPremake({
    kind: relation.keyKind,
    tableName: relation.tableName,
    step,
    leaves: known,
    emptyAtTop: leaves.length === 0 ? 0 : await emptyAtTop(db, leaves, ctx.premake),
    wanted: ctx.premake,
    landed,
    t: relation.seam.t,
  });
}

async function lastBands(db: Db, relation: Relation): Promise<Partition[]> {
  const { rows } = await db.query<{ leaf_name: string; leaf_lo: string | null; lo: string; hi: string }>(
    "select leaf_name, leaf_lo, lo, hi from spillway.band where relation_id = $1 order by lo desc limit 2",
    [relation.relationId.toString()],
  );
  return rows.toReversed().map((row) => ({
    oid: 0,
    schemaName: relation.schemaName,
    name: row.leaf_name,
    isDefault: false,
    lo: BigInt(row.leaf_lo ?? row.lo),
    hi: BigInt(row.hi),
    unbounded: false,
    relkind: "r",
    filenode: 0,
    estimatedRows: 0,
  }));
}

async function emptyAtTop(db: Db, leaves: readonly Partition[], limit: number): Promise<number> {
  let empty = 0;
  for (const leaf of leaves.toReversed().slice(0, limit)) {
    if (await hasRows(db, leaf)) break;
    empty += 1;
  }
  return empty;
}

export async function hasRows(db: Db, leaf: Pick<Partition, "schemaName" | "name">): Promise<boolean> {
  const { rows } = await db.query<{ any: boolean }>(
    `select exists (select from only ${quoteQualified(leaf.schemaName, leaf.name)}) as any`,
  );
  return rows[0]?.any === true;
}

/** Keys of rows that wait in the landing for a partition. Infinite ones stay there. */
async function landedKeys(db: Db, relation: TieredRelation, landing: Partition): Promise<bigint[]> {
  const key = quoteIdent(relation.keyName);
  const { rows } = await db.query<{ k: bigint | string }>(
    `select distinct ${keyExpression(relation.keyKind, key)} as k
     from only ${quoteQualified(landing.schemaName, landing.name)} limit ${LANDED_LIMIT}`,
  );
  return rows.map((r) => BigInt(r.k)).filter((k) => k >= relation.seam.t && k < KEY_INFINITY && k > KEY_MIN);
}

/**
 * ATTACH alone would let the table's writers go on; but one that was routed to the landing a moment before, and waits there for
 * the lock, then fails with 23514 (its row belongs to the new partition now). So writers are kept out for that moment,
 * as far as they let us: rows in the landing are safe meanwhile. Only a table that is never free is attached to regardless.
 *
 * Not so when rows of the landing move: a statement that was planned before would look for them in the landing, and one with an
 * older snapshot only in the partition, where they are too new for it. Then everybody is kept out, and nobody may have an older
 * snapshot; else the rows stay where they are, which costs nothing but a larger delta.
 */
async function makePartition(
  ctx: MoverContext,
  relation: TieredRelation,
  wanted: NewPartition,
  patient: boolean,
): Promise<void> {
  try {
    await lockingTransaction(ctx, async (tx) => {
      const parent = quoteQualified(relation.schemaName, relation.tableName);
      const name = await freeName(tx, relation.schemaName, wanted.name);
      const [lo, hi] = [wanted.lo, wanted.hi].map((k) => boundText(relation, k));
      const partition = await createSibling(tx, relation, name);
      const landing = await landingName(tx, relation);
      const alone = await hasLanded(tx, relation, landing, wanted);
      const shared = patient ? "share row exclusive" : "share update exclusive";
      await tx.query(`lock table only ${parent} in ${alone ? "access exclusive" : shared} mode`);
      const moved = await moveLanded(tx, relation, landing, partition, wanted);
      await tx.query(`alter table ${parent} attach partition ${partition} for values from (${lo}) to (${hi})`);
      if (ctx.epoch !== null) await assertEpoch(tx, { epoch: ctx.epoch });
      if (moved > 0) await refuseOldSnapshots(tx, alone);
    });
  } catch (error) {
    const code = (error as { code?: string }).code ?? "";
    if (code === "55P03" || code === "pg_lock_timeout" || code === "leader_lost" || code.startsWith("08")) throw error;
    throw new SpillwayError(
      "premake_failed",
      `partition ${wanted.name} of ${displayName(relation)}: ${String(error)}`,
      {
        cause: error,
      },
    );
  }
}

function boundText(relation: TieredRelation, key: bigint): string {
  return relation.keyKind === "int" ? String(key) : `'${keyText(relation.keyKind, key)}'`;
}

async function landingName(tx: pg.Client, relation: TieredRelation): Promise<string> {
  const { rows } = await tx.query<{ name: string }>(
    "select format('%I.%I', n.nspname, c.relname) as name from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = $1",
    [relation.landing],
  );
  const name = rows[0]?.name;
  if (name === undefined) throw new SpillwayError("premake_failed", `the landing of ${displayName(relation)} is gone`);
  return name;
}

function insideOf(relation: TieredRelation, range: NewPartition): string {
  const key = quoteIdent(relation.keyName);
  return `${key} >= ${keyLiteral(relation.keyKind, range.lo)} and ${key} < ${keyLiteral(relation.keyKind, range.hi)}`;
}

async function hasLanded(
  tx: pg.Client,
  relation: TieredRelation,
  landing: string,
  range: NewPartition,
): Promise<boolean> {
  const { rows } = await tx.query<{ any: boolean }>(
    `select exists (select from only ${landing} where ${insideOf(relation, range)}) as any`,
  );
  return rows[0]?.any === true;
}

/** Rows of the range leave the landing for the partition; the delta forgets them, because they are heap rows again. */
async function moveLanded(
  tx: pg.Client,
  relation: TieredRelation,
  landing: string,
  partition: string,
  range: NewPartition,
): Promise<number> {
  await tx.query(`lock table ${landing} in access exclusive mode`);
  const columns = relation.columns.filter((c) => !c.dropped);
  const now = await tx.query<{ attname: string }>(
    `select attname from pg_attribute where attrelid = $1 and attnum > 0 and not attisdropped and attgenerated = ''`,
    [relation.relid],
  );
  const names = (now.rows.length > 0 ? now.rows.map((r) => r.attname) : columns.map((c) => c.name))
    .map(quoteIdent)
    .join(", ");
  await tx.query("select set_config('spillway.internal', pg_current_xact_id()::text, true)");
  const { rowCount } = await tx.query(
    `with moved as (delete from only ${landing} where ${insideOf(relation, range)} returning ${names})
     insert into ${partition} (${names}) overriding system value select ${names} from moved`,
  );
  await tx.query("select set_config('spillway.internal', '', true)");
  await tx.query(`delete from ${deltaTable(relation.relationId)} where key >= $1 and key < $2`, [
    range.lo.toString(),
    range.hi.toString(),
  ]);
  return rowCount ?? 0;
}
