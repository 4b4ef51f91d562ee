/**
 * Files that the store's own log knows and the catalog does not: left by movements whose journal was rewound by a failover or a
 * restore. Whatever a table, a staged or a doomed row names is no orphan, and nothing younger than the grace is looked at.
 * The log itself is kept small: old entries become one, of the files that are still there.
 */
import { readMetadata } from "@spillway/lake/metadata";
import { storeSource } from "@spillway/lake/snapshot/source";
import { appendFileLog, type Db, loadLakeTables, readFileLog, requireClaim } from "../catalog/catalog.ts";
import { fileLog, type MoverContext } from "./context.ts";
import { raiseCounters } from "./maintain-counters.ts";
import { requireOwnPath, RESTORE_WINDOW_MS } from "./remove.ts";

export interface OrphansResult {
  readonly removed: number;
  readonly logEntries: number;
}

/** A file that somebody still writes was touched since then, by a wide margin. */
const TEMPORARY_MS = 24 * 3_600_000;
const BATCH = 500;
/** Entries from which the log is written anew. */
const MIN_ENTRIES = 50;

/** Throws `lake_not_ours` and `lake_unclaimed` before anything is touched. */
export async function removeOrphans(ctx: MoverContext, graceMs: number): Promise<OrphansResult> {
  const beforeMs = ctx.clock.wallMs() - Math.max(graceMs, ctx.restoreWindowMs ?? RESTORE_WINDOW_MS);
  const entries: string[] = [];
  const named = new Set<string>();
  for await (const { path, atMs, entry } of readFileLog(ctx, beforeMs)) {
    if (!(atMs < beforeMs)) continue;
    entries.push(path);
    for (const file of [...(entry.staged ?? []), ...(entry.doomed ?? [])]) named.add(file);
  }
  if (entries.length === 0) return { removed: 0, logEntries: 0 };
  // In this order: a file that is committed in between was staged when that was asked.
  const known = await ctx.pool.withClient((c) => knownFiles(c));
  const referenced = await referencedFiles(ctx);
  const orphans = [...named].filter((path) => !known.has(path) && !referenced.has(path));
  const removed = await removeFiles(ctx, orphans);
  await shrinkLog(
    ctx,
    entries,
    [...named].filter((path) => known.has(path) || referenced.has(path)),
  );
  if (removed > 0) ctx.log.info("orphans.removed", { files: removed });
  return { removed, logEntries: entries.length };
}

/**
 * Temporary files and parts of uploads that killed writers left: no listing shows them, no journal knows them, and their names
 * say what they are. Throws `lake_not_ours` and `lake_unclaimed` before anything is touched: a writer of somebody else's might be slow.
 */
export async function removeTemporary(ctx: MoverContext): Promise<number> {
  await ctx.pool.withClient((c) => requireClaim(c, ctx.store, ctx.warehouse));
  const removed = await ctx.store.sweepTemporary(TEMPORARY_MS, ctx.clock.wallMs());
  if (removed > 0) ctx.log.info("orphans.temporary_removed", { files: removed });
  return removed;
}

async function knownFiles(db: Db): Promise<Set<string>> {
  const { rows } = await db.query<{ path: string }>(
    "select path from spillway.staged_file union select path from spillway.doomed_file",
  );
  return new Set(rows.map((row) => row.path));
}

/** Everything that any snapshot of any table names, and the tables' metadata files. */
export async function referencedFiles(ctx: MoverContext): Promise<Set<string>> {
  const tables = await ctx.pool.withClient((c) => loadLakeTables(c));
  const source = storeSource(ctx.store);
  const files = new Set<string>();
  for (const table of tables) {
    const metadata = await readMetadata(ctx.store, table.metadataLocation);
    files.add(table.metadataLocation);
    for (const entry of metadata.metadataLog) files.add(entry.metadataFile);
    for (const s of [...metadata.statistics, ...metadata.partitionStatistics]) files.add(s.statisticsPath);
    for (const snapshot of metadata.snapshots) {
      files.add(snapshot.manifestList);
      for (const manifest of await source.manifests(snapshot)) {
        if (files.has(manifest.path)) continue;
        files.add(manifest.path);
        for (const { status, dataFile } of await source.entries(metadata, manifest)) {
          if (status !== "deleted") files.add(dataFile.path);
        }
      }
    }
  }
  return files;
}

async function removeFiles(ctx: MoverContext, paths: readonly string[]): Promise<number> {
  let removed = 0;
  for (let start = 0; start < paths.length && !ctx.signal?.aborted; start += BATCH) {
    const batch = paths.slice(start, start + BATCH);
    const there: string[] = [];
    for (const path of batch) {
      requireOwnPath(ctx, path);
      if ((await ctx.store.head(path)) !== null) there.push(path);
    }
    if (there.length === 0) continue;
    await ctx.pool.withClient((c) => requireClaim(c, ctx.store, ctx.warehouse));
    await ctx.store.delete(there);
    await ctx.pool.withClient((c) => raiseCounters(c, null, { orphans_removed_total: there.length }));
    removed += there.length;
  }
  return removed;
}

/** The new entry is there before the old ones go: an interruption leaves too much, never too little. */
async function shrinkLog(ctx: MoverContext, entries: readonly string[], kept: readonly string[]): Promise<void> {
  if (entries.length < MIN_ENTRIES || ctx.signal?.aborted) return;
  await ctx.pool.withClient((c) => requireClaim(c, ctx.store, ctx.warehouse));
  if (kept.length > 0) await appendFileLog(fileLog(ctx), { op: 0n, staged: kept });
  await ctx.store.delete(entries);
  ctx.log.debug("orphans.log_shrunk", { entries: entries.length, files: kept.length });
}
