/** The shape of a lake table, for metrics and warnings: from the current snapshot's own counters, without reading manifests. */
import { currentSnapshot } from "@spillway/lake/metadata";
import { loadRelations } from "../catalog/catalog.ts";
import { currentMetadata } from "./compact.ts";
import { displayName, type MoverContext } from "./context.ts";
import { countManifests } from "./manifests.ts";
import { asLake } from "./tiered.ts";

export interface LakeHealth {
  readonly table: string;
  readonly files: number;
  readonly deleteFiles: number;
  readonly bytes: number;
  readonly snapshots: number;
  readonly manifests: number;
  /** Deleted rows of the rows that data files hold. */
  readonly deleteRatio: number;
}

/** From these on a table is in bad shape: its maintenance is off, or does not keep up. */
const WARN_DELETE_RATIO = 0.3;
const WARN_MANIFESTS = 100;

export async function lakeHealth(ctx: MoverContext): Promise<LakeHealth[]> {
  const relations = await ctx.pool.withClient((c) => loadRelations(c));
  const result: LakeHealth[] = [];
  for (const relation of relations) {
    const lake = asLake(relation);
    if (lake === null) continue;
    const metadata = await currentMetadata(ctx, lake);
    const summary = currentSnapshot(metadata)?.summary ?? {};
    const count = (name: string): number => Number(summary[name] ?? "0");
    const rows = count("total-records");
    result.push({
      table: displayName(relation),
      files: count("total-data-files"),
      deleteFiles: count("total-delete-files"),
      bytes: count("total-files-size"),
      snapshots: metadata.snapshots.length,
      manifests: await countManifests(ctx, metadata),
      deleteRatio: rows === 0 ? 0 : count("total-position-deletes") / rows,
    });
  }
  return result;
}

/** What is wrong with a table's shape, as sentences. Pure. */
export function healthWarnings(health: LakeHealth): string[] {
  const warnings: string[] = [];
  if (health.deleteRatio >= WARN_DELETE_RATIO) {
    warnings.push(`${Math.round(health.deleteRatio * 100)} % of the rows in its files are deleted`);
  }
  if (health.manifests >= WARN_MANIFESTS) warnings.push(`it has ${health.manifests} manifests`);
  return warnings;
}
