/** `/metrics` and `/health` of one process, on loopback unless told otherwise. */
import { createServer } from "node:http";
import { SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";

export interface HttpSource {
  /** The Prometheus exposition. */
  render(): string;
  health(): { readonly ok: boolean; readonly body: Readonly<Record<string, unknown>> };
}

export interface RunningHttp {
  readonly port: number;
  close(): Promise<void>;
}

/** Null when `listen` is `off`. Throws `config_invalid` for an address that cannot be used. */
export async function startMetricsHttp(listen: string, source: HttpSource, log: Logger): Promise<RunningHttp | null> {
  if (listen === "off") return null;
  const match = /^(.*):(\d+)$/.exec(listen);
  if (!match) throw new SpillwayError("config_invalid", `metrics-listen is ${listen}: expected host:port or off`);
  const server = createServer((request, response) => {
    const path = (request.url ?? "/").split("?")[0];
    if (request.method !== "GET" && request.method !== "HEAD") {
      response.writeHead(405, { allow: "GET, HEAD" }).end();
    } else if (path === "/metrics") {
      response.writeHead(200, { "content-type": "text/plain; version=0.0.4; charset=utf-8" }).end(source.render());
    } else if (path === "/health") {
      const { ok, body } = source.health();
      response.writeHead(ok ? 200 : 503, { "content-type": "application/json" }).end(`${JSON.stringify(body)}\n`);
    } else {
      response.writeHead(404).end();
    }
  });
  server.requestTimeout = 10_000;
  const host = match[1] === "" ? "127.0.0.1" : (match[1] ?? "").replace(/^\[(.*)\]$/, "$1");
  try {
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(Number(match[2]), host, resolve);
    });
  } catch (error) {
    throw new SpillwayError("config_invalid", `cannot listen on ${listen}: ${(error as Error).message}`, {
      cause: error,
    });
  }
  const address = server.address();
  const port = typeof address === "object" && address !== null ? address.port : 0;
  log.info("metrics.listening", { host, port });
  return {
    port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
