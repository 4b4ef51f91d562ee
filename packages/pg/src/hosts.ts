/**
 * Finding the right server among several hosts, for any kind of connection: hosts in order (or shuffled), each
 * bounded in time, the first that is what `target_session_attrs` asks for. As libpq does it:
 * https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS
 */
import { join } from "node:path";
import { isSpillwayError, messageOf, SpillwayError } from "@spillway/base/errors";
import { type ConnHost, type Conninfo, describeConninfo, describeHost, type TargetSessionAttrs } from "./conninfo.ts";
import { findPassword } from "./passfile.ts";
import { fromPgError } from "./pg-error.ts";
import { loadSsl } from "./tls.ts";
import type { RawTarget } from "./wire/target.ts";

/** One host, with all that a connection to it needs. */
export interface HostTarget extends RawTarget {
  /** The address to dial, when it is not to be looked up; `host` is the name that TLS checks. */
  readonly hostaddr?: string | undefined;
  readonly connectTimeoutMs: number;
  /** Why the password file was passed over. */
  readonly passfileIgnored: string | null;
}

/** What a fresh session says about its server. */
export interface SessionState {
  /** `pg_is_in_recovery()`. */
  readonly inRecovery: boolean;
  /** In recovery, or `transaction_read_only` is on by default. */
  readonly readOnly: boolean;
}

export interface HostSearch<T> {
  /** Connects to one host, within its `connectTimeoutMs`. */
  readonly open: (target: HostTarget) => Promise<T>;
  /** Asks a fresh connection what its server is. Not called for `any`. */
  readonly inspect: (connection: T) => Promise<SessionState>;
  /** Lets go of a connection to the wrong kind of server. */
  readonly close: (connection: T) => Promise<void>;
  /** Start-up parameters for every host. */
  readonly parameters?: Readonly<Record<string, string>>;
  /** Where the string says nothing about `connect_timeout`. */
  readonly connectTimeoutMs: number;
  readonly random?: () => number;
}

/** Tries every host, whatever its kind: all reasons are in the error when none will do. */
export async function connectAnyHost<T>(info: Conninfo, search: HostSearch<T>): Promise<T> {
  const ssl = await loadSsl(info);
  const hosts = info.loadBalanceHosts ? shuffled(info.hosts, search.random ?? Math.random) : info.hosts;
  const passes: TargetSessionAttrs[] =
    info.targetSessionAttrs === "prefer-standby" ? ["standby", "any"] : [info.targetSessionAttrs];
  const failures: HostFailure[] = [];
  for (const attrs of passes) {
    failures.length = 0;
    for (const host of hosts) {
      const target = await targetOf(info, host, search, ssl);
      const found = await tryHost(target, host, attrs, search);
      if ("connection" in found) return found.connection;
      failures.push(found);
    }
  }
  throw noHost(info, failures);
}

interface HostFailure {
  readonly host: string;
  readonly reason: string;
  readonly code: SpillwayError["code"];
  readonly cause: unknown;
}

/** Refused credentials are the same at every host: the search ends there, as libpq's does. */
const FINAL = new Set<SpillwayError["code"]>(["pg_auth_failed", "pg_database_missing", "pg_permission_denied"]);

async function tryHost<T>(
  target: HostTarget,
  host: ConnHost,
  attrs: TargetSessionAttrs,
  search: HostSearch<T>,
): Promise<{ connection: T } | HostFailure> {
  const name = describeHost(host);
  let connection: T;
  try {
    connection = await search.open(target);
  } catch (error) {
    const typed = fromPgError(error, `cannot connect to ${name}`);
    if (FINAL.has(typed.code)) throw withPassfileReason(typed, target);
    return { host: name, reason: messageOf(error) || typed.message, code: typed.code, cause: error };
  }
  if (attrs === "any") return { connection };
  try {
    const state = await search.inspect(connection);
    if (isWanted(attrs, state)) return { connection };
    const reason = state.inRecovery ? "it is a standby" : state.readOnly ? "it is read-only" : "it is a primary";
    await search.close(connection);
    return { host: name, reason, code: "pg_no_primary", cause: null };
  } catch (error) {
    await search.close(connection).catch(() => {});
    const typed = fromPgError(error, `cannot use ${name}`);
    return { host: name, reason: messageOf(error), code: typed.code, cause: error };
  }
}

/** Whether a server is what `target_session_attrs` asks for. */
export function isWanted(attrs: TargetSessionAttrs, state: SessionState): boolean {
  switch (attrs) {
    case "any":
    case "prefer-standby":
      return true;
    case "read-write":
      return !state.inRecovery && !state.readOnly;
    case "read-only":
      return state.inRecovery || state.readOnly;
    case "primary":
      return !state.inRecovery;
    case "standby":
      return state.inRecovery;
  }
}

async function targetOf<T>(
  info: Conninfo,
  host: ConnHost,
  search: HostSearch<T>,
  ssl: HostTarget["ssl"],
): Promise<HostTarget> {
  const { password, ignored } = await findPassword(info, host);
  const socketPath = host.host.startsWith("/") ? join(host.host, `.s.PGSQL.${host.port}`) : undefined;
  const options = [info.options, search.parameters?.["options"] ?? ""].filter((text) => text !== "").join(" ");
  const name = info.applicationName ?? search.parameters?.["application_name"];
  return {
    host: host.host,
    hostaddr: host.hostaddr ?? undefined,
    port: host.port,
    socketPath,
    user: info.user,
    password: password ?? undefined,
    passfileIgnored: ignored,
    database: info.database,
    ssl,
    parameters: {
      ...search.parameters,
      ...(options === "" ? {} : { options }),
      ...(name === undefined ? {} : { application_name: name }),
    },
    connectTimeoutMs: info.connectTimeoutMs ?? search.connectTimeoutMs,
    keepAliveMs: info.keepalives ? info.keepalivesIdleMs : 0,
  };
}

function withPassfileReason(error: SpillwayError, target: HostTarget): SpillwayError {
  if (error.code !== "pg_auth_failed" || target.passfileIgnored === null) return error;
  const { cause, details } = error;
  return new SpillwayError(error.code, `${error.message} (${target.passfileIgnored}: not used)`, { cause, details });
}

function noHost(info: Conninfo, failures: readonly HostFailure[]): SpillwayError {
  const wrongKind = failures.some((f) => f.code === "pg_no_primary");
  // One host, or all for the same reason: that reason's code; a mixture: unreachable.
  const [first] = failures;
  const same = first !== undefined && failures.every((f) => f.code === first.code) ? first.code : "pg_unreachable";
  const code = wrongKind ? "pg_no_primary" : same === "pg_connection_lost" ? "pg_unreachable" : same;
  const reasons = failures.map((f) => `${f.host}: ${f.reason}`).join("; ");
  const wanted = wrongKind
    ? `no host of ${describeConninfo(info)} is what is asked for`
    : `no host of ${describeConninfo(info)} answers`;
  return new SpillwayError(code, `${wanted}: ${reasons}`, {
    cause: failures.at(-1)?.cause ?? undefined,
    details: { hosts: failures.map(({ host, reason }) => ({ host, reason })) },
  });
}

function shuffled<T>(items: readonly T[], random: () => number): T[] {
  const out = [...items];
  for (let i = out.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [out[i], out[j]] = [out[j] as T, out[i] as T];
  }
  return out;
}

/** Whether an error means that the server which answered is not the primary, or none answered: worth another look. */
export function isHostError(error: unknown): boolean {
  return isSpillwayError(error, "pg_unreachable", "pg_no_primary", "pg_connection_lost", "pg_read_only");
}
