import type { CodeEntry } from "../codes.ts";

export const SEAM_CODES = {
  pin_lost: {
    kind: "retry",
    cause: "a read whose claim on the lake's files ran out before it could be renewed",
    remedy: "Run it again; raise --pin-ttl if Postgres is often out of reach for that long.",
  },
  sql_syntax: {
    kind: "usage",
    cause: "a statement that cannot be parsed",
    remedy: "Correct it; queries are written in DuckDB's SQL.",
  },
  sql_unsupported: {
    kind: "usage",
    cause: "a statement of a kind that is not run over both tiers",
    remedy: "Give one SELECT, INSERT, UPDATE or DELETE; everything else is for psql.",
  },
  table_ambiguous: {
    kind: "usage",
    cause: "a name that fits several tables which differ only in upper and lower case",
    remedy: "Write the name exactly as the table has it, in double quotes.",
  },
  relation_not_readable: {
    kind: "refused",
    cause: "a relation that cannot be read across the tiers",
    remedy: "Query the registered table itself.",
  },
  seam_columns_changed: {
    kind: "retry",
    cause: "a column whose type was changed and that the lake cannot be read as",
    remedy: "Wait until the worker has followed the change; `spillway status` says why if it cannot.",
  },
  seam_moving: {
    kind: "retry",
    cause: "tables that were renamed or replaced again and again while a read tried to open them",
    remedy: "Run it again.",
  },
  as_of_unsupported: {
    kind: "usage",
    cause: "a time-travel clause on a table that has no lake, or of a form that is not understood",
    remedy: "Use AT (VERSION => snapshot id) or AT (TIMESTAMP => time) on a registered table.",
  },
  as_of_lsn_ahead: {
    kind: "retry",
    cause: "a read as of a WAL position that the mirror has not reached",
    remedy: "Wait until F in `spillway status` has passed it, or give an earlier position.",
  },
  as_of_lsn_gone: {
    kind: "refused",
    cause: "a read as of a WAL position whose snapshot was thinned out, has expired, or is older than the table's copy",
    remedy: "Give one of the positions that the message names: all are kept for ten minutes, then one a minute.",
  },
} as const satisfies Record<string, CodeEntry>;
