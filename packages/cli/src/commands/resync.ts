import type { Command } from "commander";
import { SETTINGS } from "@spillway/base/settings";
import { resync } from "@spillway/server/movers/movers";
import type { CliContext } from "../context.ts";
import { formatCount } from "../output.ts";
import { openCatalogedSource, withCommand } from "../source.ts";
import { chosenRelation } from "./verify.ts";

/** `spillway resync`: mirrored tables are copied again, with a new slot where the old one is lost. */
export function registerResync(program: Command, context: CliContext): void {
  program
    .command("resync")
    .description(
      "Copy mirrored tables again; with a new slot where the old one is lost. Readers keep the old rows until then.",
    )
    .option("--table <name>", "only this table (a lost slot concerns all)")
    .addHelpText("after", "\nExamples:\n  spillway resync\n  spillway resync --table public.orders")
    .action(async (flags: { table?: string }) => {
      const run = context.begin(flags);
      await withCommand(run, async () => {
        const runtime = await openCatalogedSource(run, "spillway resync");
        const { table } = flags;
        const relation = table === undefined ? null : await runtime.pool.withClient((c) => chosenRelation(c, table));
        const result = await resync(runtime.mover(null, run.signal), relation?.relationId ?? null, {
          parallel: run.get(SETTINGS.copyParallel),
          onProgress: ({ rows, parts, done }) =>
            run.out.progress(`copied ${formatCount(rows)} rows, ${done} of ${parts} parts`, run.clock.wallMs()),
        });
        for (const name of result.tables) run.out.line(`${name} is copied; the worker joins it to the change stream.`);
        if (result.newSlot) run.out.line("The slot was made anew.");
        run.out.result(result);
      });
    });
}
