import type { CodeEntry } from "../codes.ts";

export const LAKE_CODES = {
  store_unreachable: {
    kind: "retry",
    cause: "an object store that did not answer, or failed, within the retry budget",
    remedy: "Check the store's address, network and health; the same call may succeed later.",
  },
  store_not_found: {
    kind: "operator",
    cause: "an object that is not in the store",
    remedy: "Restore the object if something else removed it; only Spillway may remove lake files.",
  },
  store_bucket_missing: {
    kind: "operator",
    cause: "a bucket, or warehouse folder, that does not exist",
    remedy: "Create it, or correct the warehouse setting.",
  },
  store_denied: {
    kind: "operator",
    cause: "a store that refuses the credentials or the permission",
    remedy: "Give this program's user read, write, list and delete rights below the warehouse.",
  },
  store_precondition: {
    kind: "conflict",
    cause: "a conditional write to a place that is already taken",
    remedy: "Somebody else wrote the object first; re-read it before acting.",
  },
  store_outcome_unknown: {
    kind: "unknown",
    cause: "a conditional write whose answer was lost and whose effect could not be looked up",
    remedy: "Read the object to learn whether it was written, before acting.",
  },
  store_corrupt: {
    kind: "operator",
    cause: "an object whose bytes are not what they must be",
    remedy: "Restore the object from a copy; nothing else in the lake is affected.",
  },
  store_path_invalid: {
    kind: "usage",
    cause: "a location that this store cannot hold, or that leads outside its root",
    remedy: "Use an absolute path, file:///path or s3://bucket/key below the warehouse.",
  },
  disk_full: {
    kind: "operator",
    cause: "a full disk or an exhausted quota",
    remedy: "Free some space; nothing half-written was left behind, and the work goes on from where it was.",
  },
  cache_full: {
    kind: "refused",
    cause: "lake files that do not fit into the local cache at once",
    remedy: "Raise --cache-bytes, or read less at once.",
  },
  puffin_invalid: {
    kind: "operator",
    cause: "a Puffin file or deletion vector that breaks its format",
    remedy: "Restore the file from a copy, or rewrite the table with the engine that wrote it.",
  },
  deletes_invalid: {
    kind: "operator",
    cause: "a position delete file that breaks its format",
    remedy: "Restore the file from a copy, or rewrite the table with the engine that wrote it.",
  },
  equality_deletes_unsupported: {
    kind: "refused",
    cause: "equality deletes, which apply to files of the scan and which this program does not read",
    remedy: "Compact the table with the engine that wrote them, or let it write position deletes.",
  },
  lake_snapshot_unknown: {
    kind: "usage",
    cause: "a snapshot, branch or tag that the table does not have",
    remedy: "Name one that `status` lists; expired snapshots cannot be read.",
  },
  lake_expression_invalid: {
    kind: "usage",
    cause: "a filter that does not fit the table's schema",
    remedy: "Compare columns of the table with values of their own type.",
  },
  lake_format_unsupported: {
    kind: "refused",
    cause: "an Iceberg table or file that uses a feature which Spillway does not read or write",
    remedy: "Use format version 2 or 3 and the types of the type table.",
  },
  lake_metadata_invalid: {
    kind: "operator",
    cause: "Iceberg table metadata that breaks the format's rules",
    remedy: "Restore the metadata file from the store's versions or from a backup; nothing was changed.",
  },
  lake_file_corrupt: {
    kind: "operator",
    cause: "a manifest, manifest list or other lake file that cannot be read as what it should be",
    remedy: "Restore the file that the message names from the store's versions or from a backup.",
  },
  lake_value_invalid: {
    kind: "refused",
    cause: "a value that its Iceberg type cannot hold",
    remedy: "Correct the value, or widen the column.",
  },
  lake_schema_change_refused: {
    kind: "refused",
    cause: "a change of the schema or partitioning that Iceberg cannot express without rewriting rows",
    remedy: "Choose a change that is allowed (add, drop, rename, widen, make nullable), or copy the table anew.",
  },
  lake_update_invalid: {
    kind: "refused",
    cause: "a table update that cannot be applied to the table's metadata",
    remedy: "Load the table again and build the update on what it says now.",
  },
  lake_commit_conflict: {
    kind: "conflict",
    cause: "a commit whose requirements no longer hold: somebody else committed first",
    remedy: "Load the table again, then repeat the change on top of it.",
  },
} as const satisfies Record<string, CodeEntry>;
