/** Time travel in a statement: DuckDB's AT clause. */
import { SpillwayError } from "@spillway/base/errors";
import { type AstNode, isNode, type TableRef, textOf } from "./ast.ts";
import type { AsOf } from "./table-read.ts";

/** `AT (VERSION => n)` and `AT (TIMESTAMP => …)`. */
export function asOfOf(ref: TableRef): AsOf | null {
  const clause = ref.node["at_clause"];
  if (!isNode(clause)) return null;
  const value = constantText(clause["expr"]);
  const unit = textOf(clause["unit"]).toUpperCase();
  if (unit === "VERSION" && value !== null && /^-?\d+$/.test(value)) return { snapshotId: BigInt(value) };
  const ms = unit === "TIMESTAMP" && value !== null ? Date.parse(withZone(value)) : Number.NaN;
  if (!Number.isNaN(ms)) return { timestampMs: ms };
  throw new SpillwayError("as_of_unsupported", "The AT clause is neither a snapshot id nor a time.");
}

/** The option for the whole statement. As of a position every table must have a lake: a plain one would be of another moment. */
export function asOfFor(relation: { readonly lake: unknown }, asOf: AsOf | undefined): AsOf | null {
  return asOf !== undefined && (relation.lake !== null || "lsn" in asOf) ? asOf : null;
}

/** A time without a zone is one in UTC, as everywhere in the engine. */
function withZone(text: string): string {
  const iso = text
    .trim()
    .replace(" ", "T")
    .replace(/([+-]\d\d)$/, "$1:00");
  return /T.*([zZ]|[+-]\d\d:?\d\d)$/.test(iso) ? iso : iso.includes("T") ? `${iso}Z` : iso;
}

function constantText(node: unknown): string | null {
  if (!isNode(node as AstNode)) return null;
  const n = node as AstNode;
  if (n["type"] === "OPERATOR_CAST") return constantText(n["child"]);
  const value = isNode(n["value"]) ? n["value"]["value"] : null;
  return typeof value === "string" || typeof value === "number" || typeof value === "bigint" ? String(value) : null;
}
