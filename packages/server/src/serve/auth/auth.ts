/**
 * Who somebody is: passwords (as text, or proved by SCRAM), tokens of logins, personal access tokens, tokens of identity
 * providers. What is wrong with a login is in the audit, never in the answer. Known users get in while the
 * control database is away, for as long as its last state is good.
 */
import type { Clock } from "@spillway/base/clock";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import {
  type Control,
  createSession,
  forgetFailures,
  lockedForMs,
  type LockoutRule,
  type LoginUser,
  MAX_LOCK_MS,
  noteFailure,
  revokeSession,
  sameSecret,
  tokenKind,
  verifyPassword,
} from "../../control/control.ts";
import type { Principal } from "../session/session.ts";
import type { OidcVerifier } from "./oidc.ts";

export interface LoginRequest {
  readonly user: string;
  readonly database: string;
  readonly address: string;
  readonly application: string;
}

/** What became of an attempt, for the audit. */
export interface LoginEvent {
  readonly user: string;
  readonly address: string;
  readonly method: "password" | "scram" | "session" | "access-token" | "oidc" | "api-key";
  readonly allowed: boolean;
  readonly reason: string;
}

export interface AuthenticatorOptions {
  readonly control: Control;
  readonly clock: Clock;
  readonly log: Logger;
  readonly sessionTtlMs?: number;
  readonly lockout?: LockoutRule;
  readonly oidc?: OidcVerifier;
  /** Accepted as X-API-Key with all rights. */
  readonly apiKey?: string | null;
  readonly onLogin?: (event: LoginEvent) => void;
}

const API_KEY_USER = "00000000-0000-0000-0000-000000000000";
const MAX_NAMES = 10_000;

interface Failures {
  count: number;
  untilMs: number;
}

export class Authenticator {
  readonly #options: AuthenticatorOptions;
  readonly #control: Control;
  readonly #lockout: LockoutRule;
  /** By name, also of those that do not exist, so that a lock tells nothing; and while the control database is away. */
  readonly #failures = new Map<string, Failures>();

  constructor(options: AuthenticatorOptions) {
    this.#options = options;
    this.#control = options.control;
    this.#lockout = options.lockout ?? { failures: 10, lockMs: 60_000 };
  }

  /** Throws `auth_failed`, `auth_locked`, `auth_busy`, `control_unavailable`. */
  async password(name: string, password: string, address: string): Promise<Principal> {
    const user = await this.#control.user(name);
    await this.#requireUnlocked(name, user, address, "password");
    const ok = await verifyPassword(user?.passwordHash ?? null, password);
    if (!ok || user === null || user.disabled) {
      const reason = user === null ? "no such user" : ok ? "disabled" : "wrong password";
      await this.#fail(name, user, address, "password", reason);
      throw failed();
    }
    await this.#succeed(name, user, address, "password");
    return principalOf(user);
  }

  /** A bearer token for somebody who has logged in, good at every manager. Shown to nobody else. */
  async mint(principal: Principal, protocol = "flight", address = ""): Promise<string> {
    const ttlMs = this.#options.sessionTtlMs ?? 12 * 3_600_000;
    const { token } = await this.#control.change((tx) =>
      createSession(tx, { userId: principal.userId, protocol, address, ttlMs }),
    );
    return token;
  }

  /**
   * `shared`: others may send it too, so it names no session. Throws `auth_failed`, `auth_expired`,
   * `auth_provider_unavailable`, `control_unavailable`.
   */
  async bearer(token: string, address: string): Promise<{ readonly principal: Principal; readonly shared: boolean }> {
    const kind = tokenKind(token);
    if (kind === null) return { principal: await this.#jwt(token, address), shared: true };
    const owner = await this.#control.token(token);
    if (owner === null) {
      throw new SpillwayError("auth_expired", "the token is unknown, over or revoked", {
        details: { sqlstate: "28000" },
      });
    }
    const user = await this.#control.userById(owner.userId);
    if (user === null || user.disabled) throw failed();
    return { principal: principalOf(user), shared: kind === "access" };
  }

  /** A key of the setting, or a personal access token. */
  async apiKey(key: string, address: string): Promise<Principal> {
    const own = this.#options.apiKey ?? null;
    if (own !== null && sameSecret(own, key)) {
      return {
        userId: API_KEY_USER,
        userName: "api-key",
        tenantId: "",
        tenantName: "",
        isAdmin: true,
        roles: [],
        groups: [],
      };
    }
    if (tokenKind(key) === null) {
      this.#tell({ user: "", address, method: "api-key", allowed: false, reason: "unknown key" });
      throw failed();
    }
    return (await this.bearer(key, address)).principal;
  }

  async logout(token: string): Promise<void> {
    await this.#control.change((tx) => revokeSession(tx, token));
  }

  /** In the form of pg_authid. Null: nobody who may log in, or locked; the exchange then goes on with a false one. */
  async scramVerifierOf(name: string): Promise<string | null> {
    const user = await this.#control.user(name);
    if (user === null || user.disabled || (await this.#lockedMs(name, user)) > 0) return null;
    return user.scramVerifier;
  }

  /** Shared by all managers: false verifiers are made of it. */
  scramSecret(): Promise<Buffer> {
    return this.#control.secret("scram-decoy");
  }

  /** After the proof. Throws `auth_failed`, `access_denied` when the database does not exist for the user. */
  async login(request: LoginRequest): Promise<Principal> {
    const user = await this.#control.user(request.user);
    if (user === null || user.disabled) throw failed();
    await this.#requireUnlocked(request.user, user, request.address, "scram");
    await this.#succeed(request.user, user, request.address, "scram");
    const principal = principalOf(user);
    await this.requireDatabase(principal, request.database);
    return principal;
  }

  /** A proof that failed. Never throws. */
  async failed(request: LoginRequest): Promise<void> {
    try {
      const user = await this.#control.user(request.user);
      await this.#fail(request.user, user, request.address, "scram", user === null ? "no such user" : "wrong password");
    } catch (error) {
      this.#options.log.warn("auth.failure_not_counted", { error });
    }
  }

  /** The id of the database that the user means. Throws `access_denied` (3D000) when there is none for him. */
  async requireDatabase(principal: Principal, name: string): Promise<string> {
    const tenant = principal.tenantId === "" ? null : principal.tenantId;
    const id = await this.#control.databaseId(name, tenant);
    const rules = id === null ? null : await this.#control.rules(principal.userId, id);
    const ok = id !== null && (principal.userId === API_KEY_USER || (rules !== null && rules.refused === null));
    if (ok) return id;
    throw new SpillwayError("access_denied", `database ${JSON.stringify(name)} does not exist`, {
      details: { sqlstate: "3D000" },
    });
  }

  async #jwt(token: string, address: string): Promise<Principal> {
    if (!this.#options.oidc || token.split(".").length !== 3) throw failed();
    const { issuer, subject } = await this.#options.oidc.verify(token);
    const user = await this.#control.userBySubject(issuer, subject);
    if (user === null || user.disabled) {
      this.#tell({ user: `${issuer} ${subject}`, address, method: "oidc", allowed: false, reason: "no such user" });
      throw failed();
    }
    return principalOf(user);
  }

  async #requireUnlocked(
    name: string,
    user: LoginUser | null,
    address: string,
    method: LoginEvent["method"],
  ): Promise<void> {
    const ms = await this.#lockedMs(name, user);
    if (ms <= 0) return;
    this.#tell({ user: name, address, method, allowed: false, reason: "locked" });
    throw new SpillwayError("auth_locked", `too many failed logins: try again in ${Math.ceil(ms / 1000)} s`, {
      details: { sqlstate: "28000" },
    });
  }

  async #lockedMs(name: string, user: LoginUser | null): Promise<number> {
    const own = (this.#failures.get(name)?.untilMs ?? 0) - this.#options.clock.monotonicMs();
    if (user === null || this.#control.isAway) return own;
    try {
      return await this.#control.read((db) => lockedForMs(db, user.id));
    } catch (error) {
      if (isSpillwayError(error, "control_unavailable")) return own;
      throw error;
    }
  }

  async #fail(
    name: string,
    user: LoginUser | null,
    address: string,
    method: LoginEvent["method"],
    reason: string,
  ): Promise<void> {
    this.#tell({ user: name, address, method, allowed: false, reason });
    const known = this.#failures.get(name) ?? { count: 0, untilMs: 0 };
    known.count += 1;
    const beyond = known.count - this.#lockout.failures;
    const lockMs = beyond < 0 ? 0 : Math.min(MAX_LOCK_MS, this.#lockout.lockMs * 2 ** Math.min(30, beyond));
    if (lockMs > 0) known.untilMs = this.#options.clock.monotonicMs() + lockMs;
    this.#failures.delete(name);
    this.#failures.set(name, known);
    if (this.#failures.size > MAX_NAMES) {
      for (const oldest of this.#failures.keys()) {
        this.#failures.delete(oldest);
        break;
      }
    }
    if (user === null || this.#control.isAway) return;
    try {
      await this.#control.change((tx) => noteFailure(tx, user.id, this.#lockout));
    } catch (error) {
      this.#options.log.warn("auth.failure_not_counted", { error });
    }
  }

  async #succeed(name: string, user: LoginUser, address: string, method: LoginEvent["method"]): Promise<void> {
    this.#tell({ user: name, address, method, allowed: true, reason: "" });
    this.#failures.delete(name);
    if (this.#control.isAway) return;
    try {
      await this.#control.read((db) => forgetFailures(db, user.id));
    } catch (error) {
      this.#options.log.debug("auth.failures_not_forgotten", { error });
    }
  }

  #tell(event: LoginEvent): void {
    this.#options.onLogin?.(event);
  }
}

export function principalOf(user: LoginUser): Principal {
  return {
    userId: user.id,
    userName: user.name,
    tenantId: user.tenantId ?? "",
    tenantName: user.tenantName ?? "",
    isAdmin: user.isAdmin,
    roles: user.roles,
    groups: user.groups,
  };
}

/** One answer for everything that can be wrong. */
function failed(): SpillwayError {
  return new SpillwayError("auth_failed", "the user, the password or the token is not accepted", {
    details: { sqlstate: "28P01" },
  });
}
