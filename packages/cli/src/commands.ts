/** Every command, one file each; a file parses, calls one function of a component, and prints. */
import type { Command } from "commander";
import { registerBench } from "./commands/bench.ts";
import { registerCatalog } from "./commands/catalog.ts";
import { registerConfig } from "./commands/config.ts";
import type { CliContext } from "./context.ts";

export type RegisterCommand = (program: Command, context: CliContext) => void;

export const COMMANDS: readonly RegisterCommand[] = [registerCatalog, registerConfig, registerBench];
