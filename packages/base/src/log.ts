/**
 * Structured logs: one line an event, `key=value` for people or JSON for machines, on standard error.
 * Values whose key looks like a secret are never written, wherever they come from.
 */
import { messageOf, SpillwayError } from "./errors.ts";

export type LogLevel = "debug" | "info" | "warn" | "error";
export type LogFields = Readonly<Record<string, unknown>>;

export interface Logger {
  debug(event: string, fields?: LogFields): void;
  info(event: string, fields?: LogFields): void;
  warn(event: string, fields?: LogFields): void;
  error(event: string, fields?: LogFields): void;
  /** A logger that adds these fields to every line. */
  with(fields: LogFields): Logger;
}

export interface LogOptions {
  readonly level: LogLevel;
  readonly format: "text" | "json";
  readonly write: (line: string) => void;
  readonly now: () => number;
}

const RANK: Record<LogLevel, number> = { debug: 10, info: 20, warn: 30, error: 40 };
const SECRET = /pass(word|wd)?$|secret|token|credential|api_?key|authorization/i;

export function createLogger(options: LogOptions, bound: LogFields = {}): Logger {
  const at =
    (level: LogLevel) =>
    (event: string, fields: LogFields = {}): void => {
      if (RANK[level] < RANK[options.level]) return;
      options.write(formatLine(options, level, event, { ...bound, ...fields }));
    };
  return {
    debug: at("debug"),
    info: at("info"),
    warn: at("warn"),
    error: at("error"),
    with: (fields) => createLogger(options, { ...bound, ...fields }),
  };
}

/** A logger that says nothing: for tests and library calls. */
export const silentLogger: Logger = {
  debug: () => {},
  info: () => {},
  warn: () => {},
  error: () => {},
  with: () => silentLogger,
};

function formatLine(options: LogOptions, level: LogLevel, event: string, fields: LogFields): string {
  const time = new Date(options.now()).toISOString();
  const clean = Object.entries(fields).map(([key, value]) => [key, redact(key, value)] as const);
  if (options.format === "json") {
    return JSON.stringify({ time, level, event, ...Object.fromEntries(clean) });
  }
  const pairs = clean.map(([key, value]) => ` ${key}=${quote(value)}`).join("");
  return `${time} ${level.toUpperCase().padEnd(5)} ${event}${pairs}`;
}

function redact(key: string, value: unknown): unknown {
  if (SECRET.test(key)) return "[redacted]";
  if (typeof value === "bigint") return value.toString();
  if (value instanceof SpillwayError) return redactUrls(value.toLine());
  if (value instanceof Error) return redactUrls(messageOf(value));
  return typeof value === "string" ? redactUrls(value) : value;
}

/** Takes the password out of every URL in a text. */
export function redactUrls(text: string): string {
  return text
    .replace(/([a-z][a-z0-9+.-]*:\/\/[^\s:/@]*):[^\s@]*@/gi, "$1:[redacted]@")
    .replace(/([?&\s]password=)('[^']*'|[^\s&]*)/gi, "$1[redacted]");
}

function quote(value: unknown): string {
  const text = typeof value === "string" ? value : (JSON.stringify(value) ?? "undefined");
  return /^[\w./:@+-]+$/.test(text) ? text : JSON.stringify(text);
}
