/** From a metadata pointer and a filter to local files with their deleted positions; everything immutable is kept between statements. */
import { stat } from "node:fs/promises";
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { DeleteLoader } from "@spillway/lake/deletes/deletes";
import { readMetadata } from "@spillway/lake/metadata";
import type { TableMetadata } from "@spillway/lake/model";
import {
  type Expr,
  ManifestCache,
  planScan,
  type ScanPlan,
  type ScanStats,
  type ScanTask,
} from "@spillway/lake/scan/scan";
import type { LocalCache } from "@spillway/lake/store/cache";
import { localPathOf, normalizeLocation, type ObjectStore } from "@spillway/lake/store/store";
import type { ScanFile } from "../engine/engine.ts";

export interface LakeReaderOptions {
  readonly store: ObjectStore;
  /** For stores that are not local. */
  readonly cache?: LocalCache;
}

/** The files of one scan, held until `release`. */
export interface LakeScan {
  readonly files: readonly ScanFile[];
  readonly tasks: readonly ScanTask[];
  readonly stats: ScanStats;
  readonly bytesRead: number;
  readonly deletedRows: number;
  release(): void;
}

const CACHED_METADATA = 200;
const KNOWN_FILES = 100_000;

export class LakeReader {
  readonly #store: ObjectStore;
  readonly #cache: LocalCache | undefined;
  readonly #manifests = new ManifestCache();
  readonly #deletes: DeleteLoader;
  readonly #metadata = new Map<string, Promise<TableMetadata>>();
  /** Files that were there, whole, when they were first read. DuckDB's own error tells of what happened since. */
  readonly #known = new Set<string>();

  constructor(options: LakeReaderOptions) {
    this.#store = options.store;
    this.#cache = options.cache;
    this.#deletes = new DeleteLoader(options.store);
  }

  metadata(location: string): Promise<TableMetadata> {
    let found = this.#metadata.get(location);
    this.#metadata.delete(location);
    found ??= readMetadata(this.#store, location);
    this.#metadata.set(location, found);
    found.catch(() => this.#metadata.delete(location));
    if (this.#metadata.size > CACHED_METADATA) {
      for (const old of this.#metadata.keys()) {
        this.#metadata.delete(old);
        break;
      }
    }
    return found;
  }

  /** The same files as `scan` gives, as they lie in the store: nothing is fetched but metadata. */
  plan(metadata: TableMetadata, snapshotId: bigint, filter: Expr): Promise<ScanPlan> {
    return planScan({ store: this.#store, metadata, snapshotId, filter, cache: this.#manifests });
  }

  /** The files of a snapshot that may hold matching rows. Throws `engine_file_missing`, `engine_file_corrupt`, and what `planScan` throws. */
  async scan(metadata: TableMetadata, snapshotId: bigint, filter: Expr): Promise<LakeScan> {
    const plan = await this.plan(metadata, snapshotId, filter);
    const deletes = [...new Set(plan.tasks.flatMap((task) => task.deletes))];
    const wanted = new Set(plan.tasks.map((task) => task.dataFile.path));
    const positions = deletes.length === 0 ? new Map() : await this.#deletes.load(deletes, wanted);
    const requests = plan.tasks.map(({ dataFile }) => ({ path: dataFile.path, size: Number(dataFile.fileSizeBytes) }));
    const { paths, release } = await this.#localize(requests);
    try {
      await this.#check(paths, requests);
    } catch (error) {
      release();
      throw error;
    }
    const files = plan.tasks.map(({ dataFile }, i): ScanFile => ({
      path: must(paths[i], "path"),
      rows: dataFile.recordCount,
      deletes: positions.get(dataFile.path) ?? null,
    }));
    return {
      files,
      tasks: plan.tasks,
      stats: plan.stats,
      bytesRead: requests.reduce((sum, r) => sum + r.size, 0),
      deletedRows: files.reduce((sum, f) => sum + (f.deletes?.cardinality ?? 0), 0),
      release,
    };
  }

  async #localize(
    requests: readonly { path: string; size: number }[],
  ): Promise<{ paths: readonly string[]; release: () => void }> {
    const local = requests.map((r) => localPathOf(normalizeLocation(r.path)));
    if (local.every((path) => path !== null)) return { paths: local, release: () => {} };
    if (!this.#cache)
      throw new SpillwayError("engine_failed", "The lake is not local, and no cache was given to read it through.");
    return this.#cache.localize(requests);
  }

  async #check(paths: readonly string[], requests: readonly { size: number }[]): Promise<void> {
    if (this.#known.size > KNOWN_FILES) this.#known.clear();
    await Promise.all(
      paths.map(async (path, i) => {
        if (this.#known.has(path)) return;
        const found = await stat(path).catch(() => null);
        if (found === null) throw new SpillwayError("engine_file_missing", `The lake file ${path} is missing.`);
        const size = must(requests[i], "request").size;
        if (found.size !== size) {
          throw new SpillwayError(
            "engine_file_corrupt",
            `The lake file ${path} has ${found.size} bytes instead of ${size}.`,
          );
        }
        this.#known.add(path);
      }),
    );
  }
}
