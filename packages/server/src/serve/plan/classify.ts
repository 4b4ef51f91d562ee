/**
 * What a statement is, from Postgres's own grammar; what that grammar does not know is left to DuckDB's, which here
 * accepts queries only. Nothing is decided by the first word: `WITH … INSERT`, `SELECT … INTO` and
 * `EXPLAIN ANALYZE DELETE` write.
 */
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { loadModule, parseSync, scanSync } from "libpg-query";
import type { StatementKind } from "../session/session.ts";

/** A node of Postgres's parse tree: one key, its type. */
export type PgNode = Readonly<Record<string, unknown>>;

export interface Classified {
  /** Without its semicolon. */
  readonly sql: string;
  readonly kind: StatementKind;
  readonly writes: boolean;
  /** Null when only DuckDB's grammar may know it, or it is empty. */
  readonly tree: PgNode | null;
  /** The highest `$n`. */
  readonly parameters: number;
}

let loading: Promise<void> | null = null;

/** The grammar, once per process. */
function grammar(): Promise<void> {
  loading ??= Promise.resolve(loadModule()).then(() => undefined);
  return loading;
}

/** The statements of a text, without empty ones. Throws `sql_syntax`. */
export async function splitStatements(sql: string): Promise<string[]> {
  // One without a semicolon inside is the usual case.
  const trimmed = sql.trim();
  if (!trimmed.slice(0, -1).includes(";")) {
    const one = trimmed.endsWith(";") ? trimmed.slice(0, -1) : trimmed;
    return one.trim() === "" ? [] : [one];
  }
  await grammar();
  const bytes = Buffer.from(sql, "utf8");
  const out: string[] = [];
  let [start, depth] = [0, 0];
  let filled = false;
  const cut = (end: number): void => {
    if (filled) out.push(bytes.toString("utf8", start, end).trim());
    filled = false;
  };
  for (const token of scan(sql)) {
    if (token.text === "(") depth += 1;
    else if (token.text === ")") depth -= 1;
    if (token.text === ";" && depth <= 0) {
      cut(token.start);
      start = token.end;
    } else if (!token.tokenName.endsWith("COMMENT")) filled = true;
  }
  cut(bytes.length);
  return out;
}

interface Token {
  readonly start: number;
  readonly end: number;
  readonly text: string;
  readonly tokenName: string;
}

function scan(sql: string): readonly Token[] {
  try {
    return scanSync(sql).tokens;
  } catch (error) {
    throw syntaxError(error);
  }
}

/** Throws `sql_syntax` with the position, unless the text may be a query in DuckDB's dialect. */
export async function classify(text: string): Promise<Classified> {
  await grammar();
  const sql = text.trim().replace(/;\s*$/, "");
  if (sql === "") return { sql, kind: "empty", writes: false, tree: null, parameters: 0 };
  const parameters = parameterCount(sql);
  let stmts: readonly { readonly stmt?: PgNode }[];
  try {
    stmts = (parseSync(sql) as { stmts?: readonly { readonly stmt?: PgNode }[] }).stmts ?? [];
  } catch (error) {
    const use = /^use\s+(?:"((?:[^"]|"")+)"|([\w.]+))$/i.exec(sql);
    if (use) return { sql, kind: "set", writes: false, tree: { Use: use[1] ?? use[2] ?? "" }, parameters: 0 };
    if (!QUERY_WORDS.test(sql)) throw syntaxError(error);
    return { sql, kind: "select", writes: false, tree: null, parameters };
  }
  const tree = stmts[0]?.stmt;
  if (!tree) return { sql, kind: "empty", writes: false, tree: null, parameters: 0 };
  if (stmts.length > 1) throw new SpillwayError("sql_unsupported", "Give one statement at a time.");
  return { sql, ...kindOf(tree), tree, parameters };
}

/** How a query can begin in DuckDB's dialect. Its parser decides what it is; it serializes nothing but queries. */
const QUERY_WORDS = /^[\s(]*(?:select|with|from|values|table|pivot|unpivot|describe|summarize)\b/i;

function parameterCount(sql: string): number {
  if (!sql.includes("$")) return 0;
  try {
    return Math.max(0, ...scanSync(sql).tokens.map((t) => (t.tokenName === "PARAM" ? Number(t.text.slice(1)) : 0)));
  } catch {
    return 0;
  }
}

interface Kind {
  readonly kind: StatementKind;
  readonly writes: boolean;
}

const reads = (kind: StatementKind): Kind => ({ kind, writes: false });
const changes = (kind: StatementKind): Kind => ({ kind, writes: true });

const TRANSACTION: Readonly<Record<string, StatementKind>> = {
  TRANS_STMT_BEGIN: "begin",
  TRANS_STMT_START: "begin",
  TRANS_STMT_COMMIT: "commit",
  TRANS_STMT_ROLLBACK: "rollback",
  TRANS_STMT_SAVEPOINT: "savepoint",
  TRANS_STMT_RELEASE: "release",
  TRANS_STMT_ROLLBACK_TO: "rollback-to",
};

function kindOf(tree: PgNode): Kind {
  const [type = ""] = Object.keys(tree);
  const node = (tree[type] ?? {}) as PgNode;
  switch (type) {
    case "SelectStmt":
      if (node["intoClause"]) return changes("ddl");
      return { kind: "select", writes: holdsDml(node) || Array.isArray(node["lockingClause"]) };
    case "InsertStmt":
      return changes("insert");
    case "UpdateStmt":
      return changes("update");
    case "DeleteStmt":
      return changes("delete");
    case "MergeStmt":
      return changes("merge");
    case "TruncateStmt":
      return changes("truncate");
    case "TransactionStmt": {
      const kind = TRANSACTION[String(node["kind"])];
      return kind ? reads(kind) : changes("utility");
    }
    case "VariableSetStmt":
      return reads(String(node["kind"]).startsWith("VAR_RESET") ? "reset" : "set");
    case "VariableShowStmt":
      return reads("show");
    case "DiscardStmt":
      return reads("discard");
    case "CopyStmt":
      return { kind: "copy", writes: node["is_from"] === true };
    case "ExplainStmt": {
      const inner = kindOf((node["query"] ?? {}) as PgNode);
      return { kind: "explain", writes: inner.writes && isAnalyze(node) };
    }
    case "CreateStmt":
    case "CreateTableAsStmt":
    case "AlterTableStmt":
    case "RenameStmt":
    case "DropStmt":
    case "CreateSchemaStmt":
    case "ViewStmt":
    case "IndexStmt":
    case "AlterObjectSchemaStmt":
    case "CommentStmt":
      return changes("ddl");
    default:
      return changes("utility");
  }
}

export function isAnalyze(explain: PgNode): boolean {
  const options = (explain["options"] ?? []) as readonly PgNode[];
  return options.some((o) => {
    const def = (o["DefElem"] ?? {}) as PgNode;
    if (def["defname"] !== "analyze") return false;
    const value = JSON.stringify(def["arg"] ?? true);
    return !/"(false|off|0)"|:0\b/i.test(value);
  });
}

const DML = new Set(["InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"]);

/** A data-modifying WITH, however deep. */
function holdsDml(value: unknown): boolean {
  if (Array.isArray(value)) return value.some(holdsDml);
  if (typeof value !== "object" || value === null) return false;
  return Object.entries(value).some(([key, child]) => DML.has(key) || holdsDml(child));
}

function syntaxError(error: unknown): SpillwayError {
  const at = (error as { sqlDetails?: { cursorPosition?: number } }).sqlDetails?.cursorPosition;
  return new SpillwayError("sql_syntax", messageOf(error), {
    cause: error,
    details: { sqlstate: "42601", ...(at === undefined ? {} : { position: at + 1 }) },
  });
}
