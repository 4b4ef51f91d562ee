import type { CodeEntry } from "../codes.ts";

export const PG_CODES = {
  pg_bad_name: {
    kind: "usage",
    cause: "a name or a text that Postgres cannot hold",
    remedy: "Use a name that is not empty and has no NUL character.",
  },
} as const satisfies Record<string, CodeEntry>;
