/** The library's reads and corrections, opened as the command line does, for processes of the chaos run. */
import { must } from "@spillway/base/assert";
import { silentLogger } from "@spillway/base/log";
import { sharedClock as clock } from "@spillway/ha/client/shared-clock";
import { directCommit } from "@spillway/server/movers/movers";
import { openRuntime, type Runtime } from "@spillway/server/roles/runtime";
import { createSeam, type Seam } from "@spillway/server/seam/seam";
import { valueAt } from "@spillway/server/engine/engine";

export interface OpenSeam {
  readonly runtime: Runtime;
  readonly seam: Seam;
  close(): Promise<void>;
}

/** `env` has the settings as the commands take them. The pin is short, so that the files of an old one really go. */
export async function openChaosSeam(
  env: Readonly<Record<string, string | undefined>>,
  name: string,
): Promise<OpenSeam> {
  const runtime = await openRuntime({
    databaseUrl: must(env["SPILLWAY_DATABASE_URL"], "SPILLWAY_DATABASE_URL"),
    warehouse: must(env["SPILLWAY_WAREHOUSE"], "SPILLWAY_WAREHOUSE"),
    s3Endpoint: null,
    s3Region: "",
    s3PathStyle: true,
    cacheDir: env["SPILLWAY_CACHE_DIR"] ?? null,
    cacheBytes: 1 << 30,
    connectTimeoutMs: 2000,
    engineMemoryBytes: 256 << 20,
    lockTimeoutMs: 100,
    premake: 2,
    applicationName: name,
    clock,
    log: silentLogger,
  });
  const { conninfo, store, cache, engine } = runtime;
  const direct = directCommit(runtime.mover(null));
  const seam = createSeam({
    conninfo,
    store,
    cache,
    engine,
    clock,
    log: silentLogger,
    holder: name,
    pinTtlMs: 3000,
    direct,
  });
  return {
    runtime,
    seam,
    close: async () => {
      await seam.close();
      await runtime.close();
    },
  };
}

/** A small answer, whole. */
export async function allRows(seam: Seam, sql: string): Promise<unknown[][]> {
  const result = await seam.query(sql);
  const out: unknown[][] = [];
  for await (const batch of result.batches()) {
    for (let i = 0; i < batch.length; i++) out.push(batch.columns.map((column) => valueAt(column, i)));
  }
  return out;
}
