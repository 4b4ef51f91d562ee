import type { CodeEntry } from "../codes.ts";

/** The control plane, authentication and access. */
export const CONTROL_CODES = {
  control_invalid: {
    kind: "usage",
    cause: "a field or value that an object of the control plane cannot have",
    remedy: "Correct it; the message names the field.",
  },
  control_not_found: {
    kind: "usage",
    cause: "an object of the control plane that does not exist",
    remedy:
      "Check its name; objects are written tenant, tenant/database, tenant/database/pool, tenant/role, tenant/group.",
  },
  control_exists: {
    kind: "conflict",
    cause: "an object of the control plane that exists already",
    remedy: "Change the one that is there, or choose another name.",
  },
  control_in_use: {
    kind: "refused",
    cause: "an object of the control plane that others depend on",
    remedy: "Delete what belongs to it first; a pool's nodes go when its counts are 0.",
  },
  control_forbidden: {
    kind: "refused",
    cause: "a change or a look at the control plane that the user may not make",
    remedy: "Ask an administrator of the tenant, or of the installation.",
  },
  control_unavailable: {
    kind: "retry",
    cause: "the control database cannot be reached",
    remedy: "Try again; queries of known users go on meanwhile, up to --auth-staleness.",
  },
  control_not_ready: {
    kind: "operator",
    cause: "a database that has no control plane, or one of another version",
    remedy: "Run `spillway serve` of this version once: it brings the control plane up to date.",
  },
  auth_failed: {
    kind: "refused",
    cause: "a user, password or token that is not accepted",
    remedy: "Check the name and the password; the audit says why, the answer does not.",
  },
  auth_locked: {
    kind: "refused",
    cause: "a user with too many failed logins in a row",
    remedy: "Wait for the time that the message gives, or let an administrator set a new password.",
  },
  auth_expired: {
    kind: "refused",
    cause: "a session or token that is over or was revoked",
    remedy: "Log in again.",
  },
  auth_busy: {
    kind: "retry",
    cause: "too many logins at a time",
    remedy: "Try again in a moment.",
  },
  auth_provider_unavailable: {
    kind: "retry",
    cause: "an identity provider whose keys cannot be fetched",
    remedy: "Try again; logins by password and personal access token go on meanwhile.",
  },
  access_denied: {
    kind: "refused",
    cause: "a table, column or pool that the user's roles do not grant",
    remedy: "Ask an administrator for a grant; `spillway grant list` shows those that exist.",
  },
  access_statement_refused: {
    kind: "refused",
    cause: "a kind of statement that is not run for clients",
    remedy: "See docs/guides/access.md for the statements that are.",
  },
  access_function_refused: {
    kind: "refused",
    cause: "a function, table function or type that is not on the list of those that clients may use",
    remedy:
      "See docs/guides/access.md for the list; functions that read files, settings or other sessions are never on it.",
  },
  access_setting_refused: {
    kind: "refused",
    cause: "a setting that clients may not read or change",
    remedy: "See docs/guides/access.md for those that they may.",
  },
  access_policy_invalid: {
    kind: "usage",
    cause: "a row or column policy whose expression cannot be used",
    remedy:
      "Write one scalar expression of DuckDB's SQL over the table's columns, with functions that clients may use and without subqueries.",
  },
  manifest_invalid: {
    kind: "usage",
    cause: "a manifest that cannot be understood",
    remedy: "Compare it with what `spillway export` prints.",
  },
  audit_unavailable: {
    kind: "retry",
    cause: "a write that must be audited while neither the control database nor the local spool can take the record",
    remedy: "Try again when the control database is back; reads go on.",
  },
} as const satisfies Record<string, CodeEntry>;
