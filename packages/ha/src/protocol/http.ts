/**
 * Paths, tokens and status codes of the HA protocol.
 *
 * Tokens go in `Authorization: Bearer …`, are compared in constant time, and are of four kinds:
 * - admin: commands of operators (monitor's data directory, file `admin-token`, mode 0600)
 * - registration: `register` only (file `registration-token`)
 * - node: one per node, from `register`
 * - peer: one per formation, from `register`; keepers among themselves
 *
 * Errors are `{ "error": { code, message, remedy } }` with status 400 (bad message), 401 (token), 404 (no
 * such formation or node), 409 (refused by a rule), 421 (this monitor does not lead; `leader` may name the
 * URL of the one that does: try the others), 503 (not ready: retry). A keeper is given a list of monitor
 * URLs and goes on to the next one on 421, 503 and connection errors.
 */
import { object, text, type Infer } from "./validate.ts";

export const MONITOR_PATHS = {
  /** POST registerRequest → registerResponse (registration or admin token) */
  register: "/v1/register",
  /** POST nodeReport → nodeResponse (node token) */
  nodeActive: "/v1/node_active",
  /** GET ?formation&node&version&timeoutMs → {version} (node token) */
  watch: "/v1/watch",
  /** Anything below is for commands (admin token). */
  formations: "/v1/formations",
  state: "/v1/state",
  events: "/v1/events",
  uri: "/v1/uri",
  settings: "/v1/settings",
  explain: "/v1/explain",
  perform: "/v1/perform",
  maintenance: "/v1/maintenance",
  drop: "/v1/drop",
  /** Without token. */
  health: "/health",
  metrics: "/metrics",
} as const;

export const KEEPER_PATHS = {
  /** POST promiseRequest → promiseAnswer (peer token) */
  promise: "/v1/promise",
  /** GET, without token, for load balancers: 200 when it is so, else 503. */
  primary: "/primary",
  standby: "/standby",
  health: "/health",
  metrics: "/metrics",
} as const;

export const errorBody = object({
  error: object({ code: text(64), message: text(8192), remedy: text(8192) }),
});
export type ErrorBody = Infer<typeof errorBody>;

/** Bodies larger than this are refused before they are parsed. */
export const MAX_BODY_BYTES = 1024 * 1024;
