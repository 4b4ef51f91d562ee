/** Which partitions are due: whole ones, in key order from the cut-line on, behind the greatest key by the lag. */
import { quoteIdent, quoteQualified } from "@spillway/pg/quote";
import { type Db, KEY_INFINITY, maxKey, type Partition } from "../catalog/catalog.ts";
import { hasRows } from "./premake.ts";
import type { TieredRelation } from "./tiered.ts";

export interface Choice {
  readonly due: readonly Partition[];
  /** Partitions with rows below the cut-line that no movement made: nobody captures them. */
  readonly strays: readonly Partition[];
}

/**
 * `nowKey`: the present in key units, null for integer keys. A row of the far future must not age the others, so the
 * greatest key counts only up to the present.
 */
export async function chooseLeaves(
  db: Db,
  relation: TieredRelation,
  partitions: readonly Partition[],
  moved: ReadonlySet<number>,
  nowKey: bigint | null,
): Promise<Choice> {
  const { t } = relation.seam;
  const leaves = partitions.filter((p) => !p.isDefault);
  const strays = leaves.filter((p) => p.lo < t && !moved.has(p.oid));
  const ahead = leaves.filter((p) => p.lo >= t && !p.unbounded);
  if (ahead.length === 0) return { due: [], strays };
  const newest = await newestKey(db, relation, partitions);
  if (newest === null) return { due: [], strays };
  return { due: dueLeaves(ahead, newest, nowKey, relation.lag ?? 0n), strays };
}

/** Pure: the leaves from the first on whose upper bound the newest key has left behind by the lag. */
export function dueLeaves(
  ahead: readonly Partition[],
  newest: bigint,
  nowKey: bigint | null,
  lag: bigint,
): readonly Partition[] {
  const line = (nowKey !== null && nowKey < newest ? nowKey : newest) - lag;
  const end = ahead.findIndex((p) => p.hi > line);
  return end === -1 ? ahead : ahead.slice(0, end);
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
