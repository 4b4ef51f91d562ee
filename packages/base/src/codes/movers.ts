import type { CodeEntry } from "../codes.ts";

export const MOVER_CODES = {} as const satisfies Record<string, CodeEntry>;
