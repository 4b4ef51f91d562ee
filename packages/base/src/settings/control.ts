import type { Setting } from "../config.ts";

export const CONTROL_SETTINGS = {
  controlUrl: {
    name: "control-url",
    type: "url",
    default: null,
    secret: true,
    help: "The control database of `spillway serve`: a libpq URL or key=value string.",
  } as Setting<string | null>,
  authStaleness: {
    name: "auth-staleness",
    type: "duration",
    default: "30s",
    unit: "ms",
    min: 1000,
    help: "How long grants and users that were read before stay good while the control database is out of reach.",
  } as Setting<number>,
  sessionTtl: {
    name: "session-ttl",
    type: "duration",
    default: "12h",
    unit: "ms",
    min: 60_000,
    help: "How long the bearer token of a login is good.",
  } as Setting<number>,
  lockoutFailures: {
    name: "lockout-failures",
    type: "int",
    default: "10",
    min: 1,
    max: 1000,
    help: "Failed logins in a row after which a user is locked for a while.",
  } as Setting<number>,
  lockoutTime: {
    name: "lockout-time",
    type: "duration",
    default: "1m",
    unit: "ms",
    min: 1000,
    help: "How long that is; it doubles with each further failure, up to an hour.",
  } as Setting<number>,
  apiKey: {
    name: "api-key",
    type: "string",
    default: null,
    secret: true,
    noFlag: true,
    help: "A key that is accepted as X-API-Key with all rights, besides personal access tokens.",
  } as Setting<string | null>,
  oidcIssuers: {
    name: "oidc-issuers",
    type: "string",
    default: null,
    help: "Identity providers whose tokens are accepted: issuer|audience, separated by commas.",
  } as Setting<string | null>,
} as const satisfies Record<string, Setting>;
