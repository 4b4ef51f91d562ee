/** What the catalog knows of a mirrored table, read in the snapshot of the statement: how far its lake is, and whether it may be trusted. */
import { type Lsn, parseLsn } from "@spillway/base/lsn";

export interface MirrorState {
  /** F: the lake has every commit that ends at or before it. */
  readonly frontier: Lsn;
  /** So long ago, the lake had all there was; null when that is not known. */
  readonly ageMs: number | null;
  /** It follows the stream, and its files in Postgres are those that the pump has accepted: no rewrite that F has passed unseen. */
  readonly isSound: boolean;
}

/** Columns of a query over `spillway.relation x`, `spillway.seam s` and `spillway.mirror_table m`. */
export const MIRROR_COLUMNS = `s.f_lsn, extract(epoch from clock_timestamp() - s.f_at) * 1000,
  CASE WHEN m.phase = 'live' AND x.state = 'active' THEN (
    SELECT jsonb_object_agg(f.oid::text, f.relfilenode::bigint) FROM pg_catalog.pg_class f
    WHERE f.relkind = 'r' AND (f.oid = x.relid OR f.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree(x.relid::regclass)))
  ) = m.leaves - 'truncated' END`;

/** Of the columns' texts. Null for a table that has no frontier. */
export function parseMirrorState([frontier, ageMs, isSound]: readonly (
  | string
  | null
  | undefined
)[]): MirrorState | null {
  if (frontier === null || frontier === undefined) return null;
  return {
    frontier: parseLsn(frontier),
    ageMs: ageMs === null || ageMs === undefined ? null : Math.max(0, Number(ageMs)),
    isSound: isSound === "t",
  };
}
