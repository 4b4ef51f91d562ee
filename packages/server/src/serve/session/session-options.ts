/** What a session is handed. */
import type { Clock } from "@spillway/base/clock";
import type { FoundCommit } from "../../seam/seam.ts";
import type { PlannedTable, Runner } from "../node/request.ts";
import type { Classified } from "../plan/classify.ts";
import type { Principal, ServeSession, SessionOptions } from "./session.ts";

/** What a user may do, asked for each statement, when it is prepared and again when it runs. */
export interface Guard {
  /** Throws typed errors; null: everything (the owner). */
  check(statement: Classified, context: GuardContext): Promise<readonly PlannedTable[] | null>;
  /** The text to run for a statement that was checked: what the session answers is in it as constants. */
  sqlOf?(statement: Classified, context: GuardContext): Promise<string>;
}

export interface GuardContext {
  readonly principal: Principal;
  readonly database: string;
  readonly searchPath: readonly string[];
  /** Of the session: search_path, TimeZone, … */
  readonly parameter: (name: string) => string | null;
}

/** Told of every statement with its true end. */
export interface StatementObserver {
  started(statement: {
    readonly id: string;
    readonly session: ServeSession;
    readonly sql: string;
    readonly writes: boolean;
  }): void;
  queued(id: string, position: number): void;
  ended(
    id: string,
    end: { readonly error: unknown; readonly rows: number; readonly bytes: number; readonly engineMs: number },
  ): void;
}

export interface ClientSessionOptions extends SessionOptions {
  readonly principal: Principal;
  readonly runner: Runner;
  readonly guard: Guard;
  readonly clock: Clock;
  readonly observer?: StatementObserver;
  /** Looks the outcome of a commit up when its node is gone. */
  readonly outcome?: (commitId: string) => Promise<FoundCommit>;
  readonly onClose?: (session: ServeSession) => void;
}
