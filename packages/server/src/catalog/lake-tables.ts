/** The Iceberg catalog: the metadata pointer of every lake table. */
import type { Db } from "./db.ts";
import { big, bigOrNull, type LakeTableRow } from "./rows.ts";

interface Raw {
  lake_id: string;
  namespace: string;
  name: string;
  table_uuid: string;
  location: string;
  metadata_location: string;
  metadata_version: number;
  format_version: number;
  current_snapshot_id: string | null;
  sequence_number: string;
  allow_foreign_replace: boolean;
}

export async function loadLakeTable(db: Db, lakeId: bigint): Promise<LakeTableRow | null> {
  const { rows } = await db.query<Raw>("select * from spillway.lake_table where lake_id = $1", [lakeId.toString()]);
  return rows[0] ? toLakeTable(rows[0]) : null;
}

export async function loadLakeTableByName(db: Db, namespace: string, name: string): Promise<LakeTableRow | null> {
  const { rows } = await db.query<Raw>("select * from spillway.lake_table where namespace = $1 and name = $2", [
    namespace,
    name,
  ]);
  return rows[0] ? toLakeTable(rows[0]) : null;
}

export async function loadLakeTables(db: Db): Promise<LakeTableRow[]> {
  const { rows } = await db.query<Raw>("select * from spillway.lake_table order by namespace, name");
  return rows.map(toLakeTable);
}

function toLakeTable(raw: Raw): LakeTableRow {
  return {
    lakeId: big(raw.lake_id),
    namespace: raw.namespace,
    name: raw.name,
    tableUuid: raw.table_uuid,
    location: raw.location,
    metadataLocation: raw.metadata_location,
    metadataVersion: raw.metadata_version,
    formatVersion: raw.format_version === 2 ? 2 : 3,
    currentSnapshotId: bigOrNull(raw.current_snapshot_id),
    sequenceNumber: big(raw.sequence_number),
    allowForeignReplace: raw.allow_foreign_replace,
  };
}
