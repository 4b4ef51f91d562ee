/** The control plane's migrations, forward only. */
import type { Migration } from "@spillway/pg/migrate";
import { CONTROL_SQL } from "./sql/0001-control.ts";

export const CONTROL_SCHEMA = "spillway_control";

export const CONTROL_MIGRATIONS: readonly Migration[] = [{ id: 1, name: "control", sql: CONTROL_SQL }];
