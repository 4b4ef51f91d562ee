import type { CodeEntry } from "../codes.ts";

export const MIRROR_CODES = {
  mirror_gap: {
    kind: "operator",
    cause: "changes that the slot does not send any more and the lake does not have",
    remedy: "Run `spillway resync`: it compares key ranges, copies what differs, and joins a new slot.",
  },
  mirror_timeline: {
    kind: "operator",
    cause:
      "a frontier on a timeline that this server has left: the lake has commits that were lost in a failover or restore",
    remedy: "Run `spillway resync`: it puts the lake back on this server's history, in one commit for each table.",
  },
  mirror_slot_lost: {
    kind: "operator",
    cause: "a replication slot that is gone or was invalidated",
    remedy:
      "Run `spillway resync`. To keep it from happening: run a standby worker, or raise max_slot_wal_keep_size (its price is disk).",
  },
  mirror_row_missing: {
    kind: "operator",
    cause: "a change of a row that the lake does not have",
    remedy: "Run `spillway resync --table ...`; the other tables go on.",
  },
  mirror_toast_missing: {
    kind: "operator",
    cause: "an update that leaves out a large value which is nowhere to be found",
    remedy: "Run `spillway resync --table ...`; the other tables go on.",
  },
  mirror_schema_ambiguous: {
    kind: "operator",
    cause: "columns that changed in a way which the change stream does not describe",
    remedy: "The worker copies the table again by itself; `spillway status` shows how far it is.",
  },
  mirror_identity_lost: {
    kind: "operator",
    cause: "a mirrored table without a usable replica identity",
    remedy: "Give it its primary key back, or REPLICA IDENTITY FULL; then run `spillway resync --table ...`.",
  },
  mirror_index_limit: {
    kind: "operator",
    cause: "a table whose key index does not fit into --mirror-index-memory",
    remedy: "Give the worker more (9 to 18 bytes a row), then run `spillway resync --table ...`.",
  },
  mirror_resync: {
    kind: "operator",
    cause: "a table that is being copied again because somebody asked for it",
    remedy: "Wait; `spillway status` shows how far it is.",
  },
  mirror_not_logical: {
    kind: "usage",
    cause: "a source that cannot be decoded",
    remedy:
      "Set wal_level = logical, leave room in max_replication_slots and max_wal_senders, and give the role REPLICATION.",
  },
  mirror_no_pump: {
    kind: "retry",
    cause: "no worker that answered in time",
    remedy: "Start `spillway run`, then try again.",
  },
} as const satisfies Record<string, CodeEntry>;
