/**
 * What the change stream does not tell: a rewrite that changes values, a leaf that came with rows or went with them. Seen by
 * the leaves' files and by the row that attached them; whatever is not explained makes the table be copied again.
 */
import { type Lsn, parseLsn } from "@spillway/base/lsn";
import { quoteQualified } from "@spillway/pg/quote";
import type { Db } from "../../catalog/catalog.ts";

/** relfilenode by oid, of each leaf (of a plain table: itself). */
export type Leaves = ReadonlyMap<number, number>;

export interface SeenLeaves {
  readonly leaves: Leaves;
  /** Everything that the catalogs showed was committed before this. */
  readonly lsn: Lsn;
}

const LEAVES = `
  select r.relid::bigint::int8 as root, c.oid::bigint::int8 as leaf, c.relfilenode::bigint::int8 as filenode
  from unnest($1::oid[]) r (relid)
  cross join lateral (select r.relid as oid union select relid from pg_partition_tree(r.relid::regclass)) t
  join pg_class c on c.oid = t.oid where c.relkind = 'r'`;

export async function readLeaves(db: Db, relids: readonly number[]): Promise<Map<number, SeenLeaves>> {
  // Tables that are gone are left out, and then have no leaves.
  const { rows: there } = await db.query<{ oid: string }>(
    "select oid::text from pg_class where oid = any ($1::oid[])",
    [[...relids]],
  );
  const { rows } = await db.query<{ root: string; leaf: string; filenode: string }>(LEAVES, [
    there.map((r) => Number(r.oid)),
  ]);
  const now = await db.query<{ lsn: string }>("select pg_current_wal_insert_lsn()::text as lsn");
  const lsn = parseLsn(now.rows[0]?.lsn ?? "0/0");
  const found = new Map<number, Map<number, number>>(relids.map((oid) => [oid, new Map()]));
  for (const row of rows) found.get(Number(row.root))?.set(Number(row.leaf), Number(row.filenode));
  return new Map([...found].map(([oid, leaves]) => [oid, { leaves, lsn }]));
}

/** Writes down what the table's copy began with, or what was accepted since. */
export async function putLeaves(db: Db, relationId: bigint, leaves: Leaves): Promise<void> {
  await db.query("update spillway.mirror_table set leaves = $2 where relation_id = $1", [
    relationId.toString(),
    JSON.stringify(Object.fromEntries(leaves)),
  ]);
}

export interface StoredLeaves {
  readonly leaves: Leaves;
  /** A TRUNCATE was applied since they were written down: new files are explained by it. */
  readonly truncated: boolean;
}

const TRUNCATED = "truncated";

export async function loadLeaves(db: Db, relationId: bigint): Promise<StoredLeaves> {
  const { rows } = await db.query<{ leaves: Record<string, number> }>(
    "select leaves from spillway.mirror_table where relation_id = $1",
    [relationId.toString()],
  );
  const { [TRUNCATED]: truncated, ...leaves } = rows[0]?.leaves ?? {};
  return {
    leaves: new Map(Object.entries(leaves).map(([oid, filenode]) => [Number(oid), filenode])),
    truncated: truncated !== undefined,
  };
}

/** In the commit of a flush that applied a TRUNCATE: a session that dies after it must not be surprised. */
export async function noteTruncated(tx: Db, relationIds: readonly bigint[]): Promise<void> {
  await tx.query(
    `update spillway.mirror_table set leaves = leaves || '{"${TRUNCATED}": 1}' where relation_id = any ($1::bigint[])`,
    [relationIds.map(String)],
  );
}

export interface LeafChange {
  readonly gone: readonly number[];
  readonly rewritten: readonly number[];
  readonly added: readonly number[];
}

/** Pure; null when nothing changed. */
export function leafChange(before: Leaves, after: Leaves): LeafChange | null {
  const change = {
    gone: [...before.keys()].filter((oid) => !after.has(oid)),
    rewritten: [...before].filter(([oid, node]) => after.has(oid) && after.get(oid) !== node).map(([oid]) => oid),
    added: [...after.keys()].filter((oid) => !before.has(oid)),
  };
  return change.gone.length + change.rewritten.length + change.added.length === 0 ? null : change;
}

/** Whether the leaf has rows that it had before it was attached: their xmin, or in the same transaction cmin, is older. */
export async function cameWithRows(db: Db, leaf: number): Promise<boolean> {
  const { rows } = await db.query<{ schema: string; name: string }>(
    "select n.nspname as schema, c.relname as name from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = $1",
    [leaf],
  );
  const found = rows[0];
  if (!found) return true;
  const { rows: old } = await db.query<{ any: boolean }>(
    `select exists (
       select from only ${quoteQualified(found.schema, found.name)} r, (select xmin, cmin from pg_inherits where inhrelid = $1) i
       where age(r.xmin) > age(i.xmin) or r.xmin = i.xmin and r.cmin::text::int8 < i.cmin::text::int8) as any`,
    [leaf],
  );
  return old[0]?.any === true;
}
