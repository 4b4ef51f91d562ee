import type { CodeEntry } from "../codes.ts";

export const CATALOG_CODES = {} as const satisfies Record<string, CodeEntry>;
