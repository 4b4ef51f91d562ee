import type { CodeEntry } from "../codes.ts";

export const SEAM_CODES = {} as const satisfies Record<string, CodeEntry>;
