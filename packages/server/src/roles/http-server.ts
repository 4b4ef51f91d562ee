/**
 * One HTTP listener of a process: loopback unless it is protected; connections, requests in flight, bodies and times are bounded;
 * a stop lets what is under way finish. The handler sees values, never sockets.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createTlsServer, type Server as TlsServer } from "node:https";
import type { AddressInfo, Socket } from "node:net";
import type { Clock } from "@spillway/base/clock";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import type { RestRequest, RestResponse } from "../serve/serve.ts";

/** PEM texts. */
export interface TlsFiles {
  readonly cert: string;
  readonly key: string;
}

export interface HttpServerOptions {
  /** For the log: `<name>.listening`. */
  readonly name: string;
  readonly handle: (request: RestRequest) => Promise<RestResponse>;
  /** The answer when too many requests are in flight. */
  readonly busy: RestResponse;
  readonly host: string;
  /** 0: a free one. */
  readonly port: number;
  readonly tls: TlsFiles | null;
  readonly clock: Clock;
  readonly log: Logger;
  readonly limits?: Partial<HttpLimits>;
}

export interface HttpLimits {
  readonly connections: number;
  /** Requests that are answered at a time; more get `busy`. */
  readonly inFlight: number;
  readonly bodyBytes: number;
  /** To send the head, and the whole request. */
  readonly headersMs: number;
  readonly requestMs: number;
  readonly idleMs: number;
  /** How long a stop waits for requests under way. */
  readonly drainMs: number;
}

export const HTTP_LIMITS: HttpLimits = {
  connections: 256,
  inFlight: 64,
  bodyBytes: 8 << 20,
  headersMs: 10_000,
  requestMs: 60_000,
  idleMs: 15_000,
  drainMs: 10_000,
};

export interface HttpServer {
  readonly url: string;
  readonly port: number;
  /** Settled when the listener ends by itself. */
  readonly died: Promise<Error>;
  /** For connections from now on. Throws `config_invalid`, and goes on with what it has. */
  reloadTls(tls: TlsFiles): void;
  stop(): Promise<void>;
}

/** For a server that others have made too: answers with what `handle` says, at most `inFlight` at a time. */
export function restHandler(
  options: Pick<HttpServerOptions, "name" | "handle" | "busy" | "log">,
  limits: Pick<HttpLimits, "inFlight" | "bodyBytes"> = HTTP_LIMITS,
): Handler {
  let inFlight = 0;
  return (request, response) => {
    if (inFlight >= limits.inFlight) {
      send(response, options.busy);
      return;
    }
    inFlight += 1;
    void answer(options.handle, request, response, limits.bodyBytes)
      .catch((error: unknown) => {
        options.log.debug(`${options.name}.request_failed`, { error: messageOf(error) });
        response.destroy();
      })
      .finally(() => {
        inFlight -= 1;
      });
  };
}

/** Throws the listening error as it is, and `config_invalid` for a certificate that cannot be used. */
export async function startHttpServer(options: HttpServerOptions): Promise<HttpServer> {
  const limits = { ...HTTP_LIMITS, ...options.limits };
  const handler = restHandler(options, limits);
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
  await listen(server, options.host, options.port);
  const died = new Promise<Error>((resolve) => server.once("error", resolve));
  const address = server.address() as AddressInfo;
  const shown = address.family === "IPv6" ? `[${address.address}]` : address.address;
  const url = `${options.tls ? "https" : "http"}://${shown}:${address.port}`;
  options.log.info(`${options.name}.listening`, { url });
  return {
    url,
    port: address.port,
    died,
    reloadTls: (tls) => {
      if (options.tls === null) return;
      try {
        (server as TlsServer).setSecureContext({ ...tls, minVersion: "TLSv1.2" });
      } catch (error) {
        throw unusable(error);
      }
    },
    stop: async () => {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      server.closeIdleConnections();
      const given = new AbortController();
      void options.clock.sleep(limits.drainMs, given.signal).then(() => {
        for (const socket of sockets) socket.destroy();
      });
      await closed;
      given.abort();
      options.log.info(`${options.name}.stopped`);
    },
  };
}

export type Handler = (request: IncomingMessage, response: ServerResponse) => void;

function makeServer(tls: TlsFiles | null, handler: Handler): Server {
  if (tls === null) return createServer(handler);
  try {
    return createTlsServer({ cert: tls.cert, key: tls.key, minVersion: "TLSv1.2" }, handler);
  } catch (error) {
    throw unusable(error);
  }
}

function unusable(error: unknown): SpillwayError {
  return new SpillwayError("config_invalid", `the TLS certificate or key cannot be used: ${messageOf(error)}`, {
    cause: error,
  });
}

function listen(server: Server, host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, host, resolve);
  });
}

/** `host:port`, `[::1]:port` or `:port` for loopback. Throws `config_invalid`. */
export function parseListen(text: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:\s]*)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (!match || port > 65_535) {
    throw new SpillwayError("config_invalid", `the address ${JSON.stringify(text)} is not host:port`);
  }
  return { host: match[1] ?? (match[2] === "" ? "127.0.0.1" : (match[2] ?? "127.0.0.1")), port };
}

const LOOPBACK = /^(127(\.\d{1,3}){3}|::1|localhost)$/;

export function isLoopback(host: string): boolean {
  return LOOPBACK.test(host);
}

/** In the handler's headers: the address of the client. */
const ADDRESS_HEADER = "x-spillway-address";

async function answer(
  handle: HttpServerOptions["handle"],
  request: IncomingMessage,
  response: ServerResponse,
  bodyBytes: number,
): Promise<void> {
  const [path = "/", query = ""] = (request.url ?? "/").split("?", 2);
  const headers: Record<string, string | undefined> = {};
  for (const [name, value] of Object.entries(request.headers)) {
    headers[name] = Array.isArray(value) ? value.join(", ") : value;
  }
  // Nobody else can say where a request comes from.
  headers[ADDRESS_HEADER] = request.socket.remoteAddress;
  const done = await handle({
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

function send(response: ServerResponse, { status, headers, body }: RestResponse): void {
  const length = status === 204 ? {} : { "content-length": Buffer.byteLength(body) };
  response.writeHead(status, { ...headers, ...length, "cache-control": "no-store" });
  response.end(body);
}
