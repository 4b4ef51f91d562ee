import type { Command } from "commander";
import { SpillwayError } from "@spillway/base/errors";
import { SETTINGS } from "@spillway/base/settings";
import { openStore } from "@spillway/lake/store/open";
import { loadWarehouse } from "@spillway/server/catalog/catalog";
import { adoptLake, forkLake, type RestoreResult } from "@spillway/server/movers/movers";
import type { CliContext, CommandContext } from "../context.ts";
import { openCatalogedSource, withCommand } from "../source.ts";

/** `spillway restore adopt|fork`: says whose the lake is after Postgres was restored or cloned. */
export function registerRestore(program: Command, context: CliContext): void {
  const restore = program
    .command("restore")
    .description(
      "After Postgres was restored or cloned: say whose the lake is. Until then no worker runs and nothing is deleted.",
    );
  restore
    .command("adopt")
    .description("This database goes on with the lake; the one that it was restored from is gone for good.")
    .addHelpText("after", "\nExample:\n  spillway restore adopt")
    .action(async (flags: Record<string, unknown>) => {
      const run = context.begin(flags);
      await withCommand(run, async () => {
        const runtime = await openCatalogedSource(run, "spillway restore");
        print(run, "adopted", await adoptLake(runtime.mover(null, run.signal)));
      });
    });
  restore
    .command("fork")
    .description(
      "Both databases live on: copy the current rows of the lake to the new --warehouse, under a lineage of its own. Older snapshots stay with the original.",
    )
    .addHelpText("after", "\nExample:\n  spillway restore fork --warehouse s3://bucket/staging-lake")
    .action(async (flags: Record<string, unknown>) => {
      const run = context.begin(flags);
      await withCommand(run, async () => {
        const runtime = await openCatalogedSource(run, "spillway restore");
        const catalog = await runtime.pool.withClient((c) => loadWarehouse(c));
        if (catalog === null) throw new SpillwayError("catalog_missing", "this database has no Spillway catalog yet");
        const original = openStore({
          root: catalog.location,
          endpoint: run.get(SETTINGS.s3Endpoint),
          region: run.get(SETTINGS.s3Region),
          pathStyle: run.get(SETTINGS.s3PathStyle),
          clock: run.clock,
          random: Math.random,
        });
        const result = await forkLake(runtime.mover(null, run.signal), {
          original,
          onProgress: ({ table, files, of }) =>
            run.out.progress(`copying ${table}: ${files} of ${of} files`, run.clock.wallMs()),
        });
        print(run, "forked", result);
      });
    });
}

function print(run: CommandContext, outcome: "adopted" | "forked", result: RestoreResult): void {
  run.out.line(
    `The lake at ${result.warehouse} is ${outcome}: ${result.tables} tables, generation ${result.generation}.`,
  );
  if (result.droppedSnapshots > 0) {
    run.out.line(
      outcome === "forked"
        ? `  ${result.droppedSnapshots} older snapshots stay with the original: AS OF reads of the fork begin here.`
        : `  ${result.droppedSnapshots} old snapshots were dropped: files of theirs are gone.`,
    );
  }
  run.out.result({ outcome, ...result });
}
