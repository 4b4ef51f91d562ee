import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import {
  type AccessRules,
  Control,
  type ControlObject,
  createAccessToken,
  createObject,
  createSession,
  deleteObject,
  getObject,
  installControl,
  listObjects,
  releaseLease,
  requireLease,
  resourceNamed,
  revokeSession,
  takeLease,
  updateObject,
  verifyPassword,
} from "./control.ts";

let db: TestDatabase;
let control: Control;
let adminPassword = "";
const options = (): { conninfo: string; clock: typeof systemClock; log: typeof silentLogger } => ({
  conninfo: db.url,
  clock: systemClock,
  log: silentLogger,
});

beforeAll(async () => {
  db = await createTestDatabase();
  const made = await installControl(options(), {
    first: { tenant: "acme", database: "sales", sourceUrl: "env:SALES", warehouse: null, pool: { dualNodes: 2 } },
  });
  adminPassword = must(made.admin, "admin").password;
  control = await Control.open(options());
});
afterAll(async () => {
  await control.close();
  await db.drop();
});

const kind = (name: string) => must(resourceNamed(name), name);
const create = (name: string, body: ControlObject): Promise<ControlObject> =>
  control.change((tx) => createObject(tx, kind(name), body));
const update = (name: string, id: string, body: ControlObject): Promise<ControlObject> =>
  control.change((tx) => updateObject(tx, kind(name), id, body));
const remove = (name: string, id: string): Promise<ControlObject> =>
  control.change((tx) => deleteObject(tx, kind(name), id));
const list = (name: string, where: ControlObject = {}): Promise<ControlObject[]> =>
  control.read((c) => listObjects(c, kind(name), where));
const sales = async (): Promise<string> => must(await control.databaseId("acme/sales", null), "sales");
async function rulesOf(user: string): Promise<AccessRules> {
  const found = must(await control.user(user), user);
  return must(await control.rules(found.id, await sales()), "rules");
}

describe("bootstrap", () => {
  test("made once: an administrator, a tenant, a database, a pool", async () => {
    expect(await installControl(options(), { adminName: "other" })).toEqual({ admin: null });
    expect((await list("users")).map((u) => u["name"])).toEqual(["admin"]);
    expect(await list("pools")).toMatchObject([
      { database: "acme/sales", name: "main", dualNodes: 2, isDefault: true },
    ]);
    const admin = must(await control.user("admin"), "admin");
    expect(await verifyPassword(admin.passwordHash, adminPassword)).toBe(true);
    expect(await verifyPassword(admin.passwordHash, `${adminPassword}x`)).toBe(false);
    expect(await verifyPassword(null, adminPassword)).toBe(false);
    expect(admin.passwordHash).toMatch(/^\$argon2id\$v=19\$m=19456,t=2,p=1\$/);
    expect(admin.scramVerifier).toMatch(/^SCRAM-SHA-256\$4096:/);
  });

  test("five at the same instant make one administrator", async () => {
    const other = await createTestDatabase();
    try {
      const at = { ...options(), conninfo: other.url };
      const made = await Promise.all(Array.from({ length: 5 }, () => installControl(at)));
      expect(made.filter((m) => m.admin !== null)).toHaveLength(1);
      const { rows } = await other.client.query("SELECT name FROM spillway_control.app_user");
      expect(rows).toHaveLength(1);
    } finally {
      await other.drop();
    }
  });

  test("a database without a control plane is said to be one", async () => {
    const other = await createTestDatabase();
    await expect(Control.open({ ...options(), conninfo: other.url })).rejects.toMatchObject({
      code: "control_not_ready",
    });
    await other.drop();
  });
});

describe("objects", () => {
  test("are made, shown by path, changed, refused and deleted", async () => {
    await create("tenants", { name: "umbrella" });
    await create("roles", { tenant: "umbrella", name: "boss" });
    await expect(create("roles", { tenant: "umbrella", name: "boss" })).rejects.toMatchObject({
      code: "control_exists",
    });
    await expect(create("roles", { tenant: "nobody", name: "x" })).rejects.toMatchObject({ code: "control_not_found" });
    await expect(create("roles", { tenant: "umbrella" })).rejects.toMatchObject({ code: "control_invalid" });
    await expect(create("roles", { tenant: "umbrella", name: "a/b" })).rejects.toMatchObject({
      code: "control_invalid",
    });
    await expect(create("roles", { tenant: "umbrella", name: "y", color: 1 })).rejects.toMatchObject({
      code: "control_invalid",
      message: expect.stringContaining("color"),
    });
    await expect(remove("tenants", "umbrella")).rejects.toMatchObject({ code: "control_in_use" });
    await expect(update("roles", "umbrella/boss", { name: "x" })).rejects.toMatchObject({ code: "control_invalid" });
    expect(await update("tenants", "umbrella", { disabled: true })).toMatchObject({ name: "umbrella", disabled: true });
    await remove("roles", "umbrella/boss");
    await remove("tenants", "umbrella");
    await expect(control.read((c) => getObject(c, kind("tenant"), "umbrella"))).rejects.toMatchObject({
      code: "control_not_found",
    });
  });

  test("limits of a pool are checked by name", async () => {
    for (const [field, value] of [
      ["dualNodes", -1],
      ["dualNodes", 1.5],
      ["nodeMemoryBytes", 10],
      ["nodeCpus", "many"],
      ["isDefault", "yes"],
    ] as const) {
      await expect(update("pools", "acme/sales/main", { [field]: value })).rejects.toMatchObject({
        code: "control_invalid",
        message: expect.stringContaining(field),
      });
    }
    await expect(update("pools", "acme/sales/main", { minReadonly: 3, maxReadonly: 1 })).rejects.toMatchObject({
      code: "control_invalid",
    });
    expect(await update("pools", "acme/sales/main", { minReadonly: 1, maxReadonly: 3 })).toMatchObject({
      maxReadonly: 3,
    });
  });

  test("passwords are never shown, and those of connection strings neither", async () => {
    await create("users", { name: "carl", tenant: "acme", password: "correct horse" });
    expect(JSON.stringify(await list("users"))).not.toMatch(/argon2|SCRAM|correct/);
    await create("databases", { tenant: "acme", name: "secret", sourceUrl: "postgres://u:hunter22@h/d" });
    const [shown] = await list("databases", { name: "secret" });
    expect(shown?.["sourceUrl"]).toBe("postgres://u:[redacted]@h/d");
    // What was shown can be given back: it means no change.
    await update("databases", "acme/secret", { sourceUrl: String(shown?.["sourceUrl"]), disabled: true });
    const { rows } = await db.client.query("SELECT source_url FROM spillway_control.database WHERE name = 'secret'");
    expect(rows[0]).toEqual({ source_url: "postgres://u:hunter22@h/d" });
    await expect(
      create("databases", { tenant: "acme", name: "s2", sourceUrl: "postgres://u:[redacted]@h/d" }),
    ).rejects.toMatchObject({ code: "control_invalid" });
    await expect(create("users", { name: "dora", tenant: "acme", password: "short" })).rejects.toMatchObject({
      code: "control_invalid",
    });
  });

  test("an administrator of a tenant sees and changes only what is the tenant's", async () => {
    await create("tenants", { name: "globex" });
    await create("roles", { tenant: "globex", name: "viewer" });
    const globex = String((await control.read((c) => getObject(c, kind("tenant"), "globex")))["id"]);
    const scope = { tenantId: globex };
    expect(await control.read((c) => listObjects(c, kind("roles"), {}, scope))).toHaveLength(1);
    expect(await control.read((c) => listObjects(c, kind("databases"), {}, scope))).toHaveLength(0);
    const make = (body: ControlObject): Promise<unknown> =>
      control.change((tx) => createObject(tx, kind("roles"), body, scope));
    await expect(make({ tenant: "acme", name: "intruder" })).rejects.toMatchObject({ code: "control_forbidden" });
    expect(await list("roles", { name: "intruder" })).toHaveLength(0);
    const carl = must(await control.user("carl"), "carl");
    const take = control.change((tx) => updateObject(tx, kind("users"), carl.id, { password: "mine now!" }, scope));
    await expect(take).rejects.toMatchObject({ code: "control_not_found" });
    // No part of one tenant is given to another's.
    await expect(create("role-grants", { role: "globex/viewer", user: "carl" })).rejects.toMatchObject({
      code: "control_invalid",
    });
  });
});

describe("rules", () => {
  test("hold what roles give, directly and through groups, and are read anew when they change", async () => {
    await create("users", { name: "ann", tenant: "acme" });
    await create("groups", { tenant: "acme", name: "staff" });
    await create("memberships", { group: "acme/staff", user: "ann" });
    for (const name of ["reader", "writer"]) await create("roles", { tenant: "acme", name });
    await create("role-grants", { role: "acme/reader", group: "acme/staff" });
    const grant = { database: "acme/sales", schema: "public", table: "orders" };
    await create("table-grants", { role: "acme/reader", ...grant, privileges: ["select"] });
    await create("table-grants", { role: "acme/writer", ...grant, privileges: ["insert"] });
    await create("pool-grants", { pool: "acme/sales/main", group: "acme/staff" });
    await create("row-policies", {
      ...grant,
      name: "own",
      role: "acme/writer",
      predicate: "owner = ${user}",
    });
    const before = await rulesOf("ann");
    expect(before).toMatchObject({
      isAdmin: false,
      refused: null,
      roles: ["reader"],
      groups: ["staff"],
      grants: [{ schema: "public", table: "orders", privileges: ["select"], role: "reader" }],
      rowPolicies: [{ name: "own", applies: false }],
      pools: [{ name: "main", isDefault: true }],
      database: { name: "sales", tenantName: "acme", defaultSchema: "public", sourceUrl: "env:SALES" },
    });
    await create("role-grants", { role: "acme/writer", user: "ann" });
    await expect.poll(async () => (await rulesOf("ann")).roles, { timeout: 1000 }).toEqual(["reader", "writer"]);
    expect((await rulesOf("ann")).rowPolicies).toMatchObject([{ name: "own", applies: true }]);
    expect(await rulesOf("ann")).toBe(await rulesOf("ann"));
  });

  test("a change is heard within a second, by everyone", async () => {
    const second = await Control.open(options());
    const heard: bigint[] = [];
    second.onChange((version) => heard.push(version));
    const startMs = performance.now();
    const [grant] = await list("table-grants", { role: "acme/reader" });
    await remove("table-grants", String(grant?.["id"]));
    await expect.poll(() => heard.length, { timeout: 1000, interval: 5 }).toBeGreaterThan(0);
    expect(performance.now() - startMs).toBeLessThan(1000);
    await second.close();
  });

  test("a notification is nobody's word: a false one holds no change back", async () => {
    await db.client.query("NOTIFY spillway_control, '999999999999'");
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(control.version).toBeLessThan(1000n);
    const made = await create("roles", { tenant: "acme", name: "late" });
    await create("role-grants", { role: "acme/late", user: "ann" });
    await expect.poll(async () => (await rulesOf("ann")).roles, { timeout: 1000 }).toContain("late");
    await remove("roles", String(made["id"]));
    await expect.poll(async () => (await rulesOf("ann")).roles, { timeout: 1000 }).not.toContain("late");
  });

  test("who may not: disabled users, databases, tenants, and users of other tenants", async () => {
    await create("users", { name: "mallory", tenant: "globex" });
    expect((await rulesOf("mallory")).refused).toContain("another tenant");
    await update("users", "ann", { disabled: true });
    await expect.poll(async () => (await rulesOf("ann")).refused, { timeout: 1000 }).toContain("user is disabled");
    await update("users", "ann", { disabled: false });
    expect((await rulesOf("admin")).isAdmin).toBe(true);
  });
});

describe("tokens", () => {
  test("a session is good until it ends or is revoked; only hashes are kept", async () => {
    const ann = must(await control.user("ann"), "ann");
    const { token } = await control.change((tx) =>
      createSession(tx, { userId: ann.id, protocol: "flight", address: "127.0.0.1", ttlMs: 60_000 }),
    );
    expect(await control.token(token)).toMatchObject({ userId: ann.id });
    const { rows } = await db.client.query("SELECT s::text AS t FROM spillway_control.session s");
    expect(JSON.stringify(rows)).not.toContain(token);
    await control.change((tx) => revokeSession(tx, token));
    await expect.poll(() => control.token(token), { timeout: 1000 }).toBeNull();
    expect(await control.token("sws_nonsense")).toBeNull();
    const short = await control.change((tx) =>
      createSession(tx, { userId: ann.id, protocol: "flight", address: "", ttlMs: -1 }),
    );
    expect(await control.token(short.token)).toBeNull();
  });

  test("a personal access token", async () => {
    const ann = must(await control.user("ann"), "ann");
    const { token, id } = await control.change((tx) => createAccessToken(tx, ann.id, "laptop", null));
    expect(await control.token(token)).toEqual({ id, userId: ann.id, leftMs: null });
    await expect(control.change((tx) => createAccessToken(tx, ann.id, "laptop", null))).rejects.toMatchObject({
      code: "control_exists",
    });
    await remove("access-tokens", id);
    await expect.poll(() => control.token(token), { timeout: 1000 }).toBeNull();
  });
});

test("a lease has one holder, and a new epoch for each", async () => {
  const [a, b] = ["00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"];
  const take = (who: string, ttlMs: number) => control.change((tx) => takeLease(tx, "pool x", who, ttlMs));
  const first = must(await take(a, 60_000), "lease");
  expect(await take(b, 60_000)).toBeNull();
  expect(await take(a, 200)).toEqual(first);
  await new Promise((resolve) => setTimeout(resolve, 250));
  const second = must(await take(b, 60_000), "lease");
  expect(second.epoch).toBe(first.epoch + 1n);
  await expect(control.change((tx) => requireLease(tx, first))).rejects.toMatchObject({ code: "control_unavailable" });
  await control.change((tx) => requireLease(tx, second));
  await control.change((tx) => releaseLease(tx, second));
  expect((await take(a, 60_000))?.epoch).toBe(second.epoch + 1n);
});

test("while the control database is away: known users for a while, then nobody; and all is well after it", async () => {
  const server = db.server;
  const own = await Control.open({ ...options(), stalenessMs: 1500, waitMs: 300 });
  try {
    const ann = must(await own.user("ann"), "ann");
    const database = await sales();
    await own.databaseId("acme/sales", null);
    const known = await own.rules(ann.id, database);
    // Nobody new gets in, and whoever is in is thrown out: for this database only.
    await server.withClient("postgres", async (c) => {
      await c.query(`ALTER DATABASE "${db.name}" ALLOW_CONNECTIONS false`);
      await c.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()",
        [db.name],
      );
    });
    await expect.poll(() => own.ageMs, { timeout: 3000 }).toBeGreaterThan(1000);
    expect(await own.rules(ann.id, database)).toEqual(known);
    await expect(own.user("carl")).rejects.toMatchObject({ code: "control_unavailable" });
    await expect.poll(() => own.ageMs, { timeout: 3000 }).toBeGreaterThan(1500);
    await expect(own.rules(ann.id, database)).rejects.toMatchObject({ code: "control_unavailable" });
    await server.withClient("postgres", (c) => c.query(`ALTER DATABASE "${db.name}" ALLOW_CONNECTIONS true`));
    await expect.poll(() => own.ageMs, { timeout: 5000 }).toBeLessThan(1000);
    expect(await own.rules(ann.id, database)).toEqual(known);
  } finally {
    await own.close();
  }
});
