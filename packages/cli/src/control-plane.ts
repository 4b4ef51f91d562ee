/** What commands of the control plane share: finding its database, values of flags, and the record of what was changed. */
import { readFileSync } from "node:fs";
import { homedir, userInfo } from "node:os";
import { join } from "node:path";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { SETTINGS } from "@spillway/base/settings";
import { Control, type ControlObject, type Field, insertAudit, type Resource } from "@spillway/server/control/control";
import { Engine } from "@spillway/server/engine/engine";
import { AccessControl } from "@spillway/server/serve/serve";
import type { CommandContext } from "./context.ts";

/** Closed when the command ends. Throws `config_missing` when none is named and none runs in the state folder. */
export async function openControl(run: CommandContext): Promise<Control> {
  const conninfo = run.get(SETTINGS.controlUrl) ?? embeddedUrl(run);
  const control = await Control.open({ conninfo, clock: run.clock, log: run.log, poolSize: 2 });
  run.onClose(() => control.close());
  return control;
}

/** The control database that a `spillway serve` of this machine has started. */
function embeddedUrl(run: CommandContext): string {
  const dir = join(run.get(SETTINGS.serveStateDir) ?? join(homedir(), ".spillway", "serve"), "control");
  try {
    const port = Number(readFileSync(join(dir, "data", "postmaster.pid"), "latin1").split("\n")[3]);
    const password = readFileSync(join(dir, "password"), "utf8").trim();
    if (Number.isInteger(port)) return `postgres://postgres:${password}@127.0.0.1:${port}/postgres`;
  } catch (error) {
    run.log.debug("control.none_embedded", { error: messageOf(error) });
  }
  throw new SpillwayError("config_missing", "control-url is not set, and no `spillway serve` runs on this machine");
}

/** The text of a flag as the field's value; `none` for none. Throws `usage`. */
export function fieldValue(name: string, field: Field, text: string): unknown {
  if (text === "none" && field.nullable) return null;
  switch (field.type) {
    case "bool":
      if (text !== "true" && text !== "false") throw new SpillwayError("usage", `--${name} is true or false`);
      return text === "true";
    case "int":
    case "number": {
      const value = Number(text);
      if (text.trim() === "" || Number.isNaN(value)) throw new SpillwayError("usage", `--${name} is a number`);
      return value;
    }
    case "texts":
      return text.split(",").map((part) => part.trim());
    default:
      return text;
  }
}

/** Makes sure that a policy could be used, before it is there. */
export async function policyChecker(
  run: CommandContext,
  control: Control,
): Promise<(resource: Resource, body: ControlObject) => Promise<void>> {
  let access: AccessControl | null = null;
  return async (resource, body) => {
    if (!resource.name.endsWith("-policies")) return;
    for (const name of ["predicate", "expression"]) {
      const text = body[name];
      if (typeof text !== "string") continue;
      access ??= await openAccess(run, control);
      await access.checkPolicy(text);
    }
  };
}

async function openAccess(run: CommandContext, control: Control): Promise<AccessControl> {
  const engine = await Engine.open({ memoryBytes: 128 << 20, threads: 1 });
  const access = new AccessControl({ control, engine, log: run.log });
  run.onClose(() => {
    access.close();
    engine.close();
    return Promise.resolve();
  });
  return access;
}

/** Changes, and their record in the audit, in one transaction. */
export async function changeAudited<T>(
  run: CommandContext,
  control: Control,
  action: string,
  work: (
    tx: Parameters<Parameters<Control["change"]>[0]>[0],
  ) => Promise<{ readonly object: string; readonly value: T }>,
): Promise<T> {
  return control.change(async (tx) => {
    const { object, value } = await work(tx);
    const reason = `by ${userInfo().username} on the command line`;
    await insertAudit(tx, { action, allowed: true, reason, object, protocol: "cli" }, run.clock.wallMs());
    return value;
  });
}
