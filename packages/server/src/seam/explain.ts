/** What a read would do, and did to find out: which files and rows of each tier, and what was pushed down. */
import type { QueryOptions, QueryResult, QueryStats } from "./query.ts";
import type { TableStats } from "./table-read.ts";

export interface Explanation extends QueryStats {
  /** Rows of DuckDB's answer; null unless the statement was run to its end (`analyze`). */
  readonly rows: number | null;
}

/** Fetches what the statement needs from Postgres and plans the lake's part; runs the rest only for `analyze`. */
export async function explain(
  query: (options: QueryOptions) => Promise<QueryResult>,
  options: QueryOptions & { readonly analyze?: boolean },
): Promise<Explanation> {
  const result = await query(options);
  let rows: number | null = null;
  try {
    if (options.analyze) {
      rows = 0;
      for await (const batch of result.batches()) rows += batch.length;
    }
  } finally {
    await result.close();
  }
  return { ...result.stats, rows };
}

/** The explanation as lines for people. */
export function printExplanation(explanation: Explanation): string[] {
  const lines = explanation.tables.flatMap(tableLines);
  if (explanation.aggregatePushdown) lines.push("aggregates: in parts, the heap's by Postgres");
  if (explanation.rows !== null) lines.push(`answer: ${explanation.rows} rows`);
  return lines;
}

function tableLines(t: TableStats): string[] {
  const lines = [`${t.table}: ${t.tier}, columns ${t.columns.join(", ")}`];
  if (t.tier !== "lake") {
    const conditions = t.heapConditions.length === 0 ? "none" : t.heapConditions.join(" and ");
    lines.push(`  heap: ${t.heapRows} ${t.heapAggregated ? "groups" : "rows"} fetched, conditions ${conditions}`);
  }
  if (t.snapshotId !== null) {
    lines.push(
      `  lake: snapshot ${t.snapshotId}, files ${t.filesConsidered} considered, ${t.filesSkipped} skipped, ${t.filesRead} read`,
      `        bytes ${t.bytesConsidered} considered, ${t.bytesSkipped} skipped, ${t.bytesRead} read; rows ${t.lakeRows} of ${t.lakeRowsConsidered}`,
    );
  }
  if (t.deltaRows > 0) lines.push(`  delta: ${t.deltaRows} rows${t.deltaCached ? ", positions known" : ""}`);
  return lines;
}
