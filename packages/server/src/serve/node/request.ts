/** What a node is asked, and what it answers: docs/internals/serving.md §3. The node decides nothing. */
import type { SentParam } from "../session/wire-types.ts";
import type { WireColumn } from "../session/session.ts";

/** A table that the statement may reach, by its name in the source. */
export interface PlannedTable {
  readonly schema: string;
  readonly name: string;
  /** DuckDB SQL that a row must satisfy; null: all rows. */
  readonly rows: string | null;
  /** Masked columns, and (null) those that do not exist for the user. */
  readonly columns: readonly (readonly [string, string | null])[];
  readonly writable: boolean;
}

export type NodeAction =
  | "query"
  | "execute"
  /** By Postgres as it is: only for what touches no registered table. */
  | "source"
  | "explain"
  | "describe"
  | "describe-dml"
  | "begin"
  | "commit"
  | "rollback"
  | "savepoint"
  | "release"
  | "rollback-to"
  | "outcome";

export interface NodeRequest {
  readonly action: NodeAction;
  /** The statement; the name of a savepoint; the id of a commit. */
  readonly sql: string;
  readonly params: readonly SentParam[];
  /** Null: every table, as the source's owner. */
  readonly tables: readonly PlannedTable[] | null;
  readonly searchPath: readonly string[];
  /** The session's transaction; null: a statement of its own. */
  readonly transaction: string | null;
  readonly isolation?: "repeatable read" | "serializable";
  readonly readOnly?: boolean;
  /** For `execute` outside of a transaction: under which its outcome is found. */
  readonly commitId?: string;
  /** For `explain`. */
  readonly analyze?: boolean;
}

export interface NodeStats {
  readonly rows: number;
  readonly bytes: number;
  /** Milliseconds in the engine, first row included. */
  readonly engineMs: number;
}

export interface NodeResult {
  readonly command: string;
  readonly columns: readonly WireColumn[] | null;
  readonly parameters: readonly WireColumn[];
  readonly arrowSchema: Buffer | null;
  /** Iterate once, or close. */
  messages(): AsyncIterable<Buffer>;
  /** Complete after the last message; for a statement without rows, at once. */
  stats(): NodeStats;
  close(): Promise<void>;
}

/** Whatever runs requests: an executor in this process, a node, a pool of them. */
export interface Runner {
  run(request: NodeRequest, options: RunnerOptions): Promise<NodeResult>;
}

export interface RunnerOptions {
  readonly signal: AbortSignal;
  /** Decides the role of the node. */
  readonly writes: boolean;
  /** Told how many are before it in the queue, while it waits. */
  readonly onQueued?: (position: number) => void;
  /** Users take turns in the queue. */
  readonly user?: string;
}
