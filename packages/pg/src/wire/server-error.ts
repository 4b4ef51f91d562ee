/**
 * Errors and notices as the server sends them.
 * Source: https://www.postgresql.org/docs/current/protocol-error-fields.html
 */
import { SpillwayError } from "@spillway/base/errors";
import { codeOfSqlstate } from "../pg-error.ts";

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
