/** Before a stream begins: the slot is there and free, and nothing between it and F is missing. */
import { SpillwayError } from "@spillway/base/errors";
import { formatLsn } from "@spillway/base/lsn";
import { canReadBinary } from "@spillway/pg/columns/plan";
import { evictSlotHolder } from "@spillway/pg/replication/evict";
import { DEFAULT_REPLICATION_TIMEOUTS, readSlot, timelineHistory } from "@spillway/pg/replication/session";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { readTableColumns } from "../../catalog/catalog.ts";
import type { MoverContext } from "../context.ts";
import type { MirrorTable } from "./mirror-table.ts";
import type { MirrorRow } from "./state.ts";
import type { Strange } from "./watch.ts";

/** A connection for the stream, after whoever held the slot was made to let go. Throws `mirror_slot_lost`. */
export async function openReplication(
  ctx: MoverContext,
  mirror: MirrorRow,
  signal: AbortSignal,
): Promise<RawConnection> {
  const { conninfo, applicationName, clock } = ctx;
  const sql = await connectRaw(conninfo, { applicationName, signal });
  try {
    const slot = await readSlot(sql, mirror.slotName);
    if (slot === null || slot.invalidationReason !== null) {
      const why = slot === null ? "is gone" : `was invalidated: ${slot.invalidationReason}`;
      throw new SpillwayError("mirror_slot_lost", `the slot ${mirror.slotName} ${why}`);
    }
    if (slot.active) {
      const ms = await evictSlotHolder({ sql, slot: mirror.slotName, clock, signal });
      ctx.log.warn("mirror.evicted", { slot: mirror.slotName, ms: Math.round(ms) });
    }
  } finally {
    await sql.close();
  }
  return connectRaw(conninfo, {
    applicationName,
    replication: "database",
    settings: {
      wal_sender_timeout: DEFAULT_REPLICATION_TIMEOUTS.walSenderTimeoutMs,
      tcp_user_timeout: DEFAULT_REPLICATION_TIMEOUTS.tcpUserTimeoutMs,
    },
    signal,
  });
}

/** Tables whose F lies on a timeline beyond where this server left it: what they hold did not happen here. */
export async function timelineFaults(
  connection: RawConnection,
  tables: readonly MirrorTable[],
  timeline: number,
): Promise<Strange[]> {
  const history = await timelineHistory(connection, timeline);
  return tables.flatMap((table) => {
    const was = table.relation.seam.fTimeline;
    if (table.phase !== "live" || was === null || was === timeline) return [];
    const left = history.find((h) => h.timeline === was);
    if (left !== undefined && (table.f ?? 0n) <= left.switchedAt) return [];
    const text = `the lake is at ${formatLsn(table.f ?? 0n)} of timeline ${was}, which this server left before`;
    return [{ table, error: new SpillwayError("mirror_timeline", text) }];
  });
}

/** Tables that need the stream from before where the slot was confirmed. */
export async function gapFaults(
  connection: RawConnection,
  mirror: MirrorRow,
  tables: readonly MirrorTable[],
): Promise<Strange[]> {
  const slot = await readSlot(connection, mirror.slotName);
  const confirmed = slot?.confirmedFlushLsn ?? null;
  if (confirmed === null) throw new SpillwayError("mirror_slot_lost", `the slot ${mirror.slotName} has no position`);
  return tables.flatMap((table) => {
    // A copy needs the stream from its first snapshot on; one without a snapshot yet needs nothing from before.
    const needs = table.phase === "live" ? table.f : table.phase === "needs_copy" ? null : table.copyLsn;
    if (needs === null || confirmed <= needs) return [];
    const text = `the slot was confirmed up to ${formatLsn(confirmed)}, ${table.name} needs it from ${formatLsn(needs)}`;
    return [{ table, error: new SpillwayError("mirror_gap", text) }];
  });
}

/** Binary only where every column of every table can be read so. */
export async function canStreamBinary(ctx: MoverContext, tables: readonly MirrorTable[]): Promise<boolean> {
  for (const { relation } of tables) {
    const columns = await ctx.pool.withClient((c) => readTableColumns(c, relation.relid));
    if (!canReadBinary(columns.map((c) => c.copyPlan))) return false;
  }
  return tables.length > 0;
}
