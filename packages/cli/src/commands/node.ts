import type { Command } from "commander";
import { SpillwayError } from "@spillway/base/errors";
import { type NodeConfig, runNode } from "@spillway/server/roles/node";
import type { CliContext } from "../context.ts";
import { withCommand } from "../source.ts";

/** `spillway node`: started by a manager, which writes the configuration, secrets among it, to the standard input. */
export function registerNode(program: Command, context: CliContext): void {
  program
    .command("node", { hidden: true })
    .description("Run the statements of one tenant. Started by `spillway serve`.")
    .action(async (flags: Record<string, unknown>) => {
      const run = context.begin(flags);
      await withCommand(run, async () => {
        const config = await readConfig();
        await runNode({ config, clock: run.clock, log: run.log, signal: run.signal });
      });
    });
}

async function readConfig(): Promise<NodeConfig> {
  const chunks: Buffer[] = [];
  for await (const chunk of process.stdin as AsyncIterable<Buffer>) chunks.push(chunk);
  try {
    return JSON.parse(Buffer.concat(chunks).toString("utf8")) as NodeConfig;
  } catch (error) {
    throw new SpillwayError("usage", "A node is started by `spillway serve`.", { cause: error });
  }
}
