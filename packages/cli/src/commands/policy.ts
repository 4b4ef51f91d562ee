import type { Command } from "commander";
import { changePolicy, policyLines } from "@spillway/server/movers/movers";
import type { CliContext } from "../context.ts";
import { openCatalogedSource, withCommand } from "../source.ts";
import { chosenRelation } from "./verify.ts";

interface Flags {
  readonly table: string;
  readonly set?: string[];
  readonly unset?: string[];
  readonly reset?: boolean;
}

/** `spillway policy`: the maintenance settings of a table, each with its origin. */
export function registerPolicy(program: Command, context: CliContext): void {
  program
    .command("policy")
    .description("Print or change the maintenance settings of a table.")
    .requiredOption("--table <name>", "the table, as in SQL")
    .option("--set <name=value...>", "give the table a value of its own")
    .option("--unset <name...>", "go back to the default")
    .option("--reset", "go back to the defaults of all")
    .addHelpText(
      "after",
      "\nExamples:\n  spillway policy --table flights\n  spillway policy --table flights --set rewrite_min_input_files=4 snapshot_retention=6h",
    )
    .action(async (flags: Flags) => {
      const run = context.begin({ ...flags });
      await withCommand(run, async () => {
        const runtime = await openCatalogedSource(run, "spillway policy");
        const relation = await runtime.pool.withClient(async (c) => {
          const found = await chosenRelation(c, flags.table);
          if (!flags.set && !flags.unset && !flags.reset) return found;
          return changePolicy(c, found.relationId, {
            ...(flags.set ? { set: flags.set } : {}),
            ...(flags.unset ? { unset: flags.unset } : {}),
            reset: flags.reset === true,
          });
        });
        const lines = policyLines(relation);
        run.out.table(
          ["setting", "value", "origin", "default", "meaning"],
          lines.map((l) => [l.name, l.value, l.origin, l.default, l.help]),
        );
        run.out.result({ table: `${relation.schemaName}.${relation.tableName}`, settings: lines });
      });
    });
}
