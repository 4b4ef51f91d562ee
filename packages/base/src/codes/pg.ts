import type { CodeEntry } from "../codes.ts";

export const PG_CODES = {
  pg_bad_name: {
    kind: "usage",
    cause: "a name or a text that Postgres cannot hold",
    remedy: "Use a name that is not empty and has no NUL character.",
  },
  pg_conninfo_invalid: {
    kind: "usage",
    cause: "a connection string that cannot be understood",
    remedy: "Give a libpq URL (postgres://user@host:5432/db) or key=value string (host=… dbname=…).",
  },
  pg_unreachable: {
    kind: "retry",
    cause: "no host of the connection string could be reached",
    remedy: "Check that Postgres runs at that address and that nothing on the way refuses the connection.",
  },
  pg_no_primary: {
    kind: "retry",
    cause: "hosts that answer, none of which is what target_session_attrs asks for",
    remedy: "Wait for the failover to end, or add the other servers' hosts to the connection string.",
  },
  pg_auth_failed: {
    kind: "operator",
    cause: "a user or password that Postgres refuses",
    remedy: "Check the user, the password and the server's pg_hba.conf.",
  },
  pg_tls_failed: {
    kind: "operator",
    cause: "an encrypted connection that could not be made or verified",
    remedy: "Check sslmode, sslrootcert and the server's certificate.",
  },
  pg_database_missing: {
    kind: "operator",
    cause: "a database that does not exist",
    remedy: "Create the database, or correct its name in the connection string.",
  },
  pg_permission_denied: {
    kind: "operator",
    cause: "a privilege that the role does not have",
    remedy: "Grant the privilege that the message names to the role of the connection string.",
  },
  pg_connection_lost: {
    kind: "retry",
    cause: "a connection that ended while it was in use",
    remedy: "Try again; the connection is made anew, to the primary of that moment.",
  },
  pg_commit_unknown: {
    kind: "unknown",
    cause: "a connection that ended between COMMIT and its answer",
    remedy: "Look whether the change is there before doing it again.",
  },
  pg_read_only: {
    kind: "retry",
    cause: "a server that takes no writes, as a standby does",
    remedy: "Wait for the failover to end, or use target_session_attrs=read-write with every server's host.",
  },
  pg_transient: {
    kind: "retry",
    cause: "a conflict with other transactions, or a resource that is used up for the moment",
    remedy: "Try again.",
  },
  pg_lock_timeout: {
    kind: "retry",
    cause: "a lock that was not granted in time",
    remedy: "Try again when the transactions that hold the lock have ended.",
  },
  pg_canceled: {
    kind: "retry",
    cause: "a statement that was canceled, or ran into its timeout",
    remedy: "Try again; raise statement_timeout if the work is really that long.",
  },
  pg_too_many_connections: {
    kind: "retry",
    cause: "a server whose connections are all taken",
    remedy: "Raise max_connections, or lower the pools of its clients.",
  },
  pg_pool_timeout: {
    kind: "retry",
    cause: "a pool whose connections were all busy for too long",
    remedy: "Try again; raise the pool's size if this goes on.",
  },
  pg_slot_active: {
    kind: "retry",
    cause: "a replication slot that another process uses",
    remedy: "Wait until that process has let go of the slot, or end it.",
  },
  pg_slot_invalid: {
    kind: "operator",
    cause: "a replication slot that is missing or was invalidated",
    remedy: "Create the slot again and resynchronize the tables that it fed.",
  },
  pg_value_unrepresentable: {
    kind: "operator",
    cause: "a value that the column's type in the lake cannot hold",
    remedy: "Correct the value, or change the column's type to one that holds it.",
  },
  pg_type_mismatch: {
    kind: "operator",
    cause: "a column whose values do not have the form that was planned for it",
    remedy: "Read the table's columns again; its type may have changed meanwhile.",
  },
  pg_protocol_error: {
    kind: "operator",
    cause: "bytes that are not the Postgres protocol",
    remedy: "Check that the address is that of a Postgres server, and no proxy changes what passes.",
  },
  pg_error: {
    kind: "operator",
    cause: "an error of Postgres that has no code of its own here",
    remedy: "The message and its SQLSTATE say what Postgres objects to.",
  },
} as const satisfies Record<string, CodeEntry>;
