#!/usr/bin/env node
/**
 * Writes docs/reference/ha-states.md from the state machine's table. Run: `node scripts/gen-ha-states.mjs`
 * after a build; a test fails when the page is not what the table says.
 */
import { writeFileSync } from "node:fs";
import { renderStates } from "@spillway/ha/fsm/diagram";

writeFileSync(new URL("../docs/reference/ha-states.md", import.meta.url), renderStates());
