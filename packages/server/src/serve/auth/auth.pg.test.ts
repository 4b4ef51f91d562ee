import { createServer, type RequestListener, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { must } from "@spillway/base/assert";
import { type Clock, systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import {
  Control,
  type ControlObject,
  createAccessToken,
  createObject,
  deleteObject,
  installControl,
  resourceNamed,
  updateObject,
} from "../../control/control.ts";
import { Authenticator, type LoginEvent } from "./auth.ts";
import { OidcVerifier, parseIssuers } from "./oidc.ts";

let db: TestDatabase;
let control: Control;
const seen: LoginEvent[] = [];
/** The same clock, whose two times can be moved. */
const moved = { ms: 0 };
const clock: Clock = {
  ...systemClock,
  wallMs: () => systemClock.wallMs() + moved.ms,
  monotonicMs: () => systemClock.monotonicMs() + moved.ms,
};
let auth: Authenticator;
let provider: { server: Server; issuer: string; token: () => Promise<string>; requests: () => number };

beforeAll(async () => {
  db = await createTestDatabase();
  const options = { conninfo: db.url, clock: systemClock, log: silentLogger };
  await installControl(options, {
    adminPassword: "the first one",
    first: { tenant: "acme", database: "sales", sourceUrl: "env:X", warehouse: null, pool: {} },
  });
  control = await Control.open(options);
  await create("tenants", { name: "globex" });
  await create("users", { name: "ann", tenant: "acme", password: "correct horse" });
  await create("users", { name: "gus", tenant: "globex", password: "battery staple" });
  provider = await startProvider();
  await create("users", { name: "robot", tenant: "acme", oidcIssuer: provider.issuer, oidcSubject: "robot" });
  const oidc = new OidcVerifier({
    issuers: parseIssuers(`${provider.issuer}|urn:spillway`),
    clock,
    log: silentLogger,
    fetch,
  });
  auth = new Authenticator({
    control,
    clock,
    log: silentLogger,
    oidc,
    apiKey: "a key of the setting",
    lockout: { failures: 3, lockMs: 700 },
    onLogin: (event) => seen.push(event),
  });
});
afterAll(async () => {
  await new Promise((resolve) => provider.server.close(resolve));
  await control.close();
  await db.drop();
});

const kind = (name: string) => must(resourceNamed(name), name);
function create(name: string, body: ControlObject): Promise<ControlObject> {
  return control.change((tx) => createObject(tx, kind(name), body));
}
const update = (name: string, id: string, body: ControlObject): Promise<ControlObject> =>
  control.change((tx) => updateObject(tx, kind(name), id, body));

/** npm's oidc-provider, whose client `robot` is given signed access tokens. */
async function startProvider(): Promise<typeof provider> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const issuer = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const name = "oidc-provider";
  const { default: Provider } = (await import(name)) as {
    default: new (issuer: string, configuration: unknown) => { callback(): RequestListener };
  };
  const resource = {
    scope: "",
    audience: "urn:spillway",
    accessTokenFormat: "jwt",
    accessTokenTTL: 600,
    jwt: { sign: { alg: "RS256" } },
  };
  const made = new Provider(issuer, {
    clients: [
      {
        client_id: "robot",
        client_secret: "a long secret",
        grant_types: ["client_credentials"],
        redirect_uris: [],
        response_types: [],
      },
    ],
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => "urn:spillway",
        getResourceServerInfo: () => resource,
      },
    },
  });
  let requests = 0;
  const callback = made.callback();
  server.on("request", (request, response) => {
    if (request.url?.startsWith("/jwks")) requests += 1;
    void callback(request, response);
  });
  const token = async (): Promise<string> => {
    const answer = await fetch(`${issuer}/token`, {
      method: "POST",
      headers: {
        authorization: `Basic ${Buffer.from("robot:a long secret").toString("base64")}`,
        "content-type": "application/x-www-form-urlencoded",
      },
      body: "grant_type=client_credentials&resource=urn:spillway",
    });
    return ((await answer.json()) as { access_token: string }).access_token;
  };
  return { server, issuer, token, requests: () => requests };
}

describe("passwords", () => {
  test("the right one; every wrong login has one answer and its own reason in the audit", async () => {
    expect(await auth.password("ann", "correct horse", "10.0.0.1")).toMatchObject({
      userName: "ann",
      tenantName: "acme",
      isAdmin: false,
    });
    const messages = new Set<string>();
    for (const [user, password] of [
      ["ann", "wrong"],
      ["nobody", "correct horse"],
      ["robot", "has none"],
      ["a\0n", "x"],
      ["ann", ""],
    ] as const) {
      const error = await auth.password(user, password, "10.0.0.1").catch((e: unknown) => e);
      expect(error).toMatchObject({ code: "auth_failed", details: { sqlstate: "28P01" } });
      messages.add((error as Error).message);
    }
    expect(messages.size).toBe(1);
    expect(seen.slice(-4).map((e) => e.reason)).toEqual([
      "no such user",
      "wrong password",
      "no such user",
      "wrong password",
    ]);
    await auth.password("ann", "correct horse", "");
  });

  test("an unknown user takes as long as a known one", async () => {
    const time = async (user: string): Promise<number> => {
      const startMs = performance.now();
      await auth.password(user, "wrong password", "").catch(() => {});
      return performance.now() - startMs;
    };
    const [known, unknown] = [await time("gus"), await time("zzz")];
    expect(unknown).toBeGreaterThan(known / 4);
  });

  test("after failures in a row the user is locked for a while, at every manager, with the right password too", async () => {
    await auth.password("gus", "battery staple", "");
    for (let i = 0; i < 3; i++) await auth.password("gus", "wrong", "").catch(() => {});
    const second = new Authenticator({ control, clock: systemClock, log: silentLogger });
    for (const manager of [auth, second]) {
      await expect(manager.password("gus", "battery staple", "")).rejects.toMatchObject({ code: "auth_locked" });
      expect(await manager.scramVerifierOf("gus")).toBeNull();
    }
    // Names that nobody has are locked as well: a lock tells nothing.
    for (let i = 0; i < 3; i++) await auth.password("ghost", "wrong", "").catch(() => {});
    await expect(auth.password("ghost", "wrong", "")).rejects.toMatchObject({ code: "auth_locked" });
    await new Promise((resolve) => setTimeout(resolve, 800));
    expect(await second.password("gus", "battery staple", "")).toMatchObject({ userName: "gus" });
    for (let i = 0; i < 3; i++) await second.failed({ user: "gus", database: "", address: "", application: "" });
    await auth.failed({ user: "gus", database: "", address: "", application: "" });
  });

  test("a new password unlocks", async () => {
    for (let i = 0; i < 4; i++) await auth.password("gus", "wrong", "").catch(() => {});
    await expect(auth.password("gus", "battery staple", "")).rejects.toMatchObject({ code: "auth_locked" });
    await update("users", "gus", { password: "another one" });
    await expect
      .poll(
        () =>
          auth.password("gus", "another one", "").then(
            (p) => p.userName,
            () => null,
          ),
        { timeout: 2000 },
      )
      .toBe("gus");
  });
});

describe("the Postgres wire", () => {
  test("verifiers of users who may log in; null for all others", async () => {
    expect(await auth.scramVerifierOf("ann")).toMatch(/^SCRAM-SHA-256\$4096:[^$]+\$[^:]+:.+$/);
    expect(await auth.scramVerifierOf("nobody")).toBeNull();
    expect(await auth.scramVerifierOf("robot")).toBeNull();
    expect((await auth.scramSecret()).length).toBe(32);
  });

  test("the database must be the user's", async () => {
    const login = (user: string, database: string) => auth.login({ user, database, address: "", application: "psql" });
    expect(await login("ann", "sales")).toMatchObject({ userName: "ann", tenantName: "acme" });
    expect(await login("ann", "acme/sales")).toMatchObject({ userName: "ann" });
    expect(await login("admin", "sales")).toMatchObject({ isAdmin: true, tenantName: "" });
    for (const [user, database] of [
      ["ann", "nope"],
      ["gus", "sales"],
      ["gus", "acme/sales"],
    ] as const) {
      await expect(login(user, database)).rejects.toMatchObject({
        code: "access_denied",
        details: { sqlstate: "3D000" },
      });
    }
  });
});

describe("tokens", () => {
  test("a login's token is good at every manager and after a restart, until it is revoked", async () => {
    const token = await auth.mint(await auth.password("ann", "correct horse", ""));
    const restarted = await Control.open({ conninfo: db.url, clock: systemClock, log: silentLogger });
    const other = new Authenticator({ control: restarted, clock: systemClock, log: silentLogger });
    expect(await other.bearer(token, "")).toMatchObject({ principal: { userName: "ann" }, shared: false });
    await auth.logout(token);
    await expect
      .poll(
        () =>
          other.bearer(token, "").then(
            () => "good",
            (e) => e.code,
          ),
        { timeout: 1000 },
      )
      .toBe("auth_expired");
    await restarted.close();
  });

  test("a token ends when its time is over, though it was seen before", async () => {
    const short = new Authenticator({ control, clock: systemClock, log: silentLogger, sessionTtlMs: 300 });
    const token = await short.mint(await short.password("ann", "correct horse", ""));
    expect(await short.bearer(token, "")).toMatchObject({ shared: false });
    await new Promise((resolve) => setTimeout(resolve, 350));
    await expect(short.bearer(token, "")).rejects.toMatchObject({ code: "auth_expired" });
  });

  test("a disabled user's token is refused within a second", async () => {
    const token = await auth.mint(await auth.password("ann", "correct horse", ""));
    await auth.bearer(token, "");
    await update("users", "ann", { disabled: true });
    await expect
      .poll(
        () =>
          auth.bearer(token, "").then(
            () => "good",
            (e) => e.code,
          ),
        { timeout: 1000 },
      )
      .toBe("auth_failed");
    await update("users", "ann", { disabled: false });
  });

  test("personal access tokens and API keys", async () => {
    const ann = must(await control.user("ann"), "ann");
    const { id, token } = await control.change((tx) => createAccessToken(tx, ann.id, "ci", null));
    expect(await auth.bearer(token, "")).toMatchObject({ principal: { userName: "ann" }, shared: true });
    expect(await auth.apiKey(token, "")).toMatchObject({ userName: "ann" });
    expect(await auth.apiKey("a key of the setting", "")).toMatchObject({ isAdmin: true });
    await expect(auth.apiKey("another key", "")).rejects.toMatchObject({ code: "auth_failed" });
    await control.change((tx) => deleteObject(tx, kind("access-tokens"), id));
    await expect
      .poll(
        () =>
          auth.bearer(token, "").then(
            () => "good",
            (e) => e.code,
          ),
        { timeout: 1000 },
      )
      .toBe("auth_expired");
  });
});

describe("tokens of an identity provider", () => {
  test("are accepted when all of issuer, audience, signature and time are right, for users who are known", async () => {
    const token = await provider.token();
    expect(await auth.bearer(token, "")).toMatchObject({ principal: { userName: "robot" }, shared: true });
    const [head = "", body = "", signature = ""] = token.split(".");
    const claims = JSON.parse(Buffer.from(body, "base64url").toString()) as Record<string, unknown>;
    const forge = (header: object, payload: object, sign = signature): string =>
      [header, payload].map((part) => Buffer.from(JSON.stringify(part)).toString("base64url")).join(".") + `.${sign}`;
    const bad = [
      forge({ alg: "none" }, claims, ""),
      forge({ alg: "HS256" }, claims),
      `${head}.${Buffer.from(JSON.stringify({ ...claims, sub: "ann" })).toString("base64url")}.${signature}`,
      forge({ alg: "RS256", kid: "other" }, { ...claims, iss: "http://127.0.0.1:1" }),
      "not.a.token",
      "nothing",
    ];
    for (const text of bad) await expect(auth.bearer(text, "")).rejects.toMatchObject({ code: "auth_failed" });
    const elsewhere = new OidcVerifier({
      issuers: [{ issuer: provider.issuer, audience: "urn:somebody-else" }],
      clock,
      log: silentLogger,
      fetch,
    });
    await expect(elsewhere.verify(token)).rejects.toMatchObject({ code: "auth_failed" });
    await update("users", "robot", { oidcSubject: "another" });
    await expect
      .poll(
        () =>
          auth.bearer(token, "").then(
            () => "good",
            (e) => e.code,
          ),
        { timeout: 1000 },
      )
      .toBe("auth_failed");
    await update("users", "robot", { oidcSubject: "robot" });
  });

  test("clocks five minutes apart do not matter, an hour does", async () => {
    const token = await provider.token();
    moved.ms = -280_000;
    expect(await auth.bearer(token, "")).toMatchObject({ shared: true });
    moved.ms = 3_600_000;
    await expect(auth.bearer(token, "")).rejects.toMatchObject({ code: "auth_expired" });
    moved.ms = 0;
  });

  test("the keys are asked for once, not for every login or every unknown key", async () => {
    const before = provider.requests();
    const token = await provider.token();
    await Promise.all(Array.from({ length: 20 }, () => auth.bearer(token, "")));
    const [, body = ""] = token.split(".");
    const unknown = Buffer.from(JSON.stringify({ alg: "RS256", kid: "zzz" })).toString("base64url");
    for (let i = 0; i < 10; i++) await auth.bearer(`${unknown}.${body}.AAAA`, "").catch(() => {});
    expect(provider.requests() - before).toBeLessThanOrEqual(2);
  });

  test("while the provider is away, its known keys go on; others say so; passwords do not care", async () => {
    const token = await provider.token();
    await auth.bearer(token, "");
    let away = true;
    const broken: typeof fetch = (...args) => (away ? Promise.reject(new Error("down")) : fetch(...args));
    const late = { ...systemClock, monotonicMs: () => systemClock.monotonicMs() + shift };
    let shift = 0;
    const verifier = new OidcVerifier({
      issuers: [{ issuer: provider.issuer, audience: "urn:spillway" }],
      clock: late,
      log: silentLogger,
      fetch: broken,
    });
    await expect(verifier.verify(token)).rejects.toMatchObject({ code: "auth_provider_unavailable" });
    away = false;
    expect(await verifier.verify(token)).toMatchObject({ subject: "robot" });
    away = true;
    shift = 3_600_000;
    expect(await verifier.verify(token)).toMatchObject({ subject: "robot" });
    shift = 25 * 3_600_000;
    await expect(verifier.verify(token)).rejects.toMatchObject({ code: "auth_provider_unavailable" });
    expect(await auth.password("ann", "correct horse", "")).toMatchObject({ userName: "ann" });
  });

  test("a provider is https, or loopback", () => {
    expect(parseIssuers(null)).toEqual([]);
    expect(parseIssuers("https://a|x, https://b/c|y")).toHaveLength(2);
    for (const bad of ["http://a|x", "https://a", "https://a|x|y", "http://127.0.0.1.example|x"]) {
      expect(() => parseIssuers(bad)).toThrow(expect.objectContaining({ code: "config_invalid" }));
    }
  });
});
