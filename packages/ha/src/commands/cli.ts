/**
 * `spillway-ha …` and `spillway ha …`: finds the command, runs it, turns errors into one line and an exit
 * code (0 done, 1 failed, 2 usage).
 */
import { isSpillwayError, messageOf, SpillwayError } from "@spillway/base/errors";
import { CHANGE_COMMANDS } from "./change.ts";
import { LOG_OPTIONS, parse, SETTING_OPTIONS, type Command, type Io } from "./command.ts";
import { createPostgresCommand, KEEPER_RUN_OPTIONS, replaceMonitorCommand, runAsKeeper } from "./keeper-commands.ts";
import { createMonitor, runAsMonitor } from "./monitor-commands.ts";
import { SHOW_COMMANDS, table } from "./show.ts";

const run: Command = {
  words: "run",
  summary: "Runs in the foreground: a monitor (--dir) or the keeper of a Postgres (--pgdata).",
  options: {
    dir: { value: "PATH", help: "A monitor's directory." },
    pgdata: { value: "PATH", help: "A data directory that `create postgres` registered." },
    ...KEEPER_RUN_OPTIONS,
    ...LOG_OPTIONS,
    ...SETTING_OPTIONS,
  },
  examples: ["spillway-ha run --dir /var/lib/spillway-ha", "spillway-ha run --pgdata /var/lib/postgresql/ha"],
  run: (args, io) => {
    const [dir, pgdata] = [args.text("dir"), args.text("pgdata")];
    if ((dir === undefined) === (pgdata === undefined))
      throw new SpillwayError("usage", "give either --dir or --pgdata");
    return dir === undefined ? runAsKeeper(args.required("pgdata"), args, io) : runAsMonitor(dir, args, io);
  },
};

export const COMMANDS: readonly Command[] = [
  createMonitor,
  createPostgresCommand,
  replaceMonitorCommand,
  run,
  ...SHOW_COMMANDS,
  ...CHANGE_COMMANDS,
];

/** Runs one command line. Never throws; returns the exit code. */
export async function runHa(argv: readonly string[], io: Io): Promise<number> {
  const wantsJson = argv.includes("--json");
  try {
    return await dispatch(argv, io);
  } catch (error) {
    if (!isSpillwayError(error)) {
      io.err(`internal: ${messageOf(error)} Please report it with the log.`);
      return 1;
    }
    if (wantsJson) io.out(JSON.stringify({ error: error.toJSON() }));
    io.err(error.toLine());
    return error.kind === "usage" ? 2 : 1;
  }
}

async function dispatch(argv: readonly string[], io: Io): Promise<number> {
  const words = argv.filter((a, i) => !a.startsWith("-") && argv.slice(0, i).every((b) => !b.startsWith("-")));
  const help = argv.includes("--help") || argv.includes("-h") || words[0] === "help";
  const asked = words.filter((w) => w !== "help");
  const command = COMMANDS.find((c) => c.words === asked.slice(0, c.words.split(" ").length).join(" "));
  if (command === undefined) return listCommands(asked, help, io);
  if (help) {
    for (const line of helpOf(command)) io.out(line);
    return 0;
  }
  const rest = argv.slice(command.words.split(" ").length);
  return command.run(parse(command, rest), io);
}

function listCommands(asked: readonly string[], help: boolean, io: Io): number {
  const prefix = asked.join(" ");
  const found = COMMANDS.filter((c) => c.words === prefix || c.words.startsWith(`${prefix} `) || prefix === "");
  const known = found.length > 0;
  const write = help && known ? io.out : io.err;
  if (!known) io.err(`usage: there is no command ${JSON.stringify(prefix)}. See --help for the commands.`);
  write("spillway-ha: keeps a Postgres up: monitor, keepers, failover, rejoin.");
  write("");
  for (const line of table((known ? found : COMMANDS).map((c) => [`  ${c.words}`, c.summary]))) write(line);
  write("");
  write("Each command has --help with its options and examples.");
  return help && known ? 0 : 2;
}

function helpOf(command: Command): string[] {
  const rows = Object.entries(command.options).map(([name, o]) => [
    `  --${name}${o.value ? ` ${o.value}` : ""}`,
    o.help,
  ]);
  return [
    `spillway-ha ${command.words} [options]`,
    "",
    command.summary,
    "",
    "Options:",
    ...table([...rows, ["  --help", "This text."]]),
    "",
    "Examples:",
    ...command.examples.map((e) => `  ${e}`),
  ];
}
