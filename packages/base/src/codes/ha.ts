import type { CodeEntry } from "../codes.ts";

export const HA_CODES = {
  ha_bad_message: {
    kind: "usage",
    cause: "a message between keeper, monitor and command that does not have the agreed form",
    remedy: "Use the same release of spillway-ha on every node.",
  },
} as const satisfies Record<string, CodeEntry>;
