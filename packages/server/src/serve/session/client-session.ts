/**
 * The one session under both protocols: what it may run, its transaction, its parameters. Where statements run is the
 * Runner's matter; what the user may do, the Guard's.
 */
import { newUuid } from "@spillway/base/ids";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import type { NodeAction, NodeRequest, NodeResult, PlannedTable } from "../node/request.ts";
import { type Classified, classify, isAnalyze, type PgNode, splitStatements } from "../plan/classify.ts";
import { SessionParameters } from "./parameters.ts";
import { emptyResult, resultOf } from "./results.ts";
import type {
  CancelReason,
  Prepared,
  Principal,
  RunOptions,
  RunResult,
  ServeSession,
  SessionStatus,
} from "./session.ts";
import { applySet, resetName } from "./set-statement.ts";
import type { ClientSessionOptions, GuardContext } from "./session-options.ts";
import {
  ACTION_OF,
  appliedResult,
  explained,
  hasReturning,
  isDml,
  isRun,
  localColumns,
  nodeOf,
  shown,
  transactionOptions,
  translated,
  unknownOutcome,
  unsupported,
} from "./statements.ts";
import { parameterColumn, sendParam, type SentParam } from "./wire-types.ts";

export type { ClientSessionOptions, Guard, GuardContext, StatementObserver } from "./session-options.ts";

/** For so long what a user may do is taken as it was when the statement was prepared. */
const FRESH_MS = 250;

const WRITE_ATTEMPTS = 3;

interface Plan extends Prepared {
  readonly checked: { readonly tables: readonly PlannedTable[] | null; readonly atMs: number };
  readonly statement: Classified;
  readonly oids: readonly number[];
}

const CANCEL_CODE = {
  client: "statement_canceled",
  killed: "statement_canceled",
  timeout: "statement_timeout",
} as const;

export class ClientSession implements ServeSession {
  readonly id = newUuid();
  readonly principal: Principal;
  readonly database: string;
  readonly #options: ClientSessionOptions;
  readonly #parameters: SessionParameters;
  #status: SessionStatus = "idle";
  #transaction: string | null = null;
  #running: { readonly stop: AbortController; reason: CancelReason | null } | null = null;
  #closed = false;

  constructor(options: ClientSessionOptions) {
    this.#options = options;
    this.principal = options.principal;
    this.database = options.database;
    this.#parameters = new SessionParameters({
      application_name: options.application,
      session_authorization: options.principal.userName,
      ...options.parameters,
    });
  }

  get status(): SessionStatus {
    return this.#status;
  }

  parameter(name: string): string | null {
    return this.#parameters.get(name);
  }

  split(sql: string): Promise<readonly string[]> {
    return splitStatements(sql);
  }

  async prepare(
    sql: string,
    types: readonly number[] = [],
    options: { readonly describe?: boolean } = {},
  ): Promise<Prepared> {
    this.#requireOpen();
    try {
      return await this.#prepare(sql, types, options.describe ?? true);
    } catch (error) {
      this.#failed();
      throw error;
    }
  }

  async #prepare(sql: string, types: readonly number[], describe: boolean): Promise<Prepared> {
    const statement = await classify(sql);
    this.#requireRunnable(statement);
    if (statement.kind !== "empty" && !isRun(statement)) throw unsupported(statement);
    const tables = await this.#check(statement);
    const count = Math.max(statement.parameters, types.length);
    const oids = Array.from({ length: count }, (_, i) => types[i] ?? 0);
    const checked = { tables, atMs: this.#options.clock.monotonicMs() };
    const base = { sql, kind: statement.kind, writes: statement.writes, statement, checked };
    const local = localColumns(statement, this.#parameters);
    if (local !== undefined) {
      return plan({
        ...base,
        oids,
        parameters: [],
        columns: local?.columns ?? null,
        arrowSchema: local?.arrowSchema ?? null,
      });
    }
    const action =
      statement.kind === "select"
        ? "describe"
        : isDml(statement) && (count > 0 || hasReturning(statement))
          ? "describe-dml"
          : null;
    if (!describe || action === null) {
      return plan({
        ...base,
        oids,
        parameters: oids.map((oid, i) => parameterColumn(i, oid)),
        columns: null,
        arrowSchema: null,
      });
    }
    const params = oids.map((oid): SentParam => ({ oid, text: null }));
    const found = await this.#attempt(
      this.#request(action, await this.#sqlOf(statement), { params, tables }),
      false,
      new AbortController().signal,
    );
    // A description has no rows; it is over when its end was seen.
    for await (const _ of found.messages());
    const parameters = found.parameters;
    return plan({
      ...base,
      oids: parameters.map((p, i) => oids[i] || p.typeOid),
      parameters,
      columns: found.columns,
      arrowSchema: found.arrowSchema,
    });
  }

  async run(prepared: Prepared, options: RunOptions = {}): Promise<RunResult> {
    this.#requireOpen();
    const planned = prepared as Plan;
    const { statement } = planned;
    this.#requireRunnable(statement);
    if (this.#running)
      throw new SpillwayError("session_ended", "The session runs another statement.", {
        details: { sqlstate: "55006" },
      });
    const running = { stop: new AbortController(), reason: null as CancelReason | null };
    this.#running = running;
    const id = newUuid();
    const timer = this.#timeout(options);
    const abort = (): void => this.cancel("client");
    options.signal?.addEventListener("abort", abort, { once: true });
    if (options.signal?.aborted) this.cancel("client");
    const { observer } = this.#options;
    observer?.started({ id, session: this, sql: statement.sql, writes: statement.writes });
    let node: NodeResult | null = null;
    const finish = (error: unknown): void => {
      clearTimeout(timer);
      options.signal?.removeEventListener("abort", abort);
      if (this.#running === running) this.#running = null;
      if (error !== null) this.#failed();
      observer?.ended(id, { error, ...(node?.stats() ?? { rows: 0, bytes: 0, engineMs: 0 }) });
    };
    try {
      node = translated(await this.#start(planned, options, running.stop.signal, id), (e) =>
        this.#translate(e, running.reason),
      );
      return resultOf(node, finish);
    } catch (error) {
      const typed = this.#translate(error, running.reason);
      finish(typed);
      throw typed;
    }
  }

  cancel(reason: CancelReason): void {
    const running = this.#running;
    if (!running || running.stop.signal.aborted) return;
    running.reason = reason;
    running.stop.abort();
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.cancel("client");
    if (this.#transaction !== null) await this.#endTransaction("rollback").catch(() => {});
    this.#options.onClose?.(this);
  }

  /** The timer covers all, from the queue to the last byte. */
  #timeout(options: RunOptions): NodeJS.Timeout | undefined {
    const ms = options.timeoutMs ?? Number(this.#parameters.get("statement_timeout") ?? "0");
    return ms > 0 ? setTimeout(() => this.cancel("timeout"), ms) : undefined;
  }

  async #start(planned: Plan, options: RunOptions, signal: AbortSignal, id: string): Promise<NodeResult> {
    const { statement } = planned;
    if (statement.kind === "empty") return emptyResult("");
    const own = this.#local(statement);
    if (own) return own;
    const control = await this.#control(statement, signal);
    if (control) return control;
    const action = ACTION_OF[statement.kind];
    if (!action || !isRun(statement)) throw unsupported(statement);
    // Granted when it was prepared; asked again, because grants can be revoked since.
    const { checked } = planned;
    const isFresh = this.#options.clock.monotonicMs() - checked.atMs < FRESH_MS;
    const tables = isFresh ? checked.tables : await this.#check(statement);
    const values = options.params ?? [];
    if (values.length < statement.parameters) {
      throw new SpillwayError(
        "sql_syntax",
        `The statement has ${statement.parameters} parameters and got ${values.length}.`,
        {
          details: { sqlstate: "08P01" },
        },
      );
    }
    const params = values.map((value, i) => sendParam(value, planned.oids[i] ?? 0));
    const more = action === "explain" ? { analyze: statement.tree !== null && isAnalyze(nodeOf(statement.tree)) } : {};
    const sql = action === "explain" ? explained(statement.sql) : await this.#sqlOf(statement);
    const request = this.#request(action, sql, { params, tables, ...more });
    if (action === "execute" && this.#transaction === null) return this.#write(request, statement, signal, id);
    return this.#attempt(request, statement.writes, signal, id);
  }

  /**
   * A change that is a transaction of its own. It is sent with the id of its commit: when the answer is lost, the id says
   * whether it was applied, and one that was not, and no longer can be, is sent again.
   */
  async #write(request: NodeRequest, statement: Classified, signal: AbortSignal, id: string): Promise<NodeResult> {
    for (let attempt = 1; ; attempt++) {
      const commitId = newUuid();
      try {
        return await this.#attempt({ ...request, commitId }, true, signal, id);
      } catch (error) {
        if (!isSpillwayError(error, "node_lost", "pg_commit_unknown") || signal.aborted) throw error;
        const found = await this.#options.outcome?.(commitId).catch(() => null);
        if (!found) throw unknownOutcome(commitId, error);
        if (found.outcome === "committed") return appliedResult(statement, found.rows, error);
        if (attempt >= WRITE_ATTEMPTS) throw error;
      }
    }
  }

  #attempt(request: NodeRequest, writes: boolean, signal: AbortSignal, id?: string): Promise<NodeResult> {
    const { runner, observer } = this.#options;
    return runner.run(request, {
      signal,
      writes,
      user: this.principal.userId,
      ...(id === undefined || !observer ? {} : { onQueued: (position) => observer.queued(id, position) }),
    });
  }

  #request(
    action: NodeAction,
    sql: string,
    more: Partial<Pick<NodeRequest, "params" | "tables" | "analyze" | "isolation" | "readOnly">> = {},
  ): NodeRequest {
    const searchPath = this.#parameters.searchPath();
    return { action, sql, params: [], tables: [], searchPath, transaction: this.#transaction, ...more };
  }

  #check(statement: Classified): Promise<readonly PlannedTable[] | null> {
    return this.#options.guard.check(statement, this.#context());
  }

  async #sqlOf(statement: Classified): Promise<string> {
    return (await this.#options.guard.sqlOf?.(statement, this.#context())) ?? statement.sql;
  }

  #context(): GuardContext {
    const { principal, database } = this;
    const searchPath = this.#parameters.searchPath();
    return { principal, database, searchPath, parameter: (name) => this.#parameters.get(name) };
  }

  /** SET, SHOW, RESET, DISCARD. */
  #local({ kind, tree }: Classified): NodeResult | null {
    const node = tree ? nodeOf(tree) : {};
    switch (kind) {
      case "set":
        applySet(this.#parameters, tree ?? {}, this.#status !== "idle");
        return emptyResult("SET");
      case "reset": {
        const name = resetName(node);
        if (name === null) this.#parameters.resetAll();
        else this.#parameters.set(name, null, false);
        return emptyResult("RESET");
      }
      case "discard":
        this.#parameters.resetAll();
        return emptyResult(node["target"] === "DISCARD_ALL" ? "DISCARD ALL" : "DISCARD");
      case "show":
        return shown(this.#parameters, node);
      default:
        return null;
    }
  }

  /** BEGIN to ROLLBACK. */
  async #control({ kind, tree }: Classified, signal: AbortSignal): Promise<NodeResult | null> {
    const node = tree ? nodeOf(tree) : {};
    const name = String(node["savepoint_name"] ?? "");
    switch (kind) {
      case "begin":
        return this.#begin(node, signal);
      case "commit":
      case "rollback": {
        const outcome = kind === "commit" && this.#status !== "failed" ? "commit" : "rollback";
        if (this.#transaction !== null) await this.#endTransaction(outcome);
        if (node["chain"] === true) await this.#begin({}, signal);
        return emptyResult(outcome === "commit" ? "COMMIT" : "ROLLBACK");
      }
      case "savepoint":
      case "release":
      case "rollback-to": {
        if (this.#transaction === null) {
          throw new SpillwayError("transaction_none", `${kind.toUpperCase()} can only be used in transaction blocks.`, {
            details: { sqlstate: "25P01" },
          });
        }
        const result = await this.#attempt(this.#request(kind, name), true, signal);
        if (kind === "rollback-to") this.#status = "transaction";
        return result;
      }
      default:
        return null;
    }
  }

  async #begin(node: PgNode, signal: AbortSignal): Promise<NodeResult> {
    if (this.#transaction !== null) return emptyResult("BEGIN");
    const options = transactionOptions(node);
    const level = options.get("transaction_isolation") ?? this.#parameters.get("default_transaction_isolation");
    const readOnly =
      (options.get("transaction_read_only") ?? this.#parameters.get("default_transaction_read_only")) === "on";
    this.#transaction = newUuid();
    try {
      const isolation = level === "serializable" ? ("serializable" as const) : ("repeatable read" as const);
      await this.#attempt(this.#request("begin", "", { isolation, readOnly }), !readOnly, signal);
    } catch (error) {
      this.#transaction = null;
      throw error;
    }
    this.#status = "transaction";
    this.#parameters.begin();
    return emptyResult("BEGIN");
  }

  async #endTransaction(outcome: "commit" | "rollback"): Promise<void> {
    const id = this.#transaction;
    const request = this.#request(outcome, outcome === "commit" ? (id ?? "") : "");
    // It is over, whatever comes of it.
    this.#transaction = null;
    this.#status = "idle";
    const never = new AbortController().signal;
    try {
      await this.#attempt(request, true, never);
      this.#parameters.end(outcome);
    } catch (error) {
      this.#parameters.end("rollback");
      if (outcome === "rollback") return;
      if (!isSpillwayError(error, "pg_commit_unknown", "node_lost", "node_lost_in_transaction") || id === null)
        throw error;
      await this.#settle(id, error);
    }
  }

  /** The answer to a COMMIT was lost: its id says what became of it. */
  async #settle(commitId: string, lost: SpillwayError): Promise<void> {
    const { outcome } = this.#options;
    const found = await outcome?.(commitId).catch(() => null);
    if (found?.outcome === "committed") return;
    if (found) {
      throw new SpillwayError(
        "node_lost_in_transaction",
        "The transaction was lost before its COMMIT and is rolled back.",
        {
          cause: lost,
          details: { sqlstate: "40001" },
        },
      );
    }
    throw unknownOutcome(commitId, lost);
  }

  #failed(): void {
    if (this.#status === "transaction" && this.#transaction !== null) this.#status = "failed";
  }

  #requireOpen(): void {
    if (this.#closed)
      throw new SpillwayError("session_ended", "The session is closed.", { details: { sqlstate: "08003" } });
  }

  #requireRunnable({ kind }: Classified): void {
    if (this.#status !== "failed" || kind === "rollback" || kind === "commit" || kind === "rollback-to") return;
    throw new SpillwayError(
      "transaction_failed",
      "current transaction is aborted, commands ignored until end of transaction block",
      { details: { sqlstate: "25P02" } },
    );
  }

  /** An interruption is named after what asked for it. */
  #translate(error: unknown, reason: CancelReason | null): unknown {
    if (reason === null || isSpillwayError(error, "queue_timeout")) return error;
    const text =
      reason === "timeout" ? "canceling statement due to statement timeout" : "canceling statement due to user request";
    return new SpillwayError(CANCEL_CODE[reason], text, { cause: error, details: { sqlstate: "57014", reason } });
  }
}

function plan(value: Plan): Prepared {
  return value;
}
