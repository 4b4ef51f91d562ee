/** From the current metadata and a filter to local files with their deletes, for movements: with row ids and sequence numbers. */
import { must } from "@spillway/base/assert";
import { DeleteLoader } from "@spillway/lake/deletes/deletes";
import type { DataFile, TableMetadata } from "@spillway/lake/model";
import type { PositionSet } from "@spillway/lake/puffin/position-set";
import { type Expr, ManifestCache, planScan, type ScanTask } from "@spillway/lake/scan/scan";
import type { ObjectStore } from "@spillway/lake/store/store";
import type { ScanFile } from "../engine/engine.ts";
import type { MoverContext } from "./context.ts";

/** What a movement keeps of a store between passes: immutable files, parsed. */
interface Parsed {
  readonly manifests: ManifestCache;
  readonly deletes: DeleteLoader;
}

const MANIFEST_BYTES = 64 << 20;
const DELETE_BYTES = 32 << 20;
const parsed = new WeakMap<ObjectStore, Parsed>();

function parsedOf(store: ObjectStore): Parsed {
  let found = parsed.get(store);
  if (!found) {
    found = { manifests: new ManifestCache(MANIFEST_BYTES), deletes: new DeleteLoader(store, DELETE_BYTES) };
    parsed.set(store, found);
  }
  return found;
}

/** The data files of the current snapshot that may hold matching rows. */
export async function planTasks(
  ctx: MoverContext,
  metadata: TableMetadata,
  filter: Expr,
): Promise<readonly ScanTask[]> {
  const { manifests } = parsedOf(ctx.store);
  const plan = await planScan({ store: ctx.store, metadata, filter, cache: manifests, parallel: 4 });
  return plan.tasks;
}

/** The deleted positions of each file that has some. Shared with a cache: not to be changed. */
export async function loadDeletes(ctx: MoverContext, tasks: readonly ScanTask[]): Promise<Map<string, PositionSet>> {
  const deletes = [...new Set(tasks.flatMap((t) => t.deletes))];
  if (deletes.length === 0) return new Map();
  return parsedOf(ctx.store).deletes.load(deletes, new Set(tasks.map((t) => t.dataFile.path)));
}

/** Calls `work` with the tasks' files as local ones, which are held until it ends. */
export async function withLocalFiles<T>(
  ctx: MoverContext,
  tasks: readonly ScanTask[],
  work: (files: readonly ScanFile[]) => Promise<T>,
): Promise<T> {
  const deletes = await loadDeletes(ctx, tasks);
  const requests = tasks.map(({ dataFile }) => ({ path: dataFile.path, size: Number(dataFile.fileSizeBytes) }));
  const local = await ctx.cache.localize(requests);
  try {
    return await work(
      tasks.map(({ dataFile }, i) => ({
        path: must(local.paths[i], "local path"),
        rows: dataFile.recordCount,
        deletes: deletes.get(dataFile.path) ?? null,
      })),
    );
  } finally {
    local.release();
  }
}

/** Delete files of a task that concern its data file alone, and so are replaced with it. */
export function ownDeletes(task: ScanTask): DataFile[] {
  return task.deletes.filter((d) => d.referencedDataFile === task.dataFile.path);
}

/** A store whose writes are journaled first: for writers that choose the names of their files themselves. */
export function journaled(store: ObjectStore, onFile: (path: string) => Promise<void>): ObjectStore {
  return {
    root: store.root,
    get: (path) => store.get(path),
    getRange: (path, offset, length) => store.getRange(path, offset, length),
    put: async (path, data, options) => {
      await onFile(path);
      return store.put(path, data, options);
    },
    head: (path) => store.head(path),
    list: (prefix) => store.list(prefix),
    delete: (paths) => store.delete(paths),
    sweepTemporary: (olderThanMs, nowMs) => store.sweepTemporary(olderThanMs, nowMs),
  };
}
