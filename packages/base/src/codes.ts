/**
 * The catalogue of error codes: one table for the whole product, generated into
 * `docs/reference/errors.md`. A code is stable once released; its text may be improved.
 * Each area keeps its own file in `codes/`, so that the list of one part fits a screen.
 */
import { BASE_CODES } from "./codes/base.ts";
import { CATALOG_CODES } from "./codes/catalog.ts";
import { CONTROL_CODES } from "./codes/control.ts";
import { ENGINE_CODES } from "./codes/engine.ts";
import { HA_POSTGRES_CODES } from "./codes/ha-postgres.ts";
import { HA_CODES } from "./codes/ha.ts";
import { LAKE_CODES } from "./codes/lake.ts";
import { MIRROR_CODES } from "./codes/mirror.ts";
import { MOVER_CODES } from "./codes/movers.ts";
import { PG_CODES } from "./codes/pg.ts";
import { PGWIRE_CODES } from "./codes/pgwire.ts";
import { SEAM_CODES } from "./codes/seam.ts";
import { SERVE_SESSION_CODES } from "./codes/serve-session.ts";
import { SERVE_CODES } from "./codes/serve.ts";

/**
 * What the caller is to do:
 * - `usage`: the command or the input is wrong; nothing was started (exit code 2)
 * - `refused`: a rule says no; nothing was changed
 * - `retry`: passing; the same call may succeed later
 * - `conflict`: somebody else committed first; re-read, then try again
 * - `unknown`: the outcome of a commit is not known; look it up before acting
 * - `operator`: a person has to act
 */
export type ErrorKind = "usage" | "refused" | "retry" | "conflict" | "unknown" | "operator";

export interface CodeEntry {
  readonly kind: ErrorKind;
  /** What happened, as a noun phrase for the reference. */
  readonly cause: string;
  /** What to do, as a sentence for the person who sees it. */
  readonly remedy: string;
}

export const CODES = {
  ...BASE_CODES,
  ...CATALOG_CODES,
  ...CONTROL_CODES,
  ...ENGINE_CODES,
  ...HA_CODES,
  ...HA_POSTGRES_CODES,
  ...LAKE_CODES,
  ...MIRROR_CODES,
  ...MOVER_CODES,
  ...PG_CODES,
  ...PGWIRE_CODES,
  ...SEAM_CODES,
  ...SERVE_CODES,
  ...SERVE_SESSION_CODES,
} as const satisfies Record<string, CodeEntry>;

export type ErrorCode = keyof typeof CODES;
