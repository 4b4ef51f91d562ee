/** The slot guard: how much WAL the slot keeps, said before the disk is full. It never drops a slot. */
import type { Logger } from "@spillway/base/log";
import type { Db } from "../../catalog/catalog.ts";
import { loadMirror } from "./state.ts";

export interface SlotReading {
  readonly slot: string;
  readonly active: boolean;
  /** Bytes; null when the slot is gone or invalid, which is an alarm and not zero. */
  readonly retained: number | null;
  /** Null: the slot is good. */
  readonly invalid: string | null;
}

export interface LagReading {
  readonly table: string;
  readonly phase: string;
  /** Why it is stopped. */
  readonly stopCode: string | null;
  readonly bytes: number | null;
  readonly seconds: number | null;
}

/** At so many times the warning threshold it is an error. */
const ERROR_FACTOR = 4;

/** Null when nothing is mirrored. */
export async function readSlotReading(db: Db): Promise<SlotReading | null> {
  const mirror = await loadMirror(db);
  if (mirror === null) return null;
  const { rows } = await db.query<{
    active: boolean;
    retained: string | null;
    status: string | null;
    reason: string | null;
  }>(
    `select active, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::text as retained, wal_status as status,
       to_jsonb(s) ->> 'invalidation_reason' as reason from pg_replication_slots s where slot_name = $1`,
    [mirror.slotName],
  );
  const row = rows[0];
  if (!row) return { slot: mirror.slotName, active: false, retained: null, invalid: "gone" };
  const invalid = row.reason ?? (row.status === "lost" ? "wal_removed" : null);
  const retained = invalid === null && row.retained !== null ? Number(row.retained) : null;
  return { slot: mirror.slotName, active: row.active, retained, invalid };
}

export async function readLags(db: Db): Promise<LagReading[]> {
  const { rows } = await db.query<{
    name: string;
    phase: string;
    stop_code: string | null;
    bytes: string | null;
    seconds: number | null;
  }>(
    `select x.schema_name || '.' || x.table_name as name, m.phase, case when x.state = 'stopped' then x.stop_code end as stop_code, pg_wal_lsn_diff(pg_current_wal_lsn(), s.f_lsn)::text as bytes,
       extract(epoch from now() - s.f_at)::float8 as seconds
     from spillway.mirror_table m join spillway.relation x using (relation_id) left join spillway.seam s using (relation_id)`,
  );
  return rows.map((r) => ({
    table: r.name,
    phase: r.phase,
    stopCode: r.stop_code,
    bytes: r.bytes === null ? null : Number(r.bytes),
    seconds: r.seconds,
  }));
}

/** Logs what the operator has to know. Pure but for the log. */
export function guardSlot(reading: SlotReading, warnBytes: number, log: Logger): "ok" | "warn" | "error" {
  const runbook =
    "docs/guides/operations.md, the slot: start a standby worker, unregister, or max_slot_wal_keep_size and its price";
  if (reading.invalid !== null) {
    log.error("mirror.slot_invalid", { slot: reading.slot, reason: reading.invalid, next: "spillway resync", runbook });
    return "error";
  }
  const retained = reading.retained ?? 0;
  if (retained < warnBytes) return "ok";
  const fields = { slot: reading.slot, retained_bytes: retained, threshold: warnBytes, active: reading.active };
  if (retained < warnBytes * ERROR_FACTOR) {
    log.warn("mirror.slot_retains", fields);
    return "warn";
  }
  log.error("mirror.slot_retains", { ...fields, runbook });
  return "error";
}
