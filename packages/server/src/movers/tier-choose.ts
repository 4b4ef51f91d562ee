/** Which partitions are due: whole ones, in key order from the cut-line on, behind the greatest key by the lag. */
import { quoteIdent, quoteQualified } from "@spillway/pg/quote";
import { type Db, KEY_INFINITY, keyLiteral, maxKey, type Partition } from "../catalog/catalog.ts";
import { hasRows } from "./premake.ts";
import type { TieredRelation } from "./tiered.ts";

export interface Choice {
  readonly due: readonly Partition[];
  /** Partitions with rows below the cut-line that no movement made: nobody captures them. */
  readonly strays: readonly Partition[];
}

/** What a look at a partition without an index on the key costs, so that it is not taken too often. */
export interface Looks {
  /** When the look for this key may be taken again, by the monotonic clock. */
  readonly until: Map<bigint, number>;
  readonly nowMs: () => number;
}

/** A look may take one part in so many of the time. */
const LOOK_SHARE = 20;

/**
 * `nowKey`: the present in key units, null for integer keys. A row of the far future must not age the others, so a
 * partition is due only when the present has left it behind, too.
 */
export async function chooseLeaves(
  db: Db,
  relation: TieredRelation,
  partitions: readonly Partition[],
  moved: ReadonlySet<number>,
  nowKey: bigint | null,
  looks: Looks,
): Promise<Choice> {
  const { t } = relation.seam;
  const leaves = partitions.filter((p) => !p.isDefault);
  const strays = leaves.filter((p) => p.lo < t && !moved.has(p.oid));
  const due: Partition[] = [];
  for (const leaf of leaves.filter((p) => p.lo >= t && !p.unbounded)) {
    const line = leaf.hi + (relation.lag ?? 0n);
    if ((nowKey !== null && line > nowKey) || !(await reaches(db, relation, partitions, line, looks))) break;
    due.push(leaf);
  }
  return { due, strays };
}

/**
 * Whether the heap holds a row with a finite key at or above `line`. Partitions that lie above it are asked for any row; only
 * the one that the line goes through has to be searched, which costs a scan where no index helps.
 */
async function reaches(
  db: Db,
  relation: TieredRelation,
  partitions: readonly Partition[],
  line: bigint,
  looks: Looks,
): Promise<boolean> {
  const above = partitions.filter((p) => !p.isDefault && p.lo >= line);
  for (const leaf of above.toReversed()) if (await hasRows(db, leaf)) return true;
  const landing = partitions.find((p) => p.isDefault);
  if (landing && (await hasRowFrom(db, relation, landing, line))) return true;
  const through = partitions.find((p) => !p.isDefault && p.lo < line && (p.hi > line || p.unbounded));
  if (!through || (looks.until.get(relation.relationId) ?? 0) > looks.nowMs()) return false;
  const startMs = looks.nowMs();
  const found = await hasRowFrom(db, relation, through, line);
  const endMs = looks.nowMs();
  if (!found) looks.until.set(relation.relationId, endMs + LOOK_SHARE * (endMs - startMs));
  return found;
}

async function hasRowFrom(db: Db, relation: TieredRelation, partition: Partition, line: bigint): Promise<boolean> {
  const key = quoteIdent(relation.keyName);
  const finite = relation.keyKind === "int" ? "" : ` and ${key} < 'infinity'`;
  const { rows } = await db.query<{ any: boolean }>(
    `select exists (select from only ${quoteQualified(partition.schemaName, partition.name)}
       where ${key} >= ${keyLiteral(relation.keyKind, line)}${finite}) as any`,
  );
  return rows[0]?.any === true;
}

/** The greatest finite key of the heap: looked for in the highest partition that has rows, and in the landing. */
export async function newestKey(
  db: Db,
  relation: TieredRelation,
  partitions: readonly Partition[],
): Promise<bigint | null> {
  const key = quoteIdent(relation.keyName);
  const of = (p: Partition): Promise<bigint | null> =>
    maxKey(db, `only ${quoteQualified(p.schemaName, p.name)}`, key, relation.keyKind);
  const landing = partitions.find((p) => p.isDefault);
  const landed = landing ? await of(landing) : null;
  for (const leaf of partitions.filter((p) => !p.isDefault).toReversed()) {
    if (leaf.hi <= relation.seam.t) break;
    if (!(await hasRows(db, leaf))) continue;
    const top = (await of(leaf)) ?? leaf.lo;
    return landed !== null && landed > top && landed < KEY_INFINITY ? landed : top;
  }
  return landed;
}
