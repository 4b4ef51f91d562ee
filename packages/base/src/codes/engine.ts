import type { CodeEntry } from "../codes.ts";

export const ENGINE_CODES = {
  engine_sql_error: {
    kind: "usage",
    cause: "a statement that the query engine refused",
    remedy: "Correct what the message names; queries are written in DuckDB's SQL.",
  },
  engine_out_of_memory: {
    kind: "refused",
    cause: "a statement that needs more memory than the engine may use",
    remedy: "Raise --engine-memory, read less at once, or give the engine a larger temporary directory.",
  },
  engine_interrupted: {
    kind: "retry",
    cause: "a statement that was interrupted",
    remedy: "Run it again; raise the timeout if the work is really that long.",
  },
  engine_file_missing: {
    kind: "operator",
    cause: "a lake file that the snapshot names and the store does not have",
    remedy: "Restore the file from a copy; only Spillway may remove lake files. `verify` names what is affected.",
  },
  engine_file_corrupt: {
    kind: "operator",
    cause: "a lake file that cannot be read as what it must be",
    remedy: "Restore the file from a copy; `verify` names what is affected.",
  },
  engine_failed: {
    kind: "operator",
    cause: "a failure inside the query engine",
    remedy: "Run the statement again; if it fails again, report it with the log.",
  },
  arrow_invalid: {
    kind: "usage",
    cause: "an Arrow message that cannot be read",
    remedy: "Correct the client; the message names what is wrong.",
  },
  arrow_unsupported: {
    kind: "usage",
    cause: "Arrow data in a form that is not taken",
    remedy: "Send plain columns without compression or dictionaries; cast the column that the message names.",
  },
  engine_value_refused: {
    kind: "operator",
    cause: "a value that the lake's column type cannot hold",
    remedy: "Correct the value that the message describes.",
  },
} as const satisfies Record<string, CodeEntry>;
