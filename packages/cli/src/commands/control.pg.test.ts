/** The control plane as an operator types it. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import { silentLogger } from "@spillway/base/log";
import { installControl } from "@spillway/server/control/control";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { runCli } from "@spillway/testkit/processes";
import { Command } from "commander";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createContext } from "../context.ts";
import { registerControl } from "./control.ts";
import { registerManifest } from "./manifest.ts";

let db: TestDatabase;
const home = mkdtempSync(join(tmpdir(), "spillway-test-"));
beforeAll(async () => {
  db = await createTestDatabase();
  await installControl(
    { conninfo: db.url, clock: systemClock, log: silentLogger },
    { adminPassword: "admin password" },
  );
});
afterAll(async () => {
  await db.drop();
  rmSync(home, { recursive: true, force: true });
});

/** In this process, as `main.ts` does it: a process for each command would take minutes. */
async function spillway(args: readonly string[]): Promise<{ readonly out: string; readonly error: string | null }> {
  let out = "";
  const streams = {
    out: (t: string) => (out += t),
    err: () => {},
    outIsTerminal: false,
    errIsTerminal: false,
    columns: 100,
  };
  const program = new Command("spillway").exitOverride();
  const env = { SPILLWAY_CONTROL_URL: db.url, SPILLWAY_LOG_LEVEL: "error" };
  const context = createContext(streams, env, new AbortController().signal);
  registerControl(program, context);
  registerManifest(program, context);
  for (const command of program.commands) command.exitOverride().option("--json");
  try {
    await program.parseAsync(args, { from: "user" });
    return { out, error: null };
  } catch (error) {
    if (!(error instanceof SpillwayError)) throw error;
    expect(error.toLine()).not.toContain("\n");
    return { out, error: `${error.code} ${error.kind}` };
  }
}
async function done(line: string): Promise<string> {
  const result = await spillway(line.split(" "));
  expect(result.error).toBeNull();
  return result.out;
}

test("from a tenant to a policy, and out again as a manifest", async () => {
  await done("tenant create acme");
  await done("database create acme/sales --source-url postgres://u:hunter2@h/d --warehouse /lake");
  await done("pool create acme/sales/main --is-default true --readonly-nodes 2");
  const password = join(home, "password");
  writeFileSync(password, "a long password\n");
  await done(`user create ann --tenant acme --password-file ${password}`);
  await done("role create acme/analyst");
  await done("role-grant create --role acme/analyst --user ann");
  const grant = "--role acme/analyst --database acme/sales --schema public --table *";
  await done(`table-grant create ${grant} --privileges select,insert`);
  await done(`pool-grant create --pool acme/sales/main --role acme/analyst`);
  const on = "--database acme/sales --schema public --table orders --name own";
  const policy = await spillway([
    ..."row-policy create --role acme/analyst".split(" "),
    ...on.split(" "),
    "--predicate",
    "owner = ${user}",
  ]);
  expect(policy.error).toBeNull();

  expect(await done("pool show acme/sales/main")).toMatch(/acme\/sales +main +true +2/);
  expect(await done("database list")).toContain("postgres://u:[redacted]@h/d");
  await done("pool update acme/sales/main --readonly-nodes 3 --max-readonly 5 --min-readonly 1");
  expect(JSON.parse(await done("pool list --json"))).toMatchObject({ items: [{ readonlyNodes: 3, maxReadonly: 5 }] });
  await done("pool update acme/sales/main --min-readonly none --max-readonly none");
  await done(`table-grant update ${grant} --privileges select`);
  const token = await done("access-token create --user ann --name laptop");
  expect(token).toMatch(/Token \(shown once\): swp_/);
  expect(await done("access-token list --user ann")).not.toContain("swp_");
  await done("access-token delete --user ann --name laptop");

  const manifest = await done("export");
  expect(manifest).not.toMatch(/hunter2|argon|long password/);
  const file = join(home, "control.yaml");
  writeFileSync(file, manifest);
  expect(await done(`apply -f ${file}`)).toBe("No difference.\n");
  writeFileSync(file, manifest.replace("readonlyNodes: 3", "readonlyNodes: 4"));
  const diff = "~ pool acme/sales/main readonlyNodes: 3 → 4\n";
  expect(await done(`apply -f ${file} --dry-run`)).toBe(`${diff}1 changes, not applied.\n`);
  expect(await done(`apply -f ${file}`)).toBe(`${diff}1 changes applied.\n`);
  await done(`row-policy delete ${on}`);
  const { rows } = await db.client.query(
    "SELECT action, object, protocol FROM spillway_control.audit WHERE action LIKE '%polic%' OR action LIKE 'apply%' ORDER BY at",
  );
  expect(rows).toEqual([
    { action: "create row-policy", object: "acme/sales public orders own", protocol: "cli" },
    { action: "apply manifest", object: "0 changes", protocol: "cli" },
    { action: "apply manifest", object: "1 changes", protocol: "cli" },
    { action: "delete row-policy", object: "acme/sales public orders own", protocol: "cli" },
  ]);
});

test.each([
  ["tenant create", 2, "control_invalid"],
  ["tenant make x", 2, "usage"],
  ["tenant create a/b", 2, "control_invalid"],
  ["pool create main", 2, "usage"],
  ["pool update acme/sales/main --dual-nodes many", 2, "usage"],
  ["pool update acme/sales/main --dual-nodes 1000", 2, "control_invalid"],
  ["user create ann --tenant acme", 1, "control_exists"],
  ["tenant delete acme", 1, "control_in_use"],
  ["role show acme/nobody", 2, "control_not_found"],
  ["table-grant delete", 2, "usage"],
  ["nodes create", 2, "usage"],
  ["user create bob --tenant acme --password-file /nowhere", 2, "usage"],
  [
    "row-policy create --database acme/sales --schema a --table b --name c --predicate count(*)>1",
    2,
    "access_policy_invalid",
  ],
  ["apply -f /nowhere", 2, "manifest_invalid"],
])("%s", async (line, code, error) => {
  const [name, kind] = (await spillway(line.split(" "))).error?.split(" ") ?? [];
  expect(name).toBe(error);
  expect(kind === "usage" ? 2 : 1).toBe(code);
});

test("without a control database: one line that says what to set", { timeout: 120_000 }, async () => {
  const env = { SPILLWAY_CONTROL_URL: "", SPILLWAY_SERVE_STATE_DIR: home };
  const result = await runCli(["tenant", "list"], { env });
  expect(result).toMatchObject({ code: 2, stderr: expect.stringMatching(/^config_missing: control-url is not set/) });
});
