/** Putting mirrored tables right: copied again, and where the slot is lost or belongs to another history, with a new slot. */
import { must } from "@spillway/base/assert";
import { formatLsn } from "@spillway/base/lsn";
import { createSlot, dropSlot, identifySystem, readSlot } from "@spillway/pg/replication/session";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import type { MoverContext } from "../context.ts";
import { displayName } from "../context.ts";
import { copyTable, type CopyOptions } from "./copy.ts";
import { ensureDdlTriggers } from "./ddl-triggers.ts";
import { restartCopy } from "./recopy.ts";
import { loadMirror, loadMirrorTables, stopMirrored } from "./state.ts";

export interface ResyncResult {
  readonly tables: readonly string[];
  readonly newSlot: boolean;
}

const SLOT_TIMEOUT_MS = 60_000;

/** `relationId` null: every mirrored table. A new slot concerns every table, whichever was asked for. */
export async function resync(
  ctx: MoverContext,
  relationId: bigint | null,
  options: CopyOptions,
): Promise<ResyncResult> {
  const replication = await connectRaw(ctx.conninfo, { applicationName: ctx.applicationName, replication: "database" });
  try {
    const newSlot = await renewSlot(ctx, replication);
    await ctx.pool.withClient((c) => ensureDdlTriggers(c));
    const all = await ctx.pool.withClient((c) => loadMirrorTables(c));
    const chosen = all.filter((t) => newSlot || relationId === null || t.relation.relationId === relationId);
    for (const { relation } of chosen) {
      // From here on its changes are dropped; the copy that begins next has them.
      await ctx.pool.withClient((c) =>
        stopMirrored(c, relation.relationId, "mirror_resync", "it is being copied again"),
      );
    }
    for (const { relation } of chosen) {
      await restartCopy(ctx, relation.relationId, replication.serverVersion);
      await copyTable(ctx, relation.relationId, options);
    }
    return { tables: chosen.map((t) => displayName(t.relation)), newSlot };
  } finally {
    await replication.close();
  }
}

/** True when the slot had to be made anew. */
async function renewSlot(ctx: MoverContext, replication: Awaited<ReturnType<typeof connectRaw>>): Promise<boolean> {
  const mirror = await ctx.pool.withClient((c) => loadMirror(c));
  if (mirror === null) return false;
  const { systemId, timeline } = await identifySystem(replication);
  const slot = await readSlot(replication, mirror.slotName);
  if (slot !== null && slot.invalidationReason === null && systemId === mirror.systemId) return false;
  if (slot !== null) await dropSlot(replication, mirror.slotName, true);
  const made = await createSlot(replication, { name: mirror.slotName, failover: true, timeoutMs: SLOT_TIMEOUT_MS });
  await ctx.pool.withClient((c) =>
    c.query("update spillway.mirror set system_identifier = $1, timeline = $2, start_lsn = $3", [
      systemId,
      timeline,
      formatLsn(must(made.consistentPoint, "position")),
    ]),
  );
  return true;
}
