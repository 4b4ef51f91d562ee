/** Every command, one file each; a file parses, calls one function of a component, and prints. */
import type { Command } from "commander";
import { registerBench } from "./commands/bench.ts";
import { registerCatalog } from "./commands/catalog.ts";
import { registerConfig } from "./commands/config.ts";
import { registerControl } from "./commands/control.ts";
import { registerDemo } from "./commands/demo.ts";
import { registerExplain } from "./commands/explain.ts";
import { registerHa } from "./commands/ha.ts";
import { registerInit } from "./commands/init.ts";
import { registerMaintain } from "./commands/maintain.ts";
import { registerNode } from "./commands/node.ts";
import { registerManifest } from "./commands/manifest.ts";
import { registerPolicy } from "./commands/policy.ts";
import { registerRegister } from "./commands/register.ts";
import { registerRestore } from "./commands/restore.ts";
import { registerResync } from "./commands/resync.ts";
import { registerServe } from "./commands/serve.ts";
import { registerSql } from "./commands/sql.ts";
import { registerStatus } from "./commands/status.ts";
import { registerUnregister } from "./commands/unregister.ts";
import { registerVerify } from "./commands/verify.ts";
import { registerWorker } from "./commands/worker.ts";
import type { CliContext } from "./context.ts";

export type RegisterCommand = (program: Command, context: CliContext) => void;

export const COMMANDS: readonly RegisterCommand[] = [
  registerInit,
  registerWorker,
  registerRegister,
  registerUnregister,
  registerStatus,
  registerVerify,
  registerMaintain,
  registerPolicy,
  registerRestore,
  registerResync,
  registerSql,
  registerExplain,
  registerCatalog,
  registerControl,
  registerManifest,
  registerConfig,
  registerDemo,
  registerBench,
  registerHa,
  registerNode,
  registerServe,
];
