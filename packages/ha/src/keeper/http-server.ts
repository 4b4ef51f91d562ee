/**
 * The keeper's own endpoint: promises for the primary's keeper, the roles for load balancers, metrics.
 * The role paths need no token and tell nothing but the role.
 */
import { timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer as createHttp, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createHttps } from "node:https";
import { SpillwayError } from "@spillway/base/errors";
import { KEEPER_PATHS, MAX_BODY_BYTES } from "../protocol/http.ts";
import { promiseRequest, type PromiseAnswer, type PromiseRequest } from "../protocol/messages.ts";
import { parseMessage } from "../protocol/validate.ts";

export interface RoleFacts {
  /** Postgres takes writes here, under a lease that is in force. */
  readonly isPrimary: boolean;
  /** Postgres answers queries here as a standby that follows a primary. */
  readonly isStandby: boolean;
  readonly state: string;
  readonly isRunning: boolean;
}

export interface KeeperEndpoint {
  readonly peerToken: string;
  promise(request: PromiseRequest): PromiseAnswer;
  role(): RoleFacts;
  metrics(): string;
}

export interface ServerOptions {
  readonly listen: string;
  readonly tlsCert: string | null;
  readonly tlsKey: string | null;
}

/** Splits `host:port`; an IPv6 address is in brackets. */
export function parseListen(text: string): { host: string; port: number } {
  const match = /^\[?([^\]]*?)\]?:(\d+)$/.exec(text);
  if (!match) throw new SpillwayError("config_invalid", `${JSON.stringify(text)} is not host:port`);
  return { host: match[1] ?? "", port: Number(match[2]) };
}

/** Starts the endpoint. Throws `ha_port_taken`. */
export async function serveKeeper(options: ServerOptions, endpoint: KeeperEndpoint): Promise<Server> {
  const { host, port } = parseListen(options.listen);
  const handler = (request: IncomingMessage, response: ServerResponse): void => {
    handle(request, response, endpoint).catch(() => response.destroy());
  };
  const server =
    options.tlsCert !== null && options.tlsKey !== null
      ? createHttps({ cert: readFileSync(options.tlsCert), key: readFileSync(options.tlsKey) }, handler)
      : createHttp(handler);
  server.maxConnections = 256;
  server.headersTimeout = 5_000;
  server.requestTimeout = 10_000;
  server.keepAliveTimeout = 30_000;
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      const taken = error.code === "EADDRINUSE";
      reject(new SpillwayError(taken ? "ha_port_taken" : "config_invalid", `${options.listen}: ${error.message}`));
    });
    server.listen(port, host, () => resolve());
  });
  return server;
}

async function handle(request: IncomingMessage, response: ServerResponse, endpoint: KeeperEndpoint): Promise<void> {
  const path = (request.url ?? "/").split("?")[0];
  const reads = request.method === "GET" || request.method === "HEAD" || request.method === "OPTIONS";
  if (path === KEEPER_PATHS.promise && request.method === "POST") return answerPromise(request, response, endpoint);
  if (!reads) return send(response, 404, { error: "not found" });
  const role = endpoint.role();
  switch (path) {
    case KEEPER_PATHS.primary:
      return send(response, role.isPrimary ? 200 : 503, {
        role: role.isPrimary ? "primary" : "other",
        state: role.state,
      });
    case KEEPER_PATHS.standby:
      return send(response, role.isStandby ? 200 : 503, {
        role: role.isStandby ? "standby" : "other",
        state: role.state,
      });
    case KEEPER_PATHS.health:
      return send(response, role.isRunning ? 200 : 503, { running: role.isRunning, state: role.state });
    case KEEPER_PATHS.metrics:
      response.writeHead(200, { "content-type": "text/plain; version=0.0.4" });
      response.end(endpoint.metrics());
      return;
    default:
      return send(response, 404, { error: "not found" });
  }
}

async function answerPromise(
  request: IncomingMessage,
  response: ServerResponse,
  endpoint: KeeperEndpoint,
): Promise<void> {
  if (!hasToken(request, endpoint.peerToken)) return send(response, 401, { error: "a wrong token" });
  try {
    const question = parseMessage(promiseRequest, await readRequest(request), "a promise request");
    send(response, 200, endpoint.promise(question));
  } catch (error) {
    send(response, 400, { error: error instanceof SpillwayError ? error.toJSON() : "bad request" });
  }
}

function hasToken(request: IncomingMessage, token: string): boolean {
  const given = Buffer.from(request.headers.authorization ?? "");
  const wanted = Buffer.from(`Bearer ${token}`);
  return given.length === wanted.length && timingSafeEqual(given, wanted);
}

function send(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(`${JSON.stringify(body)}\n`);
}

async function readRequest(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request) {
    size += (chunk as Buffer).length;
    if (size > MAX_BODY_BYTES) throw new SpillwayError("limit_exceeded", "the request is too large");
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks).toString("utf8");
}
