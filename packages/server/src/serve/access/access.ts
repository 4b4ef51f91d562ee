/**
 * The gate before every statement: parsed, each of its parts on the allowlist, each of its tables granted
 * (docs/internals/serving.md §5). What passes is no more than a plan: the node still sees the tables only through
 * views of what the set of this user allows.
 */
import type { Logger } from "@spillway/base/log";
import { SpillwayError } from "@spillway/base/errors";
import type { AccessRules, Control, PoolInfo, Privilege } from "../../control/control.ts";
import type { Engine, EngineSession } from "../../engine/engine.ts";
import type { Principal, StatementKind } from "../session/session.ts";
import { type AccessSet, isSystemSchema, makeAccessSet, type TableAccess } from "./access-set.ts";
import { brokenPolicy, noPrivilege, noSuchTable, policyForbids, statementRefused, unqualified } from "./denials.ts";
import { checkQuery, type CheckedQuery, parseDuck, printDuck, type SessionValue } from "./duck-tree.ts";
import { checkStatement, type PgNode } from "./pg-tree.ts";
import { compilePolicy } from "./policy-sql.ts";

export interface GateRequest {
  /** One statement, without its semicolon. */
  readonly sql: string;
  readonly kind: StatementKind;
  /** Of the classification: a SELECT can write, or lock. */
  readonly writes: boolean;
  /** In Postgres's grammar; null when only DuckDB's knows it. */
  readonly tree: PgNode | null;
  readonly access: AccessSet;
  readonly searchPath: readonly string[];
  /** The name of the database, which may stand before a schema. */
  readonly database: string;
  /** What `current_user`, `current_setting('…')` and the like are in this session. */
  readonly session: SessionValue;
}

export interface TableUse {
  readonly schema: string;
  readonly name: string;
  readonly privilege: Privilege;
  readonly access: TableAccess;
  /** Further tables that the name means where this one does not exist. */
  readonly others: readonly Omit<TableUse, "others">[];
}

export interface AccessPlan {
  /** The statement to run: the session's values are in it as constants. */
  readonly sql: string;
  readonly tables: readonly TableUse[];
  /** What the policies in shadow mode would have done: one line each, for the audit. */
  readonly shadow: readonly string[];
}

export interface AccessOptions {
  readonly control: Control;
  /** Parses; runs nothing of a client. */
  readonly engine: Engine;
  readonly log: Logger;
  /** Whether writes to tables under a policy are held to it by whoever runs them. Without, they are refused. */
  readonly policyWrites?: boolean;
}

interface Parsed {
  readonly tables: CheckedQuery["tables"];
  /** Depends on the session: not kept. */
  readonly sql: string | null;
}

const MAX_PARSED = 2000;
const MAX_SQL_BYTES = 16 << 20;

export class AccessControl {
  readonly #options: AccessOptions;
  readonly #sets = new WeakMap<AccessRules, Promise<AccessSet>>();
  readonly #parsed = new Map<string, Parsed>();
  #session: EngineSession | null = null;
  #turn: Promise<unknown> = Promise.resolve();

  constructor(options: AccessOptions) {
    this.#options = options;
  }

  /** Of now: at most a second old. Throws `access_denied` for a user who may not use the database, `control_unavailable`. */
  async rules(principal: Principal, databaseId: string): Promise<AccessRules> {
    const rules = await this.#options.control.rules(principal.userId, databaseId);
    if (rules !== null && rules.refused === null) return rules;
    const why = rules?.refused ?? "it does not exist";
    throw new SpillwayError("access_denied", `the database cannot be used: ${why}`, { details: { sqlstate: "28000" } });
  }

  /** Throws what `rules` throws. */
  async accessFor(principal: Principal, databaseId: string): Promise<AccessSet> {
    return this.setOf(await this.rules(principal, databaseId));
  }

  /** The set of these rules; the same object for the same rules. */
  setOf(rules: AccessRules): Promise<AccessSet> {
    let made = this.#sets.get(rules);
    if (made === undefined) {
      const params = {
        user: rules.userName,
        tenant: rules.database.tenantName,
        roles: rules.roles,
        groups: rules.groups,
      };
      made = makeAccessSet(rules, (text) => this.#parse((session) => compilePolicy(session, text, params)));
      made.catch(() => this.#sets.delete(rules));
      this.#sets.set(rules, made);
    }
    return made;
  }

  /** Whether the text can be a policy's. Throws `access_policy_invalid`. */
  async checkPolicy(text: string): Promise<void> {
    await this.#parse((session) => compilePolicy(session, text, { user: "u", tenant: "t", roles: ["r"], groups: [] }));
  }

  /** The pool of this name, or the default one. Throws `access_denied`. */
  pool(rules: AccessRules, name: string | null): PoolInfo {
    const found = name === null ? rules.pools[0] : rules.pools.find((p) => p.name === name);
    if (found) return found;
    const what = name === null ? "no pool of this database is granted" : `the pool ${name} does not exist`;
    throw new SpillwayError("access_denied", what, { details: { sqlstate: "42501" } });
  }

  /** Throws `access_*`, `sql_syntax`, `limit_exceeded`, each with `details.sqlstate` and where known `details.position`. */
  async check(request: GateRequest): Promise<AccessPlan> {
    if (request.kind === "empty") return { sql: request.sql, tables: [], shadow: [] };
    if (Buffer.byteLength(request.sql) > MAX_SQL_BYTES) {
      throw new SpillwayError("limit_exceeded", `a statement has at most ${MAX_SQL_BYTES} bytes`);
    }
    return request.kind === "select" && !request.writes ? this.#checkSelect(request) : this.#checkOther(request);
  }

  close(): void {
    this.#session?.close();
    this.#session = null;
  }

  async #checkSelect(request: GateRequest): Promise<AccessPlan> {
    const { tables, sql } = await this.#query(request.sql, request.session);
    const uses = tables.map((t) => {
      if (t.catalog !== "" && t.catalog !== request.database) throw noSuchTable(t.name, t);
      return resolve(request, t.schema, t.name, "select", t.position, true);
    });
    return { sql: sql ?? request.sql, tables: uses, shadow: shadowOf(request.access, uses) };
  }

  async #checkOther(request: GateRequest): Promise<AccessPlan> {
    if (request.tree === null) throw statementRefused("this statement");
    const { uses, schemas } = checkStatement(request.tree);
    for (const schema of schemas) {
      if (!request.access.ownsSchema(schema)) throw noPrivilege("create or drop", schema);
    }
    const writes = uses.some((u) => u.privilege !== "select");
    const path = writes ? writePath(request.searchPath) : request.searchPath;
    const tables = uses.map((u) => {
      if (u.catalog !== "" && u.catalog !== request.database) throw noSuchTable(u.name, u);
      if (u.schema === "" && path.length === 0) throw unqualified(u.name, u);
      const use = resolve({ ...request, searchPath: path }, u.schema, u.name, u.privilege, u.position, false);
      for (const each of [use, ...use.others]) this.#requireWhole(request.access, each, u.whole, writes);
      return use;
    });
    return { sql: request.sql, tables, shadow: shadowOf(request.access, tables) };
  }

  /** What a policy cannot be held against is refused on a table that has one. */
  #requireWhole(access: AccessSet, use: Omit<TableUse, "others">, whole: string, writes: boolean): void {
    const label = `${use.schema}.${use.name}`;
    const restricted = use.access.rows !== null || use.access.columns.size > 0;
    if (whole === "rename" && !access.isSuperuser && access.hasPolicy(use.schema, use.name)) {
      throw policyForbids("rename or drop it", label);
    }
    if (!restricted) return;
    if (whole !== "no") throw policyForbids("change the whole of it", label);
    if (writes && this.#options.policyWrites !== true) {
      throw policyForbids(use.privilege === "select" ? "read it in a statement that writes" : "write to it", label);
    }
  }

  async #query(sql: string, session: SessionValue): Promise<Parsed> {
    const known = this.#parsed.get(sql);
    if (known) return known;
    const made = await this.#parse(async (engine): Promise<Parsed> => {
      const tree = await parseDuck(engine, sql);
      const { tables, rewritten } = checkQuery(tree, session);
      return { tables, sql: rewritten === null ? null : await printDuck(engine, rewritten) };
    });
    if (made.sql === null && sql.length < 100_000) {
      this.#parsed.set(sql, made);
      if (this.#parsed.size > MAX_PARSED) {
        for (const oldest of this.#parsed.keys()) {
          this.#parsed.delete(oldest);
          break;
        }
      }
    }
    return made;
  }

  /** One at a time: the session has one statement at a time. */
  #parse<T>(work: (session: EngineSession) => Promise<T>): Promise<T> {
    const turn = this.#turn.then(async () => {
      if (this.#session?.broken) this.close();
      this.#session ??= await this.#options.engine.session();
      return work(this.#session);
    });
    this.#turn = turn.catch(() => {});
    return turn;
  }
}

const FILE_LIKE =
  /[/\\:*?[\]{}]|^https?:|\.(csv|tsv|parquet|json|jsonl|ndjson|db|duckdb|sqlite|xlsx|arrow|avro|gz|zst|txt)$/i;
/** Of the engine, found without a schema. */
const SYSTEM_TABLE = /^(pg_|duckdb_|sqlite_|pragma_)/i;

function resolve(
  request: GateRequest,
  schema: string,
  name: string,
  privilege: Privilege,
  position: number | undefined,
  anyCase: boolean,
): TableUse {
  const at = position === undefined ? {} : { position };
  const shown = schema === "" ? name : `${schema}.${name}`;
  if (schema === "" && (FILE_LIKE.test(name) || SYSTEM_TABLE.test(name))) throw noSuchTable(shown, at);
  // DuckDB keeps the case of what is written without quotes; Postgres's names are in lower case then.
  const names = anyCase && name !== name.toLowerCase() ? [name, name.toLowerCase()] : [name];
  const schemas = schema === "" ? request.searchPath : anyCase ? [schema, schema.toLowerCase()] : [schema];
  const found: Omit<TableUse, "others">[] = [];
  let seen = false;
  for (const s of schemas) {
    if (isSystemSchema(s)) continue;
    for (const n of names) {
      const access = request.access.table(s, n);
      if (access === null) continue;
      seen = true;
      if (access.privileges.has(privilege)) found.push({ schema: s, name: n, privilege, access });
    }
  }
  const [first, ...others] = found;
  const broken = found.find((t) => t.access.broken !== null)?.access.broken;
  if (typeof broken === "string") throw brokenPolicy(broken, at);
  if (first !== undefined) return { ...first, others };
  throw seen ? noPrivilege(privilege, shown, at) : noSuchTable(shown, at);
}

/**
 * Where Postgres looks up the names of a statement that writes: its connections have the default search path, whatever the
 * session's is. A name without a schema means the same thing to both only where the session's path begins there.
 */
function writePath(searchPath: readonly string[]): readonly string[] {
  const first = searchPath.find((schema) => !isSystemSchema(schema));
  return first === "public" ? ["public"] : [];
}

function shadowOf(access: AccessSet, uses: readonly TableUse[]): string[] {
  const { shadow } = access;
  if (shadow === null) return [];
  return uses
    .flatMap(({ others, ...first }) => [first, ...others])
    .flatMap((use) => {
      const then = shadow.table(use.schema, use.name);
      if (then === null) return [];
      const label = `${use.schema}.${use.name}`;
      const found: string[] = [];
      if (then.rows !== use.access.rows) found.push(`${label}: rows where ${then.rows ?? "all"}`);
      for (const [column, shown] of then.columns) {
        const now = use.access.columns.get(column);
        if (now === shown) continue;
        found.push(`${label}.${column}: ${shown === null ? "denied" : `shown as ${shown}`}`);
      }
      return found;
    });
}
