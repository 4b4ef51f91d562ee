import type { CodeEntry } from "../codes.ts";

export const PGWIRE_CODES = {
  serve_exposed: {
    kind: "usage",
    cause: "a listener outside loopback without TLS",
    remedy: "Give it a certificate and a key, or listen on 127.0.0.1.",
  },
  client_gone: {
    kind: "retry",
    cause: "a client that closed its connection, or stopped reading, while its statement ran",
    remedy: "Connect again; what was not committed was rolled back.",
  },
  statement_refused: {
    kind: "refused",
    cause: "a statement that the Postgres wire answers with an error of Postgres",
    remedy: "The SQLSTATE and the message say what is wrong with the statement.",
  },
  passthrough_denied: {
    kind: "refused",
    cause: "a statement that would reach past the database: server files, programs, DO, another role",
    remedy: "Run it on the source itself, as a role that may.",
  },
  transaction_spans_tiers: {
    kind: "refused",
    cause: "a transaction that writes both to plain tables of the source and to tables across the tiers",
    remedy: "Write to the two in transactions of their own.",
  },
} as const satisfies Record<string, CodeEntry>;
