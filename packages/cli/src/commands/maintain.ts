import type { Command } from "commander";
import { SpillwayError } from "@spillway/base/errors";
import { SETTINGS } from "@spillway/base/settings";
import { awaitRequest, claimLake, fileRequest, readStatus, type Relation } from "@spillway/server/catalog/catalog";
import { maintain, PASSES, type PassName, passesOf, SourceUpkeep } from "@spillway/server/movers/movers";
import type { Runtime } from "@spillway/server/roles/runtime";
import type { CliContext, CommandContext } from "../context.ts";
import { toJson } from "../output.ts";
import { openCatalogedSource, withCommand } from "../source.ts";
import { chosenRelation } from "./verify.ts";

interface Flags {
  readonly table?: string;
  readonly all?: boolean;
  readonly pass?: string[];
  readonly wait: boolean;
}

/** How long the command waits for the leader's answer. */
const WAIT_MS = 120_000;

/** `spillway maintain`: runs the passes now, by the worker that leads or, when none does, by itself. */
export function registerMaintain(program: Command, context: CliContext): void {
  program
    .command("maintain")
    .description("Run maintenance passes now, whatever the policy says of when.")
    .option("--table <name>", "the table, as in SQL")
    .option("--all", "every registered table, and the files of the store")
    .option(
      "--pass <name...>",
      `only these: ${PASSES.join(", ")} (default: compact, manifests, expire; with --all also remove)`,
    )
    .option("--no-wait", "file the request for the worker and return")
    .addHelpText("after", "\nExamples:\n  spillway maintain --table flights --pass compact\n  spillway maintain --all")
    .action(async (flags: Flags) => {
      const run = context.begin({ ...flags });
      await withCommand(run, async () => {
        if ((flags.table === undefined) === (flags.all !== true)) {
          throw new SpillwayError("usage", "one of --table and --all is needed");
        }
        const passes = passesOf(flags.pass);
        const runtime = await openCatalogedSource(run, "spillway maintain");
        const { table } = flags;
        const relation = table === undefined ? null : await runtime.pool.withClient((c) => chosenRelation(c, table));
        const leads = (await runtime.pool.withClient((c) => readStatus(c))).worker.alive;
        if (leads || !flags.wait) await ask(run, runtime, relation, passes, flags.wait);
        else await runHere(run, runtime, relation, passes);
      });
    });
}

async function ask(
  run: CommandContext,
  runtime: Runtime,
  relation: Relation | null,
  passes: readonly PassName[] | undefined,
  wait: boolean,
): Promise<void> {
  const answer = await runtime.pool.withClient(async (c) => {
    const requestId = await fileRequest(c, {
      kind: "maintain",
      ...(relation ? { relationId: relation.relationId } : {}),
      ...(passes ? { detail: { passes } } : {}),
    });
    if (!wait) {
      run.out.line(`Request ${requestId} is filed.`);
      run.out.result({ request: requestId });
      return null;
    }
    return awaitRequest(c, requestId, { clock: run.clock, timeoutMs: WAIT_MS, signal: run.signal });
  });
  if (answer === null) return;
  run.out.line(toJson(answer.result));
  run.out.result({ state: answer.state, ...answer.result });
  if (answer.state === "failed") process.exitCode = 1;
}

async function runHere(
  run: CommandContext,
  runtime: Runtime,
  relation: Relation | null,
  passes: readonly PassName[] | undefined,
): Promise<void> {
  await claimLake({
    lend: (work) => runtime.pool.withClient(work),
    store: runtime.store,
    warehouse: runtime.warehouse,
    clock: run.clock,
    watchMs: run.get(SETTINGS.takeoverWatch),
    adoptPromotion: run.get(SETTINGS.adoptPromotion),
    signal: run.signal,
    onWatch: (ms) => run.out.line(`Looking for ${ms / 1000} s whether another server works with the lake.`),
  });
  const answer = await maintain(runtime.mover(null, run.signal), new SourceUpkeep(), {
    relationId: relation?.relationId ?? null,
    ...(passes ? { passes } : {}),
  });
  run.out.line("No worker leads: done by this command.");
  run.out.line(toJson(answer));
  run.out.result({ state: "done", ...answer });
}
