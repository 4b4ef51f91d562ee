/** What every process that works on a source opens: pool, store, cache, engine. Closed in the opposite order. */
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import type { Clock } from "@spillway/base/clock";
import type { Logger } from "@spillway/base/log";
import { LocalCache } from "@spillway/lake/store/cache";
import { claimCacheDir } from "@spillway/lake/store/cache-dir";
import { openStore } from "@spillway/lake/store/open";
import { normalizeLocation, type ObjectStore } from "@spillway/lake/store/store";
import { type Conninfo, parseConninfo, withConninfo } from "@spillway/pg/conninfo";
import { Pool } from "@spillway/pg/pool";
import { Engine } from "../engine/engine.ts";
import type { MoverContext } from "../movers/movers.ts";
import { ChecksumThreads } from "./checksum-thread.ts";

/** Settings by their meaning; the command line resolves them. */
export interface RuntimeOptions {
  readonly databaseUrl: string;
  readonly warehouse: string;
  readonly s3Endpoint: string | null;
  readonly s3Region: string;
  readonly s3PathStyle: boolean;
  readonly cacheDir: string | null;
  readonly cacheBytes: number;
  readonly connectTimeoutMs: number;
  readonly engineMemoryBytes: number;
  /** Default: the processors, at most 4. */
  readonly engineThreads?: number;
  /** Bytes that the engine may spill. */
  readonly maxTempBytes?: number;
  /** For an engine that runs statements of others. */
  readonly lockdown?: { readonly directories: readonly string[] };
  readonly lockTimeoutMs: number;
  readonly premake: number;
  /** How long doomed files stay in the store. Default 7 days. */
  readonly restoreWindowMs?: number;
  readonly applicationName: string;
  readonly poolSize?: number;
  readonly clock: Clock;
  readonly log: Logger;
}

export interface Runtime {
  readonly conninfo: Conninfo;
  readonly pool: Pool;
  readonly store: ObjectStore;
  /** Canonical. */
  readonly warehouse: string;
  readonly cache: LocalCache;
  readonly engine: Engine;
  /** For a movement; null epoch: a command that is no leader. */
  mover(epoch: bigint | null, signal?: AbortSignal): MoverContext;
  close(): Promise<void>;
}

export async function openRuntime(options: RuntimeOptions): Promise<Runtime> {
  const { clock, log } = options;
  const warehouse = normalizeLocation(options.warehouse);
  // Movements write: whatever the string is otherwise good for, they look for the primary.
  const given = parseConninfo(options.databaseUrl);
  const conninfo =
    given.targetSessionAttrs === "any" ? withConninfo(given, { targetSessionAttrs: "read-write" }) : given;
  const store = openStore({
    root: warehouse,
    endpoint: options.s3Endpoint,
    region: options.s3Region,
    pathStyle: options.s3PathStyle,
    clock,
    random: Math.random,
  });
  const base = options.cacheDir ?? join(tmpdir(), "spillway-cache");
  const claimed = claimCacheDir(base, process.pid);
  const cache = new LocalCache({ store, dir: claimed.dir, maxBytes: options.cacheBytes, clock });
  const engine = await Engine.open({
    memoryBytes: options.engineMemoryBytes,
    threads: options.engineThreads ?? Math.min(4, availableParallelism()),
    ...(options.maxTempBytes === undefined ? {} : { maxTempBytes: options.maxTempBytes }),
    ...(options.lockdown ? { lockdown: options.lockdown } : {}),
    tempDirectory: claimed.dir,
  });
  const thread = ChecksumThreads.isAvailable ? new ChecksumThreads(claimed.dir) : null;
  const pool = new Pool({
    conninfo,
    size: options.poolSize ?? 6,
    connect: { applicationName: options.applicationName, connectTimeoutMs: options.connectTimeoutMs },
    clock,
    log,
  });
  return {
    conninfo,
    pool,
    store,
    warehouse,
    cache,
    engine,
    mover: (epoch, signal) => ({
      pool,
      conninfo,
      applicationName: options.applicationName,
      store,
      cache,
      warehouse,
      engine,
      ...(thread ? { fileChecksum: thread.checksum } : {}),
      stageDir: join(claimed.dir, "stage"),
      clock,
      log,
      epoch,
      lockTimeoutMs: options.lockTimeoutMs,
      premake: options.premake,
      ...(options.restoreWindowMs === undefined ? {} : { restoreWindowMs: options.restoreWindowMs }),
      ...(signal ? { signal } : {}),
    }),
    close: async () => {
      await pool.end();
      await thread?.close();
      engine.close();
      claimed.release();
    },
  };
}
