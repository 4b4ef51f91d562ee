/** Where and how to connect: one resolved host of a connection string, as `conninfo` hands it over. */
import { CANONICAL_TEXT_SETTINGS } from "@spillway/base/pg-types";

/** libpq's sslmode. Source: https://www.postgresql.org/docs/current/libpq-ssl.html */
export type SslMode = "disable" | "allow" | "prefer" | "require" | "verify-ca" | "verify-full";

export interface SslOptions {
  readonly mode: SslMode;
  /** PEM text. With `require`, a root certificate makes the chain be checked, as libpq does. */
  readonly rootCert?: string | undefined;
  readonly cert?: string | undefined;
  readonly key?: string | undefined;
  readonly keyPassword?: string | undefined;
  readonly crl?: string | undefined;
}

export interface RawTarget {
  readonly host: string;
  /** The address to dial instead of looking `host` up; `host` is still the name that TLS checks. */
  readonly hostaddr?: string | undefined;
  readonly port: number;
  /** The Unix socket itself (`…/.s.PGSQL.5432`); host is then only a name. */
  readonly socketPath?: string | undefined;
  readonly user: string;
  readonly password?: string | undefined;
  readonly database: string;
  readonly ssl?: SslOptions | undefined;
  /** False: text looks as the server's own settings say, not as `CANONICAL_TEXT_SETTINGS` do. For a relay. */
  readonly canonical?: boolean | undefined;
  /** Further start-up parameters: `application_name`, `options`, `replication`, … */
  readonly parameters?: Readonly<Record<string, string>> | undefined;
  /** Bounds name lookup, connect, TLS and authentication together. Default 10 000; 0 waits for ever. */
  readonly connectTimeoutMs?: number | undefined;
  /** Idle time before the kernel probes the peer. Default 10 000; 0 turns probes off. */
  readonly keepAliveMs?: number | undefined;
}

export const DEFAULT_CONNECT_TIMEOUT_MS = 10_000;
export const DEFAULT_KEEPALIVE_MS = 10_000;

/**
 * The parameters of the start-up message; the target's own win. COPY's text and pgoutput's have to be equal
 * byte for byte, so what text looks like must not depend on the server's configuration.
 */
export function startupParameters(target: RawTarget): Map<string, string> {
  return new Map([
    ["user", target.user],
    ["database", target.database],
    ...(target.canonical === false ? [["client_encoding", "UTF8"] as const] : Object.entries(CANONICAL_TEXT_SETTINGS)),
    ...Object.entries(target.parameters ?? {}),
  ]);
}

/** `host:port` for messages, never with user or password. */
export function describeTarget(target: RawTarget): string {
  return target.socketPath ?? `${target.host}:${target.port}`;
}

/** Joins server settings for the `options` start-up parameter, escaped as the server splits them. */
export function serverOptions(settings: Readonly<Record<string, string | number>>): string {
  return Object.entries(settings)
    .map(([name, value]) => `-c ${name}=${String(value).replace(/[\\\s]/g, (c) => `\\${c}`)}`)
    .join(" ");
}
