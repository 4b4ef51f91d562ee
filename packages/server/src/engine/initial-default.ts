/** Initial defaults, which the catalog keeps as Postgres's canonical text, as the texts that DuckDB casts to the same values. */
import type { ColumnKind } from "@spillway/base/columns";

/** DuckDB writes bytes with an escape for each, and the years before ours in parentheses, behind the date. */
export function duckDefault(kind: ColumnKind, text: string | null): string | null {
  if (text === null) return null;
  if (kind === "bytes") return text.replace(/^\\x/, "").replace(/../g, (byte) => `\\x${byte.toUpperCase()}`);
  if (kind === "date" || kind === "timestamp" || kind === "timestamptz") {
    return text.replace(/^(\S+)(.*) BC$/, "$1 (BC)$2");
  }
  return text;
}
