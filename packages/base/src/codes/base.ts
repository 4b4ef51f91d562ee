import type { CodeEntry } from "../codes.ts";

export const BASE_CODES = {
  usage: {
    kind: "usage",
    cause: "a command line that cannot be understood",
    remedy: "See --help for the command's form.",
  },
  config_invalid: {
    kind: "usage",
    cause: "a setting whose value cannot be used",
    remedy: "Correct the setting; `spillway config` shows each value with its origin.",
  },
  config_missing: {
    kind: "usage",
    cause: "a setting that is required and was not given",
    remedy: "Give it as a flag, as a SPILLWAY_* variable, or in spillway.yaml.",
  },
  deadline_exceeded: {
    kind: "retry",
    cause: "an operation that did not finish in its time",
    remedy: "Try again; raise the timeout if the work is really that long.",
  },
  limit_exceeded: {
    kind: "refused",
    cause: "an input larger than its limit",
    remedy: "Split the input, or raise the limit that the message names.",
  },
  interrupted: {
    kind: "retry",
    cause: "a signal that ended the work",
    remedy: "Run the command again; it goes on where it was interrupted.",
  },
  disk_full: {
    kind: "operator",
    cause: "no space left on the device that the message names",
    remedy: "Free some space, then run the command again.",
  },
  embedded_unavailable: {
    kind: "operator",
    cause: "the embedded Postgres cannot be started here",
    remedy: "Give --database-url of a Postgres 14 to 18 that runs, or see the message for what is missing.",
  },
  demo_failed: {
    kind: "operator",
    cause: "a step of the demo that did not work",
    remedy: "See what the step printed; report it if the machine has memory and disk left.",
  },
  internal: {
    kind: "operator",
    cause: "a bug in Spillway",
    remedy: "Please report it with the log; the state in Postgres is unharmed.",
  },
} as const satisfies Record<string, CodeEntry>;
