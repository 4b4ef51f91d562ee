/**
 * The process of `spillway catalog`: the Iceberg REST catalog over HTTP. Loopback unless a token and TLS are given; connections,
 * requests in flight, bodies and times are bounded; a stop lets what is under way finish.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo, Socket } from "node:net";
import type { Clock } from "@spillway/base/clock";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import { createRestCatalog, type CatalogSource, type RestCatalog, type RestResponse } from "../serve/serve.ts";

export interface CatalogServerOptions {
  readonly source: CatalogSource;
  /** `host:port`; port 0 takes a free one. */
  readonly listen: string;
  /** Null: none is asked for; only on loopback. */
  readonly token: string | null;
  /** PEM texts. */
  readonly tls: { readonly cert: string; readonly key: string } | null;
  readonly clock: Clock;
  readonly log: Logger;
  readonly limits?: Partial<CatalogLimits>;
}

export interface CatalogLimits {
  readonly connections: number;
  /** Requests that are answered at a time; more get 503. */
  readonly inFlight: number;
  readonly bodyBytes: number;
  /** To send the head, and the whole request. */
  readonly headersMs: number;
  readonly requestMs: number;
  readonly idleMs: number;
  /** How long a stop waits for requests under way. */
  readonly drainMs: number;
}

const LIMITS: CatalogLimits = {
  connections: 256,
  inFlight: 64,
  bodyBytes: 8 << 20,
  headersMs: 10_000,
  requestMs: 60_000,
  idleMs: 15_000,
  drainMs: 10_000,
};

export interface CatalogServer {
  readonly url: string;
  stop(): Promise<void>;
}

/** Throws `catalog_exposed`, `catalog_listen_failed`, `config_invalid`. */
export async function startCatalogServer(options: CatalogServerOptions): Promise<CatalogServer> {
  const { host, port } = parseListen(options.listen);
  requireProtected(host, options);
  const limits = { ...LIMITS, ...options.limits };
  const catalog = createRestCatalog({
    source: options.source,
    token: options.token,
    log: options.log,
    maxBodyBytes: limits.bodyBytes,
  });
  let inFlight = 0;
  const handler = (request: IncomingMessage, response: ServerResponse): void => {
    if (inFlight >= limits.inFlight) {
      send(response, busy());
      return;
    }
    inFlight += 1;
    void answer(catalog, request, response, limits.bodyBytes)
      .catch((error: unknown) => {
        options.log.debug("catalog.request_failed", { error: messageOf(error) });
        response.destroy();
      })
      .finally(() => {
        inFlight -= 1;
      });
  };
  const server = makeServer(options.tls, handler);
  server.maxConnections = limits.connections;
  server.headersTimeout = limits.headersMs;
  server.requestTimeout = limits.requestMs;
  server.keepAliveTimeout = limits.idleMs;
  const sockets = new Set<Socket>();
  server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket));
  });
  await listen(server, host, port);
  const address = server.address() as AddressInfo;
  const shown = address.family === "IPv6" ? `[${address.address}]` : address.address;
  const url = `${options.tls ? "https" : "http"}://${shown}:${address.port}`;
  options.log.info("catalog.listening", { url, authorized: options.token !== null });
  return {
    url,
    stop: async () => {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      server.closeIdleConnections();
      const given = new AbortController();
      void options.clock.sleep(limits.drainMs, given.signal).then(() => {
        for (const socket of sockets) socket.destroy();
      });
      await closed;
      given.abort();
      options.log.info("catalog.stopped");
    },
  };
}

type Handler = (request: IncomingMessage, response: ServerResponse) => void;

function makeServer(tls: CatalogServerOptions["tls"], handler: Handler): Server {
  if (tls === null) return createServer(handler);
  try {
    return createTlsServer({ cert: tls.cert, key: tls.key, minVersion: "TLSv1.2" }, handler);
  } catch (error) {
    throw new SpillwayError("config_invalid", `the TLS certificate or key cannot be used: ${messageOf(error)}`, {
      cause: error,
    });
  }
}

function listen(server: Server, host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", (error) => {
      reject(
        new SpillwayError("catalog_listen_failed", `cannot listen on ${host}:${port}: ${messageOf(error)}`, {
          cause: error,
        }),
      );
    });
    server.listen(port, host, resolve);
  });
}

function parseListen(text: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:\s]*)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (!match || port > 65_535) {
    throw new SpillwayError("config_invalid", `the address ${JSON.stringify(text)} is not host:port`);
  }
  return { host: match[1] ?? (match[2] === "" ? "127.0.0.1" : (match[2] ?? "127.0.0.1")), port };
}

const LOOPBACK = /^(127(\.\d{1,3}){3}|::1|localhost)$/;

function requireProtected(host: string, { token, tls }: CatalogServerOptions): void {
  if (LOOPBACK.test(host) || (token !== null && tls !== null)) return;
  const lacks = [token === null ? "a token" : "", tls === null ? "TLS" : ""].filter((part) => part !== "");
  throw new SpillwayError("catalog_exposed", `${host} is not loopback, and the catalog has not ${lacks.join(" and ")}`);
}

async function answer(
  catalog: RestCatalog,
  request: IncomingMessage,
  response: ServerResponse,
  bodyBytes: number,
): Promise<void> {
  const [path = "/", query = ""] = (request.url ?? "/").split("?", 2);
  const headers: Record<string, string | undefined> = {};
  for (const [name, value] of Object.entries(request.headers)) {
    headers[name] = Array.isArray(value) ? value.join(", ") : value;
  }
  const done = await catalog.handle({
    method: request.method ?? "GET",
    path,
    query: new URLSearchParams(query),
    headers,
    body: () => readBody(request, bodyBytes),
  });
  // A body that nobody read must not hold the connection.
  if (!request.complete) response.setHeader("connection", "close");
  request.resume();
  send(response, done);
}

/** At most one byte more than allowed, which the handler then refuses. */
async function readBody(request: IncomingMessage, maxBytes: number): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    chunks.push(chunk);
    size += chunk.length;
    if (size > maxBytes) break;
  }
  return Buffer.concat(chunks).toString("utf8");
}

function busy(): RestResponse {
  const error = { message: "The catalog is busy; try again", type: "ServiceUnavailableException", code: 503 };
  return {
    status: 503,
    headers: { "content-type": "application/json", "retry-after": "1" },
    body: JSON.stringify({ error }),
  };
}

function send(response: ServerResponse, { status, headers, body }: RestResponse): void {
  const length = status === 204 ? {} : { "content-length": Buffer.byteLength(body) };
  response.writeHead(status, { ...headers, ...length, "cache-control": "no-store" });
  response.end(body);
}
