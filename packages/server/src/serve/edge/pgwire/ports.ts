/** What the Postgres wire edge is handed: who may log in, sessions, and the source behind them. */
import type { Conninfo } from "@spillway/pg/conninfo";
import type { Principal } from "../../session/session.ts";

/** Logins by SCRAM. The edge never sees a password. */
export interface WireAuthenticator {
  /**
   * The user's verifier in the form of pg_authid (`SCRAM-SHA-256$…`). Null for a user who does not exist or may not log in: the
   * exchange then goes on with a false one.
   */
  scramVerifierOf(user: string): Promise<string | null>;
  /** After the proof. Throws what refuses the login all the same: no such database, no grant, locked out. */
  login(request: LoginRequest): Promise<Principal>;
  /** A proof that failed, for the lockout. Never throws. */
  failed(request: LoginRequest): Promise<void>;
}

export interface LoginRequest {
  readonly user: string;
  readonly database: string;
  readonly address: string;
  readonly application: string;
}

/** What a user may do with one relation of the source, as far as the wire's choice of a way depends on it. */
export interface RelationFacts {
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  /** Registered: its rows are in both tiers. Views over such tables count too. */
  readonly seam: boolean;
  /** Whether the user has a grant on it at all; without one it does not exist. */
  readonly visible: boolean;
  /** A row or column policy holds for this user on it, or on a relation beneath it. */
  readonly restricted: boolean;
  readonly privileges: ReadonlySet<string>;
  /** Columns that do not exist for the user. */
  readonly hiddenColumns: readonly number[];
}

/** The source of one database, as one user sees it. */
export interface SourceView {
  /** Of the source, as `server_version` shows it. */
  readonly serverVersion: string;
  /** Changes with every change of a grant, a policy or the relations. */
  readonly version: string;
  /** The login of the role that the user is mapped to; null: none, and nothing passes to the source as it is. */
  readonly mappedLogin: Conninfo | string | null;
  /** A login for reading the system catalogs; null: they cannot be asked. */
  readonly catalogLogin: Conninfo | string | null;
  /** Names of the functions of pg_proc: of the system, or of somebody's making (then also when both have the name). */
  readonly functions: ReadonlyMap<string, "system" | "user">;
  /** All relations of the source, and tables of the lake alone (`seam`); system catalogs left out. */
  readonly relations: readonly RelationFacts[];
}

export interface SourceAccess {
  /** Of now: at most a second old. */
  view(principal: Principal, database: string): Promise<SourceView>;
}
