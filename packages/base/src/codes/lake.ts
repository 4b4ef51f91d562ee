import type { CodeEntry } from "../codes.ts";

export const LAKE_CODES = {} as const satisfies Record<string, CodeEntry>;
