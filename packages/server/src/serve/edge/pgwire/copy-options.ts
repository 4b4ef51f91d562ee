/** COPY's options, checked as Postgres checks them. Source: https://www.postgresql.org/docs/current/sql-copy.html */
import { optionsOf } from "./sql-tree.ts";
import { pgError } from "./wire-errors.ts";

export interface CopyOptions {
  readonly format: "text" | "csv" | "binary";
  readonly delimiter: string;
  readonly nullText: string;
  /** First line: of names, names that must match, or none. */
  readonly header: "none" | "skip" | "match";
  readonly quote: string;
  readonly escape: string;
  /** All columns, or those named. */
  readonly forceQuote: "all" | ReadonlySet<string>;
  readonly forceNotNull: "all" | ReadonlySet<string>;
  readonly forceNull: "all" | ReadonlySet<string>;
}

const KNOWN = new Set([
  "format", "delimiter", "null", "header", "quote", "escape", "force_quote", "force_not_null", "force_null", "encoding", "freeze",
]); // prettier-ignore

export function copyOptions(list: unknown): CopyOptions {
  const options = optionsOf(list);
  for (const name of options.keys()) {
    if (!KNOWN.has(name)) throw pgError("42601", `option "${name}" not recognized`);
  }
  const format = String(options.get("format") ?? "text").toLowerCase();
  if (format !== "text" && format !== "csv" && format !== "binary") {
    throw pgError("22023", `COPY format "${format}" not recognized`);
  }
  const csv = format === "csv";
  checkEncoding(options.get("encoding"));
  for (const name of ["delimiter", "null", "header"]) {
    if (format === "binary" && options.has(name))
      throw pgError("42601", `cannot specify ${name.toUpperCase()} in BINARY mode`);
  }
  for (const name of ["quote", "escape", "force_quote", "force_not_null", "force_null"]) {
    if (!csv && options.has(name)) {
      throw pgError("0A000", `COPY ${name.replace(/_/g, " ")} available only in CSV mode`);
    }
  }
  const delimiter = oneByte("delimiter", options.get("delimiter") ?? (csv ? "," : "\t"));
  const quote = oneByte("quote", options.get("quote") ?? '"');
  if (csv && delimiter === quote) throw pgError("22023", "COPY delimiter and quote must be different");
  if (!csv && /[\\.a-z0-9]/.test(delimiter)) throw pgError("22023", `COPY delimiter cannot be "${delimiter}"`);
  if (/[\r\n]/.test(delimiter)) throw pgError("22023", "COPY delimiter cannot be newline or carriage return");
  const nullText = String(options.get("null") ?? (csv ? "" : "\\N"));
  if (/[\r\n]/.test(nullText)) throw pgError("22023", "COPY null representation cannot use newline or carriage return");
  return {
    format,
    delimiter,
    nullText,
    header: headerOf(options.get("header")),
    quote,
    escape: oneByte("escape", options.get("escape") ?? quote),
    forceQuote: namesOf(options.get("force_quote")),
    forceNotNull: namesOf(options.get("force_not_null")),
    forceNull: namesOf(options.get("force_null")),
  };
}

function oneByte(name: string, value: unknown): string {
  const text = String(value);
  if (Buffer.byteLength(text) !== 1) throw pgError("0A000", `COPY ${name} must be a single one-byte character`);
  return text;
}

function headerOf(value: unknown): CopyOptions["header"] {
  const text = String(value ?? "false").toLowerCase();
  if (text === "match") return "match";
  if (/^(true|on|1)$/.test(text)) return "skip";
  if (/^(false|off|0)$/.test(text)) return "none";
  throw pgError("42601", 'header requires a Boolean value or "match"');
}

function checkEncoding(value: unknown): void {
  if (value === undefined || /^(utf-?8|unicode)$/i.test(String(value))) return;
  throw pgError("0A000", `COPY in the encoding ${String(value)} is not served here; use UTF8`);
}

function namesOf(value: unknown): "all" | ReadonlySet<string> {
  if (value === undefined) return new Set();
  return value === "*" || value === true ? "all" : new Set((value as string[]).map(String));
}
