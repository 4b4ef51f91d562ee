/** What `spillway status` and the metrics show: read from the catalog in a few statements, without touching the lake. */
import { quoteQualified } from "@spillway/pg/quote";
import type { Db } from "./db.ts";
import { KEY_MIN, keyText } from "./key.ts";
import { recentOps } from "./journal.ts";
import { deltaTable } from "./names.ts";
import { type MirrorStatus, readMirrorStatus } from "./mirror-status.ts";
import { loadRelations } from "./relations.ts";
import { big, bigOrNull, type JournalRow, type Relation } from "./rows.ts";

export interface WorkerStatus {
  readonly holder: string | null;
  readonly epoch: bigint;
  readonly heartbeatAgeMs: number | null;
  /** The heartbeat is younger than three intervals. */
  readonly alive: boolean;
}

export interface WaitStatus {
  readonly step: string;
  readonly reason: string;
  readonly code: string | null;
  readonly attempts: number;
  readonly since: string;
  readonly retryAt: string | null;
}

export interface TableStatus {
  readonly table: string;
  readonly mode: string;
  readonly state: string;
  readonly stopCode: string | null;
  readonly stopReason: string | null;
  readonly keyKind: string | null;
  /** Canonical, and as people read it. */
  readonly cutLine: bigint | null;
  readonly cutLineText: string | null;
  readonly snapshotId: bigint | null;
  readonly snapshotSequence: bigint;
  readonly retentionLine: string | null;
  readonly partitions: number;
  /** The planner's estimate. */
  readonly heapRows: number;
  readonly heapBytes: bigint;
  readonly lakeRows: bigint;
  readonly lakeBytes: bigint;
  readonly lakeLocation: string | null;
  readonly deltaRows: number;
  readonly bands: Readonly<Record<string, number>>;
  /** Null for a table that is not mirrored. */
  readonly mirror: MirrorStatus | null;
  readonly waiting: WaitStatus | null;
  readonly lastMovements: readonly JournalRow[];
}

export interface SourceStatus {
  readonly warehouse: string | null;
  readonly worker: WorkerStatus;
  readonly tables: readonly TableStatus[];
  readonly pins: { readonly live: number; readonly oldestMs: number | null; readonly expired: number };
  readonly openOps: number;
  readonly doomedFiles: number;
}

/** Movements that are shown of each table. */
const LAST = 5;

export async function readStatus(db: Db): Promise<SourceStatus> {
  const tables: TableStatus[] = [];
  for (const relation of await loadRelations(db)) tables.push(await tableStatus(db, relation));
  const { rows } = await db.query<{
    location: string | null;
    open_ops: number;
    doomed: number;
    live: number;
    expired: number;
    oldest: number | null;
  }>(`select (select location from spillway.warehouse) as location,
    (select count(*)::int from spillway.journal where phase = 'open') as open_ops,
    (select count(*)::int from spillway.doomed_file) as doomed,
    (select count(*)::int from spillway.pin where expires_at > clock_timestamp()) as live,
    (select count(*)::int from spillway.pin where expires_at <= clock_timestamp()) as expired,
    (select (extract(epoch from clock_timestamp() - min(created_at)) * 1000)::float8 from spillway.pin
      where expires_at > clock_timestamp()) as oldest`);
  const row = rows[0];
  return {
    warehouse: row?.location ?? null,
    worker: await workerStatus(db),
    tables,
    pins: { live: row?.live ?? 0, oldestMs: row?.oldest ?? null, expired: row?.expired ?? 0 },
    openOps: row?.open_ops ?? 0,
    doomedFiles: row?.doomed ?? 0,
  };
}

async function workerStatus(db: Db): Promise<WorkerStatus> {
  const { rows } = await db.query<{
    holder: string | null;
    epoch: string;
    age: number | null;
    interval_ms: number | null;
  }>(
    `select holder, epoch, interval_ms, (extract(epoch from clock_timestamp() - heartbeat_at) * 1000)::float8 as age
     from spillway.leader`,
  );
  const row = rows[0];
  const age = row?.age ?? null;
  return {
    holder: row?.holder ?? null,
    epoch: row ? big(row.epoch) : 0n,
    heartbeatAgeMs: age === null ? null : Math.round(age),
    alive: row?.holder !== null && age !== null && age < 3 * (row?.interval_ms ?? 2000),
  };
}

async function tableStatus(db: Db, relation: Relation): Promise<TableStatus> {
  const id = relation.relationId.toString();
  const { rows } = await db.query<{
    partitions: number;
    heap_rows: number;
    heap_bytes: string;
    lake_rows: string;
    lake_bytes: string;
    location: string | null;
    bands: Record<string, number> | null;
  }>(
    `select h.*, (select coalesce(sum(rows), 0) from spillway.band where relation_id = $2 and state in ('lake', 'dropped', 'kept')) as lake_rows,
       (select coalesce(sum(bytes), 0) from spillway.band where relation_id = $2 and state in ('lake', 'dropped', 'kept')) as lake_bytes,
       (select location from spillway.lake_table where lake_id = $3) as location,
       (select json_object_agg(state, n) from (select state, count(*) as n from spillway.band where relation_id = $2 group by state) b) as bands
     from (select count(*)::int as partitions, coalesce(sum(coalesce(nullif(c.reltuples, -1), pg_stat_get_live_tuples(c.oid))), 0)::float8 as heap_rows,
         coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint as heap_bytes
       from (select inhrelid as oid from pg_inherits where inhparent = $1
             union all select oid from pg_class where oid = $1 and relkind = 'r') i join pg_class c using (oid)) h`,
    [relation.relid, id, relation.lakeId?.toString() ?? null],
  );
  const row = rows[0];
  const { t, r } = relation.seam;
  const kind = relation.keyKind ?? "int";
  return {
    table: `${relation.schemaName}.${relation.tableName}`,
    mode: relation.keepHeap ? `${relation.mode}, keep-heap` : relation.mode,
    state: relation.state,
    stopCode: relation.stopCode,
    stopReason: relation.stopReason,
    keyKind: relation.keyKind,
    cutLine: t,
    cutLineText: t === null ? null : t === KEY_MIN ? "-infinity" : keyText(kind, t),
    snapshotId: relation.seam.s,
    snapshotSequence: relation.seam.sSequence,
    retentionLine: r === null ? null : keyText(kind, r),
    partitions: row?.partitions ?? 0,
    heapRows: row?.heap_rows ?? 0,
    heapBytes: bigOrNull(row?.heap_bytes) ?? 0n,
    lakeRows: bigOrNull(row?.lake_rows) ?? 0n,
    lakeBytes: bigOrNull(row?.lake_bytes) ?? 0n,
    lakeLocation: row?.location ?? null,
    deltaRows: t === null ? 0 : await deltaBacklog(db, relation),
    bands: row?.bands ?? {},
    mirror: relation.mode === "mirrored" ? await readMirrorStatus(db, relation.relationId) : null,
    waiting: await waitOf(db, id),
    lastMovements: await recentOps(db, relation.relationId, LAST),
  };
}

/** Corrections that wait to be folded: delta rows below the cut-line. */
export async function deltaBacklog(db: Db, relation: Relation): Promise<number> {
  const delta = deltaTable(relation.relationId);
  const { rows: found } = await db.query<{ there: boolean }>("select to_regclass($1) is not null as there", [
    quoteQualified("spillway", `delta_${relation.relationId}`),
  ]);
  if (found[0]?.there !== true) return 0;
  const { rows } = await db.query<{ n: number }>(`select count(*)::float8 as n from ${delta} where key < $1`, [
    (relation.seam.t ?? KEY_MIN).toString(),
  ]);
  return rows[0]?.n ?? 0;
}

async function waitOf(db: Db, relationId: string): Promise<WaitStatus | null> {
  const { rows } = await db.query<{
    step: string;
    reason: string;
    code: string | null;
    attempts: number;
    since: string;
    retry_at: string | null;
  }>(
    `select step, reason, code, attempts, since::text as since, retry_at::text as retry_at
     from spillway.relation_wait where relation_id = $1`,
    [relationId],
  );
  const row = rows[0];
  if (!row) return null;
  const { step, reason, code, attempts, since } = row;
  return { step, reason, code, attempts, since, retryAt: row.retry_at };
}
