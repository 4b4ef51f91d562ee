/** The mirror's rows in the catalog: read and changed here, and by `flush` inside its commit. */
import { parseLsn, type Lsn } from "@spillway/base/lsn";
import type { DataFile } from "@spillway/lake/model";
import { type Db, loadRelations, type Relation } from "../../catalog/catalog.ts";
import { filesFromJson } from "./file-json.ts";

export interface MirrorRow {
  readonly slotName: string;
  readonly publicationName: string;
  readonly systemId: string;
  readonly startLsn: Lsn;
  readonly timeline: number;
}

export type MirrorPhase = "copying" | "copied" | "live" | "needs_copy";

export interface MirrorTableRow {
  readonly relation: Relation;
  readonly phase: MirrorPhase;
  readonly holdLsn: Lsn | null;
  readonly copyOp: bigint | null;
  /** The LSN of the first snapshot of the copy. */
  readonly copyLsn: Lsn | null;
  /** The LSN of the last one. */
  readonly copyEnd: Lsn | null;
  readonly f: Lsn | null;
  readonly fTimeline: number | null;
}

export async function loadMirror(db: Db): Promise<MirrorRow | null> {
  const { rows } = await db.query<{
    slot_name: string;
    publication_name: string;
    system_identifier: string;
    start_lsn: string;
    timeline: number;
  }>(
    "select slot_name, publication_name, system_identifier, start_lsn::text as start_lsn, timeline from spillway.mirror",
  );
  const row = rows[0];
  if (!row) return null;
  return {
    slotName: row.slot_name,
    publicationName: row.publication_name,
    systemId: row.system_identifier,
    startLsn: parseLsn(row.start_lsn),
    timeline: row.timeline,
  };
}

/** Every mirrored table that has got as far as the publication. */
export async function loadMirrorTables(db: Db): Promise<MirrorTableRow[]> {
  const { rows } = await db.query<{
    relation_id: string;
    phase: MirrorPhase;
    hold_lsn: string | null;
    copy_op: string | null;
    copy_lsn: string | null;
    copy_end: string | null;
  }>(`select t.relation_id, t.phase, t.hold_lsn::text as hold_lsn, t.copy_op,
        (select min(r.snapshot_lsn)::text from spillway.mirror_range r where r.relation_id = t.relation_id) as copy_lsn,
        (select max(r.snapshot_lsn)::text from spillway.mirror_range r where r.relation_id = t.relation_id) as copy_end
      from spillway.mirror_table t`);
  if (rows.length === 0) return [];
  const relations = new Map((await loadRelations(db)).map((r) => [r.relationId, r]));
  return rows.flatMap((row) => {
    const relation = relations.get(BigInt(row.relation_id));
    if (!relation || relation.mode !== "mirrored" || relation.lakeId === null) return [];
    return {
      relation,
      phase: row.phase,
      holdLsn: row.hold_lsn === null ? null : parseLsn(row.hold_lsn),
      copyOp: row.copy_op === null ? null : BigInt(row.copy_op),
      copyLsn: row.copy_lsn === null ? null : parseLsn(row.copy_lsn),
      copyEnd: row.copy_end === null ? null : parseLsn(row.copy_end),
      f: relation.seam.fLsn === null ? null : parseLsn(relation.seam.fLsn),
      fTimeline: relation.seam.fTimeline,
    };
  });
}

export interface CopiedRange {
  readonly lsn: Lsn;
  readonly rows: bigint;
  readonly files: readonly DataFile[];
}

/** The parts of a finished copy, those of older snapshots first. */
export async function loadCopied(db: Db, relationId: bigint): Promise<CopiedRange[]> {
  const { rows } = await db.query<{ lsn: string; rows: string; files: unknown }>(
    `select snapshot_lsn::text as lsn, rows, files from spillway.mirror_range
     where relation_id = $1 and done_at is not null order by snapshot_lsn, part`,
    [relationId.toString()],
  );
  return rows.map((row) => ({ lsn: parseLsn(row.lsn), rows: BigInt(row.rows), files: filesFromJson(row.files) }));
}

/** Stops a mirrored table: its changes are dropped from now on, the others go on. */
export async function stopMirrored(db: Db, relationId: bigint, code: string, reason: string): Promise<void> {
  await db.query(
    `with t as (update spillway.mirror_table set phase = 'needs_copy', hold_lsn = null, changed_at = now() where relation_id = $1)
     update spillway.relation set state = 'stopped', stop_code = $2, stop_reason = $3,
       stopped_at = case when state = 'stopped' then stopped_at else now() end where relation_id = $1`,
    [relationId.toString(), code, reason],
  );
}
