/**
 * Errors as clients of Postgres read them: a severity, a SQLSTATE that their code decides on, a message, and where known the
 * position in the statement. The stable code of the product stands in the detail.
 * Sources: https://www.postgresql.org/docs/current/protocol-error-fields.html, errcodes-appendix.html
 */
import { BugError, type ErrorCode, messageOf, oneLine, SpillwayError } from "@spillway/base/errors";
import type { OutBuffer } from "./out-buffer.ts";

export interface WireError {
  readonly severity: "ERROR" | "FATAL";
  readonly sqlstate: string;
  readonly message: string;
  readonly detail?: string | undefined;
  readonly hint?: string | undefined;
  /** In characters, from 1. */
  readonly position?: number | undefined;
  readonly schema?: string | undefined;
  readonly table?: string | undefined;
  readonly column?: string | undefined;
  readonly constraint?: string | undefined;
}

/** For codes whose error carries no SQLSTATE of its own. */
const SQLSTATE_OF: Partial<Record<ErrorCode, string>> = {
  deadline_exceeded: "57014",
  disk_full: "53100",
  engine_file_missing: "58P01",
  engine_interrupted: "57014",
  engine_out_of_memory: "53200",
  engine_sql_error: "42000",
  interrupted: "57014",
  limit_exceeded: "54000",
  pg_auth_failed: "28P01",
  pg_canceled: "57014",
  pg_commit_unknown: "08007",
  pg_connection_lost: "08006",
  pg_database_missing: "3D000",
  pg_lock_timeout: "55P03",
  pg_permission_denied: "42501",
  pg_protocol_error: "08P01",
  pg_read_only: "25006",
  pg_too_many_connections: "53300",
  pg_pool_timeout: "53300",
  pg_unreachable: "08001",
  sql_syntax: "42601",
  sql_unsupported: "0A000",
  table_ambiguous: "42P09",
  as_of_unsupported: "0A000",
};
const SQLSTATE_OF_KIND: Record<SpillwayError["kind"], string> = {
  usage: "42000",
  refused: "42501",
  retry: "57P03",
  conflict: "40001",
  unknown: "08007",
  operator: "58000",
};

/** DuckDB's errors by what their text begins with. */
const ENGINE_STATES: readonly (readonly [RegExp, string])[] = [
  [/^Parser Error/i, "42601"],
  [/^Catalog Error: (Table|View)[^!]*does not exist/i, "42P01"],
  [/^Catalog Error: (Scalar|Aggregate|Table)? ?Function/i, "42883"],
  [/^Catalog Error: Type/i, "42704"],
  [/^Catalog Error: Schema/i, "3F000"],
  [/^Catalog Error.*already exists/i, "42P07"],
  [/^Binder Error: Referenced column/i, "42703"],
  [/^Binder Error: Table .* not found/i, "42P01"],
  [/^Binder Error: column .* must appear in the GROUP BY/i, "42803"],
  [/^Binder Error: Ambiguous/i, "42702"],
  [/^Binder Error: No function matches/i, "42883"],
  [/^Binder Error/i, "42000"],
  [/Unimplemented type for cast/i, "42846"],
  [/^Conversion Error.*out of range/i, "22003"],
  [/^Conversion Error.*(date|timestamp|time) field/i, "22008"],
  [/^Conversion Error/i, "22P02"],
  [/^Out of Range Error/i, "22003"],
  [/division by zero/i, "22012"],
  [/^Constraint Error.*NOT NULL/i, "23502"],
  [/^Constraint Error.*(unique|primary key|duplicate)/i, "23505"],
  [/^Constraint Error/i, "23000"],
  [/^Invalid Input Error: (Scalar subquery|More than one row)/i, "21000"],
  [/^Invalid Input Error/i, "22023"],
  [/^Not implemented Error/i, "0A000"],
  [/^Permission Error/i, "42501"],
];

const PLAIN: ReadonlySet<ErrorCode> = new Set([
  "statement_refused",
  "sql_syntax",
  "pg_protocol_error",
  "pg_auth_failed",
]);

/** Anything that was thrown. Bugs and unknown errors tell the client nothing but that they are. */
export function wireErrorOf(error: unknown, severity: "ERROR" | "FATAL" = "ERROR"): WireError {
  if (!(error instanceof SpillwayError)) {
    const known = error instanceof BugError || !(error instanceof Error);
    return {
      severity,
      sqlstate: "XX000",
      message: known ? "internal error" : `internal error: ${oneLine(messageOf(error))}`,
    };
  }
  const text = (key: string): string | undefined => {
    const value = error.details[key];
    return typeof value === "string" && value !== "" ? value : undefined;
  };
  // Postgres's own errors say it all; anything else is easier to look up by its code.
  const plain = PLAIN.has(error.code) || error.code.startsWith("pg_");
  const position = Number(error.details["position"] ?? Number.NaN);
  return {
    severity,
    sqlstate: text("sqlstate") ?? sqlstateOf(error),
    message: plainMessage(error),
    detail: text("detail") ?? (plain ? undefined : `Code ${error.code}.`),
    hint: text("hint") ?? (plain || error.remedy === "" ? undefined : error.remedy),
    position: Number.isSafeInteger(position) && position > 0 ? position : undefined,
    schema: text("schema"),
    table: text("table"),
    column: text("column"),
    constraint: text("constraint"),
  };
}

/** Without what is a field of its own here, and without DuckDB's excerpts and guesses. */
function plainMessage({ code, message }: SpillwayError): string {
  const text = message.replace(/ \(SQLSTATE [0-9A-Z]{5}\)$/, "");
  if (code !== "engine_sql_error") return text;
  return (text.split(/\s*LINE \d+: /)[0] ?? text)
    .replace(/\s*(Did you mean[^?]*\?|Candidate bindings:.*)/gs, "")
    .trim();
}

function sqlstateOf(error: SpillwayError): string {
  if (error.code === "engine_sql_error") {
    const state = ENGINE_STATES.find(([pattern]) => pattern.test(error.message))?.[1];
    if (state !== undefined) return state;
  }
  return SQLSTATE_OF[error.code] ?? SQLSTATE_OF_KIND[error.kind];
}

/** An error of this edge itself, with the words and the SQLSTATE of Postgres. */
export function pgError(
  sqlstate: string,
  message: string,
  details: Readonly<Record<string, unknown>> = {},
  code: ErrorCode = "statement_refused",
): SpillwayError {
  return new SpillwayError(code, message, { details: { sqlstate, ...details } });
}

/** ErrorResponse (`E`) or NoticeResponse (`N`). */
export function writeError(out: OutBuffer, error: WireError, type: "E" | "N" = "E", severity?: string): void {
  const shown = severity ?? error.severity;
  out.begin(type);
  const field = (name: string, value: string | number | undefined): void => {
    if (value !== undefined) out.byte(name.charCodeAt(0)).zeroed(String(value));
  };
  field("S", shown);
  field("V", shown);
  field("C", error.sqlstate);
  field("M", error.message);
  field("D", error.detail);
  field("H", error.hint);
  field("P", error.position);
  field("s", error.schema);
  field("t", error.table);
  field("c", error.column);
  field("n", error.constraint);
  out.byte(0).end();
}
