/** What a command of `spillway-ha` is: words, options, one function. Parsing and help come from this table. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import type { Clock } from "@spillway/base/clock";
import { resolveSetting, type Setting } from "@spillway/base/config";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { createLogger, type Logger, type LogLevel } from "@spillway/base/log";
import { HA_SETTINGS } from "@spillway/base/settings/ha";
import { fingerprintOf } from "../monitor/certificate.ts";
import { MonitorFiles } from "../monitor/monitor-files.ts";
import { X509Certificate } from "node:crypto";
import { AdminClient, parseMonitorAddress, type MonitorAddress } from "./client.ts";

export interface Io {
  readonly out: (line: string) => void;
  readonly err: (line: string) => void;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly clock: Clock;
  /** Aborted by SIGINT and SIGTERM. */
  readonly signal: AbortSignal;
}

export interface Option {
  /** Absent: a switch without a value. */
  readonly value?: string;
  readonly help: string;
}

export interface Command {
  readonly words: string;
  readonly summary: string;
  readonly options: Readonly<Record<string, Option>>;
  readonly examples: readonly string[];
  readonly run: (args: Args, io: Io) => Promise<number>;
}

/** The parsed options of one invocation. */
export class Args {
  readonly #values: Readonly<Record<string, string | boolean | undefined>>;

  constructor(values: Readonly<Record<string, string | boolean | undefined>>) {
    this.#values = values;
  }

  text(name: string): string | undefined {
    const value = this.#values[name];
    return typeof value === "string" ? value : undefined;
  }

  required(name: string): string {
    const value = this.text(name);
    if (value === undefined || value === "") throw new SpillwayError("usage", `--${name} is missing`);
    return value;
  }

  has(name: string): boolean {
    return this.#values[name] === true;
  }

  int(name: string, min: number, max: number): number | undefined {
    const value = this.text(name);
    if (value === undefined) return undefined;
    const n = Number(value);
    if (!/^\d+$/.test(value) || n < min || n > max) {
      throw new SpillwayError(
        "usage",
        `--${name} is ${JSON.stringify(value)}: expected a whole number from ${min} to ${max}`,
      );
    }
    return n;
  }

  bool(name: string): boolean | undefined {
    const value = this.text(name);
    if (value === undefined) return undefined;
    if (/^(on|true|yes)$/i.test(value)) return true;
    if (/^(off|false|no)$/i.test(value)) return false;
    throw new SpillwayError("usage", `--${name} is ${JSON.stringify(value)}: expected on or off`);
  }
}

export const JSON_OPTION = { json: { help: "Print JSON." } } as const;

export const FORMATION_OPTION = {
  formation: { value: "NAME", help: "The formation (default: default)." },
} as const;

/** How a command finds the monitor. */
export const MONITOR_OPTIONS = {
  monitor: {
    value: "URL",
    help: "http(s)://[TOKEN@]host:port[?fingerprint=…], several with commas (or SPILLWAY_HA_MONITOR).",
  },
  dir: { value: "PATH", help: "A monitor's directory on this host: address and admin token are taken from it." },
  "token-file": { value: "PATH", help: "File with the token (or SPILLWAY_HA_TOKEN)." },
} as const;

export const LOG_OPTIONS = {
  "log-level": { value: "LEVEL", help: "debug, info, warn or error (default: info)." },
  "log-format": { value: "FORMAT", help: "text or json (default: text)." },
} as const;

/** Every HA setting as an option: flag, then SPILLWAY_* variable, then default. */
export const SETTING_OPTIONS: Readonly<Record<string, Option>> = Object.fromEntries(
  Object.values(HA_SETTINGS).map((s: Setting) => [
    s.name,
    { value: s.unit?.toUpperCase() ?? "N", help: `${s.help} (default: ${s.default})` },
  ]),
);

export function settingOf<T>(setting: Setting<T>, args: Args, io: Io): T {
  const flags = { [setting.name]: args.text(setting.name) };
  return resolveSetting(setting, { flags, env: io.env, file: null, filePath: null }).value as T;
}

export function parse(command: Command, argv: readonly string[]): Args {
  const options = Object.fromEntries(
    Object.entries({ ...command.options, help: { help: "" } as Option }).map(([name, o]) => [
      name,
      { type: o.value === undefined ? ("boolean" as const) : ("string" as const) },
    ]),
  );
  try {
    return new Args(parseArgs({ args: [...argv], options, strict: true, allowPositionals: false }).values as never);
  } catch (cause) {
    throw new SpillwayError("usage", messageOf(cause).split(". ")[0] ?? "", {
      remedy: `See \`spillway-ha ${command.words} --help\`.`,
      cause,
    });
  }
}

export function logger(args: Args, io: Io): Logger {
  const level = args.text("log-level") ?? "info";
  if (!["debug", "info", "warn", "error"].includes(level)) {
    throw new SpillwayError("usage", `--log-level is ${JSON.stringify(level)}: expected debug, info, warn or error`);
  }
  const format = args.text("log-format") ?? "text";
  if (format !== "text" && format !== "json") {
    throw new SpillwayError("usage", `--log-format is ${JSON.stringify(format)}: expected text or json`);
  }
  return createLogger({ level: level as LogLevel, format, write: io.err, now: () => io.clock.wallMs() });
}

/** Address, token and pinned certificate from --dir, --monitor, --token-file and the environment. */
export function monitorAddress(args: Args, io: Io): MonitorAddress {
  const dir = args.text("dir");
  if (dir !== undefined && args.text("monitor") === undefined) {
    const files = new MonitorFiles(dir);
    const { url, tls } = files.config();
    const fingerprint = tls ? fingerprintOf(new X509Certificate(files.tls().cert).raw) : null;
    return { urls: [url], token: files.secrets().adminToken, fingerprint };
  }
  const text = args.text("monitor") ?? io.env["SPILLWAY_HA_MONITOR"];
  if (!text) throw new SpillwayError("usage", "which monitor? Give --monitor URL, --dir PATH or SPILLWAY_HA_MONITOR");
  const address = parseMonitorAddress(text);
  const file = args.text("token-file") ?? (dir === undefined ? undefined : join(dir, "admin-token"));
  const token = file === undefined ? (io.env["SPILLWAY_HA_TOKEN"] ?? address.token) : readToken(file);
  if (!token) throw new SpillwayError("usage", "which token? Give --token-file PATH or SPILLWAY_HA_TOKEN");
  return { ...address, token };
}

/** The one line of a private file. Throws `usage`. */
export function readToken(path: string): string {
  try {
    return readFileSync(path, "utf8").trim();
  } catch (cause) {
    throw new SpillwayError("usage", `${path} cannot be read: ${messageOf(cause)}`, { cause });
  }
}

const PATIENCE_MS = 8_000;

/** Runs `work` with a client, and closes it. */
export async function withMonitor<T>(
  args: Args,
  io: Io,
  work: (client: AdminClient, formation: string) => Promise<T>,
): Promise<T> {
  const client = new AdminClient(monitorAddress(args, io), io.clock, PATIENCE_MS);
  try {
    return await work(client, args.text("formation") ?? "default");
  } finally {
    client.close();
  }
}
