import type { Command } from "commander";
import { envName } from "@spillway/base/config";
import { redactUrls } from "@spillway/base/log";
import { SETTINGS } from "@spillway/base/settings";
import type { CliContext } from "../context.ts";

/** `spillway config`: every setting, its value and where it came from. Secrets are not shown. */
export function registerConfig(program: Command, context: CliContext): void {
  program
    .command("config")
    .description("Print every setting with its value and its origin.")
    .addHelpText("after", "\nExamples:\n  spillway config\n  spillway config --json")
    .action(async (flags: Record<string, unknown>) => {
      const run = context.begin(flags);
      const rows = Object.values(SETTINGS).map((setting) => {
        const { value, origin, source } = run.resolve(setting);
        const shown = value === null ? "" : redactUrls(String(value));
        return { name: setting.name, value: shown, unit: setting.unit ?? "", origin, source, env: envName(setting) };
      });
      run.out.table(
        ["setting", "value", "unit", "origin"],
        rows.map((r) => [r.name, r.value, r.unit, r.origin === "default" ? "default" : `${r.origin} (${r.source})`]),
      );
      run.out.result(rows);
      await run.close();
    });
}
