/** `/health`, `/ready` and `/metrics` of a manager. */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";

export interface ServeHttpOptions {
  readonly host: string;
  readonly port: number;
  readonly log: Logger;
  /** Names of the parts that are not well; empty: all are. */
  readonly health: () => Promise<readonly string[]>;
  readonly ready: () => Promise<readonly string[]>;
  readonly metrics: () => string;
  /** Everything else. */
  readonly rest?: (request: IncomingMessage, response: ServerResponse) => void;
}

export interface ServeHttp {
  readonly port: number;
  readonly died: Promise<SpillwayError>;
  stop(): Promise<void>;
}

/** Throws `serve_listen_failed`. */
export async function startServeHttp(options: ServeHttpOptions): Promise<ServeHttp> {
  const { host, port, log } = options;
  const server = createServer((request, response) => {
    const path = (request.url ?? "/").split("?")[0];
    if (path === "/health") void answer(response, options.health);
    else if (path === "/ready") void answer(response, options.ready);
    else if (path === "/metrics") {
      response.writeHead(200, { "content-type": "text/plain; version=0.0.4; charset=utf-8" }).end(options.metrics());
    } else if (options.rest) options.rest(request, response);
    else response.writeHead(404, { "content-type": "application/json" }).end('{"error":"not found"}\n');
  });
  server.requestTimeout = 60_000;
  server.headersTimeout = 10_000;
  server.maxConnections = 256;
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error) => reject(failure(`cannot listen on ${host}:${port}`, error)));
    server.listen(port, host, resolve);
  });
  const died = new Promise<SpillwayError>((resolve) => {
    server.on("error", (error) => resolve(failure("the HTTP listener died", error)));
  });
  const bound = (server.address() as AddressInfo).port;
  log.info("http.listening", { host, port: bound });
  return {
    port: bound,
    died,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function failure(what: string, error: unknown): SpillwayError {
  return new SpillwayError("serve_listen_failed", `${what}: ${messageOf(error)}`, { cause: error });
}

async function answer(response: ServerResponse, look: () => Promise<readonly string[]>): Promise<void> {
  const wrong = await look().catch((error: unknown) => [messageOf(error)]);
  const ok = wrong.length === 0;
  const headers = { "content-type": "application/json", ...(ok ? {} : { "retry-after": "1" }) };
  response.writeHead(ok ? 200 : 503, headers).end(`${JSON.stringify(ok ? { ok } : { ok, wrong })}\n`);
}
