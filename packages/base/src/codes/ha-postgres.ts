import type { CodeEntry } from "../codes.ts";

/** What can go wrong with the Postgres beside a keeper, and with the keeper itself. */
export const HA_POSTGRES_CODES = {
  ha_run_as_root: {
    kind: "usage",
    cause: "a keeper started as root, which Postgres refuses",
    remedy: "Run it as the user who owns the data directory, or give --user postgres to drop the privileges.",
  },
  ha_binaries_missing: {
    kind: "usage",
    cause: "no Postgres server programs where the keeper looked",
    remedy: "Install Postgres 14 to 18, or name the folder of initdb, pg_ctl and postgres with --pg-bin.",
  },
  ha_version_unsupported: {
    kind: "usage",
    cause: "a Postgres version that the keeper does not know",
    remedy: "Use Postgres 14 to 18.",
  },
  ha_version_mismatch: {
    kind: "operator",
    cause: "a data directory of another major version than the binaries",
    remedy: "Give --pg-bin of the data directory's version; an upgrade is a matter for pg_upgrade.",
  },
  ha_data_dir_in_use: {
    kind: "refused",
    cause: "a data directory that another Postgres or keeper is using",
    remedy: "Stop the other one first, or choose another --pgdata.",
  },
  ha_data_dir_invalid: {
    kind: "refused",
    cause: "a data directory that is neither empty nor a Postgres cluster",
    remedy: "Choose an empty folder, or a complete data directory of a stopped Postgres.",
  },
  ha_data_dir_permission: {
    kind: "operator",
    cause: "a folder that the keeper may not read or write",
    remedy: "Give it to the user who runs the keeper (chown), mode 0700.",
  },
  ha_port_taken: {
    kind: "operator",
    cause: "a TCP port on which something else listens",
    remedy: "Stop the other server, or choose another --pgport.",
  },
  ha_system_identifier_mismatch: {
    kind: "refused",
    cause: "a data directory of another cluster than the formation's",
    remedy: "Move the data directory away; the node is then made anew by a base backup.",
  },
  ha_rewind_missing: {
    kind: "operator",
    cause: "pg_rewind is not among the server programs",
    remedy: "Install it to rejoin faster; without it the node is made anew by a base backup.",
  },
  ha_rewind_failed: {
    kind: "retry",
    cause: "pg_rewind did not finish",
    remedy: "The keeper goes on with a base backup; the log has the program's own words.",
  },
  ha_base_backup_failed: {
    kind: "retry",
    cause: "a base backup did not finish",
    remedy: "The keeper tries again from the start; the data directory is not used until one has finished.",
  },
  ha_postgres_start_failed: {
    kind: "operator",
    cause: "Postgres did not start",
    remedy: "Read the server's log, which the message names.",
  },
  ha_postgres_stop_failed: {
    kind: "operator",
    cause: "Postgres did not stop in its time",
    remedy: "Look for processes in uninterruptible sleep (a dead disk), and end the host if there are any.",
  },
  ha_program_failed: {
    kind: "operator",
    cause: "one of Postgres's own programs failed",
    remedy: "The message has its words; correct what they name and run the command again.",
  },
  ha_sql_failed: {
    kind: "retry",
    cause: "the keeper's own connection to its Postgres failed",
    remedy: "It tries again at the next beat.",
  },
  ha_action_waiting: {
    kind: "retry",
    cause: "a transition whose condition does not hold yet",
    remedy: "It is tried again at the next beat; `spillway ha explain` says what it waits for.",
  },
  ha_fenced: {
    kind: "refused",
    cause: "a primary without a lease",
    remedy: "It starts again when the monitor, or every promotable standby, renews the lease.",
  },
  ha_keeper_state_invalid: {
    kind: "operator",
    cause: "a state file of the keeper that cannot be read",
    remedy: "Run `create postgres` again with the same --pgdata; it adopts the data directory.",
  },
  ha_keeper_running: {
    kind: "refused",
    cause: "a second keeper for the same data directory",
    remedy: "Stop the other one first.",
  },
  ha_unreachable: {
    kind: "retry",
    cause: "a monitor or a keeper that does not answer",
    remedy: "Check the address, the network, and that it runs.",
  },
  ha_monitor_refused: {
    kind: "refused",
    cause: "a monitor that says no",
    remedy: "Its own words are in the message.",
  },
  ha_not_recovered: {
    kind: "retry",
    cause: "a node that does not stream from its primary",
    remedy: "It tries again; when the WAL it needs is gone, a base backup follows by itself.",
  },
  ha_timeline_forked: {
    kind: "retry",
    cause: "a node with WAL that its primary never had",
    remedy: "The monitor sends it through a rewind, or a base backup.",
  },
  ha_disk_full: {
    kind: "operator",
    cause: "no space left for Postgres's files",
    remedy: "Free some space; the keeper then goes on by itself.",
  },
} as const satisfies Record<string, CodeEntry>;
