/**
 * Tokens of identity providers: the provider's keys are fetched and kept; while it is away, those that are known go on being
 * used until they are too old. Only asymmetric signatures, so that no text of ours can serve as a key.
 * Sources: OpenID Connect Core 1.0 §3.1.3.7, Discovery 1.0 §4, RFC 7519, RFC 8725.
 */
import { createLocalJWKSet, decodeJwt, errors, type JSONWebKeySet, jwtVerify } from "jose";
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";

export interface OidcIssuer {
  /** Exactly as in the tokens' `iss`. */
  readonly issuer: string;
  /** Tokens for others are refused. */
  readonly audience: string;
}

export interface OidcOptions {
  readonly issuers: readonly OidcIssuer[];
  readonly clock: Clock;
  readonly log: Logger;
  readonly fetch: typeof fetch;
  /** Keys older than this are fetched anew. Default 10 minutes. */
  readonly refreshMs?: number;
  /** Keys older than this are not used any more. Default 24 hours. */
  readonly maxAgeMs?: number;
}

export interface OidcIdentity {
  readonly issuer: string;
  readonly subject: string;
}

interface Keys {
  readonly set: ReturnType<typeof createLocalJWKSet>;
  readonly atMs: number;
}

const ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"];
/** Clocks that differ by less are taken for equal. */
const TOLERANCE_S = 300;
const FETCH_MS = 5000;
const MAX_BYTES = 1 << 20;
/** A token with an unknown key makes us ask the provider at most this often. */
const COOLDOWN_MS = 10_000;

/** `issuer|audience, …`. Throws `config_invalid`. */
export function parseIssuers(text: string | null): OidcIssuer[] {
  if (text === null || text.trim() === "") return [];
  return text.split(",").map((part) => {
    const [issuer = "", audience = "", ...rest] = part.trim().split("|");
    const loopback = /^http:\/\/(127\.\d+\.\d+\.\d+|\[::1\]|localhost)(:\d+)?(\/|$)/.test(issuer);
    if (!(issuer.startsWith("https://") || loopback) || audience === "" || rest.length > 0) {
      throw new SpillwayError(
        "config_invalid",
        `the identity provider ${JSON.stringify(part)} is not https://issuer|audience`,
      );
    }
    return { issuer, audience };
  });
}

export class OidcVerifier {
  readonly #options: OidcOptions;
  readonly #keys = new Map<string, Keys>();
  readonly #fetching = new Map<string, Promise<Keys>>();
  readonly #triedMs = new Map<string, number>();

  constructor(options: OidcOptions) {
    this.#options = options;
  }

  /** Throws `auth_failed`, `auth_expired`, `auth_provider_unavailable`. */
  async verify(token: string): Promise<OidcIdentity> {
    const issuer = this.#issuerOf(token);
    const keys = await this.#keysOf(issuer, false);
    try {
      return await this.#check(token, issuer, keys);
    } catch (error) {
      if (!(error instanceof errors.JWKSNoMatchingKey)) throw refusal(error);
    }
    try {
      return await this.#check(token, issuer, await this.#keysOf(issuer, true));
    } catch (error) {
      throw error instanceof SpillwayError ? error : refusal(error);
    }
  }

  #issuerOf(token: string): OidcIssuer {
    let claimed: string | undefined;
    try {
      claimed = decodeJwt(token).iss;
    } catch (error) {
      throw refusal(error);
    }
    const found = this.#options.issuers.find((i) => i.issuer === claimed);
    if (!found) throw new SpillwayError("auth_failed", "the token's issuer is not one that is accepted here");
    return found;
  }

  async #check(token: string, { issuer, audience }: OidcIssuer, keys: Keys): Promise<OidcIdentity> {
    const { payload } = await jwtVerify(token, keys.set, {
      issuer,
      audience,
      algorithms: ALGORITHMS,
      clockTolerance: TOLERANCE_S,
      currentDate: new Date(this.#options.clock.wallMs()),
      requiredClaims: ["sub", "exp"],
    });
    return { issuer, subject: String(payload.sub) };
  }

  async #keysOf({ issuer }: OidcIssuer, anew: boolean): Promise<Keys> {
    const { clock, refreshMs = 600_000, maxAgeMs = 86_400_000, log } = this.#options;
    const known = this.#keys.get(issuer);
    const ageMs = known ? clock.monotonicMs() - known.atMs : Infinity;
    if (known && !anew && ageMs < refreshMs) return known;
    const triedMs = this.#triedMs.get(issuer) ?? -Infinity;
    if (known && ageMs < maxAgeMs && clock.monotonicMs() - triedMs < COOLDOWN_MS) return known;
    try {
      return await this.#fetch(issuer);
    } catch (error) {
      if (known && ageMs < maxAgeMs) {
        log.warn("auth.provider_unavailable", { issuer, error });
        return known;
      }
      throw new SpillwayError("auth_provider_unavailable", `the keys of ${issuer} cannot be fetched`, { cause: error });
    }
  }

  /** Callers at the same moment share one request. */
  #fetch(issuer: string): Promise<Keys> {
    const running = this.#fetching.get(issuer);
    if (running) return running;
    this.#triedMs.set(issuer, this.#options.clock.monotonicMs());
    const fetching = this.#fetchKeys(issuer).finally(() => this.#fetching.delete(issuer));
    this.#fetching.set(issuer, fetching);
    return fetching;
  }

  async #fetchKeys(issuer: string): Promise<Keys> {
    const discovery = await this.#json(`${issuer.replace(/\/$/, "")}/.well-known/openid-configuration`);
    if (discovery["issuer"] !== issuer) throw new Error("the provider calls itself something else");
    const uri = discovery["jwks_uri"];
    if (typeof uri !== "string" || new URL(uri).protocol !== new URL(issuer).protocol) throw new Error("no jwks_uri");
    const set = createLocalJWKSet((await this.#json(uri)) as unknown as JSONWebKeySet);
    const keys = { set, atMs: this.#options.clock.monotonicMs() };
    this.#keys.set(issuer, keys);
    return keys;
  }

  async #json(url: string): Promise<Record<string, unknown>> {
    const response = await this.#options.fetch(url, { signal: AbortSignal.timeout(FETCH_MS), redirect: "error" });
    if (!response.ok) throw new Error(`${url} answered ${response.status}`);
    const text = await response.text();
    if (text.length > MAX_BYTES) throw new Error(`${url} answered with over ${MAX_BYTES} bytes`);
    const value: unknown = JSON.parse(text);
    if (typeof value !== "object" || value === null) throw new Error(`${url} answered with no object`);
    return value as Record<string, unknown>;
  }
}

function refusal(error: unknown): SpillwayError {
  if (error instanceof SpillwayError) return error;
  const expired = error instanceof errors.JWTExpired;
  const why = error instanceof errors.JOSEError ? error.code : "malformed";
  return new SpillwayError(expired ? "auth_expired" : "auth_failed", `the token is not accepted (${why})`, {
    cause: error,
    details: { sqlstate: "28000" },
  });
}
