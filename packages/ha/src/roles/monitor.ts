/** The monitor process: its socket, its store, its brain, and an orderly end. */
import {
  createServer as createHttp,
  type IncomingMessage,
  type RequestListener,
  type Server,
  type ServerResponse,
} from "node:http";
import { createServer as createHttps } from "node:https";
import type { Clock } from "@spillway/base/clock";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import type { Limits } from "../fsm/model.ts";
import { Api, type ApiAnswer } from "../monitor/api.ts";
import { Brain } from "../monitor/brain.ts";
import { EtcdStore } from "../monitor/etcd-store.ts";
import { LogStore } from "../monitor/log-store.ts";
import { renderMonitorMetrics } from "../monitor/metrics.ts";
import type { MonitorConfig, MonitorFiles, MonitorSecrets } from "../monitor/monitor-files.ts";
import type { MonitorStore } from "../monitor/store.ts";
import { MAX_BODY_BYTES } from "../protocol/http.ts";
import type { Timings } from "../protocol/messages.ts";

export interface MonitorOptions {
  readonly files: MonitorFiles;
  readonly clock: Clock;
  readonly log: Logger;
  readonly timings: Timings;
  readonly limits: Limits;
  readonly signal: AbortSignal;
}

/** Longer than any long poll. */
const REQUEST_TIMEOUT_MS = 75_000;
const MAX_CONNECTIONS = 1024;

/** Runs until the signal; throws what made it stop otherwise. */
export async function runMonitor(options: MonitorOptions): Promise<void> {
  const { files, clock, log, timings, limits, signal } = options;
  checkTimings(timings, limits);
  const config = files.config();
  const store = await openStore(config, options);
  try {
    const secrets = await sharedSecrets(config, store, files);
    const brain = new Brain({ store, clock, log, timings, limits });
    const requests = new Map<number, number>();
    const api = new Api({
      brain,
      log,
      ...secrets,
      monitorUrls: [config.url],
      renderMetrics: () => renderMonitorMetrics(brain, { requests }),
    });
    const server = serve(config, files, (request, response) => {
      void answer(api, request, response, (status) => requests.set(status, (requests.get(status) ?? 0) + 1));
    });
    await listen(server, config.listen);
    log.info("monitor listens", {
      listen: config.listen,
      url: config.url,
      store: config.etcd.length > 0 ? "etcd" : "file",
    });
    try {
      await brain.run(signal);
    } finally {
      server.close();
      server.closeAllConnections();
    }
  } finally {
    await store.close();
  }
  log.info("monitor stopped");
}

/** The wait must outlast the lease even if two clocks run at rates a tenth apart, and the fence takes its time. */
function checkTimings(timings: Timings, limits: Limits): void {
  const bad = (text: string): never => {
    throw new SpillwayError("config_invalid", text);
  };
  if (timings.takeoverWaitMs < timings.leaseTtlMs * 1.2) {
    bad(
      `ha-takeover-wait (${timings.takeoverWaitMs} ms) must be at least a fifth longer than ha-lease-ttl (${timings.leaseTtlMs} ms)`,
    );
  }
  if (timings.leaseTtlMs < 2 * timings.heartbeatMs) {
    bad(`ha-lease-ttl (${timings.leaseTtlMs} ms) must be at least two ha-heartbeat (${timings.heartbeatMs} ms)`);
  }
  if (limits.silentMs < 2 * timings.heartbeatMs) {
    bad(`ha-silent-after (${limits.silentMs} ms) must be at least two ha-heartbeat (${timings.heartbeatMs} ms)`);
  }
}

async function openStore(config: MonitorConfig, options: MonitorOptions): Promise<MonitorStore> {
  const { clock, log, files } = options;
  if (config.etcd.length === 0) return LogStore.open(files.dir);
  return new EtcdStore({
    endpoints: config.etcd,
    cluster: config.cluster,
    url: config.url,
    clock,
    log,
    login: files.etcdLogin(),
  });
}

/** Monitors over etcd have the same tokens: the first one's. */
async function sharedSecrets(config: MonitorConfig, store: MonitorStore, files: MonitorFiles): Promise<MonitorSecrets> {
  const own = files.secrets();
  if (!(store instanceof EtcdStore)) return own;
  const shared = {
    adminToken: await store.shared("admin-token", own.adminToken),
    registrationToken: await store.shared("registration-token", own.registrationToken),
  };
  if (JSON.stringify(shared) !== JSON.stringify(own)) files.writeSecrets(shared);
  return shared;
}

function serve(config: MonitorConfig, files: MonitorFiles, handler: RequestListener): Server {
  const server = config.tls ? createHttps({ ...files.tls(), minVersion: "TLSv1.2" }, handler) : createHttp(handler);
  server.maxConnections = MAX_CONNECTIONS;
  server.headersTimeout = 5_000;
  server.requestTimeout = REQUEST_TIMEOUT_MS;
  server.keepAliveTimeout = 30_000;
  return server;
}

async function listen(server: Server, address: string): Promise<void> {
  const match = /^\[?([^\]]*?)\]?:(\d+)$/.exec(address);
  if (!match) throw new SpillwayError("config_invalid", `${JSON.stringify(address)} is not host:port`);
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      const taken = error.code === "EADDRINUSE";
      reject(new SpillwayError(taken ? "ha_port_taken" : "config_invalid", `${address}: ${error.message}`));
    });
    server.listen(Number(match[2]), match[1], () => resolve());
  });
}

async function answer(
  api: Api,
  request: IncomingMessage,
  response: ServerResponse,
  count: (status: number) => void,
): Promise<void> {
  const result = await reply(api, request);
  count(result.status);
  const isText = result.contentType !== undefined;
  response.writeHead(result.status, { "content-type": result.contentType ?? "application/json" });
  response.end(isText ? String(result.body) : `${JSON.stringify(result.body)}\n`);
}

async function reply(api: Api, request: IncomingMessage): Promise<ApiAnswer> {
  try {
    const url = new URL(request.url ?? "/", "http://monitor");
    const token = /^Bearer (.*)$/.exec(request.headers.authorization ?? "")?.[1] ?? "";
    const body = await readBody(request);
    return await api.handle({
      method: request.method ?? "GET",
      path: url.pathname,
      query: url.searchParams,
      token,
      body,
    });
  } catch (error) {
    const failure = new SpillwayError("ha_bad_message", `the request cannot be read: ${messageOf(error)}`);
    return { status: 400, body: { error: failure.toJSON() } };
  }
}

async function readBody(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request) {
    size += (chunk as Buffer).length;
    if (size > MAX_BODY_BYTES) throw new SpillwayError("limit_exceeded", "the request is too large");
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks).toString("utf8");
}
