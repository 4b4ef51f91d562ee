import { type Command, Option } from "commander";
import { fileRequest } from "@spillway/server/catalog/catalog";
import { type LakePartition, register, type RegisterOptions } from "@spillway/server/movers/movers";
import type { CliContext } from "../context.ts";
import { openCatalogedSource, withCommand } from "../source.ts";

interface Flags {
  table: string;
  tierKey?: string;
  mode: "tiered" | "direct";
  keepHeap?: boolean;
  lag?: string;
  lakeRetention?: string;
  partitionWidth?: string;
  lakePartition?: LakePartition;
  formatVersion?: "2" | "3";
  historicalInserts?: "upsert" | "refuse";
  dryRun?: boolean;
}

/** `spillway register`: hands a table to the worker. */
export function registerRegister(program: Command, context: CliContext): void {
  program
    .command("register")
    .description("Register a range-partitioned table, so that its old partitions move to the lake.")
    .requiredOption("--table <name>", "the table, as in SQL: schema.table")
    .option("--tier-key <column>", "the column along which it ages (default: the one it is partitioned by)")
    .addOption(new Option("--mode <mode>", "how it is moved").choices(["tiered", "direct"]).default("tiered"))
    .option("--keep-heap", "copy to the lake and keep every row in Postgres (mode tiered)")
    .option("--lag <distance>", "how far behind the newest row a partition must be: 7d, or a number for integer keys")
    .option("--lake-retention <distance>", "rows of the lake older than this expire; writes of them are refused")
    .option("--partition-width <width>", "of partitions to come: 1d, month, or a number (default: like the last ones)")
    .addOption(
      new Option("--lake-partition <unit>", "how the lake's files are partitioned (default: none)").choices([
        "hour",
        "day",
        "month",
        "year",
        "none",
      ]),
    )
    .addOption(new Option("--format-version <n>", "Iceberg format (default: 3)").choices(["2", "3"]))
    .addOption(
      new Option(
        "--historical-inserts <what>",
        "what a plain INSERT below the cut-line does (default: upsert)",
      ).choices(["upsert", "refuse"]),
    )
    .option("--dry-run", "check, and say what would be done")
    .addHelpText("after", "\nExample:\n  spillway register --table public.flights --mode tiered --lag 7d")
    .action(async (flags: Record<string, unknown>) => {
      const run = context.begin(flags);
      await withCommand(run, async () => {
        const runtime = await openCatalogedSource(run, "spillway register");
        const result = await register(runtime.mover(null, run.signal), optionsOf(flags as unknown as Flags));
        if (result.outcome === "registered") {
          await runtime.pool.withClient((c) => fileRequest(c, { kind: "pass" }));
        }
        const said = {
          registered: "is registered",
          already: "is registered already; nothing was changed",
          "would-register": "can be registered; nothing was changed",
        }[result.outcome];
        run.out.line(`${result.table} ${said}.`);
        run.out.line(
          `  mode ${result.mode}, tier key ${result.keyName}, cut-line ${result.cutLine}, ${result.partitions} partitions`,
        );
        for (const note of result.notes) run.out.line(`  note: ${note}`);
        run.out.result(result);
      });
    });
}

function optionsOf(flags: Flags): RegisterOptions {
  const { table, mode, tierKey, lag, lakeRetention, partitionWidth, lakePartition, historicalInserts } = flags;
  return {
    table,
    mode,
    keepHeap: flags.keepHeap === true,
    dryRun: flags.dryRun === true,
    ...(tierKey === undefined ? {} : { tierKey }),
    ...(lag === undefined ? {} : { lag }),
    ...(lakeRetention === undefined ? {} : { lakeRetention }),
    ...(partitionWidth === undefined ? {} : { partitionWidth }),
    ...(lakePartition === undefined ? {} : { lakePartition }),
    ...(historicalInserts === undefined ? {} : { historicalInserts }),
    ...(flags.formatVersion === undefined ? {} : { formatVersion: flags.formatVersion === "2" ? 2 : 3 }),
  };
}
