import type { CodeEntry } from "../codes.ts";

export const HA_CODES = {} as const satisfies Record<string, CodeEntry>;
