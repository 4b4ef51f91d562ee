/** The columns and parameters of a query, without reading a row. */
import { must } from "@spillway/base/assert";
import type { ColumnSpec } from "@spillway/base/columns";
import { duckIdent, emptySql } from "../engine/engine.ts";
import { parseSelect, printSelect, tableRefs } from "./ast.ts";
import { guard, policyView } from "./policy.ts";
import type { QueryOptions, QueryParts } from "./query.ts";
import { nameOf, redirect } from "./query-shape.ts";
import { openScope, type ReadScope } from "./read-scope.ts";

export interface QueryShape {
  /** Exactly those of the result that `query` gives. */
  readonly columns: readonly ColumnSpec[];
  /** Null where nothing in the statement says what it is. */
  readonly parameters: readonly (ColumnSpec | null)[];
}

export async function describeQuery(
  parts: QueryParts,
  sql: string,
  options: QueryOptions,
  outer?: ReadScope,
): Promise<QueryShape> {
  const session = await parts.engine.session();
  let clean = false;
  const views: string[] = [];
  try {
    const { tree, node } = await parseSelect(session, sql, parts.texts);
    const refs = tableRefs(node);
    let text = sql;
    if (refs.length > 0) {
      const scope = outer ?? (await openScope(parts));
      try {
        const names = refs.map((ref) => nameOf(ref, options.searchPath));
        for (const relation of await scope.relations(names, options.signal)) {
          const seen = guard(relation, options.access?.(relation) ?? null);
          const body = emptySql(relation.columns.map((c) => c.spec));
          const shown = seen.relation.columns.map((c) => c.spec);
          const name = parts.engine.freshName("shape");
          views.push(name);
          const select = seen.policy ? policyView(seen.policy, body, shown, false) : body;
          await session.run(`CREATE TEMP VIEW ${duckIdent(name)} AS ${select}`);
        }
      } finally {
        if (!outer) {
          scope.end();
          scope.pin.release();
        }
      }
      refs.forEach((ref, i) => redirect(ref, must(views[i], "view")));
      text = await printSelect(session, tree);
    }
    const shapes = await session.describe(text);
    const parameters = await session.parameters(text);
    clean = true;
    return { columns: shapes.map((s) => s.spec), parameters: parameters.map((p) => (p === null ? null : p.spec)) };
  } finally {
    if (clean && views.length > 0) {
      await session.run(views.map((v) => `DROP VIEW ${duckIdent(v)}`).join("; ")).catch(() => (clean = false));
    }
    parts.engine.release(session, clean);
  }
}
