/**
 * Connections of node-postgres, made as libpq makes them: several hosts, `target_session_attrs`, TLS modes, the password
 * file; with exact values, bounded waits, and typed errors.
 */
import pg from "pg";
import { SpillwayError } from "@spillway/base/errors";
import { CANONICAL_TEXT_SETTINGS } from "@spillway/base/pg-types";
import { type Conninfo, parseConninfo } from "./conninfo.ts";
import { connectAnyHost, type HostTarget, type SessionState } from "./hosts.ts";
import { fromPgError, sqlstateOf } from "./pg-error.ts";
import { EXACT_TYPES } from "./values.ts";
import { encryptionsOf, type Encryption, tlsOptions } from "./wire/socket.ts";
import { serverOptions } from "./wire/target.ts";

export interface ConnectOptions {
  /** Shown in pg_stat_activity where the string names none. */
  readonly applicationName?: string;
  /** For each host, where the string has no connect_timeout. Default 10 000. */
  readonly connectTimeoutMs?: number;
  /** Server-side limits of the session; unset: the server's own. */
  readonly statementTimeoutMs?: number;
  readonly lockTimeoutMs?: number;
  readonly idleInTransactionTimeoutMs?: number;
  /** How long sent data may stay unacknowledged before the server gives the connection up (`tcp_user_timeout`). */
  readonly tcpUserTimeoutMs?: number;
  /** Further settings of the session. */
  readonly settings?: Readonly<Record<string, string | number>>;
  readonly random?: () => number;
}

export const DEFAULT_CONNECT_TIMEOUT_MS = 10_000;

/** Connects to the first host that will do. Throws pg_unreachable, pg_no_primary, pg_auth_failed, pg_database_missing, … */
export async function connect(conninfo: Conninfo | string, options: ConnectOptions = {}): Promise<pg.Client> {
  const info = typeof conninfo === "string" ? parseConninfo(conninfo) : conninfo;
  return connectAnyHost<pg.Client>(info, {
    open: (target) => openClient(target, info),
    inspect: sessionState,
    close: endClient,
    parameters: startupOf(options),
    connectTimeoutMs: options.connectTimeoutMs ?? DEFAULT_CONNECT_TIMEOUT_MS,
    ...(options.random ? { random: options.random } : {}),
  });
}

/** Connects, works, and lets go; errors of the work come out unchanged. */
export async function withConnection<T>(
  conninfo: Conninfo | string,
  options: ConnectOptions,
  work: (client: pg.Client) => Promise<T>,
): Promise<T> {
  const client = await connect(conninfo, options);
  try {
    return await work(client);
  } finally {
    await endClient(client);
  }
}

/** The start-up parameters of a session with these options. */
export function startupOf(options: ConnectOptions): Record<string, string> {
  const limits = {
    statement_timeout: options.statementTimeoutMs,
    lock_timeout: options.lockTimeoutMs,
    idle_in_transaction_session_timeout: options.idleInTransactionTimeoutMs,
    tcp_user_timeout: options.tcpUserTimeoutMs,
  };
  const given = Object.entries({ ...limits, ...options.settings }).filter(([, value]) => value !== undefined);
  const settings = Object.fromEntries(given) as Record<string, string | number>;
  return {
    application_name: options.applicationName ?? "spillway",
    options: serverOptions({ ...CANONICAL_TEXT_SETTINGS, ...settings }),
  };
}

/** Ends a connection without waiting for a server that no longer answers. */
export async function endClient(client: pg.Client, timeoutMs = 1000): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(() => {
      destroyClient(client);
      resolve();
    }, timeoutMs);
  });
  await Promise.race([client.end().catch(() => {}), late]);
  clearTimeout(timer);
}

/** Closes the socket at once: whatever the connection was waiting for fails. */
export function destroyClient(client: pg.Client): void {
  const { connection } = client as unknown as { connection?: { stream?: { destroy(): void } } };
  connection?.stream?.destroy();
}

async function openClient(target: HostTarget, info: Conninfo): Promise<pg.Client> {
  const encryptions = encryptionsOf(target);
  for (const [i, encryption] of encryptions.entries()) {
    try {
      return await openEncrypted(target, info, encryption !== "plain");
    } catch (error) {
      const next = encryptions[i + 1];
      if (next === undefined || !mayFallBack(error, encryption)) throw error;
    }
  }
  throw new SpillwayError("pg_unreachable", `no way to connect to ${target.host}`);
}

/** `prefer` and `allow` try the other way when the server or its pg_hba.conf refuses the first. */
function mayFallBack(error: unknown, encryption: Encryption): boolean {
  if (sqlstateOf(error) === "28000") return true;
  return encryption === "try-tls" && fromPgError(error, "").code === "pg_tls_failed";
}

async function openEncrypted(target: HostTarget, info: Conninfo, encrypted: boolean): Promise<pg.Client> {
  const { password, parameters } = target;
  const client = new pg.Client({
    host: socketDirectory(target) ?? target.hostaddr ?? target.host,
    port: target.port,
    user: target.user,
    database: target.database,
    // A function, so that node-postgres looks neither into the environment nor for a file of its own.
    password: () => password ?? "",
    ssl: encrypted ? tlsOptions(target.host, target.ssl) : false,
    types: EXACT_TYPES,
    connectionTimeoutMillis: target.connectTimeoutMs,
    keepAlive: (target.keepAliveMs ?? 0) > 0,
    keepAliveInitialDelayMillis: target.keepAliveMs ?? 0,
    application_name: parameters?.["application_name"],
    options: parameters?.["options"],
    enableChannelBinding: encrypted && info.channelBinding !== "disable",
  } as pg.ClientConfig);
  // A connection that is lost while nobody waits for an answer must not end the process: its next use fails.
  client.on("error", () => {});
  const binding = watchChannelBinding(client);
  try {
    await client.connect();
  } catch (error) {
    destroyClient(client);
    throw error;
  }
  if (info.channelBinding === "require" && !(encrypted && binding.offered)) {
    destroyClient(client);
    throw new SpillwayError(
      "pg_auth_failed",
      `${target.host} did not authenticate with channel binding, which is required`,
    );
  }
  return client;
}

/** node-postgres binds the channel whenever the server offers to; this tells whether it did. */
function watchChannelBinding(client: pg.Client): { offered: boolean } {
  const seen = { offered: false };
  const { connection } = client as unknown as {
    connection: { once(event: string, listener: (message: { mechanisms?: string[] }) => void): void };
  };
  connection.once("authenticationSASL", (message) => {
    seen.offered = message.mechanisms?.includes("SCRAM-SHA-256-PLUS") ?? false;
  });
  return seen;
}

function socketDirectory(target: HostTarget): string | null {
  return target.socketPath === undefined ? null : target.host;
}

async function sessionState(client: pg.Client): Promise<SessionState> {
  const { rows } = await client.query<{ recovery: boolean; read_only: string }>(
    "SELECT pg_is_in_recovery() AS recovery, current_setting('transaction_read_only') AS read_only",
  );
  return { inRecovery: rows[0]?.recovery === true, readOnly: rows[0]?.read_only === "on" };
}
