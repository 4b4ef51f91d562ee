/** What commands that work on a source open, from their settings: closed when the command ends. */
import { hostname } from "node:os";
import { armFault } from "@spillway/base/fault";
import { SETTINGS } from "@spillway/base/settings";
import { openRuntime, type Runtime, type RuntimeOptions } from "@spillway/server/roles/runtime";
import { requireCatalog } from "@spillway/server/catalog/catalog";
import { directCommit } from "@spillway/server/movers/movers";
import { createSeam, type Seam } from "@spillway/server/seam/seam";
import type { CommandContext } from "./context.ts";

/** The settings as the runtime's options. Throws `config_missing`. */
export function sourceOptions(run: CommandContext): Omit<RuntimeOptions, "applicationName"> {
  return {
    databaseUrl: run.need(SETTINGS.databaseUrl),
    warehouse: run.need(SETTINGS.warehouse),
    s3Endpoint: run.get(SETTINGS.s3Endpoint),
    s3Region: run.get(SETTINGS.s3Region),
    s3PathStyle: run.get(SETTINGS.s3PathStyle),
    cacheDir: run.get(SETTINGS.cacheDir),
    cacheBytes: run.get(SETTINGS.cacheBytes),
    connectTimeoutMs: run.get(SETTINGS.connectTimeout),
    engineMemoryBytes: run.get(SETTINGS.engineMemory),
    lockTimeoutMs: run.get(SETTINGS.lockTimeout),
    premake: run.get(SETTINGS.premake),
    restoreWindowMs: run.get(SETTINGS.restoreWindow),
    clock: run.clock,
    log: run.log,
  };
}

/** Pool, store, cache and engine of the source that the settings name. Throws `config_missing` before it opens anything. */
export async function openSource(run: CommandContext, applicationName: string): Promise<Runtime> {
  armFault(run.env["SPILLWAY_FAULT"]);
  const runtime = await openRuntime({ ...sourceOptions(run), applicationName });
  run.onClose(() => runtime.close());
  return runtime;
}

/** The same, for a database that must have a catalog of this program: `catalog_missing`, `catalog_newer`. */
export async function openCatalogedSource(run: CommandContext, applicationName: string): Promise<Runtime> {
  const runtime = await openSource(run, applicationName);
  await runtime.pool.withClient(requireCatalog);
  return runtime;
}

/** Reads and corrections over both tiers. */
export function openSeam(run: CommandContext, runtime: Runtime): Seam {
  const seam = createSeam({
    conninfo: runtime.conninfo,
    store: runtime.store,
    cache: runtime.cache,
    engine: runtime.engine,
    clock: run.clock,
    log: run.log,
    holder: `${hostname()}:${process.pid}`,
    pinTtlMs: run.get(SETTINGS.pinTtl),
    direct: directCommit(runtime.mover(null, run.signal)),
    connectTimeoutMs: run.get(SETTINGS.connectTimeout),
  });
  run.onClose(() => seam.close());
  return seam;
}

/** Runs a command's body and closes what it opened, whatever happens. */
export async function withCommand(run: CommandContext, body: () => Promise<void>): Promise<void> {
  try {
    await body();
  } finally {
    await run.close();
  }
}
