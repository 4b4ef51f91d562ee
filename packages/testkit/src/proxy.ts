/** A TCP proxy that can do to a connection what networks do: refuse, swallow, hold back, delay, cut. */
import { createServer, connect, type Server, type Socket } from "node:net";
import { freePort } from "./host.ts";
import { sleep } from "./wait.ts";

/**
 * - `pass`: bytes go through
 * - `refuse`: nobody listens; open connections go on
 * - `blackhole`: connections are accepted and their bytes dropped, for good; nobody is told of an end
 * - `hold`: nothing is read; after `pass` the bytes arrive late, as they do when a network heals
 */
export type ProxyMode = "pass" | "refuse" | "blackhole" | "hold";

interface Link {
  readonly client: Socket;
  readonly upstream: Socket;
  dead: boolean;
}

export async function startProxy(target: { readonly host: string; readonly port: number }): Promise<Proxy> {
  const proxy = new Proxy(target.host, target.port, await freePort());
  await proxy.setMode("pass");
  return proxy;
}

export class Proxy {
  readonly host = "127.0.0.1";
  readonly port: number;
  /** Added to each chunk, both ways. */
  delayMs = 0;
  readonly #target: { host: string; port: number };
  readonly #links = new Set<Link>();
  #server: Server | null = null;
  #mode: ProxyMode = "refuse";
  #accepted = 0;

  constructor(targetHost: string, targetPort: number, port: number) {
    this.#target = { host: targetHost, port: targetPort };
    this.port = port;
  }

  get mode(): ProxyMode {
    return this.#mode;
  }

  /** How many connections were accepted so far. */
  get accepted(): number {
    return this.#accepted;
  }

  get openLinks(): number {
    return this.#links.size;
  }

  /** Rewrites a URL so that it goes through this proxy. */
  through(url: string): string {
    const parsed = new URL(url);
    parsed.hostname = this.host;
    parsed.port = String(this.port);
    return parsed.toString();
  }

  async setMode(mode: ProxyMode): Promise<void> {
    this.#mode = mode;
    if (mode === "refuse") await this.#unlisten();
    else await this.#listen();
    for (const link of this.#links) {
      if (mode === "blackhole") link.dead = true;
      for (const socket of [link.client, link.upstream]) {
        if (mode === "hold") socket.pause();
        else socket.resume();
      }
    }
  }

  /** Resets every open connection, at both ends. */
  cut(): void {
    for (const { client, upstream } of this.#links) {
      client.resetAndDestroy();
      upstream.resetAndDestroy();
    }
    this.#links.clear();
  }

  async close(): Promise<void> {
    this.#mode = "refuse";
    this.cut();
    await this.#unlisten();
  }

  async #listen(): Promise<void> {
    if (this.#server) return;
    const server = createServer((socket) => this.#accept(socket));
    this.#server = server;
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(this.port, this.host, resolve);
    });
  }

  async #unlisten(): Promise<void> {
    const server = this.#server;
    this.#server = null;
    // The callback comes when the last connection has ended, which is not waited for.
    server?.close();
    await sleep(0);
  }

  #accept(client: Socket): void {
    this.#accepted += 1;
    const upstream = connect(this.#target.port, this.#target.host);
    const link: Link = { client, upstream, dead: this.#mode === "blackhole" };
    this.#links.add(link);
    this.#pump(link, client, upstream);
    this.#pump(link, upstream, client);
  }

  #pump(link: Link, from: Socket, to: Socket): void {
    from.setNoDelay(true);
    if (this.#mode === "hold") from.pause();
    from.on("data", (chunk: Buffer) => {
      if (link.dead) return;
      if (this.delayMs === 0) forward(from, to, chunk);
      else setTimeout(() => forward(from, to, chunk), this.delayMs);
    });
    from.on("error", () => {});
    from.on("close", () => {
      if (link.dead) return;
      this.#links.delete(link);
      setTimeout(() => to.destroySoon(), this.delayMs);
    });
  }
}

function forward(from: Socket, to: Socket, chunk: Buffer): void {
  if (to.destroyed || to.write(chunk)) return;
  from.pause();
  to.once("drain", () => from.resume());
}
