import type { CodeEntry } from "../codes.ts";

export const MIRROR_CODES = {} as const satisfies Record<string, CodeEntry>;
