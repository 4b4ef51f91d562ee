import type { CodeEntry } from "../codes.ts";

export const PG_CODES = {} as const satisfies Record<string, CodeEntry>;
