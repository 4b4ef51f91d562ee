/** The parameters of a session: what SET, SHOW, RESET and the start-up know. */
import { SpillwayError } from "@spillway/base/errors";

interface Parameter {
  readonly name: string;
  readonly value: string;
  readonly fixed?: boolean;
  /** The value as it is kept. Throws nothing; null: not a value of it. */
  readonly parse?: (text: string) => string | null;
}

const bool = (text: string): string | null =>
  /^(on|true|yes|1|t|y)$/i.test(text) ? "on" : /^(off|false|no|0|f|n)$/i.test(text) ? "off" : null;
const integer = (text: string): string | null => (/^-?\d+$/.test(text.trim()) ? text.trim() : null);
const oneOf =
  (...values: readonly string[]) =>
  (text: string): string | null =>
    values.find((v) => v.toLowerCase() === text.toLowerCase()) ?? null;

/** Known ones. Others are accepted with a dot in their name (`app.user`), as Postgres does. */
const PARAMETERS: readonly Parameter[] = [
  { name: "search_path", value: "public" },
  { name: "TimeZone", value: "UTC", parse: timeZone },
  { name: "application_name", value: "" },
  { name: "client_encoding", value: "UTF8", parse: (t) => (/^utf-?8$|^unicode$/i.test(t) ? "UTF8" : null) },
  { name: "client_min_messages", value: "notice" },
  { name: "DateStyle", value: "ISO, MDY", parse: (t) => (/^iso\b/i.test(t) ? "ISO, MDY" : null) },
  { name: "IntervalStyle", value: "postgres", parse: oneOf("postgres") },
  { name: "bytea_output", value: "hex", parse: oneOf("hex", "escape") },
  { name: "extra_float_digits", value: "1", parse: integer },
  { name: "statement_timeout", value: "0", parse: duration },
  { name: "lock_timeout", value: "0", parse: duration },
  { name: "idle_in_transaction_session_timeout", value: "0", parse: duration },
  { name: "standard_conforming_strings", value: "on", parse: (t) => (bool(t) === "on" ? "on" : null) },
  { name: "default_transaction_isolation", value: "repeatable read", parse: isolation },
  { name: "default_transaction_read_only", value: "off", parse: bool },
  { name: "transaction_isolation", value: "repeatable read", parse: isolation },
  { name: "transaction_read_only", value: "off", parse: bool },
  { name: "session_authorization", value: "", fixed: true },
  { name: "is_superuser", value: "off", fixed: true },
  { name: "server_encoding", value: "UTF8", fixed: true },
  { name: "server_version", value: "15.0", fixed: true },
  { name: "server_version_num", value: "150000", fixed: true },
  { name: "integer_datetimes", value: "on", fixed: true },
  { name: "in_hot_standby", value: "off", fixed: true },
  { name: "max_identifier_length", value: "63", fixed: true },
];
const BY_NAME = new Map(PARAMETERS.map((p) => [p.name.toLowerCase(), p]));
/** Of names with a dot. */
const MAX_CUSTOM = 100;

function timeZone(text: string): string | null {
  if (/^(local|default|z)$/i.test(text)) return "UTC";
  try {
    return new Intl.DateTimeFormat("en", { timeZone: text }).resolvedOptions().timeZone === "" ? null : text;
  } catch {
    return null;
  }
}

function isolation(text: string): string | null {
  return oneOf("read committed", "read uncommitted", "repeatable read", "serializable")(text);
}

const UNITS: Readonly<Record<string, number>> = { ms: 1, s: 1000, min: 60_000, h: 3_600_000, d: 86_400_000 };

/** Milliseconds, of a number or of a text with a unit. */
function duration(text: string): string | null {
  const match = /^\s*(\d+(?:\.\d+)?)\s*(ms|s|min|h|d)?\s*$/.exec(text);
  return match ? String(Math.round(Number(match[1]) * (UNITS[match[2] ?? "ms"] ?? 1))) : null;
}

export class SessionParameters {
  readonly #initial: ReadonlyMap<string, string>;
  #values: Map<string, string>;
  /** As they were at BEGIN; ROLLBACK gives them back. */
  #before: Map<string, string> | null = null;
  /** Of SET LOCAL: what COMMIT gives back. */
  readonly #local = new Map<string, string | undefined>();

  constructor(start: Readonly<Record<string, string>>) {
    const values = new Map(PARAMETERS.map((p) => [p.name.toLowerCase(), p.value]));
    for (const [name, value] of Object.entries(start)) {
      const known = BY_NAME.get(name.toLowerCase());
      const parsed = known?.parse ? known.parse(value) : value;
      if (parsed !== null) values.set(name.toLowerCase(), parsed);
    }
    this.#initial = values;
    this.#values = new Map(values);
  }

  get(name: string): string | null {
    return this.#values.get(name.toLowerCase()) ?? null;
  }

  /** Name and value of each, for SHOW ALL. */
  all(): readonly (readonly [string, string])[] {
    return [...this.#values].map(([key, value]) => [BY_NAME.get(key)?.name ?? key, value] as const).toSorted();
  }

  /** The name as it is shown. Throws `session_parameter`. */
  nameOf(name: string): string {
    const key = name.toLowerCase();
    if (!this.#values.has(key)) throw unknown(name);
    return BY_NAME.get(key)?.name ?? key;
  }

  /** Throws `session_parameter`. */
  set(name: string, text: string | null, isLocal: boolean): void {
    const key = name.toLowerCase();
    const known = BY_NAME.get(key);
    if (!known && !key.includes(".")) throw unknown(name);
    if (known?.fixed) {
      throw new SpillwayError("session_parameter", `parameter "${name}" cannot be changed`, {
        details: { sqlstate: "55P02" },
      });
    }
    const value = text === null ? (this.#initial.get(key) ?? "") : known?.parse ? known.parse(text) : text;
    if (value === null) {
      throw new SpillwayError("session_parameter", `invalid value for parameter "${name}": ${JSON.stringify(text)}`, {
        details: { sqlstate: "22023" },
      });
    }
    if (!known && !this.#values.has(key) && this.#values.size > PARAMETERS.length + MAX_CUSTOM) {
      throw new SpillwayError("session_parameter", "The session has too many parameters of its own.", {
        details: { sqlstate: "53400" },
      });
    }
    if (isLocal && !this.#local.has(key)) this.#local.set(key, this.#values.get(key));
    this.#values.set(key, value);
  }

  resetAll(): void {
    this.#values = new Map(this.#initial);
  }

  begin(): void {
    this.#before = new Map(this.#values);
    this.#local.clear();
  }

  end(outcome: "commit" | "rollback"): void {
    if (outcome === "rollback" && this.#before) this.#values = this.#before;
    else {
      for (const [key, value] of this.#local) {
        if (value === undefined) this.#values.delete(key);
        else this.#values.set(key, value);
      }
    }
    this.#before = null;
    this.#local.clear();
  }

  /** Schemas, in order. `"$user"` is no schema of ours. */
  searchPath(): string[] {
    const text = this.get("search_path") ?? "";
    const parts = text.match(/"(?:[^"]|"")*"|[^,]+/g) ?? [];
    return parts
      .map((p) => p.trim())
      .map((p) => (p.startsWith('"') ? p.slice(1, -1).replaceAll('""', '"') : p.toLowerCase()))
      .filter((p) => p !== "" && p !== "$user");
  }
}

function unknown(name: string): SpillwayError {
  return new SpillwayError("session_parameter", `unrecognized configuration parameter "${name}"`, {
    details: { sqlstate: "42704" },
  });
}
