#!/usr/bin/env node
/** The `spillway-ha` program. */
import { runHa } from "./commands/cli.ts";
import { processIo } from "./roles/process.ts";

process.exitCode = await runHa(process.argv.slice(2), processIo());
