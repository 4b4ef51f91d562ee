import type { CodeEntry } from "../codes.ts";

/** What a client's session, its pool and its nodes can answer. */
export const SERVE_SESSION_CODES = {
  transaction_failed: {
    kind: "refused",
    cause: "a statement in a transaction that has failed",
    remedy: "Send ROLLBACK, or ROLLBACK TO a savepoint, and begin again.",
  },
  transaction_conflict: {
    kind: "conflict",
    cause: "a transaction that collided with another one, or with a movement between the tiers",
    remedy: "Run the whole transaction again; nothing of it was applied.",
  },
  transaction_none: {
    kind: "usage",
    cause: "a savepoint outside of a transaction, or one that does not exist",
    remedy: "Send BEGIN first, and name a savepoint of this transaction.",
  },
  node_lost: {
    kind: "retry",
    cause: "a node that ended while it ran the statement",
    remedy: "Run it again if it is a read; look first whether a write was applied.",
  },
  node_lost_in_transaction: {
    kind: "conflict",
    cause: "a node that ended while it held the session's transaction",
    remedy: "Send ROLLBACK and run the whole transaction again; nothing of it was applied.",
  },
  node_refused: {
    kind: "operator",
    cause:
      "a node that may not be admitted: another version, a wrong token or generation, or settings that were not as they must be",
    remedy:
      "Use one version for manager and nodes; the message names both sides. A node that failed its checks is replaced.",
  },
  node_protocol: {
    kind: "operator",
    cause: "bytes between manager and node that cannot be understood",
    remedy: "Use one version for manager and nodes.",
  },
  no_node: {
    kind: "retry",
    cause: "a pool without a usable node of the role that the statement needs",
    remedy: "Wait until a node is ready, or give the pool nodes of that role; `spillway ps` shows them.",
  },
  no_pool: {
    kind: "usage",
    cause: "a database without a pool that the user may use",
    remedy: "Create one with `spillway pool create`, or ask for the permission.",
  },
  queue_full: {
    kind: "retry",
    cause: "a pool whose queue is full",
    remedy: "Send the statement again later, or give the pool more nodes.",
  },
  queue_timeout: {
    kind: "retry",
    cause: "a statement that waited in its pool's queue for as long as it may",
    remedy: "Send it again later, give the pool more nodes, or raise the pool's queue timeout.",
  },
  pool_draining: {
    kind: "retry",
    cause: "a statement for a manager or node that is being shut down",
    remedy: "Connect again; another manager or node answers.",
  },
  statement_timeout: {
    kind: "retry",
    cause: "a statement that ran longer than its timeout",
    remedy: "Read less at once, or raise the timeout (SET statement_timeout).",
  },
  statement_canceled: {
    kind: "retry",
    cause: "a statement that its client, or an administrator, canceled",
    remedy: "Run it again if it is still wanted.",
  },
  session_ended: {
    kind: "retry",
    cause: "a session that was closed",
    remedy: "Connect again.",
  },
  session_parameter: {
    kind: "usage",
    cause: "a parameter that a session does not have, or a value that it cannot take",
    remedy: "SHOW ALL lists the parameters.",
  },
} as const satisfies Record<string, CodeEntry>;
