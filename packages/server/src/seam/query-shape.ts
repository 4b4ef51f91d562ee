/** Shapes of a parsed query that decide what may be done early, and how a reference is pointed at a view. */
import type { ColumnBatch } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import { type AstNode, isNode, type TableRef, textOf, textsOf } from "./ast.ts";
import type { Predicate } from "./predicates.ts";
import type { RelationName, ResolvedRelation, SeamColumn } from "./resolve.ts";

export function nameOf(ref: TableRef, searchPath?: readonly string[]): RelationName {
  if (ref.catalog !== "") {
    throw new SpillwayError(
      "table_unknown",
      `A table is named by schema and name; ${JSON.stringify(`${ref.catalog}.${ref.schema}.${ref.name}`)} has a third part.`,
    );
  }
  return { schema: ref.schema, name: ref.name, ...(searchPath ? { searchPath } : {}) };
}

/** A name that no table and no common table expression has by accident. */
export function viewName(index: number): string {
  return `spillway view ${index}`;
}

/** Points a reference at a view; the name by which the query knows the table stays. */
export function redirect(ref: TableRef, view: string): void {
  ref.node["alias"] = ref.alias;
  ref.node["table_name"] = view;
  ref.node["schema_name"] = "";
  ref.node["catalog_name"] = "";
  ref.node["at_clause"] = null;
}

export function findColumn(relation: ResolvedRelation, name: string): SeamColumn | null {
  const exact = relation.columns.find((c) => c.spec.name === name);
  if (exact) return exact;
  const folded = relation.columns.filter((c) => c.spec.name.toLowerCase() === name.toLowerCase());
  return folded.length === 1 ? (folded[0] ?? null) : null;
}

/** The joins of a FROM, not those inside its subqueries. */
export function joinsOf(from: unknown): AstNode[] {
  if (!isNode(from as AstNode)) return [];
  const node = from as AstNode;
  return node["type"] === "JOIN" ? [node, ...joinsOf(node["left"]), ...joinsOf(node["right"])] : [];
}

const EARLY_JOINS = new Set(["INNER", "LEFT", "RIGHT", "OUTER", "FULL"]);
const EARLY_REFS = new Set(["REGULAR", "CROSS"]);

/** Whether a row that the WHERE refuses can be left out before the joins. */
export function canFilterEarly(ref: TableRef, select: AstNode): boolean {
  if (isNode(ref.node["sample"]) || textsOf(ref.node["column_name_alias"]).length > 0) return false;
  const from = select["from_table"] as AstNode;
  if (isNode(from["sample"])) return false;
  return joinsOf(from).every(
    (j) => EARLY_JOINS.has(textOf(j["join_type"])) && EARLY_REFS.has(textOf(j["ref_type"])) && !isNode(j["sample"]),
  );
}

/** Whether the FROM is made of named tables only. */
export function allTables(select: AstNode): boolean {
  const leaves = (node: AstNode): AstNode[] =>
    node["type"] === "JOIN" ? [node["left"], node["right"]].flatMap((n) => (isNode(n) ? leaves(n) : [])) : [node];
  return leaves(select["from_table"] as AstNode).every((n) => n["type"] === "BASE_TABLE");
}

export function isStrict(predicate: Predicate): boolean {
  return "args" in predicate ? predicate.args.every(isStrict) : predicate.op !== "is-null";
}

export function sizeOf(batch: ColumnBatch): number {
  return batch.columns.reduce(
    (sum, c) => sum + ("heap" in c ? c.heap.byteLength + c.offsets.byteLength : c.data.byteLength),
    0,
  );
}
