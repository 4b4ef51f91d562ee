import type { Command } from "commander";
import { unregister } from "@spillway/server/movers/movers";
import type { CliContext } from "../context.ts";
import { openCatalogedSource, withCommand } from "../source.ts";

/** `spillway unregister`: the table becomes a plain one again; the lake table stays unless told otherwise. */
export function registerUnregister(program: Command, context: CliContext): void {
  program
    .command("unregister")
    .description("Give a table back: fold its corrections, take triggers and catalog rows away, keep the lake table.")
    .requiredOption("--table <name>", "the table, as in SQL: schema.table")
    .option("--drop-lake", "drop the lake table too; its files leave the store after the restore window")
    .option("--yes", "with --drop-lake: lose the rows that are only in the lake")
    .addHelpText("after", "\nExample:\n  spillway unregister --table public.flights")
    .action(async (flags: Record<string, unknown>) => {
      const run = context.begin(flags);
      await withCommand(run, async () => {
        const runtime = await openCatalogedSource(run, "spillway unregister");
        const result = await unregister(runtime.mover(null, run.signal), {
          table: String(flags["table"]),
          dropLake: flags["dropLake"] === true,
          yes: flags["yes"] === true,
        });
        run.out.line(
          result.outcome === "unregistered" ? `${result.table} is unregistered.` : `${result.table} is not registered.`,
        );
        for (const what of result.cleaned) run.out.line(`  cleaned: ${what}`);
        for (const note of result.notes) run.out.line(`  note: ${note}`);
        if (result.metadataLocation !== null)
          run.out.line(`  The lake table stays readable: ${result.metadataLocation}`);
        run.out.result(result);
      });
    });
}
