/** Every setting of the product. Each area declares its own in `settings/<area>.ts`. */
import type { Setting } from "./config.ts";
import { CATALOG_SETTINGS } from "./settings/catalog.ts";
import { COMMON_SETTINGS } from "./settings/common.ts";
import { CONTROL_SETTINGS } from "./settings/control.ts";
import { HA_SETTINGS } from "./settings/ha.ts";
import { MIRROR_SETTINGS } from "./settings/mirror.ts";
import { SERVE_SETTINGS } from "./settings/serve.ts";
import { WORKER_SETTINGS } from "./settings/worker.ts";

export const SETTINGS = {
  ...COMMON_SETTINGS,
  ...CATALOG_SETTINGS,
  ...CONTROL_SETTINGS,
  ...HA_SETTINGS,
  ...MIRROR_SETTINGS,
  ...SERVE_SETTINGS,
  ...WORKER_SETTINGS,
} as const satisfies Record<string, Setting>;

export type SettingKey = keyof typeof SETTINGS;
