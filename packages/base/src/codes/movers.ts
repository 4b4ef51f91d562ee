import type { CodeEntry } from "../codes.ts";

export const MOVER_CODES = {
  register_refused: {
    kind: "refused",
    cause: "a table that cannot be registered as it is; every reason is in the message",
    remedy: "Change what the message names; `--dry-run` checks again without changing anything.",
  },
  register_other_mode: {
    kind: "refused",
    cause: "a table that is registered with other options",
    remedy: "Unregister it first (its rows stay readable), then register it again with the new options.",
  },
  register_option_invalid: {
    kind: "usage",
    cause: "an option of `register` that does not fit the table or the mode",
    remedy: "See `spillway register --help`.",
  },
  unregister_unconfirmed: {
    kind: "refused",
    cause: "a lake table whose rows are nowhere else, to be dropped without --yes",
    remedy: "Leave out --drop-lake to keep the lake table, or give --yes to lose those rows.",
  },
  pins_live: {
    kind: "retry",
    cause: "readers that still use the lake table",
    remedy: "Wait until they have ended, or end them; their pins lapse by themselves when they are gone.",
  },
  table_gone: {
    kind: "operator",
    cause: "a registered table that was dropped from the source",
    remedy: "Run `spillway unregister` for it; the lake table stays unless --drop-lake is given.",
  },
  schema_change_unsupported: {
    kind: "operator",
    cause: "a change of a table's columns that the lake cannot follow",
    remedy: "Undo the change, or unregister the table and register it again.",
  },
  partition_unsupported: {
    kind: "operator",
    cause: "a partition that cannot be moved",
    remedy: "Change what the message names; the worker goes on by itself.",
  },
  partition_changed: {
    kind: "operator",
    cause: "a partition that was changed behind its capture after it went to the lake",
    remedy: "Compare it with the lake (`spillway verify`), then drop it or move its rows by hand; nothing was dropped.",
  },
  verify_failed: {
    kind: "operator",
    cause: "lake files that do not read back as what was written",
    remedy: "Check the store and the machine's memory; nothing was committed, and the partition is untouched.",
  },
  checksum_mismatch: {
    kind: "operator",
    cause: "a movement whose rows do not add up with the journaled checksum of their band",
    remedy: "Run `spillway verify --table ...`, which names what differs; nothing was changed.",
  },
  compaction_superseded: {
    kind: "conflict",
    cause: "data files that another movement removed while they were rewritten",
    remedy: "Nothing was changed; the next pass looks at the table anew.",
  },
  policy_invalid: {
    kind: "usage",
    cause: "a maintenance setting that does not exist, or a value that it cannot take",
    remedy: "`spillway policy --table ...` lists every setting with its value.",
  },
  restore_incomplete: {
    kind: "operator",
    cause: "a restored catalog that names lake files which are gone from the store",
    remedy: "Restore Postgres to a later point, or the files from the store's versions; the message names the tables.",
  },
  restore_not_needed: {
    kind: "refused",
    cause: "a restore decision for a lake that is this database's own already",
    remedy: "Nothing is to be done; the worker may run.",
  },
  premake_failed: {
    kind: "operator",
    cause: "a future partition that could not be made",
    remedy: "Make it by hand, or correct what the message names; rows meanwhile go to the landing.",
  },
  lake_table_taken: {
    kind: "refused",
    cause: "a lake table of that name, left by a former registration",
    remedy: "Run `spillway unregister --table ... --drop-lake --yes`, or rename the table.",
  },
  mover_busy: {
    kind: "retry",
    cause: "a movement of the same table that is under way",
    remedy: "Try again when it has ended; `spillway status` shows it.",
  },
} as const satisfies Record<string, CodeEntry>;
