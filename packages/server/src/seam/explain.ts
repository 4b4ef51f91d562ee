/** What a read would do, and did to find out: which files and rows of each tier, and what was pushed down. */
import { formatLsn } from "@spillway/base/lsn";
import type { MirrorStats, MirrorWhy } from "./mirror-read.ts";
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
  if (explanation.mirror !== null) lines.push(mirrorLine(explanation.mirror));
  if (explanation.aggregatePushdown) lines.push("aggregates: in parts, the heap's by Postgres");
  if (explanation.rows !== null) lines.push(`answer: ${explanation.rows} rows`);
  return lines;
}

const WHY: Readonly<Record<MirrorWhy, string>> = {
  cheaper: "it is cheaper",
  fresh: "it has all of this moment",
  other_tables: "other tables are read from Postgres, and all are of one moment",
  in_transaction: "it is one of several statements of one snapshot",
  not_in_time: "the lake did not get to this moment in time",
  too_old: "the lake is older than allowed",
  not_followed: "a table does not follow the stream",
  frontiers_differ: "a table has just joined the stream",
  empty: "the lake has nothing yet",
  columns_changed: "columns were changed and not followed yet",
};

/** Why the heap answered although the lake was asked for; null when it did not. */
export function heapInstead(mirror: MirrorStats | null): string | null {
  return mirror === null || mirror.tier === "lake" || mirror.why === "cheaper" ? null : WHY[mirror.why];
}

function mirrorLine({ tier, why, frontier, ageMs, waitedMs, heapMs, lakeMs }: MirrorStats): string {
  const at = tier === "lake" && frontier !== null ? ` at ${formatLsn(frontier)}` : "";
  const age = ageMs === null ? "" : `, F is ${Math.round(ageMs)} ms old`;
  const costs = [
    heapMs === null ? "" : `heap ${Math.round(heapMs)} ms`,
    lakeMs === null ? "" : `lake ${Math.round(lakeMs)} ms`,
  ];
  const guess = costs.filter((c) => c !== "").join(", ");
  const waited = waitedMs === 0 ? "" : `; waited ${Math.round(waitedMs)} ms`;
  return `mirrored tables: ${tier}${at}: ${WHY[why]}${age}${guess === "" ? "" : ` (expected: ${guess})`}${waited}`;
}

function tableLines(t: TableStats): string[] {
  const lines = [`${t.table}: ${t.tier}, columns ${t.columns.join(", ")}`];
  if (t.tier !== "lake") {
    const filters = t.heapConditions.length === 0 ? "none" : t.heapConditions.join(" and ");
    const conditions = t.heapLimit === "" ? filters : `${filters}, ${t.heapLimit.toLowerCase()}`;
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
