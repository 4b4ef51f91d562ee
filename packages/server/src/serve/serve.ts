/** The front door of the serving component. */
export {
  createRestCatalog,
  type CatalogNamespace,
  type CatalogSource,
  type CatalogTable,
  type ForeignCommit,
  type RestCatalog,
} from "./rest-catalog/rest-catalog.ts";
export type { RestRequest, RestResponse } from "./rest-catalog/http.ts";
export { createCatalogSource, type CatalogSourceOptions } from "./rest-catalog/source.ts";
export { Authenticator, type AuthenticatorOptions, type LoginEvent, principalOf } from "./auth/auth.ts";
export { OidcVerifier, type OidcIssuer, parseIssuers } from "./auth/oidc.ts";
export {
  AccessControl,
  type AccessOptions,
  type AccessPlan,
  type GateRequest,
  type TableUse,
} from "./access/access.ts";
export { type AccessImage, type AccessSet, accessSetOf, type TableAccess } from "./access/access-set.ts";
export { createGuard, type Decision, type GuardOptions } from "./access/guard.ts";
export { PgWireEdge, type PgWireLimits, type PgWireOptions } from "./edge/pgwire/pgwire.ts";
export type { SourceAccess, SourceView, WireAuthenticator } from "./edge/pgwire/ports.ts";
export { SourceFacts, type SourceFactsOptions } from "./edge/pgwire/source-facts.ts";
export { NodeExecutor } from "./node/executor.ts";
export { NodeServer } from "./node/node-server.ts";
export type { NodeBackend, NodeProcess } from "./pool/backend.ts";
export { type PoolDescription, Pools, type PoolsOptions } from "./pool/pools.ts";
export { controlNodeStore, type NodeRow, type NodeStore } from "./pool/store.ts";
export type { Principal, ServeSession, SessionOptions, Sessions } from "./session/session.ts";
export type { StatementObserver } from "./session/session-options.ts";

/** The Flight edge is loaded where it is used: a node has none. */
export const loadFlight = (): Promise<typeof import("./edge/flight/flight.ts")> => import("./edge/flight/flight.ts");
export { type AdminApi, type AdminApiOptions, createAdminApi, type Health } from "./edge/http/admin-api.ts";
export { openApi } from "./edge/http/openapi.ts";
