/**
 * The listener of the Postgres wire: the socket, the certificate's files and their reload. What is spoken on it is the edge's matter.
 */
import { X509Certificate } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { isLoopback } from "./http-server.ts";
import { PgWireEdge, type PgWireOptions } from "../serve/serve.ts";

export interface PgWireListenerOptions extends Omit<PgWireOptions, "tls" | "requireTls"> {
  readonly host: string;
  /** 0 takes a free one. */
  readonly port: number;
  /** PEM files, read again when they change; null: no TLS, which only loopback may do without. */
  readonly tls: { readonly certFile: string; readonly keyFile: string } | null;
  /** Lets a listener outside loopback be without TLS. */
  readonly insecure?: boolean;
  /** How often the certificate's files are looked at. Default 10 000. */
  readonly reloadMs?: number;
}

export interface PgWireListener {
  readonly edge: PgWireEdge;
  readonly port: number;
  /** Resolves with the error when the listener dies by itself. */
  readonly died: Promise<SpillwayError>;
  /** Takes no more connections, lets transactions end for up to `ms`, then ends the rest. */
  stop(ms: number): Promise<void>;
}

/** Throws `serve_exposed`, `serve_listen_failed`, `config_invalid`. */
export async function startPgWire(options: PgWireListenerOptions): Promise<PgWireListener> {
  const { host, port, tls, log, clock, metrics } = options;
  const isLocal = isLoopback(host);
  if (!isLocal && tls === null && options.insecure !== true) {
    throw new SpillwayError("serve_exposed", `${host} is not loopback, and the Postgres wire has no certificate`);
  }
  const expiry = metrics.gauge("spillway_tls_certificate_expiry_seconds", "When the certificate ends, since 1970.");
  let pem = tls === null ? null : await readPem(tls);
  const edge = new PgWireEdge({ ...options, tls: pem, requireTls: !isLocal && options.insecure !== true });
  if (pem) expiry.set(expiryOf(pem.cert), { listener: "pgwire" });
  const server = createServer((socket) => void edge.accept(socket));
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error) => {
      reject(
        new SpillwayError("serve_listen_failed", `cannot listen on ${host}:${port}: ${messageOf(error)}`, {
          cause: error,
        }),
      );
    });
    server.listen(port, host, resolve);
  });
  const died = new Promise<SpillwayError>((resolve) => {
    server.once("error", (error) => {
      resolve(
        new SpillwayError("serve_listen_failed", `the Postgres wire's listener died: ${messageOf(error)}`, {
          cause: error,
        }),
      );
    });
  });
  const stopped = new AbortController();
  if (tls !== null) void watch(tls);
  const bound = (server.address() as AddressInfo).port;
  log.info("pgwire.listening", { host, port: bound, tls: tls !== null });
  return {
    edge,
    port: bound,
    died,
    stop: async (ms) => {
      stopped.abort();
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      await edge.drain(ms);
      await closed;
      log.info("pgwire.stopped");
    },
  };

  async function watch(files: { readonly certFile: string; readonly keyFile: string }): Promise<void> {
    while (!stopped.signal.aborted) {
      await clock.sleep(options.reloadMs ?? 10_000, stopped.signal);
      if (stopped.signal.aborted) return;
      try {
        const next = await readPem(files);
        if (next.cert === pem?.cert && next.key === pem.key) continue;
        edge.reloadTls(next);
        pem = next;
        expiry.set(expiryOf(next.cert), { listener: "pgwire" });
        log.info("pgwire.tls_reloaded");
      } catch (error) {
        // Both files are not replaced at the same instant; the old certificate stays until they fit.
        log.warn("pgwire.tls_not_reloaded", { error });
      }
    }
  }
}

async function readPem(files: {
  readonly certFile: string;
  readonly keyFile: string;
}): Promise<{ readonly cert: string; readonly key: string }> {
  try {
    const [cert, key] = await Promise.all([readFile(files.certFile, "utf8"), readFile(files.keyFile, "utf8")]);
    return { cert, key };
  } catch (error) {
    throw new SpillwayError("config_invalid", `the TLS certificate or key cannot be read: ${messageOf(error)}`, {
      cause: error,
    });
  }
}

function expiryOf(pem: string): number {
  return Math.floor(new Date(new X509Certificate(pem).validTo).getTime() / 1000);
}
