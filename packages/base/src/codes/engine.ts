import type { CodeEntry } from "../codes.ts";

export const ENGINE_CODES = {} as const satisfies Record<string, CodeEntry>;
