/**
 * The byte stream under a connection: TCP or Unix socket, with TLS negotiated as sslmode asks.
 * Source: https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL
 */
import { connect as netConnect, isIP, type Socket } from "node:net";
import { connect as tlsConnect, type ConnectionOptions } from "node:tls";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { sslRequestMessage } from "./frontend.ts";
import { DEFAULT_KEEPALIVE_MS, describeTarget, type RawTarget, type SslOptions } from "./target.ts";

/** `tls` insists, `try-tls` takes plain when the server has none, `plain` never asks. */
export type Encryption = "plain" | "try-tls" | "tls";

export interface ByteStream {
  readonly socket: Socket;
  readonly encrypted: boolean;
}

/** Receives what was read; the bytes are valid until it returns. */
export type ByteSink = (chunk: Buffer, length: number) => void;

const READ_BUFFER_BYTES = 256 * 1024;

/** The encryptions to try, in order: `allow` and `prefer` fall back when pg_hba.conf refuses the first. */
export function encryptionsOf(target: RawTarget): readonly Encryption[] {
  if (target.socketPath !== undefined) return ["plain"];
  switch (target.ssl?.mode ?? "prefer") {
    case "disable":
      return ["plain"];
    case "allow":
      return ["plain", "tls"];
    case "prefer":
      return ["try-tls", "plain"];
    default:
      return ["tls"];
  }
}

/** Connects and negotiates; rejects with pg_unreachable or pg_tls_failed. `signal` ends it at any point. */
export async function openStream(
  target: RawTarget,
  encryption: Encryption,
  sink: ByteSink,
  signal: AbortSignal,
): Promise<ByteStream> {
  let receive: ByteSink = sink;
  let answer: ((bytes: Buffer) => void) | null = null;
  // Reading into one buffer of our own costs a fraction of a stream's 'data' events.
  const onread = {
    buffer: Buffer.allocUnsafeSlow(READ_BUFFER_BYTES),
    callback: (length: number, buffer: Uint8Array): boolean => {
      receive(buffer as Buffer, length);
      return true;
    },
  };
  const path = target.socketPath;
  const host = target.hostaddr ?? target.host;
  const socket = netConnect(path === undefined ? { host, port: target.port, onread } : { path, onread });
  const abort = (): void => void socket.destroy(signal.reason instanceof Error ? signal.reason : undefined);
  signal.addEventListener("abort", abort, { once: true });
  try {
    await opened(socket, target);
    socket.setNoDelay(true);
    const keepAliveMs = target.keepAliveMs ?? DEFAULT_KEEPALIVE_MS;
    if (keepAliveMs > 0 && path === undefined) socket.setKeepAlive(true, keepAliveMs);
    if (encryption === "plain") return { socket, encrypted: false };
    receive = (chunk, length) => answer?.(Buffer.from(chunk.subarray(0, length)));
    const reply = await sslReply(socket, target, (handler) => (answer = handler));
    if (reply === "S") return { socket: await startTls(socket, target, sink), encrypted: true };
    if (encryption === "tls") throw tlsError(target, "the server does not offer TLS");
    receive = sink;
    return { socket, encrypted: false };
  } catch (error) {
    socket.destroy();
    throw signal.aborted && signal.reason instanceof SpillwayError ? signal.reason : error;
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

function opened(socket: Socket, target: RawTarget): Promise<void> {
  return new Promise((resolve, reject) => {
    const failed = (error?: unknown): void => {
      if (error instanceof SpillwayError) return reject(error);
      const why = error instanceof Error ? messageOf(error) : "the connection was closed";
      const options = { cause: error, details: { target: describeTarget(target) } };
      reject(new SpillwayError("pg_unreachable", `cannot connect to ${describeTarget(target)}: ${why}`, options));
    };
    socket.once("error", failed);
    socket.once("close", failed);
    socket.once("connect", () => {
      socket.off("error", failed);
      socket.off("close", failed);
      // Whoever takes the stream over listens too; until then an error must not end the process.
      socket.on("error", () => {});
      resolve();
    });
  });
}

function sslReply(
  socket: Socket,
  target: RawTarget,
  listen: (handler: (bytes: Buffer) => void) => void,
): Promise<string> {
  return new Promise((resolve, reject) => {
    const closed = (): void => reject(lostInHandshake(target, "the server closed the connection"));
    socket.once("close", closed);
    listen((bytes) => {
      socket.off("close", closed);
      const reply = bytes.toString("latin1");
      if (reply === "S" || reply === "N") return resolve(reply);
      // More than one byte would let an attacker slip plain text in before the encryption.
      reject(tlsError(target, "the server's answer to the TLS request is malformed"));
    });
    socket.write(sslRequestMessage());
  });
}

function startTls(socket: Socket, target: RawTarget, sink: ByteSink): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const secure = tlsConnect({ socket, ...tlsOptions(target.host, target.ssl) });
    const failed = (error?: unknown): void => {
      if (error instanceof SpillwayError) return reject(error);
      const why = error instanceof Error ? messageOf(error) : "the connection was closed";
      reject(tlsError(target, why, error));
    };
    secure.once("error", failed);
    secure.once("close", failed);
    secure.once("secureConnect", () => {
      secure.off("error", failed);
      secure.off("close", failed);
      secure.on("error", () => {});
      secure.on("data", (chunk: Buffer) => sink(chunk, chunk.length));
      resolve(secure);
    });
  });
}

/** What Node is asked to check for each sslmode. */
export function tlsOptions(host: string, ssl: SslOptions | undefined): ConnectionOptions {
  const mode = ssl?.mode ?? "prefer";
  const checksChain = mode === "verify-ca" || mode === "verify-full" || (mode === "require" && ssl?.rootCert);
  return {
    rejectUnauthorized: Boolean(checksChain),
    // The name or address that the certificate is checked against: over a given socket Node takes `localhost` else.
    host,
    ...(isIP(host) === 0 ? { servername: host } : {}),
    ...(mode === "verify-full" ? {} : { checkServerIdentity: () => undefined }),
    ...(ssl?.rootCert === undefined ? {} : { ca: ssl.rootCert }),
    ...(ssl?.cert === undefined ? {} : { cert: ssl.cert }),
    ...(ssl?.key === undefined ? {} : { key: ssl.key }),
    ...(ssl?.keyPassword === undefined ? {} : { passphrase: ssl.keyPassword }),
    ...(ssl?.crl === undefined ? {} : { crl: ssl.crl }),
  };
}

function tlsError(target: RawTarget, why: string, cause?: unknown): SpillwayError {
  return new SpillwayError("pg_tls_failed", `no encrypted connection to ${describeTarget(target)}: ${why}`, { cause });
}

function lostInHandshake(target: RawTarget, why: string): SpillwayError {
  return new SpillwayError("pg_unreachable", `cannot connect to ${describeTarget(target)}: ${why}`);
}
