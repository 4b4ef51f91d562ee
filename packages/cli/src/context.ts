/**
 * What a command is handed: resolved settings, log, output, and an abort signal that Ctrl-C trips.
 * Nothing is opened before a command asks for it, and whatever was opened is closed at the end.
 */
import { existsSync, readFileSync } from "node:fs";
import { systemClock, type Clock } from "@spillway/base/clock";
import { checkFileKeys, resolveSetting, type ConfigSources, type Resolved, type Setting } from "@spillway/base/config";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { createLogger, type Logger } from "@spillway/base/log";
import { SETTINGS } from "@spillway/base/settings";
import { parse } from "yaml";
import { Output, type Streams } from "./output.ts";

export interface CliContext {
  readonly clock: Clock;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly signal: AbortSignal;
  /** For the command that is running: its flags, as commander parsed them (camelCase keys). */
  readonly begin: (flags: Readonly<Record<string, unknown>>) => CommandContext;
}

/** One run of one command. */
export interface CommandContext {
  readonly out: Output;
  readonly log: Logger;
  readonly clock: Clock;
  readonly signal: AbortSignal;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly sources: ConfigSources;
  /** The value of a setting, by the precedence flag > environment > file > default. */
  get<T>(setting: Setting<T>): T;
  /** The same, but `config_missing` when it is unset. */
  need<T>(setting: Setting<T>): NonNullable<T>;
  resolve(setting: Setting): Resolved;
  /** Registers something to close, last first, when the command ends however it ends. */
  onClose(close: () => Promise<void>): void;
  close(): Promise<void>;
}

const DEFAULT_FILE = "spillway.yaml";

export function createContext(streams: Streams, env: CliContext["env"], signal: AbortSignal): CliContext {
  return { clock: systemClock, env, signal, begin: (flags) => beginCommand(streams, env, signal, flags) };
}

function beginCommand(
  streams: Streams,
  env: CliContext["env"],
  signal: AbortSignal,
  flags: Readonly<Record<string, unknown>>,
): CommandContext {
  const sources = loadSources(flags, env);
  const get = <T>(setting: Setting<T>): T => resolveSetting(setting, sources).value as T;
  const closers: (() => Promise<void>)[] = [];
  const log = createLogger({
    level: get<"debug" | "info" | "warn" | "error">(SETTINGS.logLevel),
    format: get<"text" | "json">(SETTINGS.logFormat),
    write: (line) => streams.err(`${line}\n`),
    now: () => Date.now(),
  });
  return {
    out: new Output(streams, { json: flags["json"] === true, quiet: flags["quiet"] === true }),
    log,
    clock: systemClock,
    signal,
    env,
    sources,
    get,
    need: (setting) => {
      const value = get(setting);
      if (value === null || value === undefined) {
        throw new SpillwayError("config_missing", `${setting.name} is not set`);
      }
      return value;
    },
    resolve: (setting) => resolveSetting(setting, sources),
    onClose: (close) => closers.push(close),
    close: async () => {
      for (const close of closers.splice(0).toReversed()) {
        await close().catch((error: unknown) => log.debug("close failed", { error: messageOf(error) }));
      }
    },
  };
}

function loadSources(flags: Readonly<Record<string, unknown>>, env: CliContext["env"]): ConfigSources {
  const given = flags["config"] ?? env["SPILLWAY_CONFIG"];
  const path = typeof given === "string" ? given : DEFAULT_FILE;
  const kebab: Record<string, string | boolean | undefined> = {};
  for (const [key, value] of Object.entries(flags)) {
    if (typeof value === "string" || typeof value === "boolean") {
      kebab[key.replace(/[A-Z0-9]+/g, (m, at: number) => (at === 0 ? m : `-${m.toLowerCase()}`))] = value;
    }
  }
  if (!existsSync(path)) {
    if (typeof given === "string") throw new SpillwayError("config_invalid", `there is no file ${path}`);
    return { flags: kebab, env, file: null, filePath: null };
  }
  const file = readFile(path);
  checkFileKeys(Object.values(SETTINGS), file, path);
  return { flags: kebab, env, file, filePath: path };
}

function readFile(path: string): Record<string, unknown> {
  let parsed: unknown;
  try {
    parsed = parse(readFileSync(path, "utf8"));
  } catch (error) {
    throw new SpillwayError("config_invalid", `${path} cannot be read: ${messageOf(error)}`, { cause: error });
  }
  if (parsed === null || parsed === undefined) return {};
  if (typeof parsed !== "object" || Array.isArray(parsed)) {
    throw new SpillwayError("config_invalid", `${path} is not a map of settings`);
  }
  return parsed as Record<string, unknown>;
}
