/** `spillway ha …`: the commands of `spillway-ha`, with their own options and help. */
import type { Command } from "commander";
import { systemClock } from "@spillway/base/clock";
import { runHa } from "@spillway/ha/commands/cli";
import type { CliContext } from "../context.ts";
import type { Streams } from "../output.ts";

/** For the list of commands; what follows `ha` is parsed by `runHaCommand`. */
export function registerHa(program: Command, _context: CliContext): void {
  program
    .command("ha")
    .description("keep a Postgres up: monitor, keepers, failover, rejoin (see `spillway ha --help`)");
}

/** Runs what follows `ha`. Returns the exit code. */
export function runHaCommand(
  argv: readonly string[],
  streams: Streams,
  env: NodeJS.ProcessEnv,
  signal: AbortSignal,
): Promise<number> {
  const out = (line: string): void => streams.out(`${line}\n`);
  const err = (line: string): void => streams.err(`${line}\n`);
  return runHa(argv, { out, err, env, signal, clock: systemClock });
}
