import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { Metrics } from "@spillway/base/metrics";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { Control, installControl, RESOURCES } from "../control/control.ts";
import { Engine } from "../engine/engine.ts";
import { AccessControl, Authenticator, openApi } from "../serve/serve.ts";
import { type Auditor, createAuditor } from "./auditor.ts";
import { type ServeHttp, startServeHttp } from "./serve-http.ts";

let db: TestDatabase;
let control: Control;
let engine: Engine;
let access: AccessControl;
let auditor: Auditor;
let server: ServeHttp;
let url = "";
const metrics = new Metrics();
const stateDir = mkdtempSync(join(tmpdir(), "spillway-admin-"));
const tokens: Record<string, string> = {};
let ready = true;

beforeAll(async () => {
  db = await createTestDatabase();
  const at = { conninfo: db.url, clock: systemClock, log: silentLogger };
  const first = { tenant: "acme", database: "sales", sourceUrl: "env:X", warehouse: null, pool: {} };
  await installControl(at, { adminPassword: "admin password", first });
  control = await Control.open({ ...at, waitMs: 500 });
  engine = await Engine.open({ memoryBytes: 128 << 20, threads: 1 });
  access = new AccessControl({ control, engine, log: silentLogger });
  auditor = createAuditor({
    ...at,
    control,
    managerId: "00000000-0000-4000-8000-000000000001",
    stateDir,
    metrics,
  });
  const auth = new Authenticator({ ...at, control, apiKey: "the installation's key", onLogin: auditor.onLogin });
  server = await startServeHttp({
    ...at,
    control,
    auth,
    access,
    audit: auditor.audit,
    version: "0.1.0",
    host: "127.0.0.1",
    port: 0,
    tls: null,
    health: () => Promise.resolve([]),
    ready: () => Promise.resolve(ready ? [] : ["pools"]),
    metrics: () => metrics.render(),
  });
  url = `http://127.0.0.1:${server.port}`;
  tokens["admin"] = await login("admin", "admin password");
  for (const body of [
    { name: "ann", tenant: "acme", password: "password of ann" },
    { name: "tina", tenant: "acme", password: "password of tina", isAdmin: true },
  ]) {
    expect((await call("POST", "/v1/users", body)).status).toBe(201);
    tokens[body.name] = await login(body.name, body.password);
  }
});
afterAll(async () => {
  await server.stop();
  await auditor.audit.close();
  access.close();
  engine.close();
  await control.close();
  await db.drop();
  rmSync(stateDir, { recursive: true, force: true });
});

interface Answer {
  readonly status: number;
  readonly body: Record<string, unknown>;
  readonly headers: Headers;
}

async function call(method: string, path: string, body?: unknown, who: string | null = "admin"): Promise<Answer> {
  const response = await fetch(url + path, {
    method,
    headers: who === null ? {} : { authorization: `Bearer ${tokens[who] ?? who}` },
    ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
  });
  const text = await response.text();
  return { status: response.status, body: text === "" ? {} : JSON.parse(text), headers: response.headers };
}

async function login(user: string, password: string): Promise<string> {
  return String((await call("POST", "/v1/login", { user, password }, null)).body["token"]);
}

const codeOf = ({ body }: Answer): unknown => (body["error"] as { code?: string } | undefined)?.code;
const items = ({ body }: Answer): Record<string, unknown>[] => body["items"] as Record<string, unknown>[];

describe("who may ask", () => {
  test("nobody without a token; the key, a session, a personal token", async () => {
    for (const who of [null, "nonsense"]) {
      const answer = await call("GET", "/v1/tenants", undefined, who);
      expect(answer.status).toBe(401);
      expect(answer.headers.get("www-authenticate")).toBe("Bearer");
    }
    expect((await call("POST", "/v1/login", { user: "admin", password: "wrong" }, null)).status).toBe(401);
    expect((await call("POST", "/v1/login", "{", null)).status).toBe(400);
    const key = await fetch(`${url}/v1/tenants`, { headers: { "x-api-key": "the installation's key" } });
    expect(key.status).toBe(200);
    expect((await fetch(`${url}/v1/tenants`, { headers: { "x-api-key": "another" } })).status).toBe(401);
    expect((await call("GET", "/v1/me", undefined, "ann")).body).toMatchObject({ userName: "ann", tenantName: "acme" });
  });

  test("no administrator: nothing but what is his own", async () => {
    for (const { name } of RESOURCES) {
      if (name === "access-tokens") continue;
      expect((await call("GET", `/v1/${name}`, undefined, "ann")).status).toBe(403);
      expect((await call("POST", `/v1/${name}`, {}, "ann")).status).toBe(403);
      if (name !== "nodes") expect((await call("DELETE", `/v1/${name}/x`, undefined, "ann")).status).toBe(403);
    }
    for (const path of ["manifest", "audit"])
      expect((await call("GET", `/v1/${path}`, undefined, "ann")).status).toBe(403);
    const made = await call("POST", "/v1/access-tokens", { name: "laptop", user: "admin" }, "ann");
    // Whatever he asks for, it is his own.
    expect(made.body).toMatchObject({ user: "ann", token: expect.stringMatching(/^swp_/) });
    expect((await call("GET", "/v1/me", undefined, String(made.body["token"]))).body).toMatchObject({
      userName: "ann",
    });
    expect(JSON.stringify((await call("GET", "/v1/access-tokens", undefined, "ann")).body)).not.toContain("swp_");
    const admins = await call("POST", "/v1/access-tokens", { name: "ci", user: "admin" });
    expect((await call("DELETE", `/v1/access-tokens/${admins.body["id"]}`, undefined, "ann")).status).toBe(404);
    expect((await call("DELETE", `/v1/access-tokens/${made.body["id"]}`, undefined, "ann")).status).toBe(204);
  });

  test("an administrator of a tenant: what is the tenant's, and no processes, addresses or files", async () => {
    await call("POST", "/v1/tenants", { name: "globex" });
    await call("POST", "/v1/users", { name: "gus", tenant: "globex" });
    expect(items(await call("GET", "/v1/tenants", undefined, "tina")).map((t) => t["name"])).toEqual(["acme"]);
    expect(items(await call("GET", "/v1/users", undefined, "tina")).map((u) => u["name"])).toEqual(["ann", "tina"]);
    expect((await call("POST", "/v1/roles", { tenant: "acme", name: "analyst" }, "tina")).status).toBe(201);
    expect((await call("POST", "/v1/roles", { tenant: "globex", name: "spy" }, "tina")).status).toBe(403);
    expect((await call("PATCH", "/v1/users/gus", { password: "taken over" }, "tina")).status).toBe(404);
    expect((await call("PATCH", "/v1/users/admin", { password: "taken over" }, "tina")).status).toBe(404);
    expect((await call("POST", "/v1/users", { name: "root", isAdmin: true }, "tina")).status).toBe(403);
    for (const [path, body] of [
      ["/v1/tenants", { name: "mine" }],
      ["/v1/databases", { tenant: "acme", name: "files", sourceUrl: "file:/etc/passwd" }],
      ["/v1/pools", { database: "acme/sales", name: "big", dualNodes: 64 }],
      ["/v1/source-logins", { user: "ann", database: "acme/sales", loginUrl: "postgres://postgres@h/d" }],
    ] as const) {
      expect(codeOf(await call("POST", path, body, "tina"))).toBe("control_forbidden");
    }
    expect((await call("GET", "/v1/manifest", undefined, "tina")).status).toBe(403);
    expect((await call("POST", "/v1/access-tokens", { name: "x", user: "gus" }, "tina")).status).toBe(404);
  });
});

describe("objects", () => {
  test("made, listed, shown, changed, deleted, by id and by path", async () => {
    const made = await call("POST", "/v1/groups", { tenant: "acme", name: "staff" });
    expect(made).toMatchObject({ status: 201, body: { tenant: "acme", name: "staff" } });
    expect((await call("POST", "/v1/groups", { tenant: "acme", name: "staff" })).status).toBe(409);
    expect((await call("GET", "/v1/groups/acme/staff")).body).toEqual(made.body);
    expect((await call("GET", `/v1/groups/${made.body["id"]}`)).body).toEqual(made.body);
    expect(items(await call("GET", "/v1/groups?tenant=acme"))).toHaveLength(1);
    expect(items(await call("GET", "/v1/groups?tenant=globex"))).toHaveLength(0);
    expect((await call("GET", "/v1/groups?color=red")).status).toBe(400);
    const pool = await call("PATCH", "/v1/pools/acme/sales/main", { dualNodes: 3, statementTimeoutMs: 60_000 });
    expect(pool.body).toMatchObject({ dualNodes: 3, statementTimeoutMs: 60_000 });
    expect((await call("PATCH", "/v1/pools/acme/sales/main", { dualNodes: -3 })).status).toBe(400);
    expect((await call("DELETE", "/v1/tenants/acme")).status).toBe(409);
    expect((await call("DELETE", "/v1/groups/acme/staff")).status).toBe(204);
    expect((await call("GET", "/v1/groups/acme/staff")).status).toBe(404);
    for (const path of ["/v1/nothing", "/v2/tenants", "/", "/v1/table-grants/a b"]) {
      expect((await call("GET", path)).status).toBe(404);
    }
    expect((await call("PUT", "/v1/tenants", {})).status).toBe(400);
    expect((await call("POST", "/v1/nodes", { pool: "acme/sales/main" })).status).toBe(400);
  });

  test("a policy that could not be used is refused before it is there", async () => {
    const policy = {
      database: "acme/sales",
      schema: "public",
      table: "orders",
      name: "p",
      predicate: "owner = ${user}",
    };
    const bad = await call("POST", "/v1/row-policies", { ...policy, predicate: "x in (select 1)" });
    expect([bad.status, codeOf(bad)]).toEqual([400, "access_policy_invalid"]);
    const made = await call("POST", "/v1/row-policies", policy);
    expect(made.status).toBe(201);
    expect((await call("PATCH", `/v1/row-policies/${made.body["id"]}`, { predicate: "read_text('x')" })).status).toBe(
      400,
    );
    expect((await call("DELETE", `/v1/row-policies/${made.body["id"]}`)).status).toBe(204);
  });

  test("a session is ended by deleting it", async () => {
    const token = await login("ann", "password of ann");
    const [session] = items(await call("GET", "/v1/sessions?user=ann"))
      .filter((s) => s["revokedAt"] === null)
      .slice(-1);
    expect(JSON.stringify(session)).not.toContain(token);
    for (const s of items(await call("GET", "/v1/sessions?user=ann"))) await call("DELETE", `/v1/sessions/${s["id"]}`);
    await expect.poll(async () => (await call("GET", "/v1/me", undefined, token)).status, { timeout: 1000 }).toBe(401);
    tokens["ann"] = await login("ann", "password of ann");
    expect((await call("POST", "/v1/logout", undefined, "ann")).status).toBe(204);
    await expect.poll(async () => (await call("GET", "/v1/me", undefined, "ann")).status, { timeout: 1000 }).toBe(401);
    tokens["ann"] = await login("ann", "password of ann");
  });

  test("manifests: what would be done, doing it, and nothing left to do", async () => {
    const manifest = (await call("GET", "/v1/manifest")).body;
    expect((await call("POST", "/v1/manifest", manifest)).body).toEqual({ changes: [] });
    const more = { ...manifest, roles: [...(manifest["roles"] as object[]), { tenant: "acme", name: "auditor" }] };
    const changes = [{ action: "create", kind: "role", object: "acme/auditor", fields: [] }];
    expect((await call("POST", "/v1/manifest?dryRun=true", more)).body).toEqual({ changes });
    expect((await call("GET", "/v1/roles/acme/auditor")).status).toBe(404);
    expect((await call("POST", "/v1/manifest", more)).body).toEqual({ changes });
    expect((await call("GET", "/v1/roles/acme/auditor")).status).toBe(200);
    const policy = { database: "acme/sales", schema: "a", table: "b", name: "c", predicate: "count(*) > 1" };
    const bad = await call("POST", "/v1/manifest", { ...more, rowPolicies: [policy] });
    expect(codeOf(bad)).toBe("access_policy_invalid");
  });

  test("every change and every refusal is in the audit", async () => {
    await call("POST", "/v1/roles", { tenant: "acme", name: "seen" });
    await call("POST", "/v1/roles", { tenant: "acme", name: "seen" });
    await call("POST", "/v1/roles", { tenant: "acme", name: "not" }, "ann");
    const found = async () => items(await call("GET", "/v1/audit?action=create%20role&limit=3"));
    await expect.poll(async () => (await found())[0]?.["user"], { timeout: 3000 }).toBe("ann");
    expect(await found()).toMatchObject([
      { user: "ann", allowed: false, reason: "no administrator", protocol: "http", address: "127.0.0.1" },
      { user: "admin", allowed: false, reason: expect.stringContaining("control_exists") },
      { user: "admin", allowed: true, object: "acme/seen" },
    ]);
    const logins = items(await call("GET", "/v1/audit?action=login&user=admin&limit=1000"));
    expect(logins.map((l) => l["allowed"])).toContain(false);
    const all = await call("GET", "/v1/audit?limit=1000");
    expect(JSON.stringify(all.body)).not.toMatch(/password of|admin password|sws_|swp_/);
    expect((await call("GET", "/v1/audit?limit=100000")).status).toBe(400);
    expect(items(await call("GET", "/v1/audit", undefined, "tina")).every((r) => r["tenant"] === "acme")).toBe(true);
  });
});

describe("the description", () => {
  test("has every request, and every schema that it names", async () => {
    const { body } = await call("GET", "/openapi.json", undefined, null);
    expect(body).toEqual(JSON.parse(JSON.stringify(openApi("0.1.0"))));
    const paths = body["paths"] as Record<string, Record<string, unknown>>;
    for (const { name } of RESOURCES)
      expect(Object.keys(paths)).toEqual(expect.arrayContaining([`/v1/${name}`, `/v1/${name}/{id}`]));
    const { schemas } = body["components"] as { schemas: Record<string, unknown> };
    const named = [...JSON.stringify(body).matchAll(/"#\/components\/schemas\/(\w+)"/g)].map((m) => m[1] ?? "");
    expect(named.filter((n) => schemas[n] === undefined)).toEqual([]);
    const ids = Object.values(paths).flatMap((p) =>
      Object.values(p).map((o) => (o as { operationId: string }).operationId),
    );
    expect(new Set(ids).size).toBe(ids.length);
  });

  test("is true: an object as it is shown has just its fields", async () => {
    const { schemas } = openApi("0")["components"] as {
      schemas: Record<string, { required?: string[]; properties: object }>;
    };
    for (const resource of RESOURCES) {
      const name = resource.singular.replace(/(^|-)(.)/g, (_, __, c: string) => c.toUpperCase());
      const [first] = items(await call("GET", `/v1/${resource.name}`));
      if (first)
        expect(Object.keys(first).toSorted()).toEqual(Object.keys(must(schemas[name], name).properties).toSorted());
    }
  });
});

test("outside loopback only with a certificate", async () => {
  const anything = {} as never;
  const options = { clock: systemClock, log: silentLogger, host: "0.0.0.0", port: 0, tls: null, version: "0" };
  await expect(
    startServeHttp({
      ...options,
      control: anything,
      auth: anything,
      access: anything,
      audit: anything,
      health: anything,
      ready: anything,
      metrics: anything,
    }),
  ).rejects.toMatchObject({ code: "serve_exposed" });
});

describe("health", () => {
  test("ready says what is not", async () => {
    expect((await call("GET", "/health", undefined, null)).status).toBe(200);
    expect(await (await fetch(`${url}/metrics`)).text()).toContain("spillway_audit_dropped_total");
    ready = false;
    expect(await call("GET", "/ready", undefined, null)).toMatchObject({ status: 503, body: { wrong: ["pools"] } });
    ready = true;
    expect((await call("GET", "/ready", undefined, null)).status).toBe(200);
  });

  test("while the control database is away a change is 503 with Retry-After, and nothing was done", async () => {
    await db.server.withClient("postgres", async (c) => {
      await c.query(`ALTER DATABASE "${db.name}" ALLOW_CONNECTIONS false`);
      await c.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", [db.name]);
    });
    try {
      const answer = await call("POST", "/v1/roles", { tenant: "acme", name: "later" });
      expect([answer.status, codeOf(answer), answer.headers.get("retry-after")]).toEqual([
        503,
        "control_unavailable",
        "1",
      ]);
    } finally {
      await db.server.withClient("postgres", (c) => c.query(`ALTER DATABASE "${db.name}" ALLOW_CONNECTIONS true`));
    }
    await expect.poll(async () => (await call("GET", "/v1/roles/acme/later")).status, { timeout: 5000 }).toBe(404);
  });
});
