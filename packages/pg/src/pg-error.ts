/**
 * Errors of Postgres, of node-postgres and of the network as ours. The SQLSTATE decides; its table:
 * https://www.postgresql.org/docs/current/errcodes-appendix.html
 */
import { type ErrorCode, messageOf, SpillwayError } from "@spillway/base/errors";

/** SQLSTATEs, and classes of them (two characters), with the code of the catalogue; the longest match wins. */
const CODE_OF: Readonly<Record<string, ErrorCode>> = {
  "08": "pg_connection_lost",
  "08P01": "pg_protocol_error",
  "25006": "pg_read_only",
  "25P03": "pg_connection_lost",
  "25P04": "pg_connection_lost",
  "28": "pg_auth_failed",
  "3D000": "pg_database_missing",
  "40": "pg_transient",
  "40003": "pg_commit_unknown",
  "42501": "pg_permission_denied",
  "53": "pg_transient",
  "53100": "disk_full",
  "53300": "pg_too_many_connections",
  "55006": "pg_slot_active",
  "55P03": "pg_lock_timeout",
  "57014": "pg_canceled",
  "57P01": "pg_connection_lost",
  "57P02": "pg_connection_lost",
  "57P03": "pg_unreachable",
  "57P05": "pg_connection_lost",
};
const NETWORK_BEFORE = /^(ECONNREFUSED|ENOTFOUND|EAI_AGAIN|EHOSTUNREACH|ENETUNREACH|EADDRNOTAVAIL|ENOENT|EACCES)$/;
const NETWORK_DURING = /^(ECONNRESET|EPIPE|ETIMEDOUT|ECONNABORTED|ERR_STREAM_DESTROYED|ERR_STREAM_WRITE_AFTER_END)$/;
const TLS = /^(ERR_TLS|ERR_SSL|CERT_|SELF_SIGNED|DEPTH_ZERO|UNABLE_TO_|HOSTNAME_MISMATCH|ERR_OSSL|EPROTO)/;

/** Which code of the catalogue a SQLSTATE belongs to. */
export function codeOfSqlstate(sqlstate: string): ErrorCode {
  return CODE_OF[sqlstate] ?? CODE_OF[sqlstate.slice(0, 2)] ?? "pg_error";
}

/**
 * Anything that a query or a connection threw, as a SpillwayError; one that is one already comes back unchanged.
 * `doing` begins the message: what was tried. Facts: sqlstate, severity, and hint, schema, table, column, constraint where
 * given. DETAIL and CONTEXT are left out: they quote the rows' values.
 */
export function fromPgError(error: unknown, doing: string): SpillwayError {
  if (error instanceof SpillwayError) return error;
  const sqlstate = sqlstateOf(error);
  if (sqlstate === null) {
    const facts = { network: codeText(error) };
    return new SpillwayError(codeOfOther(error), `${doing}: ${messageOf(error)}`, { cause: error, details: facts });
  }
  const fields = error as Record<string, unknown>;
  const details: Record<string, unknown> = { sqlstate };
  for (const key of ["severity", "hint", "schema", "table", "column", "constraint"]) {
    if (typeof fields[key] === "string") details[key] = fields[key];
  }
  return new SpillwayError(codeOfSqlstate(sqlstate), `${doing}: ${messageOf(error)} (SQLSTATE ${sqlstate})`, {
    cause: error,
    details,
  });
}

/** The SQLSTATE of an error of node-postgres, of the replication connection, or of one of ours made from either. */
export function sqlstateOf(error: unknown): string | null {
  if (error instanceof SpillwayError) {
    const value = error.details["sqlstate"];
    return typeof value === "string" ? value : null;
  }
  const fields = error as { code?: unknown; severity?: unknown } | null;
  const isServers = typeof fields === "object" && fields !== null && typeof fields.severity === "string";
  return isServers && typeof fields.code === "string" && /^[0-9A-Z]{5}$/.test(fields.code) ? fields.code : null;
}

function codeText(error: unknown): string {
  const inner = error instanceof AggregateError ? (error.errors[0] as unknown) : error;
  const code = (inner as { code?: unknown } | null)?.code;
  return typeof code === "string" ? code : "";
}

function codeOfOther(error: unknown): ErrorCode {
  const code = codeText(error);
  if (NETWORK_BEFORE.test(code)) return "pg_unreachable";
  if (NETWORK_DURING.test(code)) return "pg_connection_lost";
  const text = messageOf(error);
  if (TLS.test(code) || /SSL connection/.test(text)) return "pg_tls_failed";
  if (/timeout expired|timeout exceeded when trying to connect/.test(text)) return "pg_unreachable";
  if (/Query read timeout/.test(text)) return "deadline_exceeded";
  if (/SASL|SCRAM|password must be/.test(text)) return "pg_auth_failed";
  if (/Connection terminated|not queryable|Client was closed/.test(text)) return "pg_connection_lost";
  return "pg_error";
}

/** True when the connection that threw this is of no more use. */
export function isConnectionError(error: unknown): boolean {
  const { code } = fromPgError(error, "");
  return (
    code === "pg_connection_lost" ||
    code === "pg_unreachable" ||
    code === "pg_commit_unknown" ||
    code === "pg_protocol_error"
  );
}

/** True for a serialization failure or a deadlock: the whole transaction may be run again. */
export function isSerializationError(error: unknown): boolean {
  return ["40001", "40P01"].includes(sqlstateOf(error) ?? "");
}
