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
