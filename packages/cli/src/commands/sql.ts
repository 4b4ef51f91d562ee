import { type Command, Option } from "commander";
import { SpillwayError } from "@spillway/base/errors";
import {
  type ExecuteResult,
  type Freshness,
  heapInstead,
  type QueryOptions,
  type QueryResult,
} from "@spillway/server/seam/seam";
import type { CliContext, CommandContext } from "../context.ts";
import { formatBytes, formatCount } from "../output.ts";
import { batchOfTexts, ROW_FORMATS, type RowFormat, rowWriter } from "../row-writer.ts";
import { openCatalogedSource, openSeam, withCommand } from "../source.ts";
import { isCorrection, readMoment, readParams, readStatement } from "../statement-input.ts";

/** `spillway sql`: one statement over both tiers, its rows written as they come. */
export function registerSql(program: Command, context: CliContext): void {
  program
    .command("sql [statement]")
    .description("Run a SELECT, INSERT, UPDATE or DELETE over both tiers, as one point in time.")
    .addOption(new Option("--format <format>", "how rows are written").choices(ROW_FORMATS).default("table"))
    .option("--file <file>", "read the statement from a file (- for standard input)")
    .option("--params <json>", "values of $1, $2, … as a JSON array")
    .option("--as-of <snapshot|time>", "read the lake alone, as it was")
    .option("--as-of-lsn <position>", "of mirrored tables: the lake alone, as of a WAL position")
    .option("--freshness <strict|duration>", "of mirrored tables: how new the lake must be to be read")
    .option("--no-timing", "do not print the line about rows and time")
    .addHelpText(
      "after",
      `
Examples:
  spillway sql "SELECT date_trunc('month', departed), count(*) FROM flights GROUP BY 1 ORDER BY 1"
  spillway sql --format csv --params '[17, "SFO"]' "SELECT * FROM flights WHERE flight_id = $1 AND origin = $2"
  spillway sql "UPDATE flights SET delay = 0 WHERE flight_id = 17"
  echo "SELECT count(*) FROM flights" | spillway sql -
  spillway sql --as-of 2026-01-31T12:00:00Z "SELECT count(*) FROM flights"
  spillway sql --freshness 30s "SELECT count(*) FROM orders"`,
    )
    .action(async (statement: string | undefined, flags: Record<string, unknown>) => {
      const run = context.begin(flags);
      await withCommand(run, () => sql(run, statement, flags));
    });
}

async function sql(run: CommandContext, statement: string | undefined, flags: Record<string, unknown>): Promise<void> {
  const text = readStatement(statement, flags["file"]);
  const [params, moment] = [readParams(flags["params"]), readMoment(run, flags)];
  const format = run.out.json ? "json" : (flags["format"] as RowFormat);
  const runtime = await openCatalogedSource(run, "spillway sql");
  const seam = openSeam(run, runtime);
  const options: QueryOptions = { params, signal: run.signal, ...moment };
  const startMs = run.clock.monotonicMs();
  if (isCorrection(text)) {
    if (Object.keys(moment).length > 0)
      throw new SpillwayError(
        "usage",
        "--as-of and --freshness read: they cannot be given with a statement that writes",
      );
    return correct(run, await seam.execute(text, { params, signal: run.signal, tieredReads: true }), format, startMs);
  }
  const result = await seam.query(text, options);
  const rows = await writeRows(run, result, format, startMs);
  if (flags["timing"] !== false && format !== "json") {
    run.out.note(
      `(${formatCount(rows)} ${rows === 1 ? "row" : "rows"}, ${timing(run, startMs)}${tiers(result, moment.freshness)})`,
    );
  }
}

/** `UPDATE 3` as psql says it, after the rows of RETURNING. */
async function correct(run: CommandContext, result: ExecuteResult, format: RowFormat, startMs: number): Promise<void> {
  const { command, rowCount } = result;
  const batch = batchOfTexts(result.columns, result.rows);
  if (format === "json" || result.columns.length > 0) {
    const writer = rowWriter(format, batch.specs);
    await run.out.stream(writer.batch(batch));
    await run.out.stream(writer.end({ command, rowCount, ms: Math.round(run.clock.monotonicMs() - startMs) }));
  }
  if (format === "table") run.out.line(`${command} ${rowCount}`);
  if (format !== "json")
    run.out.note(`(${timing(run, startMs)}; ${formatCount(result.deltaRows)} corrections of lake rows)`);
}

async function writeRows(
  run: CommandContext,
  result: QueryResult,
  format: RowFormat,
  startMs: number,
): Promise<number> {
  const writer = rowWriter(format, result.columns);
  let rows = 0;
  for await (const batch of result.batches()) {
    rows += batch.length;
    await run.out.stream(writer.batch(batch));
  }
  const ms = Math.round(run.clock.monotonicMs() - startMs);
  await run.out.stream(writer.end({ rowCount: rows, ms }));
  return rows;
}

function timing(run: CommandContext, startMs: number): string {
  const ms = run.clock.monotonicMs() - startMs;
  return ms < 10_000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

/** What came from where, when a table of both tiers was read. */
function tiers({ stats }: QueryResult, freshness: Freshness | undefined): string {
  const instead = freshness ? heapInstead(stats.mirror) : null;
  if (instead !== null) return `; from the heap: ${instead}`;
  const lakes = stats.tables.filter((t) => t.tier !== "heap");
  if (lakes.length === 0) return "";
  const sum = (of: (t: (typeof lakes)[number]) => number): number => lakes.reduce((total, t) => total + of(t), 0);
  const heap = formatCount(sum((t) => t.heapRows));
  const files = `${formatCount(sum((t) => t.filesRead))} of ${formatCount(sum((t) => t.filesConsidered))}`;
  return `; heap ${heap} rows fetched, lake ${files} files, ${formatBytes(sum((t) => t.bytesRead))}`;
}
