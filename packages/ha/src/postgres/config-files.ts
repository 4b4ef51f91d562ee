/**
 * The files of a data directory that the keeper owns or edits: `spillway-ha.conf` (ours alone, included
 * last by postgresql.conf), a marked block in pg_hba.conf and pg_ident.conf, standby.signal, and the
 * removal of our settings from postgresql.auto.conf, which would override the include.
 * Every file is replaced by rename, so that a crash leaves the old or the new one.
 */
import { closeSync, existsSync, fsyncSync, openSync, readFileSync, renameSync, rmSync, writeSync } from "node:fs";
import { dirname, join } from "node:path";

export const CONF_FILE = "spillway-ha.conf";
const INCLUDE_LINE = `include '${CONF_FILE}'`;
const BEGIN = "# spillway-ha: begin (kept by the keeper; do not edit)";
const END = "# spillway-ha: end";

/** Where a standby streams from. */
export interface Upstream {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly passfile: string;
  readonly slot: string;
  readonly applicationName: string;
  readonly sslmode: string;
}

export interface HaConf {
  readonly major: number;
  readonly port: number;
  readonly listen: readonly string[];
  readonly socketDirs: readonly string[];
  readonly clusterName: string;
  /** As Postgres takes it; empty = asynchronous. */
  readonly synchronousStandbyNames: string;
  readonly readOnly: boolean;
  readonly upstream: Upstream | null;
  /** Physical slots that logical senders wait for, 17 and later. */
  readonly synchronizedStandbySlots: readonly string[];
  /** At least these, and at least what the cluster had before it was adopted. */
  readonly maxWalSenders: number;
  readonly maxReplicationSlots: number;
  /** Without it a restart after a crash first opens and syncs every single file. */
  readonly syncfs: boolean;
}

/** A value of a configuration file, quoted. */
export function confQuote(value: string): string {
  return `'${value.replaceAll("\\", "\\\\").replaceAll("'", "''")}'`;
}

/** A value of a libpq key=value string, quoted. */
export function conninfoQuote(value: string): string {
  return `'${value.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
}

export function conninfo(fields: Readonly<Record<string, string | number>>): string {
  return Object.entries(fields)
    .map(([key, value]) => `${key}=${conninfoQuote(String(value))}`)
    .join(" ");
}

/** primary_conninfo: a dead link is noticed in seconds; dbname is what slot synchronization connects to. */
export function primaryConninfo(up: Upstream): string {
  return conninfo({
    host: up.host,
    port: up.port,
    user: up.user,
    passfile: up.passfile,
    dbname: "postgres",
    application_name: up.applicationName,
    sslmode: up.sslmode,
    connect_timeout: 2,
    tcp_user_timeout: 3000,
    keepalives_idle: 1,
    keepalives_interval: 1,
    keepalives_count: 3,
  });
}

/** The text of `spillway-ha.conf`. */
export function renderConf(conf: HaConf): string {
  const settings: [string, string][] = [
    ["port", String(conf.port)],
    ["listen_addresses", conf.listen.join(",")],
    ["unix_socket_directories", conf.socketDirs.map((dir) => `"${dir.replaceAll('"', '""')}"`).join(", ")],
    ["cluster_name", conf.clusterName],
    ["wal_level", "logical"],
    ["hot_standby", "on"],
    ["max_wal_senders", String(conf.maxWalSenders)],
    ["max_replication_slots", String(conf.maxReplicationSlots)],
    ["wal_log_hints", "on"],
    ["full_page_writes", "on"],
    ["fsync", "on"],
    ["recovery_init_sync_method", conf.syncfs ? "syncfs" : "fsync"],
    ["wal_sender_timeout", "5s"],
    ["wal_receiver_timeout", "5s"],
    ["wal_receiver_status_interval", "1s"],
    ["wal_retrieve_retry_interval", "200ms"],
    ["wal_keep_size", "256MB"],
    ["recovery_target_timeline", "latest"],
    ["password_encryption", "scram-sha-256"],
    ["hot_standby_feedback", "on"],
    ["synchronous_standby_names", conf.synchronousStandbyNames],
    ["default_transaction_read_only", conf.readOnly ? "on" : "off"],
    ["primary_conninfo", conf.upstream ? primaryConninfo(conf.upstream) : ""],
    ["primary_slot_name", conf.upstream ? conf.upstream.slot : ""],
  ];
  if (conf.major >= 17) {
    settings.push(["sync_replication_slots", conf.upstream !== null && conf.upstream.slot !== "" ? "on" : "off"]);
    settings.push(["synchronized_standby_slots", conf.synchronizedStandbySlots.join(",")]);
  }
  const lines = settings.map(([name, value]) => `${name} = ${confQuote(value)}`);
  return `# Written by the keeper of spillway-ha; a change here is undone at the next beat.\n${lines.join("\n")}\n`;
}

/** Names that the include decides; elsewhere they are taken out. */
export function managedNames(): string[] {
  const text = renderConf({
    major: 99,
    port: 0,
    listen: [],
    socketDirs: [],
    clusterName: "",
    synchronousStandbyNames: "",
    readOnly: false,
    upstream: null,
    synchronizedStandbySlots: [],
    maxWalSenders: 0,
    maxReplicationSlots: 0,
    syncfs: false,
  });
  return [...text.matchAll(/^(\w+) = /gm)].map((m) => m[1] ?? "");
}

/** Writes `spillway-ha.conf` when it differs. True = changed. */
export function writeConf(pgdata: string, conf: HaConf): boolean {
  return replaceIfChanged(join(pgdata, CONF_FILE), renderConf(conf));
}

/** Makes postgresql.conf include ours, last, exactly once. */
export function ensureInclude(pgdata: string): boolean {
  const path = join(pgdata, "postgresql.conf");
  const text = readFileSync(path, "utf8");
  const kept = text.split("\n").filter((line) => line.trim() !== INCLUDE_LINE);
  while (kept.at(-1) === "") kept.pop();
  return replaceIfChanged(path, `${[...kept, INCLUDE_LINE].join("\n")}\n`);
}

/** Takes our settings out of postgresql.auto.conf. Returns the names that were there. */
export function cleanAutoConf(pgdata: string): string[] {
  const path = join(pgdata, "postgresql.auto.conf");
  if (!existsSync(path)) return [];
  const managed = new Set(managedNames());
  const removed: string[] = [];
  const kept = readFileSync(path, "utf8")
    .split("\n")
    .filter((line) => {
      const name = /^\s*([\w.]+)\s*=/.exec(line)?.[1]?.toLowerCase();
      if (name === undefined || !managed.has(name)) return true;
      removed.push(name);
      return false;
    });
  if (removed.length > 0) replaceIfChanged(path, kept.join("\n"));
  return removed;
}

/** Replaces the marked block at the top of a file: the first matching line of pg_hba.conf wins. */
export function writeBlock(path: string, lines: readonly string[]): boolean {
  const text = existsSync(path) ? readFileSync(path, "utf8") : "";
  const start = text.indexOf(`${BEGIN}\n`);
  const end = text.indexOf(`${END}\n`, Math.max(start, 0));
  const rest = start >= 0 && end >= start ? text.slice(0, start) + text.slice(end + END.length + 1) : text;
  return replaceIfChanged(path, `${[BEGIN, ...lines, END].join("\n")}\n${rest}`);
}

export interface HbaFacts {
  readonly superuser: string;
  readonly osUser: string;
  readonly replicationUser: string;
  /** Host names or addresses of the formation's nodes, this one included. */
  readonly peers: readonly string[];
  /** Networks from which applications may log in with a password, as the operator gave them. */
  readonly clients: readonly string[];
}

/** Exact addresses for a peer: one for an IP, both loopbacks for localhost, else the name itself. */
export function hbaAddresses(host: string): string[] {
  if (host === "localhost") return ["127.0.0.1/32", "::1/128"];
  if (/^\d+\.\d+\.\d+\.\d+$/.test(host)) return [`${host}/32`];
  if (host.includes(":")) return [`${host}/128`];
  return [host];
}

export function hbaLines(facts: HbaFacts): string[] {
  const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`;
  const user = quoted(facts.replicationUser);
  const addresses = [...new Set(facts.peers.flatMap(hbaAddresses))].toSorted();
  return [
    `local all ${quoted(facts.superuser)} peer map=spillway_ha`,
    ...addresses.flatMap((a) => [
      `host replication ${user} ${a} scram-sha-256`,
      `host postgres ${user} ${a} scram-sha-256`,
    ]),
    `host all ${user} all reject`,
    `host replication ${user} all reject`,
    ...facts.clients.map((network) => `host all all ${network} scram-sha-256`),
  ];
}

/** Writes both access files. True = a reload is needed. */
export function writeAccess(pgdata: string, facts: HbaFacts): boolean {
  const a = writeBlock(join(pgdata, "pg_ident.conf"), [`spillway_ha "${facts.osUser}" "${facts.superuser}"`]);
  const b = writeBlock(join(pgdata, "pg_hba.conf"), hbaLines(facts));
  return a || b;
}

export function setStandbySignal(pgdata: string, standby: boolean): void {
  const path = join(pgdata, "standby.signal");
  rmSync(join(pgdata, "recovery.signal"), { force: true });
  if (standby) replaceIfChanged(path, "");
  else rmSync(path, { force: true });
}

export function isStandbyDirectory(pgdata: string): boolean {
  return existsSync(join(pgdata, "standby.signal"));
}

/** A libpq password file, readable by its owner only. */
export function writePassfile(path: string, user: string, password: string): boolean {
  const escape = (text: string): string => text.replaceAll("\\", "\\\\").replaceAll(":", "\\:");
  return replaceIfChanged(path, `*:*:*:${escape(user)}:${escape(password)}\n`);
}

/** Writes a private (0600) file by rename, synced, unless it already holds the text. True = written. */
export function replaceIfChanged(path: string, text: string): boolean {
  try {
    if (readFileSync(path, "utf8") === text) return false;
  } catch {
    // not there yet
  }
  const temporary = `${path}.spillway.tmp`;
  const fd = openSync(temporary, "w", 0o600);
  try {
    writeSync(fd, text);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  renameSync(temporary, path);
  const folder = openSync(dirname(path), "r");
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
  return true;
}
