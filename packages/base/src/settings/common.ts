import type { Setting } from "../config.ts";

export const COMMON_SETTINGS = {
  databaseUrl: {
    name: "database-url",
    type: "url",
    default: null,
    secret: true,
    help: "The source: a libpq URL or key=value string; several hosts and target_session_attrs as in libpq.",
  } as Setting<string | null>,
  warehouse: {
    name: "warehouse",
    type: "string",
    default: null,
    help: "Where the lake is: an absolute path, file:///path, or s3://bucket/prefix.",
  } as Setting<string | null>,
  logLevel: {
    name: "log-level",
    type: "enum",
    values: ["debug", "info", "warn", "error"],
    default: "info",
    help: "The least severe events that are logged.",
  } as Setting<"debug" | "info" | "warn" | "error">,
  logFormat: {
    name: "log-format",
    type: "enum",
    values: ["text", "json"],
    default: "text",
    help: "The form of log lines on standard error.",
  } as Setting<"text" | "json">,
  connectTimeout: {
    name: "connect-timeout",
    type: "duration",
    default: "10s",
    unit: "ms",
    min: 100,
    help: "How long one attempt to reach a Postgres host may take.",
  } as Setting<number>,
  s3Endpoint: {
    name: "s3-endpoint",
    type: "url",
    default: null,
    help: "The endpoint of an S3-compatible store; unset for Amazon S3.",
  } as Setting<string | null>,
  s3Region: {
    name: "s3-region",
    type: "string",
    default: "us-east-1",
    help: "The region of the S3 store.",
  } as Setting<string>,
  s3PathStyle: {
    name: "s3-path-style",
    type: "bool",
    default: "false",
    help: "Address buckets as a path instead of a host name, as most S3-compatible stores need.",
  } as Setting<boolean>,
  cacheDir: {
    name: "cache-dir",
    type: "string",
    default: null,
    help: "Where lake objects of S3 are cached, and files are staged; default: a folder under the system's temporary one.",
  } as Setting<string | null>,
  cacheBytes: {
    name: "cache-bytes",
    type: "bytes",
    default: "10GiB",
    unit: "bytes",
    help: "The bound of that cache.",
  } as Setting<number>,
  engineMemory: {
    name: "engine-memory",
    type: "bytes",
    default: "512MiB",
    unit: "bytes",
    min: 67108864,
    help: "What the query engine of one process may keep in memory; beyond it, it spills to the temporary directory.",
  } as Setting<number>,
} as const satisfies Record<string, Setting>;
