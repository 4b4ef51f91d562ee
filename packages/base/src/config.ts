/**
 * Configuration: every setting is flag > `SPILLWAY_*` variable > `spillway.yaml` > default.
 * A setting is declared once (in `settings/<area>.ts`); flags, variables, the file's schema, the
 * printed origins and the generated reference all come from that declaration.
 */
import { SpillwayError } from "./errors.ts";
import { redactUrls } from "./log.ts";

export type SettingType = "string" | "url" | "int" | "float" | "bool" | "duration" | "bytes" | "enum";

/** Durations resolve to milliseconds, bytes to bytes. */
export interface Setting<T = unknown> {
  /** kebab-case: `--campaign-interval`, `SPILLWAY_CAMPAIGN_INTERVAL`, `campaign-interval:` */
  readonly name: string;
  readonly type: SettingType;
  /** Text form, as a person would write it; null = unset. */
  readonly default: string | null;
  /** Unit of the resolved value, for the reference: `ms`, `bytes`, `rows`, … */
  readonly unit?: string;
  readonly help: string;
  readonly values?: readonly string[];
  readonly min?: number;
  readonly max?: number;
  readonly secret?: boolean;
  /** No flag: what is on a command line is seen by everybody on the machine. */
  readonly noFlag?: boolean;
  /** Only to carry T. */
  readonly _type?: T;
}

export type Origin = "flag" | "environment" | "file" | "default";

export interface Resolved {
  readonly setting: Setting;
  readonly value: unknown;
  readonly origin: Origin;
  /** Where exactly: the flag, the variable, or the file and key. */
  readonly source: string;
}

export interface ConfigSources {
  readonly flags: Readonly<Record<string, string | boolean | undefined>>;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** The parsed file (flat map of kebab-case keys), and its path for messages. */
  readonly file: Readonly<Record<string, unknown>> | null;
  readonly filePath: string | null;
}

export function envName(setting: Setting): string {
  return `SPILLWAY_${setting.name.toUpperCase().replaceAll("-", "_")}`;
}

/** Resolves one setting. Throws `config_invalid` that names the origin of a bad value. */
export function resolveSetting<T>(setting: Setting<T>, sources: ConfigSources): Resolved {
  const env = envName(setting);
  const candidates: [Origin, string, unknown][] = [
    ["flag", `--${setting.name}`, setting.noFlag ? undefined : sources.flags[setting.name]],
    ["environment", env, sources.env[env] === "" ? undefined : sources.env[env]],
    ["file", `${sources.filePath ?? "spillway.yaml"}: ${setting.name}`, sources.file?.[setting.name]],
  ];
  for (const [origin, source, raw] of candidates) {
    if (raw === undefined || raw === null) continue;
    return { setting, origin, source, value: parseSetting(setting, String(raw), source) };
  }
  const value = setting.default === null ? null : parseSetting(setting, setting.default, "default");
  return { setting, origin: "default", source: "default", value };
}

/** Refuses keys of the file that no setting has: a typing error there must not be silent. */
export function checkFileKeys(
  settings: readonly Setting[],
  file: Readonly<Record<string, unknown>>,
  path: string,
): void {
  const known = new Set(settings.map((s) => s.name));
  const unknown = Object.keys(file).filter((key) => !known.has(key));
  if (unknown.length > 0) {
    throw new SpillwayError("config_invalid", `${path} has unknown settings: ${unknown.join(", ")}`);
  }
}

export function parseSetting(setting: Setting, text: string, source: string): unknown {
  const bad = (why: string): never => {
    const shown = setting.secret ? "[redacted]" : redactUrls(text);
    throw new SpillwayError("config_invalid", `${source} is ${JSON.stringify(shown)}: ${why}`);
  };
  const number = (n: number | null, form: string): number => {
    if (n === null || !Number.isFinite(n)) return bad(`expected ${form}`);
    if (setting.min !== undefined && n < setting.min) return bad(`must be at least ${setting.min}`);
    if (setting.max !== undefined && n > setting.max) return bad(`must be at most ${setting.max}`);
    return n;
  };
  switch (setting.type) {
    case "int":
      return number(/^[+-]?\d+$/.test(text) ? Number(text) : null, "a whole number");
    case "float":
      return number(/^[+-]?\d+(\.\d+)?$/.test(text) ? Number(text) : null, "a number");
    case "duration":
      return number(parseDuration(text), "a duration such as 500ms, 2s, 5m, 12h or 7d");
    case "bytes":
      return number(parseBytes(text), "a size such as 512KiB, 64MiB or 1GiB");
    case "bool":
      if (/^(true|on|yes|1)$/i.test(text)) return true;
      if (/^(false|off|no|0)$/i.test(text)) return false;
      return bad("expected true or false");
    case "enum":
      return setting.values?.includes(text) ? text : bad(`expected one of ${setting.values?.join(", ")}`);
    case "url":
    case "string":
      return text;
  }
}

const DURATION_MS: Record<string, number> = { ms: 1, s: 1e3, m: 60e3, h: 3600e3, d: 86400e3, w: 604800e3 };

/** `90d`, `1h30m`, `250ms`; a bare `0` is zero. Returns milliseconds, or null when it cannot be read. */
export function parseDuration(text: string): number | null {
  if (text === "0") return 0;
  if (!/^(\d+(\.\d+)?(ms|s|m|h|d|w))+$/.test(text)) return null;
  let total = 0;
  for (const [, n, unit] of text.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h|d|w)/g))
    total += Number(n) * (DURATION_MS[unit ?? ""] ?? 0);
  return total;
}

const BYTE_UNITS: Record<string, number> = {
  "": 1,
  B: 1,
  kB: 1e3,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TiB: 2 ** 40,
};

/** `1GiB`, `512 MiB`, `100MB`, `4096`. Returns bytes, or null when it cannot be read. */
export function parseBytes(text: string): number | null {
  const match = /^(\d+(?:\.\d+)?)\s*([kKMGT]i?B|B|)$/.exec(text);
  if (!match) return null;
  const unit = BYTE_UNITS[match[2] ?? ""];
  return unit === undefined ? null : Math.round(Number(match[1]) * unit);
}
