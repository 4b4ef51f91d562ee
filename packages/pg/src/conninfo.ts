/**
 * libpq connection strings: URLs and key=value, several hosts, the PG* variables. Parsing decides everything
 * that can be decided without the network; `connect.ts` acts on it.
 * Source: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
 */
import { existsSync } from "node:fs";
import { homedir, userInfo } from "node:os";
import { join } from "node:path";
import { invalid, type Keywords, parseConninfoText } from "./conninfo-text.ts";

export type SslMode = "disable" | "allow" | "prefer" | "require" | "verify-ca" | "verify-full";
export type TargetSessionAttrs = "any" | "read-write" | "read-only" | "primary" | "standby" | "prefer-standby";

const SSL_MODES: readonly SslMode[] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
const SESSION_ATTRS: readonly TargetSessionAttrs[] = [
  "any",
  "read-write",
  "read-only",
  "primary",
  "standby",
  "prefer-standby",
];

export interface ConnHost {
  /** A name, an address, or the directory of a Unix socket (begins with `/`). */
  readonly host: string;
  /** The address to use instead of looking `host` up; `host` still names it for TLS and the password file. */
  readonly hostaddr: string | null;
  readonly port: number;
}

export interface Conninfo {
  readonly hosts: readonly ConnHost[];
  readonly user: string;
  readonly database: string;
  readonly password: string | null;
  /** Path of the password file; asked only where `password` is null. */
  readonly passfile: string;
  readonly sslmode: SslMode;
  /** Path of the root certificates, or `system`; null: the default path if there is such a file. */
  readonly sslrootcert: string | null;
  readonly sslcert: string | null;
  readonly sslkey: string | null;
  readonly channelBinding: "disable" | "prefer" | "require";
  /** For each host; null: not said; 0: no limit. */
  readonly connectTimeoutMs: number | null;
  readonly targetSessionAttrs: TargetSessionAttrs;
  readonly loadBalanceHosts: boolean;
  /** Command-line options for the session: `-c name=value …`. */
  readonly options: string;
  readonly applicationName: string | null;
  readonly keepalives: boolean;
  readonly keepalivesIdleMs: number;
  /** The directory of `root.crt`, `postgresql.crt`, `postgresql.key`. */
  readonly configDir: string;
}

/** What a connection string leaves to its surroundings. */
export interface ConninfoContext {
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly osUser: string;
  readonly home: string;
  /** Where a server is looked for when no host is named. */
  readonly defaultHost: string;
}

/** The surroundings of this process. */
export function processContext(): ConninfoContext {
  const socketDir = "/var/run/postgresql";
  return {
    env: process.env,
    osUser: userInfo().username,
    home: homedir(),
    defaultHost: existsSync(socketDir) ? socketDir : "localhost",
  };
}

/** Each keyword that is understood, with the variable that stands in for it. */
const KEYWORDS: Readonly<Record<string, string | null>> = {
  host: "PGHOST",
  hostaddr: "PGHOSTADDR",
  port: "PGPORT",
  dbname: "PGDATABASE",
  user: "PGUSER",
  password: "PGPASSWORD",
  passfile: "PGPASSFILE",
  sslmode: "PGSSLMODE",
  sslrootcert: "PGSSLROOTCERT",
  sslcert: "PGSSLCERT",
  sslkey: "PGSSLKEY",
  channel_binding: "PGCHANNELBINDING",
  connect_timeout: "PGCONNECT_TIMEOUT",
  target_session_attrs: "PGTARGETSESSIONATTRS",
  load_balance_hosts: "PGLOADBALANCEHOSTS",
  options: "PGOPTIONS",
  application_name: "PGAPPNAME",
  fallback_application_name: null,
  keepalives: null,
  keepalives_idle: null,
};
/** Taken, and without effect here: tuning, or ways of authentication that are never used. */
const IGNORED = new Set(
  "gssencmode krbsrvname gsslib gssdelegation sslcompression sslsni keepalives_interval keepalives_count tcp_user_timeout client_encoding".split(
    " ",
  ),
);

/** Parses and checks a connection string. Throws `pg_conninfo_invalid`; the message never repeats the string. */
export function parseConninfo(text: string, context: ConninfoContext = processContext()): Conninfo {
  const given = parseConninfoText(text.trim());
  checkKeywords(given);
  const get = (name: string): string | null => {
    const value = given.get(name) ?? context.env[KEYWORDS[name] ?? ""];
    return value === undefined || value === "" ? null : value;
  };
  const user = get("user") ?? context.osUser;
  const timeout = integer("connect_timeout", get("connect_timeout"), -1, 2_147_483);
  const configDir = join(context.home, ".postgresql");
  return {
    hosts: parseHosts(given, get, context),
    user,
    database: get("dbname") ?? user,
    password: get("password"),
    passfile: get("passfile") ?? join(context.home, ".pgpass"),
    sslmode: oneOf("sslmode", get("sslmode"), SSL_MODES, "prefer"),
    sslrootcert: get("sslrootcert"),
    sslcert: get("sslcert"),
    sslkey: get("sslkey"),
    channelBinding: oneOf("channel_binding", get("channel_binding"), ["disable", "prefer", "require"], "prefer"),
    // As in libpq, less than two seconds is not enough for anything.
    connectTimeoutMs: timeout === null ? null : timeout <= 0 ? 0 : Math.max(timeout, 2) * 1000,
    targetSessionAttrs: oneOf("target_session_attrs", get("target_session_attrs"), SESSION_ATTRS, "any"),
    loadBalanceHosts:
      oneOf("load_balance_hosts", get("load_balance_hosts"), ["disable", "random"], "disable") === "random",
    options: get("options") ?? "",
    applicationName: get("application_name") ?? get("fallback_application_name"),
    keepalives: integer("keepalives", get("keepalives"), 0, 1) !== 0,
    keepalivesIdleMs: (integer("keepalives_idle", get("keepalives_idle"), 0, 86_400) || 5) * 1000,
    configDir,
  };
}

function checkKeywords(given: Keywords): void {
  for (const [name, value] of given) {
    if (name in KEYWORDS || IGNORED.has(name)) continue;
    // What restricts a connection must not be passed over in silence.
    if (/^[a-z_]{1,40}$/.test(name)) throw invalid(`the keyword ${name} is not known or not supported`);
    throw invalid(
      `it has a keyword of ${name.length} characters that is not known (value of ${value.length} characters)`,
    );
  }
  const encoding = given.get("client_encoding");
  if (encoding !== undefined && !/^(auto|utf-?8|unicode)$/i.test(encoding)) {
    throw invalid("client_encoding can only be UTF8");
  }
  if (given.get("gssencmode") === "require") throw invalid("gssencmode=require is not supported");
}

function parseHosts(given: Keywords, get: (name: string) => string | null, context: ConninfoContext): ConnHost[] {
  const hosts = list(get("host"));
  const addresses = list(get("hostaddr"));
  const count = Math.max(hosts.length, addresses.length, 1);
  if (hosts.length > 0 && addresses.length > 0 && hosts.length !== addresses.length) {
    throw invalid(`it has ${hosts.length} hosts but ${addresses.length} values of hostaddr`);
  }
  const ports = list(get("port"));
  if (ports.length > 1 && ports.length !== count) throw invalid(`it has ${count} hosts but ${ports.length} ports`);
  return Array.from({ length: count }, (_, i) => {
    const hostaddr = addresses[i] || null;
    return {
      host: hosts[i] || hostaddr || (given.has("host") ? "" : null) || context.defaultHost,
      hostaddr,
      port: integer("port", ports[ports.length > 1 ? i : 0] || null, 1, 65_535) ?? 5432,
    };
  });
}

function list(text: string | null): string[] {
  return text === null ? [] : text.split(",").map((item) => item.trim());
}

function integer(name: string, text: string | null, min: number, max: number): number | null {
  if (text === null) return null;
  const value = /^\s*[+-]?\d{1,10}\s*$/.test(text) ? Number(text) : Number.NaN;
  if (!(value >= min && value <= max)) throw invalid(`${name} must be a whole number from ${min} to ${max}`);
  return value;
}

function oneOf<T extends string>(name: string, text: string | null, values: readonly T[], fallback: T): T {
  if (text === null) return fallback;
  const found = values.find((value) => value === text);
  if (found === undefined) throw invalid(`${name} must be one of ${values.join(", ")}`);
  return found;
}

/** The same connection with another database, attributes, options… */
export function withConninfo(info: Conninfo, changes: Partial<Conninfo>): Conninfo {
  return { ...info, ...changes };
}

/** Who and where, without secrets: `postgres://user@h1:5432,h2:5432/db?target_session_attrs=read-write`. */
export function describeConninfo(info: Conninfo): string {
  const hosts = info.hosts.map((h) => describeHost(h)).join(",");
  const attrs = info.targetSessionAttrs === "any" ? "" : `?target_session_attrs=${info.targetSessionAttrs}`;
  return `postgres://${encodeURIComponent(info.user)}@${hosts}/${encodeURIComponent(info.database)}${attrs}`;
}

/** `name:port`, `[ipv6]:port`, or the socket's directory, encoded as in a URL. */
export function describeHost(host: ConnHost): string {
  if (host.host.startsWith("/")) return `${encodeURIComponent(host.host)}:${host.port}`;
  return host.host.includes(":") ? `[${host.host}]:${host.port}` : `${host.host}:${host.port}`;
}
