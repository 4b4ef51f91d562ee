/**
 * As much of Postgres's lexical structure as it takes to find the parts of one INSERT, UPDATE or DELETE: where the target's name
 * is, and where WHERE, ON CONFLICT and RETURNING begin. The statement itself is Postgres's to parse.
 * Source: https://www.postgresql.org/docs/current/sql-syntax-lexical.html
 */
import { SpillwayError } from "@spillway/base/errors";
import { quoteLiteral } from "@spillway/pg/quote";
import type { EngineParam } from "../engine/engine.ts";

interface Token {
  readonly kind: "word" | "ident" | "string" | "param" | "other";
  /** A word in lower case, an identifier without its quotes, else the text. */
  readonly text: string;
  readonly start: number;
  readonly end: number;
  /** Parentheses around it. */
  readonly depth: number;
}

const SPACE = /\s+/y;
const LINE_COMMENT = /--[^\n]*/y;
const WORD = /[A-Za-z_\u0080-\uffff][A-Za-z0-9_$\u0080-\uffff]*/y;
const IDENT = /"(?:[^"]|"")*"/y;
const STRING = /'(?:[^']|'')*'/y;
const ESCAPE_STRING = /[eE]'(?:[^'\\]|\\[\s\S]|'')*'/y;
const PREFIX_STRING = /(?:[bBxXnN]|[uU]&)'(?:[^']|'')*'/y;
const DOLLAR = /\$([A-Za-z_\u0080-\uffff][A-Za-z0-9_\u0080-\uffff]*)?\$/y;
const PARAM = /\$\d+/y;
const NUMBER = /\d[\d_.eE+-]*/y;

function lex(sql: string): Token[] {
  const tokens: Token[] = [];
  let at = 0;
  let depth = 0;
  const take = (pattern: RegExp): string | null => {
    pattern.lastIndex = at;
    return pattern.exec(sql)?.[0] ?? null;
  };
  const push = (kind: Token["kind"], text: string, length: number): void => {
    tokens.push({ kind, text, start: at, end: at + length, depth });
    at += length;
  };
  while (at < sql.length) {
    const skipped = take(SPACE) ?? take(LINE_COMMENT);
    if (skipped !== null) {
      at += skipped.length;
      continue;
    }
    if (sql.startsWith("/*", at)) {
      at = blockCommentEnd(sql, at);
      continue;
    }
    const string = take(ESCAPE_STRING) ?? take(PREFIX_STRING) ?? take(STRING);
    if (string !== null) push("string", string, string.length);
    else if (take(PARAM) !== null) push("param", take(PARAM) ?? "", (take(PARAM) ?? "").length);
    else if (take(DOLLAR) !== null) push("string", "", dollarEnd(sql, at, take(DOLLAR) ?? "") - at);
    else if (take(IDENT) !== null) {
      const ident = take(IDENT) ?? "";
      push("ident", ident.slice(1, -1).replaceAll('""', '"'), ident.length);
    } else if (take(WORD) !== null) push("word", (take(WORD) ?? "").toLowerCase(), (take(WORD) ?? "").length);
    else if (take(NUMBER) !== null) push("other", take(NUMBER) ?? "", (take(NUMBER) ?? "").length);
    else {
      const char = sql[at] ?? "";
      if (char === ")") depth -= 1;
      push("other", char, 1);
      if (char === "(") depth += 1;
    }
  }
  return tokens;
}

function blockCommentEnd(sql: string, start: number): number {
  let depth = 0;
  for (let i = start; i < sql.length - 1; i++) {
    const two = sql.slice(i, i + 2);
    if (two === "/*" || two === "*/") {
      depth += two === "/*" ? 1 : -1;
      i += 1;
      if (depth === 0) return i + 1;
    }
  }
  throw new SpillwayError("sql_syntax", "A comment is not closed.");
}

function dollarEnd(sql: string, start: number, tag: string): number {
  const end = sql.indexOf(tag, start + tag.length);
  if (end < 0) throw new SpillwayError("sql_syntax", "A dollar-quoted text is not closed.");
  return end + tag.length;
}

/** The statement with its parameters written into it, as untyped constants. */
export function inlineParams(sql: string, params: readonly EngineParam[]): string {
  return replaceParams(sql, (n) => {
    const value = params[n - 1];
    if (value === undefined)
      throw new SpillwayError("sql_syntax", `The statement has $${n} and got ${params.length} parameters.`);
    return literal(value);
  });
}

/** The statement with other text in the places of its parameters, which are numbered from 1. */
export function replaceParams(sql: string, textOf: (n: number) => string): string {
  let out = "";
  let at = 0;
  for (const token of lex(sql)) {
    if (token.kind !== "param") continue;
    out += sql.slice(at, token.start) + textOf(Number(token.text.slice(1)));
    at = token.end;
  }
  return out + sql.slice(at);
}

function literal(value: EngineParam): string {
  if (value === null) return " NULL";
  if (typeof value === "number" || typeof value === "bigint") return ` (${String(value)})`;
  if (typeof value === "boolean") return ` ${String(value)}`;
  return quoteLiteral(value instanceof Uint8Array ? `\\x${Buffer.from(value).toString("hex")}` : value);
}

export interface Dml {
  readonly verb: "insert" | "update" | "delete";
  readonly sql: string;
  readonly schema: string;
  readonly name: string;
  /** The name by which the statement's expressions know the target. */
  readonly alias: string;
  /** The condition after WHERE; null without one. */
  readonly where: string | null;
  /** Other tables (USING, FROM) stand beside the target. */
  readonly hasOthers: boolean;
  /** INSERT: the statement up to ON CONFLICT or RETURNING, and what follows. */
  readonly body: string;
  readonly tail: string;
  /** The queries of a WITH before it, in their order; the texts above and below are without them. */
  readonly ctes: readonly Cte[];
  readonly recursive: boolean;
  /** Something in it may read another table, or the target once more. */
  readonly mayRead: boolean;
  /** The statement with another table in the place of the target, under the target's name. */
  retarget(table: string): string;
  retargetBody(table: string): string;
}

export interface Cte {
  readonly name: string;
  /** `(a, b)`, or nothing. */
  readonly columns: string;
  /** The query, without its parentheses. */
  readonly body: string;
  /** The whole: `name (a, b) AS (…)`, with what may follow. */
  readonly definition: string;
}

function statementTokens(text: string): Token[] {
  const tokens = lex(text);
  const last = tokens.at(-1);
  const trimmed = last?.text === ";" && last.kind === "other" ? tokens.slice(0, -1) : tokens;
  if (trimmed.some((t) => t.text === ";" && t.kind === "other" && t.depth === 0)) {
    throw new SpillwayError("sql_unsupported", "Give one statement at a time.");
  }
  return trimmed;
}

const VERBS = new Set(["insert", "update", "delete", "merge", "select", "values", "table"]);
const WRITES = new Set(["insert", "update", "delete", "merge"]);

/** The first word of a statement, that after its WITH; "" for none. */
export function verbOf(text: string): string {
  const tokens = lex(text);
  const isWord = (t: Token): boolean => t.kind === "word" && t.depth === 0;
  if (tokens[0]?.kind !== "word" || tokens[0].text !== "with") return tokens[0]?.kind === "word" ? tokens[0].text : "";
  return tokens.find((t) => isWord(t) && VERBS.has(t.text))?.text ?? "";
}

interface With {
  readonly ctes: readonly Cte[];
  readonly recursive: boolean;
  /** Where the statement itself begins. */
  readonly rest: number;
}

/** Throws `sql_unsupported` for queries that write: what they give and what they do would have to happen at once. */
function parseWith(sql: string, tokens: readonly Token[]): With {
  const isWord = (i: number, text: string): boolean => tokens[i]?.kind === "word" && tokens[i]?.text === text;
  if (!isWord(0, "with")) return { ctes: [], recursive: false, rest: 0 };
  const recursive = isWord(1, "recursive");
  const ctes: Cte[] = [];
  for (let at = recursive ? 2 : 1; ;) {
    const name = nameAt(tokens, at);
    const as = tokens.findIndex((t, i) => i > at && t.depth === 0 && t.kind === "word" && t.text === "as");
    const open = tokens.findIndex((t, i) => i > as && t.depth === 0 && t.text === "(" && t.kind === "other");
    const close = tokens.findIndex((t, i) => i > open && t.depth === 0 && t.text === ")" && t.kind === "other");
    if (as < 0 || open < 0 || close < 0) throw new SpillwayError("sql_syntax", "A query of the WITH cannot be found.");
    const first = tokens[open + 1];
    if (first?.kind === "word" && WRITES.has(first.text)) {
      throw new SpillwayError(
        "sql_unsupported",
        `The query ${name.text} of the WITH writes, which is not run over both tiers.`,
      );
    }
    const next = tokens.findIndex(
      (t, i) =>
        i > close &&
        t.depth === 0 &&
        ((t.kind === "other" && t.text === ",") || (t.kind === "word" && VERBS.has(t.text))),
    );
    const text = (from: number, to: number): string => sql.slice(tokens[from]?.start, tokens[to]?.start ?? sql.length);
    ctes.push({
      name: name.text,
      columns: text(at + 1, as).trim(),
      body: sql.slice(tokens[open]?.end, tokens[close]?.start),
      definition: text(at, next < 0 ? tokens.length : next).trim(),
    });
    if (next < 0) throw new SpillwayError("sql_syntax", "The statement ends with its WITH.");
    if (tokens[next]?.kind === "word") return { ctes, recursive, rest: next };
    at = next + 1;
  }
}

const READS = new Set(["select", "table", "from", "using", "join"]);

/** Throws `sql_unsupported` for everything but one INSERT, UPDATE or DELETE. */
export function parseDml(text: string): Dml {
  const whole = statementTokens(text);
  const { ctes, recursive, rest } = parseWith(text, whole);
  const trimmed = shifted(whole.slice(rest));
  const sql = text.slice(whole[rest]?.start ?? 0, whole.at(-1)?.end ?? 0);
  const verb = trimmed[0]?.kind === "word" ? trimmed[0].text : "";
  if (verb !== "insert" && verb !== "update" && verb !== "delete") {
    throw new SpillwayError(
      "sql_unsupported",
      `A statement that begins with ${JSON.stringify(verb)} is not run over both tiers.`,
    );
  }
  let at = 1;
  const word = (i: number): string => (trimmed[i]?.kind === "word" ? (trimmed[i]?.text ?? "") : "");
  if (verb === "insert" && word(at) === "into") at += 1;
  if (verb === "delete" && word(at) === "from") at += 1;
  if (word(at) === "only")
    throw new SpillwayError("sql_unsupported", "ONLY leaves out the partitions, in which the rows are.");
  const first = nameAt(trimmed, at);
  const qualified = trimmed[at + 1]?.text === "." && trimmed[at + 1]?.kind === "other";
  const second = qualified ? nameAt(trimmed, at + 2) : null;
  const start = trimmed[at]?.start ?? 0;
  at += qualified ? 3 : 1;
  let end = trimmed[at - 1]?.end ?? 0;
  const name = (second ?? first).text;
  let alias = name;
  if (word(at) === "as" || (verb !== "insert" && isAlias(trimmed[at]))) {
    if (word(at) === "as") at += 1;
    alias = nameAt(trimmed, at).text;
    end = trimmed[at]?.end ?? end;
  }
  const top = (...words: string[]): number =>
    trimmed.findIndex(
      (t, i) =>
        i >= at &&
        t.depth === 0 &&
        t.kind === "word" &&
        words[0] === t.text &&
        words.slice(1).every((w, k) => word(i + 1 + k) === w),
    );
  const returning = top("returning");
  const conflict = verb === "insert" ? top("on", "conflict") : -1;
  const where = verb === "insert" ? -1 : top("where");
  if (where >= 0 && word(where + 1) === "current" && word(where + 2) === "of") {
    throw new SpillwayError("sql_unsupported", "WHERE CURRENT OF is not run over both tiers.");
  }
  const stop = returning >= 0 ? (trimmed[returning]?.start ?? sql.length) : sql.length;
  const split = conflict >= 0 ? (trimmed[conflict]?.start ?? stop) : stop;
  const named = (table: string): string => `${table} AS ${quoted(alias)}`;
  return {
    verb,
    sql,
    schema: second ? first.text : "",
    name,
    alias,
    where: where < 0 ? null : sql.slice(trimmed[where]?.end ?? 0, stop),
    hasOthers: top(verb === "update" ? "from" : "using") >= 0,
    body: sql.slice(0, split),
    tail: sql.slice(split),
    ctes,
    recursive,
    mayRead: ctes.length > 0 || trimmed.some((t, i) => i > 1 && t.kind === "word" && READS.has(t.text)),
    retarget: (table) => sql.slice(0, start) + named(table) + sql.slice(end),
    retargetBody: (table) => sql.slice(0, start) + named(table) + sql.slice(end, split),
  };
}

/** Tokens of a statement that begins with the first of them. */
function shifted(tokens: readonly Token[]): Token[] {
  const by = tokens[0]?.start ?? 0;
  return tokens.map((t) => ({ ...t, start: t.start - by, end: t.end - by }));
}

/** The text with `schema.name` written as `name` alone, wherever it stands. */
export function unqualified(sql: string, schema: string, name: string): string {
  const tokens = lex(sql);
  const isName = (t: Token | undefined, text: string): boolean =>
    (t?.kind === "word" || t?.kind === "ident") && t.text === text;
  let out = "";
  let at = 0;
  tokens.forEach((token, i) => {
    const isPoint = tokens[i + 1]?.kind === "other" && tokens[i + 1]?.text === ".";
    const isFirst = !(tokens[i - 1]?.kind === "other" && tokens[i - 1]?.text === ".");
    if (!isFirst || !isPoint || !isName(token, schema) || !isName(tokens[i + 2], name)) return;
    out += sql.slice(at, token.start);
    at = tokens[i + 2]?.start ?? at;
  });
  return out + sql.slice(at);
}

/** Every query in parentheses, as text, the inner ones too. */
export function innerQueries(sql: string): string[] {
  const tokens = lex(sql);
  return tokens.flatMap((token, i) => {
    const next = tokens[i + 1];
    if (token.kind !== "other" || token.text !== "(" || next?.kind !== "word" || next.text !== "select") return [];
    const close = tokens.find((t, k) => k > i && t.kind === "other" && t.text === ")" && t.depth === token.depth);
    return close ? [sql.slice(token.end, close.start)] : [];
  });
}

/** How often a name stands where a table or a column may be meant, not as the qualifier of a column. */
export function countName(sql: string, name: string): number {
  const tokens = lex(sql);
  return tokens.filter((t, i) => {
    const isQualifier = tokens[i + 1]?.kind === "other" && tokens[i + 1]?.text === ".";
    return (t.kind === "word" || t.kind === "ident") && t.text === name && !isQualifier;
  }).length;
}

function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

const NOT_ALIASES = new Set(["set", "where", "using", "returning", "from"]);

function isAlias(token: Token | undefined): boolean {
  return token?.kind === "ident" || (token?.kind === "word" && !NOT_ALIASES.has(token.text));
}

function nameAt(tokens: readonly Token[], at: number): Token {
  const token = tokens[at];
  if (token?.kind === "word" || token?.kind === "ident") return token;
  throw new SpillwayError("sql_syntax", "The statement does not name its table.");
}
