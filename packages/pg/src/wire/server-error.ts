/**
 * Errors and notices as the server sends them, and what a caller is to do about each SQLSTATE.
 * Source: https://www.postgresql.org/docs/current/protocol-error-fields.html and errcodes-appendix.html
 */
import { SpillwayError, type ErrorCode } from "@spillway/base/errors";

/** The fields of one ErrorResponse or NoticeResponse. */
export interface ServerMessage {
  readonly severity: string;
  readonly sqlstate: string;
  readonly message: string;
  readonly detail?: string;
  readonly hint?: string;
  readonly position?: string;
  readonly where?: string;
  readonly schema?: string;
  readonly table?: string;
  readonly column?: string;
  readonly constraint?: string;
  readonly routine?: string;
}

const FIELD: Record<string, Exclude<keyof ServerMessage, "severity">> = {
  C: "sqlstate",
  M: "message",
  D: "detail",
  H: "hint",
  P: "position",
  W: "where",
  s: "schema",
  t: "table",
  c: "column",
  n: "constraint",
  R: "routine",
};

/** Reads the fields between `start` and `end` (after the length word). */
export function parseServerMessage(buffer: Buffer, start: number, end: number): ServerMessage {
  const out: Record<string, string> = { severity: "ERROR", sqlstate: "XX000", message: "" };
  let at = start;
  while (at < end && buffer[at] !== 0) {
    const type = String.fromCharCode(buffer[at] ?? 0);
    const zero = buffer.indexOf(0, at + 1);
    const stop = zero < 0 || zero > end ? end : zero;
    const text = buffer.toString("utf8", at + 1, stop);
    // V is the severity that is never translated (9.6 and later); S comes first and may be.
    if (type === "V" || (type === "S" && out["severity"] === "ERROR")) out["severity"] = text;
    const name = FIELD[type];
    if (name !== undefined) out[name] = text;
    at = stop + 1;
  }
  return out as unknown as ServerMessage;
}

const CODE_OF_SQLSTATE: Readonly<Record<string, ErrorCode>> = {
  "25006": "pg_read_only",
  "25P03": "pg_connection_lost",
  "3D000": "pg_database_missing",
  "42501": "pg_permission_denied",
  "53300": "pg_too_many_connections",
  "55006": "pg_slot_active",
  "55P03": "pg_lock_timeout",
  "57014": "pg_canceled",
};

/** Which code of the catalogue a SQLSTATE belongs to. */
export function codeOfSqlstate(sqlstate: string): ErrorCode {
  const exact = CODE_OF_SQLSTATE[sqlstate];
  if (exact !== undefined) return exact;
  if (sqlstate.startsWith("28")) return "pg_auth_failed";
  if (sqlstate.startsWith("08") || sqlstate.startsWith("57P")) return "pg_connection_lost";
  if (sqlstate.startsWith("40") || sqlstate.startsWith("53")) return "pg_transient";
  return "pg_error";
}

/**
 * The server's error as ours. DETAIL and CONTEXT stay out of the facts that are logged: they quote row values.
 * `details` has sqlstate and severity, and hint, schema, table, column, constraint, routine where given.
 */
export function serverError(fields: ServerMessage, doing?: string): SpillwayError {
  const details: Record<string, string> = { sqlstate: fields.sqlstate, severity: fields.severity };
  for (const key of ["hint", "schema", "table", "column", "constraint", "routine", "position"] as const) {
    const value = fields[key];
    if (value !== undefined) details[key] = value;
  }
  const text = `${fields.message} (SQLSTATE ${fields.sqlstate})`;
  const options = fields.hint === undefined ? { details } : { details, remedy: fields.hint };
  return new SpillwayError(codeOfSqlstate(fields.sqlstate), doing === undefined ? text : `${doing}: ${text}`, options);
}

/** The SQLSTATE of an error made by `serverError`, or null. */
export function sqlstateOf(error: unknown): string | null {
  if (!(error instanceof SpillwayError)) return null;
  const value = error.details["sqlstate"];
  return typeof value === "string" ? value : null;
}
