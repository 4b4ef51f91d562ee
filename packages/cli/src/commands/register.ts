import { type Command, Option } from "commander";
import { fileRequest } from "@spillway/server/catalog/catalog";
import {
  type LakePartition,
  type MoverContext,
  register,
  registerMirrored,
  type RegisterOptions,
} from "@spillway/server/movers/movers";
import { SpillwayError } from "@spillway/base/errors";
import { SETTINGS } from "@spillway/base/settings";
import type { CliContext, CommandContext } from "../context.ts";
import { formatCount } from "../output.ts";
import { openCatalogedSource, withCommand } from "../source.ts";

interface Flags {
  table: string[];
  tierKey?: string;
  mode: "tiered" | "direct" | "mirrored";
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
    .requiredOption(
      "--table <name...>",
      "the table, as in SQL: schema.table; mirrored: several, or patterns like public.*",
    )
    .option("--tier-key <column>", "the column along which it ages (default: the one it is partitioned by)")
    .addOption(
      new Option("--mode <mode>", "how it is moved").choices(["tiered", "direct", "mirrored"]).default("tiered"),
    )
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
        const chosen = flags as unknown as Flags;
        if (chosen.mode === "mirrored") return mirror(run, runtime.mover(null, run.signal), chosen);
        if (chosen.table.length > 1) throw new SpillwayError("usage", "several tables go with --mode mirrored only");
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

/** Registers mirrored tables and copies them, showing how far it is. */
async function mirror(run: CommandContext, ctx: MoverContext, flags: Flags): Promise<void> {
  const refused = (
    ["tierKey", "keepHeap", "lag", "lakeRetention", "partitionWidth", "lakePartition", "historicalInserts"] as const
  ).filter((name) => flags[name] !== undefined);
  if (refused.length > 0) {
    const names = refused.map((name) => `--${name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}`);
    throw new SpillwayError("usage", `${names.join(", ")} does not go with --mode mirrored`);
  }
  const results = await registerMirrored(ctx, {
    tables: flags.table.flatMap((list) => list.split(",")),
    parallel: run.get(SETTINGS.copyParallel),
    dryRun: flags.dryRun === true,
    ...(flags.formatVersion === undefined
      ? {}
      : { formatVersion: flags.formatVersion === "2" ? (2 as const) : (3 as const) }),
    onProgress: ({ rows, parts, done, rowsPerSecond, secondsLeft }) =>
      run.out.progress(
        `copied ${formatCount(rows)} rows, ${done} of ${parts} parts, ${formatCount(rowsPerSecond)} rows/s` +
          (secondsLeft === null ? "" : `, ${secondsLeft} s left`),
        run.clock.wallMs(),
      ),
  });
  if (flags.dryRun !== true) await ctx.pool.withClient((c) => fileRequest(c, { kind: "pass" }));
  const said = {
    registered: "is copied; the worker joins it to the change stream",
    resumed: "is copied; the worker joins it to the change stream",
    already: "is registered already; nothing was changed",
    "would-register": "can be mirrored; nothing was changed",
  };
  for (const { table, outcome, rows } of results) {
    run.out.line(`${table} ${said[outcome]}${rows > 0n ? ` (${formatCount(rows)} rows)` : ""}.`);
  }
  run.out.result({ tables: results });
}

function optionsOf(flags: Flags): RegisterOptions {
  const { mode, tierKey, lag, lakeRetention, partitionWidth, lakePartition, historicalInserts } = flags;
  return {
    table: flags.table[0] ?? "",
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
