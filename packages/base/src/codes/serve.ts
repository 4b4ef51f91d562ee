import type { CodeEntry } from "../codes.ts";

export const SERVE_CODES = {
  warehouse_unknown: {
    kind: "usage",
    cause: "a warehouse or prefix that the catalog endpoint does not have",
    remedy: "Leave the warehouse out, or give the location that `spillway config` shows.",
  },
  catalog_exposed: {
    kind: "usage",
    cause: "a catalog endpoint outside loopback without a token or without TLS",
    remedy: "Give --token-file, --tls-cert and --tls-key, or listen on 127.0.0.1.",
  },
  catalog_listen_failed: {
    kind: "operator",
    cause: "an address that the catalog endpoint cannot listen on",
    remedy: "Give another one with --listen, or end what uses it.",
  },
  foreign_commit_invalid: {
    kind: "usage",
    cause: "a commit by an external engine that cannot be understood",
    remedy: "Correct the client; the message names what is wrong.",
  },
  foreign_replace_refused: {
    kind: "refused",
    cause: "a `replace` commit by an external engine that breaks a rule",
    remedy:
      "A replace may exchange data files for others with exactly the same live rows, in a table that allows it (`spillway policy --table NAME --set allow_foreign_replace=true`); nothing was changed.",
  },
  flight_request_invalid: {
    kind: "usage",
    cause: "a Flight request whose bytes or fields cannot be understood",
    remedy: "Use a client of Arrow Flight SQL; the message names what is wrong.",
  },
  flight_unsupported: {
    kind: "usage",
    cause: "a Flight command, action or type that is not offered",
    remedy: "See docs/guides/flight.md for what is; GetSqlInfo says it to programs.",
  },
  flight_handle_invalid: {
    kind: "refused",
    cause: "a handle, ticket or transaction that was not made here, is another user's, or is over",
    remedy: "Prepare the statement, or begin the transaction, again.",
  },
  flight_schema_changed: {
    kind: "retry",
    cause: "a statement whose columns changed between its planning and its run",
    remedy: "Plan it again: GetFlightInfo gives the new schema.",
  },
  flight_busy: {
    kind: "retry",
    cause: "too many statements at a time on one connection, or too many connections",
    remedy: "Read results to their end, or close them; then try again.",
  },
  serve_listen_failed: {
    kind: "operator",
    cause: "an address that a listener of the manager cannot use",
    remedy: "Give another one, or end what uses it.",
  },
} as const satisfies Record<string, CodeEntry>;
