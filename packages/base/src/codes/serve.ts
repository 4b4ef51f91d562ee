import type { CodeEntry } from "../codes.ts";

export const SERVE_CODES = {} as const satisfies Record<string, CodeEntry>;
