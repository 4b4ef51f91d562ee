/**
 * What an edge holds for one client, and nothing else: docs/internals/serving.md §4. Both protocols make a
 * `ServeSession`; what it refuses, both refuse, with one code.
 */
import type { ColumnBatch, ColumnKind, DecimalShape } from "@spillway/base/columns";

export interface Principal {
  readonly userId: string;
  readonly userName: string;
  readonly tenantId: string;
  readonly tenantName: string;
  readonly isAdmin: boolean;
  readonly roles: readonly string[];
  readonly groups: readonly string[];
}

/** A column as both protocols describe it. */
export interface WireColumn {
  readonly name: string;
  readonly kind: ColumnKind;
  /** Present exactly when kind is `decimal`. */
  readonly decimal?: DecimalShape;
  readonly nullable: boolean;
  /** Of pg_type; that of the kind where nothing nearer is known. */
  readonly typeOid: number;
  /** -1: none. */
  readonly typmod: number;
}

export type StatementKind =
  | "select"
  | "insert"
  | "update"
  | "delete"
  | "merge"
  | "truncate"
  | "ddl"
  | "begin"
  | "commit"
  | "rollback"
  | "savepoint"
  | "release"
  | "rollback-to"
  | "set"
  | "reset"
  | "show"
  | "discard"
  | "copy"
  | "explain"
  | "utility"
  | "empty";

export interface Prepared {
  readonly sql: string;
  readonly kind: StatementKind;
  /** Whether it can change anything: decides the role of the node. `EXPLAIN ANALYZE DELETE` does. */
  readonly writes: boolean;
  readonly parameters: readonly WireColumn[];
  /** Null: returns no rows. */
  readonly columns: readonly WireColumn[] | null;
  /** The Arrow schema of `columns`, exactly that of the stream. Null when it returns no rows. */
  readonly arrowSchema: Buffer | null;
}

/** Text is Postgres's text form of the parameter's type. */
export type WireParam = string | Uint8Array | null | bigint | number | boolean;

export interface RunOptions {
  readonly params?: readonly WireParam[];
  readonly signal?: AbortSignal;
  /** From the start of the statement, waiting in the queue included, to its last byte. */
  readonly timeoutMs?: number;
}

export interface RunResult {
  /** "SELECT", "INSERT 0", "CREATE TABLE", …; the edge appends the count where the protocol has one. */
  readonly command: string;
  readonly columns: readonly WireColumn[] | null;
  /** The Arrow schema as an encapsulated IPC message. Null: no rows. */
  readonly arrowSchema: Buffer | null;
  /** Record batches as encapsulated IPC messages, metadata and body as they came from the node. Iterate one of the two, once. */
  messages(): AsyncIterable<Buffer>;
  /** The same as columns, for the Postgres wire: views of the same bytes. */
  batches(): AsyncIterable<ColumnBatch>;
  /** Settled after the last row; rejected with the error that ended the rows. Never an unhandled rejection. */
  readonly rowCount: Promise<number>;
  /** Stops what still runs. */
  close(): Promise<void>;
}

export type SessionStatus = "idle" | "transaction" | "failed";

export type CancelReason = "client" | "timeout" | "killed";

export interface ServeSession {
  /** Shown by `spillway ps`; unique among all managers. */
  readonly id: string;
  readonly principal: Principal;
  readonly database: string;
  readonly status: SessionStatus;
  /** search_path, TimeZone, application_name, …; null when there is no such parameter. */
  parameter(name: string): string | null;
  /** Splits a text into its statements, without checking them. */
  split(sql: string): Promise<readonly string[]>;
  /**
   * Classifies and checks one statement; never runs anything. Throws typed errors with `details.sqlstate` and, where known,
   * `details.position` (1-based). `types`: oids of the parameters that the client stated; 0 = not stated. Without `describe`,
   * which costs a round trip, `columns` and `arrowSchema` of a query are null: its result has them.
   */
  prepare(sql: string, types?: readonly number[], options?: { readonly describe?: boolean }): Promise<Prepared>;
  /** Runs one prepared statement. The result must be read to its end or closed. One at a time in a session. */
  run(prepared: Prepared, options?: RunOptions): Promise<RunResult>;
  /** Ends whatever runs, within a second. */
  cancel(reason: CancelReason): void;
  /** Rolls back what is open. */
  close(): Promise<void>;
}

export interface SessionOptions {
  readonly protocol: "pgwire" | "flight";
  readonly application: string;
  readonly address: string;
  readonly database: string;
  /** Of the start-up: search_path, TimeZone, … Unknown names are kept and shown. */
  readonly parameters?: Readonly<Record<string, string>>;
}

/** The edges' way in. */
export interface Sessions {
  open(principal: Principal, options: SessionOptions): Promise<ServeSession>;
}
