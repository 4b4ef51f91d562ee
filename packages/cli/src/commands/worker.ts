import type { Command } from "commander";
import { SETTINGS } from "@spillway/base/settings";
import { runWorker } from "@spillway/server/roles/worker";
import type { CliContext } from "../context.ts";
import { sourceOptions, withCommand } from "../source.ts";

/** How often F moves on a source where nothing of ours changes. */
const MIRROR_IDLE_MS = 5000;

/** `spillway worker`: moves rows between the tiers until it is told to stop. */
export function registerWorker(program: Command, context: CliContext): void {
  program
    .command("worker")
    .description("Move rows of the registered tables between heap and lake. Any number may run; one leads.")
    .option("--once", "work until nothing is left to do, then end (exit code 1 if a table is stopped)")
    .addHelpText("after", "\nExamples:\n  spillway worker\n  spillway worker --once --cycle-interval 1s")
    .action(async (flags: Record<string, unknown>) => {
      const run = context.begin(flags);
      await withCommand(run, async () => {
        const result = await runWorker({
          ...sourceOptions(run),
          engineMemoryBytes: run.get(SETTINGS.moverMemory),
          campaignIntervalMs: run.get(SETTINGS.campaignInterval),
          cycleIntervalMs: run.get(SETTINGS.cycleInterval),
          adoptPromotion: run.get(SETTINGS.adoptPromotion),
          takeoverWatchMs: run.get(SETTINGS.takeoverWatch),
          deltaBacklogWarnRows: run.get(SETTINGS.deltaBacklogWarnRows),
          metricsListen: flags["once"] === true ? "off" : run.get(SETTINGS.metricsListen),
          mirror: {
            flushIntervalMs: run.get(SETTINGS.mirrorFlushInterval),
            maxBufferedRows: run.get(SETTINGS.maxBufferedRows),
            indexBytes: run.get(SETTINGS.mirrorIndexMemory),
            idleIntervalMs: MIRROR_IDLE_MS,
          },
          slotWarnBytes: run.get(SETTINGS.slotWarnBytes),
          copyParallel: run.get(SETTINGS.copyParallel),
          once: flags["once"] === true,
          signal: run.signal,
          fault: run.env["SPILLWAY_FAULT"],
          onLead: (epoch) => run.out.line(`Leading, epoch ${epoch}.`),
        });
        const failed = Object.entries(result.failed);
        for (const [table, code] of failed) run.out.warn(`${table}: ${code}; see spillway status`);
        run.out.result({ failed: result.failed });
        if (failed.length > 0) process.exitCode = 1;
      });
    });
}
