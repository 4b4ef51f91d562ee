/** `spillway export` and `spillway apply`: the control plane as one YAML document, and back. */
import { readFileSync } from "node:fs";
import type { Command } from "commander";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import {
  applyManifest,
  type Change,
  diffManifest,
  exportManifest,
  parseManifest,
} from "@spillway/server/control/control";
import { parse, stringify } from "yaml";
import type { CliContext } from "../context.ts";
import { changeAudited, openControl, policyChecker } from "../control-plane.ts";
import { withCommand } from "../source.ts";

interface ApplyFlags {
  readonly file: string;
  readonly prune?: boolean;
  readonly dryRun?: boolean;
}

export function registerManifest(program: Command, context: CliContext): void {
  program
    .command("export")
    .description("Print the control plane as a manifest: all but passwords, tokens and sessions.")
    .addHelpText("after", "\nExample:\n  spillway export > spillway-control.yaml")
    .action(async (flags: Readonly<Record<string, unknown>>) => {
      const run = context.begin(flags);
      await withCommand(run, async () => {
        const control = await openControl(run);
        const manifest = await control.read((db) => exportManifest(db));
        if (run.out.json) run.out.result(manifest);
        else run.out.raw(stringify(manifest, { lineWidth: 0 }));
      });
    });
  program
    .command("apply")
    .description(
      "Bring the control plane to what a manifest says, after printing the difference. All of it, or nothing.",
    )
    .requiredOption("-f, --file <file>", "the manifest; - for the input")
    .option("--prune", "delete what the manifest does not list, of the kinds that it lists")
    .option("--dry-run", "only print the difference")
    .addHelpText("after", "\nExamples:\n  spillway apply -f control.yaml --dry-run\n  spillway apply -f control.yaml")
    .action(async ({ file, prune, dryRun, ...flags }: ApplyFlags & Record<string, unknown>) => {
      const run = context.begin(flags);
      await withCommand(run, async () => {
        const manifest = parseManifest(read(file));
        const control = await openControl(run);
        const options = { prune: prune === true, validate: await policyChecker(run, control) };
        let changes: readonly Change[];
        if (dryRun) changes = await control.read((db) => diffManifest(db, manifest, options));
        else {
          changes = await changeAudited(run, control, "apply manifest", async (tx) => {
            // What is printed is what is done: nobody changes anything in between.
            const value = await applyManifest(tx, manifest, options);
            return { object: `${value.length} changes`, value };
          });
        }
        for (const change of changes) run.out.line(lineOf(change));
        run.out.line(
          changes.length === 0
            ? "No difference."
            : `${changes.length} changes${dryRun ? ", not applied" : " applied"}.`,
        );
        run.out.result({ changes, applied: dryRun !== true });
      });
    });
}

function lineOf({ action, kind, object, fields }: Change): string {
  const sign = { create: "+", update: "~", delete: "-" }[action];
  const what = fields.map((f) => ` ${f.name}: ${JSON.stringify(f.from)} → ${JSON.stringify(f.to)}`).join(",");
  return `${sign} ${kind} ${object}${what}`;
}

function read(file: string): unknown {
  try {
    return parse(readFileSync(file === "-" ? 0 : file, "utf8"));
  } catch (error) {
    throw new SpillwayError("manifest_invalid", `${file} cannot be read: ${messageOf(error).split("\n")[0]}`, {
      cause: error,
    });
  }
}
