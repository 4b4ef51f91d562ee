/**
 * Statements that the edge answers, with the help of the session and the source: transaction control, settings, cursors, prepared
 * statements of SQL, COPY over both tiers.
 */
import type { WireColumn, WireParam } from "../../session/session.ts";
import type { Engines } from "./engines.ts";
import type { Plan } from "./plans.ts";
import { isRoleSetting } from "./routing.ts";
import { RowCursor } from "./row-cursor.ts";
import { constantOf, type SqlNode } from "./sql-tree.ts";
import { type Outcome, plainOutcome, prepareBySession, runBySession } from "./statements.ts";
import { pgError } from "./wire-errors.ts";

interface HeldCursor {
  readonly cursor: RowCursor;
  readonly hold: boolean;
}

interface SqlPrepared {
  readonly text: string;
  readonly types: readonly string[];
}

export interface CommandContext {
  readonly engines: Engines;
  /** Relays a statement to the source as it is; null: it goes nowhere. Throws when the source refused and the client was told. */
  relay(plan: Plan): Promise<void>;
  /** Plans a text that came from the client before. */
  plan(text: string): Promise<Plan>;
  copy(plan: Plan): Promise<Outcome>;
  warn(sqlstate: string, message: string): void;
  /** DISCARD ALL and DEALLOCATE ALL. */
  forget(): Promise<void>;
  /** After settings may have changed. */
  report(): void;
}

/** Null: the source was asked, and the client has its answer. */
export type CommandOutcome = Outcome | null;

export class Commands {
  readonly #context: CommandContext;
  readonly #cursors = new Map<string, HeldCursor>();
  readonly #prepared = new Map<string, SqlPrepared>();

  constructor(context: CommandContext) {
    this.#context = context;
  }

  /** Whether the source itself has to be asked: a cursor or prepared statement that is not the edge's. */
  async goesToSource(plan: Plan): Promise<boolean> {
    const { mappedLogin } = await this.#context.engines.view();
    if (mappedLogin === null) return false;
    switch (plan.type) {
      case "FetchStmt":
      case "ClosePortalStmt":
        return plan.body["portalname"] !== undefined && !this.#cursors.has(String(plan.body["portalname"]));
      case "ExecuteStmt":
      case "DeallocateStmt":
        return plan.body["name"] !== undefined && !this.#prepared.has(String(plan.body["name"]));
      case "PrepareStmt":
        return (await this.#inner(plan)).way === "mapped";
      case "VariableShowStmt":
        return true;
      default:
        return false;
    }
  }

  /** What a Describe is to say. */
  async columns(plan: Plan): Promise<readonly WireColumn[] | null> {
    const { session } = this.#context.engines;
    if (plan.type === "VariableShowStmt") return (await prepareBySession(session, plan)).columns;
    if (plan.type === "FetchStmt" && plan.body["ismove"] !== true) return this.#cursor(plan).cursor.columns;
    if (plan.type === "ExecuteStmt") {
      const prepared = this.#sqlPrepared(String(plan.body["name"]));
      return (await session.prepare(prepared.text)).columns;
    }
    return null;
  }

  async run(plan: Plan, params: readonly WireParam[] = []): Promise<CommandOutcome> {
    switch (plan.type) {
      case "TransactionStmt":
        return this.#transaction(plan);
      case "VariableSetStmt":
        return this.#set(plan);
      case "DiscardStmt":
        return this.#discard(plan);
      case "DeclareCursorStmt":
        return this.#declare(plan, params);
      case "CopyStmt":
        return this.#context.copy(plan);
      case "UnlistenStmt":
        // Nobody who is mapped to no role can have listened.
        return plainOutcome("UNLISTEN");
    }
    if (await this.goesToSource(plan)) {
      await this.#context.relay(plan);
      return null;
    }
    switch (plan.type) {
      case "FetchStmt":
        return this.#fetch(plan);
      case "ClosePortalStmt":
        return this.#closeCursor(plan);
      case "PrepareStmt":
        return this.#prepare(plan);
      case "ExecuteStmt":
        return this.#execute(plan);
      case "DeallocateStmt":
        return this.#deallocate(plan);
      default:
        return this.#bySession(plan);
    }
  }

  /** The rows of a cursor of SQL, which is a portal too; null when there is none of that name. */
  cursorColumns(name: string): readonly WireColumn[] | null {
    return this.#cursors.get(name)?.cursor.columns ?? null;
  }

  /** Before a COMMIT: cursors WITH HOLD take their rows in, the others end. */
  async endTransaction(commits: boolean): Promise<void> {
    for (const [name, { cursor, hold }] of this.#cursors) {
      if (hold && commits) {
        await cursor.keep();
      } else if (!hold || !cursor.isEnded) {
        this.#cursors.delete(name);
        await cursor.close();
      }
    }
  }

  async forgetAll(): Promise<void> {
    for (const { cursor } of this.#cursors.values()) await cursor.close();
    this.#cursors.clear();
    this.#prepared.clear();
  }

  async #bySession(plan: Plan): Promise<Outcome> {
    const { engines } = this.#context;
    return runBySession(engines, await prepareBySession(engines.session, plan));
  }

  async #transaction({ text, body }: Plan): Promise<Outcome> {
    const { transaction } = this.#context.engines;
    const kind = String(body["kind"]).replace("TRANS_STMT_", "");
    const name = String(body["savepoint_name"] ?? "");
    const chain = body["chain"] === true;
    if (chain) throw pgError("0A000", "COMMIT AND CHAIN is not served here");
    switch (kind) {
      case "BEGIN":
      case "START":
        return this.#begin(text, kind === "BEGIN" ? "BEGIN" : "START TRANSACTION");
      case "COMMIT":
      case "ROLLBACK": {
        if (transaction.status === "I") {
          this.#context.warn("25P01", "there is no transaction in progress");
          return plainOutcome(kind);
        }
        const tag = await this.endWith(kind);
        this.#context.report();
        return plainOutcome(tag);
      }
      case "SAVEPOINT":
        this.#requireBlock("SAVEPOINT");
        await this.#context.engines.freeSession();
        await transaction.savepoint(text, name);
        return plainOutcome("SAVEPOINT");
      case "RELEASE":
        this.#requireBlock("RELEASE SAVEPOINT");
        await this.#context.engines.freeSession();
        await transaction.release(text, name);
        return plainOutcome("RELEASE");
      case "ROLLBACK_TO":
        this.#requireBlock("ROLLBACK TO SAVEPOINT");
        await this.#context.engines.freeSession();
        await transaction.rollbackTo(text, name);
        this.#context.report();
        return plainOutcome("ROLLBACK");
      default:
        throw pgError("0A000", "two-phase commit is not served here");
    }
  }

  /** COMMIT or ROLLBACK of what is open, cursors and all. Gives the tag. */
  async endWith(kind: "COMMIT" | "ROLLBACK"): Promise<"COMMIT" | "ROLLBACK"> {
    const { engines } = this.#context;
    const commits = kind === "COMMIT" && engines.transaction.status === "T";
    await this.endTransaction(commits);
    if (commits) await engines.freeSession();
    if (commits) return engines.transaction.commit();
    await engines.transaction.rollback();
    return "ROLLBACK";
  }

  async #begin(text: string, tag: string): Promise<Outcome> {
    const { transaction, session } = this.#context.engines;
    if (transaction.status !== "I" && !transaction.implicit) {
      this.#context.warn("25001", "there is already a transaction in progress");
      return plainOutcome(tag);
    }
    // Its modes are checked now, though it begins with its first statement.
    await session.prepare(text);
    if (transaction.implicit) transaction.makeExplicit(text);
    else transaction.begin(text);
    return plainOutcome(tag);
  }

  #requireBlock(what: string): void {
    const { transaction } = this.#context.engines;
    if (transaction.status === "I" || transaction.implicit) {
      throw pgError("25P01", `${what} can only be used in transaction blocks`);
    }
  }

  async #set(plan: Plan): Promise<CommandOutcome> {
    const { engines } = this.#context;
    const name = String(plan.body["name"] ?? "");
    if (isRoleSetting(name)) {
      throw pgError(
        "42501",
        `${name === "role" ? "SET ROLE" : "SET SESSION AUTHORIZATION"} is not allowed here`,
        {},
        "passthrough_denied",
      );
    }
    const { mappedLogin } = await engines.view();
    const { transaction } = engines;
    if (name === "TRANSACTION" && transaction.status === "T" && transaction.isFresh) {
      await engines.session.prepare(plan.text);
      transaction.record(plan.text);
      return plainOutcome("SET");
    }
    if (mappedLogin === null) {
      const outcome = await this.#bySession(plan);
      this.#context.report();
      return outcome;
    }
    await this.#context.relay(plan);
    transaction.record(plan.text);
    // What only the source knows, the session need not.
    if (transaction.status === "I" || !transaction.isFresh) await this.#bySession(plan).catch(() => {});
    this.#context.report();
    return null;
  }

  async #discard(plan: Plan): Promise<CommandOutcome> {
    const { engines } = this.#context;
    if (engines.transaction.status !== "I") throw pgError("25001", "DISCARD ALL cannot run inside a transaction block");
    if (plan.body["target"] === "DISCARD_ALL") {
      await this.forgetAll();
      await this.#context.forget();
    }
    const { mappedLogin } = await engines.view();
    if (mappedLogin === null) {
      const outcome = await this.#bySession(plan);
      this.#context.report();
      return outcome;
    }
    await this.#context.relay(plan);
    await this.#bySession(plan).catch(() => {});
    this.#context.report();
    return null;
  }

  async #declare(plan: Plan, params: readonly WireParam[]): Promise<Outcome> {
    const { engines } = this.#context;
    const name = String(plan.body["portalname"]);
    const options = Number(plan.body["options"] ?? 0);
    // CURSOR_OPT_BINARY, CURSOR_OPT_SCROLL, CURSOR_OPT_HOLD of parsenodes.h.
    const hold = (options & 0x20) !== 0;
    if ((options & 0x01) !== 0) throw pgError("0A000", "BINARY cursors are not served here");
    if (!hold && (engines.transaction.status !== "T" || engines.transaction.implicit)) {
      throw pgError("25P01", "DECLARE CURSOR can only be used in transaction blocks");
    }
    if (this.#cursors.has(name)) throw pgError("42P03", `cursor "${name}" already exists`);
    const match = /\bFOR\s+(?=SELECT|WITH|VALUES|TABLE|FROM|\()/i.exec(plan.text);
    if (!match) throw pgError("42601", "the query of the cursor cannot be found");
    const at = match.index + match[0].length;
    const query = { text: plan.text.slice(at), offset: plan.offset + at, syntax: null };
    const { cursor } = await runBySession(engines, await prepareBySession(engines.session, query), params);
    if (cursor === null) throw pgError("42601", "the statement of a cursor must return rows");
    this.#cursors.set(name, { cursor, hold });
    // Outside of a transaction block the statement's own transaction ends here.
    if (engines.transaction.status === "I" || engines.transaction.implicit) await cursor.keep();
    return plainOutcome("DECLARE CURSOR");
  }

  #cursor(plan: Plan): HeldCursor {
    const name = String(plan.body["portalname"] ?? "");
    const found = this.#cursors.get(name);
    if (!found) throw pgError("34000", `cursor "${name}" does not exist`);
    return found;
  }

  #fetch(plan: Plan): Outcome {
    const { cursor } = this.#cursor(plan);
    const moves = plan.body["ismove"] === true;
    const direction = String(plan.body["direction"] ?? "FETCH_FORWARD");
    const count = BigInt(String(plan.body["howMany"] ?? "0"));
    if (direction !== "FETCH_FORWARD" || count < 0n) {
      throw pgError("55000", "cursor can only scan forward", { hint: "Fetch NEXT, a count, FORWARD or ALL." });
    }
    const all = count >= 9_223_372_036_854_775_807n;
    const limit = all ? 0 : Number(count);
    // FETCH 0 is the row under the cursor, which is gone already.
    const part = limit === 0 && !all ? RowCursor.of(cursor.columns, EMPTY) : partOf(cursor, limit);
    if (!moves) return { cursor: part, tag: (rows) => `FETCH ${rows}` };
    return { cursor: new Skipped(part), tag: (rows) => `MOVE ${rows}` };
  }

  async #closeCursor(plan: Plan): Promise<Outcome> {
    if (plan.body["portalname"] === undefined) {
      for (const { cursor } of this.#cursors.values()) await cursor.close();
      this.#cursors.clear();
      return plainOutcome("CLOSE CURSOR ALL");
    }
    const { cursor } = this.#cursor(plan);
    this.#cursors.delete(String(plan.body["portalname"]));
    await cursor.close();
    return plainOutcome("CLOSE CURSOR");
  }

  /** The statement inside of a PREPARE. */
  async #inner(plan: Plan): Promise<Plan> {
    const match = /^PREPARE\s+(?:"(?:[^"]|"")+"|[^\s("]+)\s*(?:\([^)]*\)\s*)?AS\s+/i.exec(plan.text);
    if (!match) throw pgError("42601", "the statement of PREPARE cannot be found");
    return this.#context.plan(plan.text.slice(match[0].length));
  }

  async #prepare(plan: Plan): Promise<Outcome> {
    const name = String(plan.body["name"]);
    if (this.#prepared.has(name)) throw pgError("42P05", `prepared statement "${name}" already exists`);
    const inner = await this.#inner(plan);
    await prepareBySession(this.#context.engines.session, inner);
    const types = Array.isArray(plan.body["argtypes"]) ? (plan.body["argtypes"] as unknown[]).map(String) : [];
    this.#prepared.set(name, { text: inner.text, types });
    return plainOutcome("PREPARE");
  }

  #sqlPrepared(name: string): SqlPrepared {
    const found = this.#prepared.get(name);
    if (!found) throw pgError("26000", `prepared statement "${name}" does not exist`);
    return found;
  }

  async #execute(plan: Plan): Promise<Outcome> {
    const { engines } = this.#context;
    const { text } = this.#sqlPrepared(String(plan.body["name"]));
    const args = Array.isArray(plan.body["params"]) ? (plan.body["params"] as SqlNode[]) : [];
    const params = args.map((arg) => {
      const value = constantOf(arg);
      if (value === undefined) throw pgError("0A000", "EXECUTE takes constants here");
      return value;
    });
    return runBySession(engines, await engines.session.prepare(text), params);
  }

  async #deallocate(plan: Plan): Promise<Outcome> {
    if (plan.body["name"] === undefined) {
      this.#prepared.clear();
      await this.#context.forget();
      return plainOutcome("DEALLOCATE ALL");
    }
    this.#sqlPrepared(String(plan.body["name"]));
    this.#prepared.delete(String(plan.body["name"]));
    return plainOutcome("DEALLOCATE");
  }
}

const EMPTY = { length: 0, columns: [] };

/** A cursor's next rows as rows of their own: what is left stays with the cursor. */
function partOf(cursor: RowCursor, limit: number): RowCursor {
  let left = limit;
  const isOver = (): boolean => limit > 0 && left <= 0;
  return new RowCursor(
    {
      batches: async function* () {
        for (;;) {
          const piece = isOver() ? null : await cursor.takeBatch(left);
          if (piece === null) return;
          left -= limit === 0 ? 0 : piece.length;
          yield piece;
        }
      },
      close: async () => {},
    },
    cursor.columns,
  );
}

/** Rows that are counted and not sent. */
class Skipped extends RowCursor {
  readonly #part: RowCursor;

  constructor(part: RowCursor) {
    super({ batches: async function* () {}, close: async () => {} }, []);
    this.#part = part;
  }

  override async send(): Promise<{ readonly rows: number; readonly done: boolean }> {
    let rows = 0;
    for (;;) {
      const piece = await this.#part.takeBatch(0);
      if (piece === null) return { rows, done: true };
      rows += piece.length;
    }
  }
}
