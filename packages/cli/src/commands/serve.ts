import { chmodSync, mkdirSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import type { Command } from "commander";
import { SpillwayError } from "@spillway/base/errors";
import { SETTINGS } from "@spillway/base/settings";
import { type BootstrapOptions, installControl } from "@spillway/server/control/control";
import { checkListeners, runManager } from "@spillway/server/roles/manager";
import type { CliContext, CommandContext } from "../context.ts";
import { startEmbedded } from "../embedded/server.ts";
import { withCommand } from "../source.ts";

/** Of managers and nodes that understand each other. */
const BUILD = "0.1.0";

/** `spillway serve`: a manager, until a signal ends it. */
export function registerServe(program: Command, context: CliContext): void {
  program
    .command("serve")
    .description("Serve the source and its lake to many users, over the Postgres wire and Arrow Flight SQL.")
    .addHelpText(
      "after",
      `
Examples:
  spillway serve
  spillway serve --control-url postgres://control@db/spillway --pgwire-listen 127.0.0.1:5439

Without --control-url a control database is started in the state folder. The first start makes an administrator, whose
password is printed once, and, where a source and a warehouse are set, a tenant, a database and a pool for them.`,
    )
    .action(async (flags: Record<string, unknown>) => {
      const run = context.begin(flags);
      await withCommand(run, () => serve(run));
    });
}

async function serve(run: CommandContext): Promise<void> {
  const stateDir = run.get(SETTINGS.serveStateDir) ?? defaultStateDir();
  const tls = tlsOf(run);
  const listen = {
    pgwireListen: run.get(SETTINGS.pgwireListen),
    flightListen: run.get(SETTINGS.flightListen),
    httpListen: run.get(SETTINGS.httpListen),
  };
  // Before anything is set up: the administrator's password is shown once.
  checkListeners({ ...listen, tls });
  mkdirSync(stateDir, { recursive: true, mode: 0o700 });
  const controlUrl = run.get(SETTINGS.controlUrl) ?? (await embedded(run, stateDir));
  const { admin } = await installControl({ conninfo: controlUrl, clock: run.clock, log: run.log }, firstOf(run));
  if (admin) run.out.line(`Administrator ${admin.name}, password ${admin.password} (shown once)`);
  await runManager({
    controlUrl,
    ...listen,
    tls,
    stateDir,
    nodeCommand: [process.execPath, ...process.execArgv, process.argv[1] ?? ""],
    build: BUILD,
    stalenessMs: run.get(SETTINGS.authStaleness),
    sessionTtlMs: run.get(SETTINGS.sessionTtl),
    lockout: { failures: run.get(SETTINGS.lockoutFailures), lockMs: run.get(SETTINGS.lockoutTime) },
    apiKey: run.get(SETTINGS.apiKey),
    oidcIssuers: run.get(SETTINGS.oidcIssuers),
    connectTimeoutMs: run.get(SETTINGS.connectTimeout),
    cacheBytes: run.get(SETTINGS.cacheBytes),
    s3: {
      endpoint: run.get(SETTINGS.s3Endpoint),
      region: run.get(SETTINGS.s3Region),
      pathStyle: run.get(SETTINGS.s3PathStyle),
    },
    env: run.env,
    clock: run.clock,
    log: run.log,
    signal: run.signal,
    onListening: ({ pgwire, flight, http }) => {
      run.out.line(`Serving: pgwire ${pgwire ?? "off"}, flight ${flight ?? "off"}, http ${http ?? "off"}`);
      run.out.result({ pgwire, flight, http });
    },
  });
}

/** Root's home is closed to the user that the embedded Postgres runs as. */
function defaultStateDir(): string {
  return process.getuid?.() === 0 ? "/var/lib/spillway/serve" : join(homedir(), ".spillway", "serve");
}

async function embedded(run: CommandContext, stateDir: string): Promise<string> {
  const dir = join(stateDir, "control");
  // Postgres runs as another user where this one is root.
  if (process.getuid?.() === 0) chmodSync(stateDir, 0o711);
  const server = await startEmbedded({
    dir,
    settings: { shared_buffers: "32MB", max_wal_size: "256MB", wal_level: "replica" },
  });
  run.onClose(() => server.stop());
  return server.url();
}

/** What the first start makes of the settings of the source. */
function firstOf(run: CommandContext): BootstrapOptions {
  const [url, warehouse] = [run.get(SETTINGS.databaseUrl), run.get(SETTINGS.warehouse)];
  if (url === null || warehouse === null) return {};
  const sourceUrl = run.env["SPILLWAY_DATABASE_URL"] === url ? "env:SPILLWAY_DATABASE_URL" : url;
  return { first: { tenant: "default", database: "main", sourceUrl, warehouse, pool: { dualNodes: 1 } } };
}

function tlsOf(run: CommandContext): { readonly certFile: string; readonly keyFile: string } | null {
  const [certFile, keyFile] = [run.get(SETTINGS.serveTlsCert), run.get(SETTINGS.serveTlsKey)];
  if (certFile === null && keyFile === null) return null;
  if (certFile === null || keyFile === null) {
    throw new SpillwayError("config_invalid", "TLS needs both --serve-tls-cert and --serve-tls-key");
  }
  return { certFile, keyFile };
}
