/** A command's settings as the runtime's options. */
import { SETTINGS } from "@spillway/base/settings";
import { openRuntime, type Runtime, type RuntimeOptions } from "@spillway/server/roles/runtime";
import type { CommandContext } from "./context.ts";

export function runtimeOptions(run: CommandContext): Omit<RuntimeOptions, "applicationName"> {
  return {
    databaseUrl: run.need(SETTINGS.databaseUrl),
    warehouse: run.need(SETTINGS.warehouse),
    s3Endpoint: run.get(SETTINGS.s3Endpoint),
    s3Region: run.get(SETTINGS.s3Region),
    s3PathStyle: run.get(SETTINGS.s3PathStyle),
    cacheDir: run.get(SETTINGS.cacheDir),
    cacheBytes: run.get(SETTINGS.cacheBytes),
    connectTimeoutMs: run.get(SETTINGS.connectTimeout),
    engineMemoryBytes: run.get(SETTINGS.moverMemory),
    lockTimeoutMs: run.get(SETTINGS.lockTimeout),
    premake: run.get(SETTINGS.premake),
    clock: run.clock,
    log: run.log,
  };
}

/** Opened for this command, and closed with it. */
export async function openCommandRuntime(run: CommandContext, name: string): Promise<Runtime> {
  const runtime = await openRuntime({ ...runtimeOptions(run), applicationName: `spillway ${name}` });
  run.onClose(() => runtime.close());
  return runtime;
}

/** Runs a command's body and closes what it opened, whatever happens. */
export async function withCommand(run: CommandContext, body: () => Promise<void>): Promise<void> {
  try {
    await body();
  } finally {
    await run.close();
  }
}
