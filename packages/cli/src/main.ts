/** The `spillway` command: parse, run one command, answer every failure with one line and an exit code. */
import { Command, CommanderError, Option } from "commander";
import type { Setting } from "@spillway/base/config";
import { isSpillwayError, messageOf, SpillwayError } from "@spillway/base/errors";
import { redactUrls } from "@spillway/base/log";
import { SETTINGS } from "@spillway/base/settings";
import { fromPgError, isConnectionError, sqlstateOf } from "@spillway/pg/pg-error";
import { createContext } from "./context.ts";
import { toJson, type Streams } from "./output.ts";

/** 0 done · 1 failure · 2 usage. */
export async function run(
  argv: readonly string[],
  streams: Streams,
  env: NodeJS.ProcessEnv,
  signal: AbortSignal,
): Promise<number> {
  if (argv[0] === "ha") return (await import("./commands/ha.ts")).runHaCommand(argv.slice(1), streams, env, signal);
  const program = new Command("spillway")
    .description("Keeps a Postgres database small, alive and analysable.")
    .version("0.1.0")
    .showHelpAfterError("See --help for the command's form.")
    .configureOutput({ writeOut: streams.out, writeErr: () => {}, outputError: () => {} })
    .exitOverride();
  const context = createContext(streams, env, signal);
  // A node is started when somebody waits for it: it loads nothing that it does not need.
  const commands =
    argv[0] === "node" ? [(await import("./commands/node.ts")).registerNode] : (await import("./commands.ts")).COMMANDS;
  for (const register of commands) register(program, context);
  for (const command of program.commands) prepare(command);
  try {
    await program.parseAsync(argv, { from: "user" });
    return Number(process.exitCode ?? 0);
  } catch (error) {
    return answer(error, streams, argv.includes("--json"));
  }
}

/** Global flags on every command, and errors thrown instead of printed. */
function prepare(command: Command): void {
  command.exitOverride().configureOutput({ writeErr: () => {}, outputError: () => {} });
  if (command.commands.length > 0) {
    for (const sub of command.commands) prepare(sub);
    return;
  }
  command.option("--json", "print one JSON line for scripts");
  command.option("--config <file>", "settings file (default: spillway.yaml, if there is one)");
  for (const setting of GLOBAL_FLAGS) {
    if (!command.options.some((o) => o.long === `--${setting.name}`)) command.addOption(toOption(setting));
  }
}

const GLOBAL_FLAGS: readonly Setting[] = Object.values(SETTINGS as Record<string, Setting>).filter((s) => !s.noFlag);

/** A setting as a flag; only the most used ones are listed by --help. */
export function toOption(setting: Setting): Option {
  const listed = ["database-url", "warehouse", "log-level"].includes(setting.name);
  const option = new Option(`--${setting.name} <value>`, setting.help);
  return listed ? option : option.hideHelp();
}

function answer(error: unknown, streams: Streams, json: boolean): number {
  if (error instanceof CommanderError) {
    if (error.exitCode === 0) return 0;
    const text = error.code === "commander.help" ? "no command was given" : error.message.replace(/^error: /, "");
    return print(new SpillwayError("usage", text), streams, json);
  }
  if (isSpillwayError(error)) return print(error, streams, json);
  if (sqlstateOf(error) !== null || isConnectionError(error)) {
    return print(fromPgError(error, "the source"), streams, json);
  }
  const detail = process.env["SPILLWAY_LOG_LEVEL"] === "debug" && error instanceof Error ? `\n${error.stack}` : "";
  return print(new SpillwayError("internal", redactUrls(messageOf(error)) + detail, { cause: error }), streams, json);
}

function print(error: SpillwayError, streams: Streams, json: boolean): number {
  if (json) streams.out(`${toJson({ error: error.toJSON() })}\n`);
  streams.err(`${redactUrls(error.toLine())}\n`);
  return error.kind === "usage" ? 2 : 1;
}

const controller = new AbortController();
let interrupts = 0;
for (const name of ["SIGINT", "SIGTERM"] as const) {
  process.on(name, () => {
    interrupts += 1;
    if (interrupts > 1) process.exit(130);
    controller.abort(new SpillwayError("interrupted", `the command was ended by ${name}`));
  });
}
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0);
  throw error;
});
const code = await run(
  process.argv.slice(2),
  {
    out: (text) => void process.stdout.write(text),
    err: (text) => void process.stderr.write(text),
    outDrained: async () => {
      if (process.stdout.writableNeedDrain) await new Promise((resolve) => process.stdout.once("drain", resolve));
    },
    outIsTerminal: process.stdout.isTTY === true && process.env["NO_COLOR"] === undefined,
    errIsTerminal: process.stderr.isTTY === true && process.env["NO_COLOR"] === undefined,
    columns: process.stderr.columns ?? 100,
  },
  process.env,
  controller.signal,
);
process.exitCode = code;
