/** Bands: the key ranges of a table that went, or are going, to the lake. */
import type { Db } from "./db.ts";
import { big, bigOrNull, type BandRow, type BandState } from "./rows.ts";

interface Raw {
  band_id: string;
  relation_id: string;
  leaf: string | number | null;
  leaf_name: string;
  lo: string;
  hi: string;
  state: BandState;
  rows: string | null;
  checksum: string | null;
  checksum_fields: number[] | null;
  leaf_lo: string | null;
  leaf_filenode: string | number | null;
  leaf_signature: string | null;
  bytes: string | null;
  moved_at: string | null;
}

/** The bands of a table in key order. */
export async function loadBands(db: Db, relationId: bigint): Promise<BandRow[]> {
  const { rows } = await db.query<Raw>("select * from spillway.band where relation_id = $1 order by lo", [
    relationId.toString(),
  ]);
  return rows.map((raw) => ({
    bandId: big(raw.band_id),
    relationId: big(raw.relation_id),
    leaf: raw.leaf === null ? null : Number(raw.leaf),
    leafName: raw.leaf_name,
    lo: big(raw.lo),
    hi: big(raw.hi),
    state: raw.state,
    rows: bigOrNull(raw.rows),
    checksum: raw.checksum,
    checksumFields: raw.checksum_fields,
    leafLo: bigOrNull(raw.leaf_lo),
    leafFilenode: raw.leaf_filenode === null ? null : Number(raw.leaf_filenode),
    leafSignature: raw.leaf_signature,
    bytes: bigOrNull(raw.bytes),
    movedAt: raw.moved_at,
  }));
}
