/**
 * The process of `spillway catalog`: the Iceberg REST catalog over HTTP. Loopback unless a token and TLS are given.
 */
import type { Clock } from "@spillway/base/clock";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import { createRestCatalog, type CatalogSource, type RestResponse } from "../serve/serve.ts";
import {
  HTTP_LIMITS,
  type HttpLimits,
  isLoopback,
  parseListen,
  startHttpServer,
  type TlsFiles,
} from "./http-server.ts";

export interface CatalogServerOptions {
  readonly source: CatalogSource;
  /** `host:port`; port 0 takes a free one. */
  readonly listen: string;
  /** Null: none is asked for; only on loopback. */
  readonly token: string | null;
  readonly tls: TlsFiles | null;
  readonly clock: Clock;
  readonly log: Logger;
  readonly limits?: Partial<HttpLimits>;
}

export interface CatalogServer {
  readonly url: string;
  stop(): Promise<void>;
}

/** Throws `catalog_exposed`, `catalog_listen_failed`, `config_invalid`. */
export async function startCatalogServer(options: CatalogServerOptions): Promise<CatalogServer> {
  const { host, port } = parseListen(options.listen);
  requireProtected(host, options);
  const catalog = createRestCatalog({
    source: options.source,
    token: options.token,
    log: options.log,
    maxBodyBytes: options.limits?.bodyBytes ?? HTTP_LIMITS.bodyBytes,
  });
  try {
    return await startHttpServer({
      ...options,
      name: "catalog",
      handle: (r) => catalog.handle(r),
      busy: busy(),
      host,
      port,
    });
  } catch (error) {
    if (error instanceof SpillwayError) throw error;
    throw new SpillwayError("catalog_listen_failed", `cannot listen on ${host}:${port}: ${messageOf(error)}`, {
      cause: error,
    });
  }
}

function requireProtected(host: string, { token, tls }: CatalogServerOptions): void {
  if (isLoopback(host) || (token !== null && tls !== null)) return;
  const lacks = [token === null ? "a token" : "", tls === null ? "TLS" : ""].filter((part) => part !== "");
  throw new SpillwayError("catalog_exposed", `${host} is not loopback, and the catalog has not ${lacks.join(" and ")}`);
}

function busy(): RestResponse {
  const error = { message: "The catalog is busy; try again", type: "ServiceUnavailableException", code: 503 };
  return {
    status: 503,
    headers: { "content-type": "application/json", "retry-after": "1" },
    body: JSON.stringify({ error }),
  };
}
