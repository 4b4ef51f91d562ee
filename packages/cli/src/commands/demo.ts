import type { Command } from "commander";
import { SpillwayError } from "@spillway/base/errors";
import type { CliContext, CommandContext } from "../context.ts";
import { flightsDemo } from "../demo/flights.ts";
import { haDemo } from "../demo/ha.ts";
import { withCommand } from "../source.ts";

export interface DemoFlags {
  readonly exit: boolean;
  readonly rows: number | null;
}

/** A demo returns its exit code. */
export type Demo = (run: CommandContext, flags: DemoFlags) => Promise<number>;

const DEMOS: Readonly<Record<string, Demo>> = { flights: flightsDemo, ha: haDemo };

/** `spillway demo`: everything on this machine, from nothing, with real data. */
export function registerDemo(program: Command, context: CliContext): void {
  program
    .command("demo [name]")
    .description(`Show the whole thing on this machine, and check it. One of: ${Object.keys(DEMOS).join(", ")}.`)
    .option("--exit", "end after the checks: 0 if all held")
    .option("--rows <n>", "a sample of so many flights (default: all 3,000,000)")
    .addHelpText(
      "after",
      "\nExamples:\n  spillway demo\n  spillway demo --exit --json\n  spillway demo --rows 100000 --exit",
    )
    .action(async (name: string | undefined, flags: Record<string, unknown>) => {
      const demo = DEMOS[name ?? "flights"];
      if (!demo) {
        throw new SpillwayError(
          "usage",
          `there is no demo ${JSON.stringify(name)}; one of: ${Object.keys(DEMOS).join(", ")}`,
        );
      }
      const rows = rowsOf(flags["rows"]);
      // The demo's processes are its own: what this shell is set up for is left alone. Their log says only what is wrong.
      const run = context.begin({ ...flags, logLevel: flags["logLevel"] ?? "warn" });
      await withCommand(run, async () => {
        const code = await demo(run, { exit: flags["exit"] === true, rows });
        if (code !== 0) process.exitCode = code;
      });
    });
}

function rowsOf(flag: unknown): number | null {
  if (flag === undefined) return null;
  const rows = Number(flag);
  if (!Number.isSafeInteger(rows) || rows < 1000) {
    throw new SpillwayError("usage", `--rows ${JSON.stringify(flag)} is not a whole number of at least 1000`);
  }
  return rows;
}
