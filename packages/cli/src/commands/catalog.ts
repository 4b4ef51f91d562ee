import { readFileSync } from "node:fs";
import type { Command } from "commander";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { SETTINGS } from "@spillway/base/settings";
import { requireOwnership } from "@spillway/server/catalog/catalog";
import { startCatalogServer } from "@spillway/server/roles/catalog";
import { createCatalogSource } from "@spillway/server/serve/serve";
import type { CliContext, CommandContext } from "../context.ts";
import { openCatalogedSource } from "../source.ts";

/** `spillway catalog`: the Iceberg REST catalog, until a signal ends it. */
export function registerCatalog(program: Command, context: CliContext): void {
  program
    .command("catalog")
    .description("Serve the lake's tables to other engines: an Iceberg REST catalog, until it is interrupted.")
    .option("--listen <host:port>", "where (default: 127.0.0.1:8181); outside loopback a token and TLS are required")
    .option("--token-file <file>", "the file of the bearer token; or set SPILLWAY_CATALOG_TOKEN")
    .option("--tls-cert <file>", "PEM file of the certificate")
    .option("--tls-key <file>", "PEM file of its private key")
    .addHelpText(
      "after",
      `
Examples:
  spillway catalog
  SPILLWAY_CATALOG_TOKEN=... spillway catalog --listen 127.0.0.1:8181
  spillway catalog --listen 0.0.0.0:8181 --token-file token --tls-cert cert.pem --tls-key key.pem

Clients that give the warehouse as <database>@latest or <database>@lsn:<position> see every mirrored table as of one moment.`,
    )
    .action(async (flags: Record<string, unknown>) => {
      const { listen, tokenFile, tlsCert, tlsKey, ...rest } = flags;
      const own = {
        catalogListen: listen,
        catalogTokenFile: tokenFile,
        catalogTlsCert: tlsCert,
        catalogTlsKey: tlsKey,
      };
      const given = Object.fromEntries(Object.entries(own).filter(([, value]) => value !== undefined));
      const run = context.begin({ ...rest, ...given });
      try {
        await serve(run);
      } finally {
        await run.close();
      }
    });
}

async function serve(run: CommandContext): Promise<void> {
  // What cannot be used is said before anything is opened.
  const [token, tls] = [tokenOf(run), tlsOf(run)];
  const runtime = await openCatalogedSource(run, "spillway catalog");
  await runtime.pool.withClient((client) => requireOwnership(client, runtime.store, runtime.warehouse));
  const source = createCatalogSource({
    ...runtime,
    engine: async () => runtime.engine,
    clock: run.clock,
    log: run.log,
  });
  const listen = run.get(SETTINGS.catalogListen);
  const server = await startCatalogServer({ source, listen, token, tls, clock: run.clock, log: run.log });
  run.out.line(`Iceberg REST catalog at ${server.url}${token === null ? " (no token is asked for)" : ""}`);
  run.out.result({ url: server.url, warehouse: runtime.warehouse });
  await ended(run.signal);
  await server.stop();
}

function ended(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

function tokenOf(run: CommandContext): string | null {
  const file = run.get(SETTINGS.catalogTokenFile);
  const token = file === null ? run.get(SETTINGS.catalogToken) : readText(file, "token file").trim();
  if (token === null) return null;
  if (!/^[\x21-\x7e]{8,4096}$/.test(token)) {
    throw new SpillwayError(
      "config_invalid",
      "the catalog's token must be 8 to 4096 printable characters without spaces",
    );
  }
  return token;
}

function tlsOf(run: CommandContext): { cert: string; key: string } | null {
  const [cert, key] = [run.get(SETTINGS.catalogTlsCert), run.get(SETTINGS.catalogTlsKey)];
  if (cert === null && key === null) return null;
  if (cert === null || key === null) {
    throw new SpillwayError("config_invalid", "--tls-cert and --tls-key are given together or not at all");
  }
  return { cert: readText(cert, "certificate"), key: readText(key, "private key") };
}

function readText(path: string, what: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new SpillwayError("config_invalid", `the ${what} ${path} cannot be read: ${messageOf(error)}`, {
      cause: error,
    });
  }
}
