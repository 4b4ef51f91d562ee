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
} as const satisfies Record<string, CodeEntry>;
