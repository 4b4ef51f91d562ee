/** The HTTP listener of a manager: `/health`, `/ready`, `/metrics`, and the control plane. */
import { readFile } from "node:fs/promises";
import type { Clock } from "@spillway/base/clock";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import { type AdminApi, createAdminApi } from "../serve/serve.ts";
import type { AdminOptions } from "./auditor.ts";
import { type HttpServer, isLoopback, startHttpServer, type TlsFiles } from "./http-server.ts";

export interface ServeHttpOptions extends AdminOptions {
  readonly host: string;
  readonly port: number;
  /** Required outside loopback: passwords and tokens pass here. */
  readonly tls: { readonly certFile: string; readonly keyFile: string } | null;
  readonly clock: Clock;
  readonly log: Logger;
  /** Names of the parts that are not well; empty: all are. */
  readonly health: () => Promise<readonly string[]>;
  readonly ready: () => Promise<readonly string[]>;
  readonly metrics: () => string;
  /** How often the certificate's files are looked at. Default 10 s. */
  readonly reloadMs?: number;
}

export interface ServeHttp {
  readonly port: number;
  readonly died: Promise<SpillwayError>;
  stop(): Promise<void>;
}

/** Throws `serve_listen_failed`, `serve_exposed`, `config_invalid`. */
export async function startServeHttp(options: ServeHttpOptions): Promise<ServeHttp> {
  const { host, port, clock, log, tls } = options;
  if (tls === null && !isLoopback(host)) {
    throw new SpillwayError("serve_exposed", `${host} is not loopback, and HTTP has no certificate`);
  }
  const api = createAdminApi({
    ...options,
    checkPolicy: (text) => options.access.checkPolicy(text),
    health: () => healthOf(options.health),
    ready: () => healthOf(options.ready),
  });
  let pem = tls === null ? null : await readPem(tls);
  const server = await start(options, api, pem);
  const stopped = new AbortController();
  const watch = async (files: NonNullable<ServeHttpOptions["tls"]>): Promise<void> => {
    for (;;) {
      await clock.sleep(options.reloadMs ?? 10_000, stopped.signal);
      if (stopped.signal.aborted) return;
      try {
        const next = await readPem(files);
        if (next.cert === pem?.cert && next.key === pem.key) continue;
        server.reloadTls(next);
        pem = next;
        log.info("http.tls_reloaded");
      } catch (error) {
        // Half written, perhaps: what is in use goes on.
        log.warn("http.tls_not_reloaded", { error });
      }
    }
  };
  if (tls !== null) void watch(tls);
  return {
    port: server.port,
    died: server.died.then((error) => failure("the HTTP listener died", error)),
    stop: async () => {
      stopped.abort();
      await server.stop();
    },
  };

  async function start(o: ServeHttpOptions, admin: AdminApi, files: TlsFiles | null): Promise<HttpServer> {
    try {
      return await startHttpServer({
        name: "http",
        handle: async (request) => {
          if (request.path !== "/metrics" || request.method !== "GET") return admin.handle(request);
          const headers = { "content-type": "text/plain; version=0.0.4; charset=utf-8" };
          return { status: 200, headers, body: o.metrics() };
        },
        busy: { status: 503, headers: { "retry-after": "1" }, body: "" },
        host,
        port,
        tls: files,
        clock,
        log,
      });
    } catch (error) {
      throw error instanceof SpillwayError ? error : failure(`cannot listen on ${host}:${port}`, error);
    }
  }
}

function failure(what: string, error: unknown): SpillwayError {
  return new SpillwayError("serve_listen_failed", `${what}: ${messageOf(error)}`, { cause: error });
}

async function healthOf(
  look: () => Promise<readonly string[]>,
): Promise<{ ok: boolean; body: Record<string, unknown> }> {
  const wrong = await look().catch((error: unknown) => [messageOf(error)]);
  const ok = wrong.length === 0;
  return { ok, body: ok ? { ok } : { ok, wrong } };
}

/** Throws `config_invalid`. */
async function readPem(files: { readonly certFile: string; readonly keyFile: string }): Promise<TlsFiles> {
  try {
    const [cert, key] = await Promise.all([readFile(files.certFile, "utf8"), readFile(files.keyFile, "utf8")]);
    return { cert, key };
  } catch (error) {
    throw new SpillwayError("config_invalid", `the certificate cannot be read: ${messageOf(error)}`, { cause: error });
  }
}
