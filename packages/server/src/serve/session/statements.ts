/** What becomes of each kind of statement, and the answers that need no node. */
import { SpillwayError } from "@spillway/base/errors";
import type { NodeAction, NodeResult } from "../node/request.ts";
import type { Classified, PgNode } from "../plan/classify.ts";
import type { SessionParameters } from "./parameters.ts";
import { emptyResult, textResult } from "./results.ts";
import type { WireColumn } from "./session.ts";
import { showName } from "./set-statement.ts";

export const ACTION_OF: Readonly<Partial<Record<Classified["kind"], NodeAction>>> = {
  select: "query",
  insert: "execute",
  update: "execute",
  delete: "execute",
  explain: "explain",
  ddl: "source",
  truncate: "source",
  merge: "source",
  utility: "source",
};
const OWN = new Set<Classified["kind"]>([
  "begin", "commit", "rollback", "savepoint", "release", "rollback-to", "set", "reset", "show", "discard",
]); // prettier-ignore

export function isRun({ kind, writes }: Classified): boolean {
  if (kind === "select" || kind === "explain") return !writes;
  return OWN.has(kind) || ACTION_OF[kind] !== undefined;
}

export function unsupported({ kind, writes }: Classified): SpillwayError {
  const what =
    kind === "select" && writes ? "A query that changes or locks rows" : `A statement of this kind (${kind})`;
  return new SpillwayError("sql_unsupported", `${what} is not run here.`, { details: { sqlstate: "0A000" } });
}

export function translated(node: NodeResult, translate: (error: unknown) => unknown): NodeResult {
  async function* messages(): AsyncIterable<Buffer> {
    try {
      yield* node.messages();
    } catch (error) {
      throw translate(error);
    }
  }
  return { ...node, messages };
}

export function nodeOf(tree: PgNode): PgNode {
  const [key = ""] = Object.keys(tree);
  return (tree[key] ?? {}) as PgNode;
}

export function isDml({ kind }: Classified): boolean {
  return kind === "insert" || kind === "update" || kind === "delete";
}

export function hasReturning({ tree }: Classified): boolean {
  return tree !== null && JSON.stringify(nodeOf(tree)).includes('"return');
}

/** Columns of what the session answers itself; undefined: another kind of statement; null: no rows. */
export function localColumns(
  { kind, tree }: Classified,
  parameters: SessionParameters,
): { readonly columns: readonly WireColumn[] | null; readonly arrowSchema: Buffer | null } | null | undefined {
  if (kind === "show") return shown(parameters, tree ? nodeOf(tree) : {});
  if (kind === "explain") return textResult("EXPLAIN", ["QUERY PLAN"], []);
  return kind === "select" || kind === "insert" || kind === "update" || kind === "delete" ? undefined : null;
}

export function shown(parameters: SessionParameters, node: PgNode): NodeResult {
  const name = showName(node);
  if (name === "all") {
    return textResult(
      "SHOW",
      ["name", "setting", "description"],
      parameters.all().map(([n, v]) => [n, v, ""]),
    );
  }
  const shownName = parameters.nameOf(name);
  return textResult("SHOW", [shownName], [[parameters.get(name)]]);
}

export function transactionOptions(node: PgNode): Map<string, string> {
  const options = (node["options"] ?? []) as readonly PgNode[];
  return new Map(
    options.map((o) => {
      const def = (o["DefElem"] ?? {}) as PgNode;
      const text = JSON.stringify(def["arg"] ?? "");
      const value = /"sval":"([^"]*)"/.exec(text)?.[1] ?? (/"ival":1|"boolval":true/.test(text) ? "on" : "off");
      return [String(def["defname"]), value];
    }),
  );
}

/** The statement that is explained. Its options were read from the parse tree. */
export function explained(sql: string): string {
  return sql.replace(/^\s*explain\s*(?:\([^)]*\)|(?:(?:analyze|analyse|verbose)\b\s*)*)/i, "");
}

/** The answer to a change that was applied while its answer was lost. Rows that it would have returned are lost with it. */
export function appliedResult(statement: Classified, rows: number, lost: SpillwayError): NodeResult {
  if (!hasReturning(statement)) {
    return emptyResult(statement.kind === "insert" ? "INSERT 0" : statement.kind.toUpperCase(), rows);
  }
  throw new SpillwayError("node_lost", "The statement was applied; the rows that it returns were lost with its node.", {
    remedy: "Do not run it again: read the rows instead.",
    cause: lost,
    details: { sqlstate: "08006", applied: true },
  });
}

export function unknownOutcome(commitId: string, lost: SpillwayError): SpillwayError {
  return new SpillwayError("pg_commit_unknown", "Whether the change was committed is not known; the source is away.", {
    cause: lost,
    details: { sqlstate: "08007", commit_id: commitId },
  });
}
