import type { CodeEntry } from "../codes.ts";

export const CATALOG_CODES = {
  catalog_missing: {
    kind: "usage",
    cause: "a database without Spillway's catalog",
    remedy: "Run `spillway init` on it first.",
  },
  catalog_newer: {
    kind: "refused",
    cause: "a database whose catalog was made by a newer program",
    remedy: "Use the release of Spillway that migrated it, or a later one.",
  },
  catalog_changed: {
    kind: "operator",
    cause: "a catalog that was migrated by other statements than this program's",
    remedy: "Use the release of Spillway that made it; do not edit migrations.",
  },
  source_unsupported: {
    kind: "usage",
    cause: "a Postgres that is too old for Spillway",
    remedy: "Use Postgres 14 to 18.",
  },
  lake_not_ours: {
    kind: "refused",
    cause: "a lake that belongs to another database, or to this one before it was restored, cloned or forked",
    remedy: "Say which it is: `spillway restore adopt` takes the lake over, `spillway restore fork` starts a new one.",
  },
  lake_unclaimed: {
    kind: "retry",
    cause: "a server that was restarted, promoted or copied since a worker last claimed the lake for it",
    remedy:
      "Nothing was removed. A worker claims the lake once it has seen for `takeover-watch` that nobody else works with it.",
  },
  warehouse_mismatch: {
    kind: "usage",
    cause: "a warehouse setting other than the one that the database was set up with",
    remedy: "Use the location that the message names; a lake is moved with `spillway restore`.",
  },
  warehouse_taken: {
    kind: "refused",
    cause: "a warehouse that another database owns",
    remedy: "Choose another warehouse location for this database.",
  },
  commit_conflict: {
    kind: "conflict",
    cause: "a lake table that somebody else committed to first",
    remedy: "The commit is staged again on the new state and tried again.",
  },
  op_abandoned: {
    kind: "conflict",
    cause: "an operation that another worker abandoned",
    remedy: "Nothing was changed; the next pass starts it afresh.",
  },
  leader_lost: {
    kind: "conflict",
    cause: "a worker that is not the leader any more",
    remedy: "Nothing was changed; the new leader goes on.",
  },
  table_unknown: {
    kind: "usage",
    cause: "a table that does not exist, or is not registered",
    remedy: "Name it as schema.table; `spillway status` lists the registered ones.",
  },
} as const satisfies Record<string, CodeEntry>;
