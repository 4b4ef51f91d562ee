/** A statement's text as a plan: its tree, what it names, and the way it goes. Nothing runs here. */
import { isSpillwayError, type SpillwayError } from "@spillway/base/errors";
import type { ServeSession } from "../../session/session.ts";
import { rewriteCatalogQuery } from "../../catalog-views/rewrite.ts";
import type { SourceView } from "./ports.ts";
import { routeOf, searchPathOf, type Way } from "./routing.ts";
import { type ParsedStatement, parseStatements, type References, referencesOf, type SqlNode } from "./sql-tree.ts";
import { pgError } from "./wire-errors.ts";

export interface Plan {
  readonly text: string;
  /** Where `text` begins in what the client sent, in characters. */
  readonly offset: number;
  /** `SelectStmt`, …; empty for a text that only the session's grammar knows. */
  readonly type: string;
  readonly body: SqlNode;
  readonly references: References | null;
  /** `edge`: answered here, with the help of the others. */
  readonly way: Way | "edge";
  /** What the source gets: the text at its old position, or a rewritten one. */
  readonly sourceText: string;
  /** The position, in characters from 1, of a place that the parser gives. */
  position(location: number): number;
  /** Why Postgres's grammar does not know it. */
  readonly syntax: SpillwayError | null;
}

/** Statements that the edge takes part in, whoever else does. */
const EDGE = new Set([
  "TransactionStmt", "VariableSetStmt", "VariableShowStmt", "DiscardStmt", "DeclareCursorStmt", "FetchStmt", "ClosePortalStmt",
  "PrepareStmt", "ExecuteStmt", "DeallocateStmt",
]); // prettier-ignore

/** Statements that the edge answers unless the source does. */
const HERE = new Set(["CopyStmt", "DeclareCursorStmt", "UnlistenStmt"]);

export interface PlanContext {
  readonly session: ServeSession;
  readonly database: string;
  readonly processId: number;
  readonly searchPath: string;
  view(): Promise<SourceView>;
}

/** The statements of a text, in order; none for an empty one. Throws what the routing refuses. */
export async function planText(sql: string, context: PlanContext): Promise<Plan[]> {
  let parsed: ParsedStatement[];
  try {
    parsed = parseStatements(sql);
  } catch (error) {
    if (!isSpillwayError(error)) throw error;
    return foreignPlans(sql, error, context.session);
  }
  const plans: Plan[] = [];
  for (const statement of parsed) plans.push(await planStatement(statement, sql, context));
  return plans;
}

/** Texts that only DuckDB's grammar knows. */
async function foreignPlans(sql: string, syntax: SpillwayError, session: ServeSession): Promise<Plan[]> {
  const texts = await session.split(sql).catch(() => {
    throw syntax;
  });
  let from = 0;
  return texts.map((text) => {
    const at = sql.indexOf(text, from);
    from = at < 0 ? from : at + text.length;
    return {
      text,
      offset: Math.max(at, 0),
      type: "",
      body: {},
      references: null,
      way: "session",
      sourceText: text,
      position: () => 0,
      syntax,
    };
  });
}

/** Whether the session can run it, functions and all. */
async function isKnown(session: ServeSession, text: string): Promise<boolean> {
  return session.prepare(text).then(
    () => true,
    () => false,
  );
}

export async function planStatement(statement: ParsedStatement, sql: string, context: PlanContext): Promise<Plan> {
  const { text, offset, type, body } = statement;
  const position = (location: number): number => Buffer.from(sql, "utf8").toString("utf8", 0, location).length + 1;
  const base = { text, offset, type, body, position, syntax: null };
  const references = referencesOf(type, body);
  if (EDGE.has(type) && type !== "DeclareCursorStmt") {
    return { ...base, references, way: "edge", sourceText: " ".repeat(offset) + text };
  }
  const view = await context.view();
  const searchPath = searchPathOf(context.searchPath, context.session.principal.userName);
  const route = routeOf({ statement, references, view, searchPath, position });
  const way = route.orMapped && !(await isKnown(context.session, text)) ? "mapped" : route.way;
  if (way === "catalog") {
    const sourceText = rewriteCatalogQuery(sql, statement, references, {
      user: context.session.principal.userName,
      database: context.database,
      processId: context.processId,
      visible: (schema, name) =>
        view.relations.some((r) => r.visible && r.name === name && (schema === null || r.schema === schema)),
      hidden: (schema, name) => {
        const named = view.relations.filter((r) => r.name === name && (schema === null || r.schema === schema));
        return named.length > 0 && named.every((r) => !r.visible);
      },
      visibleOid: (oid) => oid < 16_384 || view.relations.some((r) => r.visible && r.oid === oid),
      refuse: (message, sqlstate, location) =>
        pgError(sqlstate, message, location === null ? {} : { position: position(location) }),
    });
    return { ...base, references, way: type === "DeclareCursorStmt" ? "edge" : way, sourceText };
  }
  const sourceText = " ".repeat(offset) + text;
  // COPY and cursors over both tiers are the edge's work; over plain tables the source does them itself.
  if (way === "session" && HERE.has(type)) {
    return { ...base, references, way: "edge", sourceText };
  }
  return { ...base, references, way, sourceText };
}
