/** `spillway tenant`, `database`, `pool`, `user`, …: one command for each kind of the control plane, made from its tables. */
import { readFileSync } from "node:fs";
import { type Command, Option } from "commander";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import {
  type Control,
  type ControlObject,
  createAccessToken,
  createObject,
  deleteObject,
  getObject,
  labelOf,
  listObjects,
  pathToId,
  type Resource,
  RESOURCES,
  updateObject,
} from "@spillway/server/control/control";
import type { CliContext, CommandContext } from "../context.ts";
import { changeAudited, fieldValue, openControl, policyChecker } from "../control-plane.ts";
import { withCommand } from "../source.ts";

type Flags = Readonly<Record<string, unknown>>;

const ACTIONS = ["list", "show", "create", "update", "delete"] as const;
type Action = (typeof ACTIONS)[number];

const EXAMPLES: Readonly<Record<string, string>> = {
  tenant: "spillway tenant create acme",
  database: "spillway database create acme/sales --source-url env:SALES_URL --warehouse s3://lake/sales",
  pool: "spillway pool create acme/sales/main --is-default true --readonly-nodes 2 --dual-nodes 1",
  user: "spillway user create ann --tenant acme --password-file -",
  group: "spillway group create acme/staff",
  role: "spillway role create acme/analyst",
  membership: "spillway membership create --group acme/staff --user ann",
  "role-grant": "spillway role-grant create --role acme/analyst --group acme/staff",
  "table-grant":
    "spillway table-grant create --role acme/analyst --database acme/sales --schema public --table '*' --privileges select",
  "pool-grant": "spillway pool-grant create --pool acme/sales/main --role acme/analyst",
  "row-policy":
    "spillway row-policy create --database acme/sales --schema public --table orders --name own --role acme/analyst --predicate 'owner = ${user}'",
  "column-policy":
    "spillway column-policy create --database acme/sales --schema public --table orders --name mail --column mail --action mask --expression \"'***'\"",
  "access-token": "spillway access-token create --user ann --name laptop",
  session: "spillway session list --user ann",
  node: "",
  "source-login": "spillway source-login create --user ann --database acme/sales --login-url env:ANN_URL",
};

export function registerControl(program: Command, context: CliContext): void {
  // `spillway node` is a node itself; they are listed by `spillway nodes`.
  for (const resource of RESOURCES) registerResource(program, context, resource);
}

function actionsOf(resource: Resource): readonly Action[] {
  if (resource.name === "nodes") return ["list", "show"];
  if (resource.name === "sessions") return ["list", "show", "delete"];
  return resource.name === "access-tokens" ? ["list", "show", "create", "delete"] : ACTIONS;
}

function registerResource(program: Command, context: CliContext, resource: Resource): void {
  const actions = actionsOf(resource);
  const name = resource.name === "nodes" ? "nodes" : resource.singular;
  const command = program
    .command(name)
    .description(`${resource.help} ${actions.map((a) => `${a[0]?.toUpperCase()}${a.slice(1)}`).join(", ")}.`)
    .argument("<action>", actions.join(", "))
    .argument("[name]", resource.path ? pathForm(resource) : "the id; or give the fields that name it");
  for (const [field, { help, access, type, values }] of Object.entries(resource.fields)) {
    if (field === "createdAt" || type === "time") continue;
    if (access === "write")
      command.addOption(
        new Option(`--${kebab(field)}-file <file>`, `${help} The file that holds it; - for the input.`),
      );
    else command.addOption(new Option(`--${kebab(field)} <value>`, values ? `${help} ${values.join(", ")}.` : help));
  }
  if (resource.name === "access-tokens") command.option("--expires-at <time>", "When it ends; without it, never.");
  const example = EXAMPLES[resource.singular];
  if (example) command.addHelpText("after", `\nExample:\n  ${example}`);
  command.action(async (action: string, given: string | undefined, flags: Flags) => {
    if (!(actions as readonly string[]).includes(action)) {
      throw new SpillwayError("usage", `spillway ${name} has no ${action}; it has ${actions.join(", ")}`);
    }
    const run = context.begin(globalsOf(resource, flags));
    await withCommand(run, () => perform(run, resource, action as Action, given ?? null, bodyOf(resource, flags)));
  });
}

function pathForm(resource: Resource): string {
  return { tenant: "tenant", database: "tenant/database", pool: "tenant/database/pool", user: "user", group: "tenant/group", role: "tenant/role" }[
    resource.path ?? "tenant"
  ]; // prettier-ignore
}

async function perform(
  run: CommandContext,
  resource: Resource,
  action: Action,
  name: string | null,
  body: ControlObject,
): Promise<void> {
  const control = await openControl(run);
  const title = `${action} ${resource.singular}`;
  switch (action) {
    case "list":
      return print(run, resource, await control.read((db) => listObjects(db, resource, body)));
    case "show":
      return print(run, resource, [await find(control, resource, name, body)]);
    case "create": {
      const whole = { ...keyOf(resource, name), ...body };
      await (
        await policyChecker(run, control)
      )(resource, whole);
      const made = await changeAudited(run, control, title, async (tx) => {
        const value =
          resource.name === "access-tokens" ? await makeToken(tx, whole) : await createObject(tx, resource, whole);
        return { object: labelOf(resource, value), value };
      });
      print(run, resource, [made]);
      if (typeof made["token"] === "string") run.out.line(`\nToken (shown once): ${made["token"]}`);
      return;
    }
    case "update": {
      const object = await find(control, resource, name, body);
      await (
        await policyChecker(run, control)
      )(resource, body);
      const changed = await changeAudited(run, control, title, async (tx) => {
        const value = await updateObject(tx, resource, String(object["id"]), body);
        return { object: labelOf(resource, value), value };
      });
      return print(run, resource, [changed]);
    }
    case "delete": {
      const object = await find(control, resource, name, body);
      await changeAudited(run, control, title, async (tx) => {
        const value = await deleteObject(tx, resource, String(object["id"]));
        return { object: labelOf(resource, value), value };
      });
      run.out.line(
        `${resource.name === "sessions" ? "Ended" : "Deleted"} ${resource.singular} ${labelOf(resource, object)}`,
      );
      run.out.result({ deleted: object });
    }
  }
}

async function makeToken(tx: Parameters<typeof createAccessToken>[0], body: ControlObject): Promise<ControlObject> {
  const { user, name, expiresAt = null } = body;
  if (typeof user !== "string" || typeof name !== "string" || !/^[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,62}$/.test(name)) {
    throw new SpillwayError("control_invalid", "a token has a user, and a name of letters, digits and _ . @ + -");
  }
  if (expiresAt !== null && Number.isNaN(Date.parse(String(expiresAt)))) {
    throw new SpillwayError("control_invalid", "--expires-at is a time in ISO 8601");
  }
  const end = expiresAt === null ? null : String(expiresAt);
  return { user, name, expiresAt: end, ...(await createAccessToken(tx, await pathToId(tx, "user", user), name, end)) };
}

/** By path or id, or by the fields that name it: then exactly one. */
async function find(
  control: Control,
  resource: Resource,
  name: string | null,
  body: ControlObject,
): Promise<ControlObject> {
  if (name !== null) return control.read((db) => getObject(db, resource, name));
  const where = Object.fromEntries(Object.entries(body).filter(([field]) => resource.key.includes(field)));
  if (Object.keys(where).length === 0)
    throw new SpillwayError("usage", `which ${resource.singular}? Give its name, or its id`);
  const found = await control.read((db) => listObjects(db, resource, where));
  if (found.length === 1 && found[0]) return found[0];
  const what =
    found.length === 0 ? "there is no such" : `${found.length} fit: give all of ${resource.key.join(", ")} of the`;
  throw new SpillwayError("control_not_found", `${what} ${resource.singular}`);
}

/** `acme/sales/main` → database acme/sales, name main. */
function keyOf(resource: Resource, path: string | null): ControlObject {
  if (path === null) return {};
  if (!resource.path) throw new SpillwayError("usage", `a ${resource.singular} is made from its fields alone`);
  const at = path.lastIndexOf("/");
  const parent = resource.key[0];
  if (resource.key.length === 1 || parent === undefined) return { name: path };
  if (at < 1) throw new SpillwayError("usage", `a ${resource.singular} is written ${pathForm(resource)}`);
  return { [parent]: path.slice(0, at), name: path.slice(at + 1) };
}

function bodyOf(resource: Resource, flags: Flags): ControlObject {
  const body: Record<string, unknown> = {};
  for (const [name, field] of Object.entries(resource.fields)) {
    const text = flags[field.access === "write" ? `${name}File` : name];
    if (typeof text !== "string") continue;
    body[name] = field.access === "write" ? secretOf(text) : fieldValue(kebab(name), field, text);
  }
  return body;
}

/** Flags of the kind's own fields are no settings, even where the names are the same. */
function globalsOf(resource: Resource, flags: Flags): Flags {
  const own = new Set(Object.entries(resource.fields).map(([n, f]) => (f.access === "write" ? `${n}File` : n)));
  return Object.fromEntries(Object.entries(flags).filter(([name]) => !own.has(name)));
}

function secretOf(file: string): string {
  try {
    return readFileSync(file === "-" ? 0 : file, "utf8").replace(/\r?\n$/, "");
  } catch (error) {
    throw new SpillwayError("usage", `the file ${file} cannot be read: ${messageOf(error)}`, { cause: error });
  }
}

function print(run: CommandContext, resource: Resource, objects: readonly ControlObject[]): void {
  const fields = Object.keys(resource.fields).filter((f) => objects.some((o) => o[f] !== null && o[f] !== undefined));
  const columns = resource.path && objects.length > 0 ? fields : ["id", ...fields];
  run.out.table(
    columns.map(kebab),
    objects.map((o) => columns.map((f) => shown(o[f]))),
  );
  run.out.result({ items: objects });
}

function shown(value: unknown): string {
  if (value === null || value === undefined) return "";
  return Array.isArray(value) ? value.join(",") : typeof value === "object" ? JSON.stringify(value) : String(value);
}

function kebab(name: string): string {
  return name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`);
}
