import type { Command } from "commander";
import { SpillwayError } from "@spillway/base/errors";
import { printExplanation } from "@spillway/server/seam/seam";
import type { CliContext } from "../context.ts";
import { openCatalogedSource, openSeam, withCommand } from "../source.ts";
import { isCorrection, readMoment, readParams, readStatement } from "../statement-input.ts";

/** `spillway explain`: what a SELECT touches in each tier, and what was skipped. */
export function registerExplain(program: Command, context: CliContext): void {
  program
    .command("explain [statement]")
    .description("Show what a SELECT reads of each tier: files, bytes and rows considered, skipped and read.")
    .option("--analyze", "run it to its end, and count the rows of its answer")
    .option("--file <file>", "read the statement from a file (- for standard input)")
    .option("--params <json>", "values of $1, $2, … as a JSON array")
    .option("--as-of <snapshot|time>", "of the lake alone, as it was")
    .option("--as-of-lsn <position>", "of mirrored tables: of the lake alone, as of a WAL position")
    .option("--freshness <strict|duration>", "of mirrored tables: how new the lake must be to be read")
    .addHelpText(
      "after",
      `
Examples:
  spillway explain "SELECT count(*) FROM flights WHERE departed >= '2001-05-01'"
  spillway explain --analyze --json "SELECT * FROM flights WHERE flight_id = 17"`,
    )
    .action(async (statement: string | undefined, flags: Record<string, unknown>) => {
      const run = context.begin(flags);
      await withCommand(run, async () => {
        const text = readStatement(statement, flags["file"]);
        if (isCorrection(text)) throw new SpillwayError("sql_unsupported", "explain shows what a SELECT reads");
        const [params, moment] = [readParams(flags["params"]), readMoment(run, flags)];
        const seam = openSeam(run, await openCatalogedSource(run, "spillway explain"));
        const explanation = await seam.explain(text, {
          params,
          signal: run.signal,
          analyze: flags["analyze"] === true,
          ...moment,
        });
        for (const line of printExplanation(explanation)) run.out.line(line);
        run.out.result(explanation);
      });
    });
}
