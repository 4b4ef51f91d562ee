/** Counters that outlive a process: raised in the transaction of what they count, so that they are never wrong. */
import type { Db } from "../catalog/catalog.ts";

export type CounterName =
  | "fold_passes_total"
  | "fold_delta_rows_total"
  | "fold_upserts_total"
  | "fold_lake_rows_replaced_total"
  | "compactions_total"
  | "compacted_files_total"
  | "compacted_bytes_total"
  | "manifest_rewrites_total"
  | "snapshots_expired_total"
  | "retained_rows_expired_total"
  | "retained_bands_expired_total"
  | "files_removed_total"
  | "orphans_removed_total"
  | "expired_pins_deleted_total"
  | "verify_differences_total"
  | "lake_commits_total";

/** `relationId` null: of the source as a whole. */
export async function raiseCounters(
  db: Db,
  relationId: bigint | null,
  by: Partial<Readonly<Record<CounterName, number | bigint>>>,
): Promise<void> {
  const entries = Object.entries(by).filter(([, n]) => BigInt(n) > 0n);
  if (entries.length === 0) return;
  await db.query(
    `insert into spillway.counter as c (name, relation_id, value)
     select n, $3, v from unnest($1::text[], $2::bigint[]) as x (n, v) order by n
     on conflict (name, relation_id) do update set value = c.value + excluded.value`,
    [entries.map(([name]) => name), entries.map(([, n]) => BigInt(n).toString()), (relationId ?? 0n).toString()],
  );
}
