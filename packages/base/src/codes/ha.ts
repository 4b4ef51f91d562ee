import type { CodeEntry } from "../codes.ts";

export const HA_CODES = {
  ha_bad_message: {
    kind: "usage",
    cause: "a message between keeper, monitor and command that does not have the agreed form",
    remedy: "Use the same release of spillway-ha on every node.",
  },
  ha_refused: {
    kind: "refused",
    cause: "a command that a rule of the formation forbids now",
    remedy: "`spillway-ha explain` says what the formation is waiting for.",
  },
  ha_not_found: {
    kind: "usage",
    cause: "a formation or a node that the monitor does not know",
    remedy: "`spillway-ha show state` lists what there is.",
  },
  ha_node_exists: {
    kind: "refused",
    cause: "a node that is registered already",
    remedy: "Choose another --name, or `spillway-ha drop node` the old one first.",
  },
  ha_major_mismatch: {
    kind: "refused",
    cause: "Postgres binaries of another major version than the formation's",
    remedy: "Use --pg-bin to name binaries of the formation's major version.",
  },
  ha_identifier_mismatch: {
    kind: "refused",
    cause: "a data directory that belongs to another cluster than the formation's",
    remedy: "Use an empty --pgdata, or register the node in its own formation.",
  },
  ha_unauthorized: {
    kind: "refused",
    cause: "a missing or wrong token",
    remedy: "Use the token that `spillway-ha create monitor` or the registration gave out.",
  },
  ha_not_leader: {
    kind: "retry",
    cause: "a monitor that does not lead",
    remedy: "Ask the other monitors; one of them leads within seconds.",
  },
  ha_monitor_unreachable: {
    kind: "retry",
    cause: "a monitor that does not answer",
    remedy: "Check --monitor and that the monitor runs; the formation goes on serving meanwhile.",
  },
  ha_store: {
    kind: "operator",
    cause: "the monitor's store that cannot be read or written",
    remedy: "See the cause; the monitor stops rather than decide without a record.",
  },
  ha_store_locked: {
    kind: "refused",
    cause: "a monitor that runs already on this data directory",
    remedy: "Stop the other one first.",
  },
} as const satisfies Record<string, CodeEntry>;
