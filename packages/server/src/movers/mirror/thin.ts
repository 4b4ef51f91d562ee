/**
 * A snapshot a second is 86 400 a day: all are kept for ten minutes, one a minute for a day. What only the others
 * referred to is doomed in the same commit; pins and the restore window keep the files as long as they must.
 */
import { applyUpdates, type TableUpdate } from "@spillway/lake/commit";
import type { Snapshot, TableMetadata } from "@spillway/lake/model";
import { stageExpire, unreferencedFiles } from "@spillway/lake/snapshot/expire";
import type { ManifestSource } from "@spillway/lake/snapshot/source";
import type { DoomedFile } from "../../catalog/catalog.ts";
import type { MoverContext } from "../context.ts";
import type { LakeState } from "./lake-state.ts";

const MINUTE_MS = 60_000;
const ALL_FOR_MS = 10 * MINUTE_MS;
const SOME_FOR_MS = 24 * 60 * MINUTE_MS;
/** Below this nobody minds. */
const MIN_SNAPSHOTS = 60;

const NOTHING = { updates: [], doomed: [] };

/** `metadata`: the table as it will be with this flush. */
export async function thin(
  ctx: MoverContext,
  state: LakeState,
  metadata: TableMetadata,
  source: ManifestSource,
): Promise<{ updates: readonly TableUpdate[]; doomed: readonly DoomedFile[] }> {
  const nowMs = ctx.clock.wallMs();
  if (metadata.snapshots.length < MIN_SNAPSHOTS || nowMs - state.thinnedAtMs < MINUTE_MS) return NOTHING;
  state.thinnedAtMs = nowMs;
  const plan = stageExpire({ metadata, nowMs, olderThanMs: nowMs - ALL_FOR_MS, keep: oneAMinute(metadata, nowMs) });
  if (plan.removedSnapshotIds.length === 0) return NOTHING;
  const after = applyUpdates(metadata, plan.updates, nowMs);
  const doomed: DoomedFile[] = [];
  const logs = new Set(metadata.metadataLog.map((entry) => entry.metadataFile));
  for await (const path of unreferencedFiles(metadata, after, source)) {
    if (!logs.has(path)) doomed.push({ lakeId: state.row.lakeId, path });
  }
  return { updates: plan.updates, doomed };
}

/** Pure: the first snapshot of each minute of the last day stays. */
export function oneAMinute(metadata: Pick<TableMetadata, "snapshots">, nowMs: number): (snapshot: Snapshot) => boolean {
  const first = new Map<number, bigint>();
  for (const s of metadata.snapshots) {
    const minute = Math.floor(s.timestampMs / MINUTE_MS);
    if (!first.has(minute)) first.set(minute, s.snapshotId);
  }
  const kept = new Set(first.values());
  return (s) => s.timestampMs >= nowMs - SOME_FOR_MS && kept.has(s.snapshotId);
}
