import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, utimesSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { parse, stringify } from "yaml";
import {
  applyManifest,
  AuditLog,
  type Change,
  Control,
  diffManifest,
  exportManifest,
  installControl,
  parseManifest,
} from "./control.ts";

const TEXT = `
spillway: 1
tenants:
  - name: acme
  - name: globex
databases:
  - { tenant: acme, name: sales, sourceUrl: "env:SALES", warehouse: /lake, defaultSchema: app }
  - { tenant: globex, name: ops, sourceUrl: "postgres://u:pw@h/ops" }
pools:
  - { database: acme/sales, name: main, isDefault: true, readonlyNodes: 2, dualNodes: 1, minReadonly: 1, maxReadonly: 4 }
users:
  - { name: root2, isAdmin: true }
  - { name: ann, tenant: acme }
  - { name: bob, tenant: acme, oidcIssuer: "https://idp", oidcSubject: "42" }
groups:
  - { tenant: acme, name: staff }
roles:
  - { tenant: acme, name: analyst }
memberships:
  - { group: acme/staff, user: ann }
roleGrants:
  - { role: acme/analyst, group: acme/staff }
  - { role: acme/analyst, user: bob }
tableGrants:
  - { role: acme/analyst, database: acme/sales, schema: public, table: "*", privileges: [select] }
poolGrants:
  - { pool: acme/sales/main, role: acme/analyst }
rowPolicies:
  - { database: acme/sales, schema: public, table: orders, name: own, role: acme/analyst, predicate: "owner = \${user}" }
columnPolicies:
  - { database: acme/sales, schema: public, table: orders, name: ssn, column: ssn, action: deny }
  - { database: acme/sales, schema: public, table: orders, name: mail, column: mail, role: acme/analyst, action: mask, expression: "'*'", shadow: true }
`;

let db: TestDatabase;
let control: Control;
beforeAll(async () => {
  db = await createTestDatabase();
  const options = { conninfo: db.url, clock: systemClock, log: silentLogger };
  await installControl(options, { adminPassword: "first password" });
  control = await Control.open(options);
});
afterAll(async () => {
  await control.close();
  await db.drop();
});

const apply = (text: string, prune = false): Promise<Change[]> =>
  control.change((tx) => applyManifest(tx, parseManifest(parse(text)), { prune }));
const exported = (): Promise<Record<string, unknown>> => control.read((c) => exportManifest(c));

describe("a manifest", () => {
  test("is applied whole; again changes nothing; what is exported is what was applied, and applies to nothing", async () => {
    expect(new Set((await apply(TEXT)).map((c) => c.action))).toEqual(new Set(["create"]));
    expect(await apply(TEXT)).toEqual([]);
    const text = stringify(await exported());
    expect(text).not.toMatch(/\bpw\b|argon2|SCRAM/);
    expect(await apply(text)).toEqual([]);
    expect(await apply(text, true)).toEqual([]);
    const wanted = parse(TEXT) as Record<string, Record<string, unknown>[]>;
    const got = (await exported()) as Record<string, Record<string, unknown>[]>;
    for (const [kind, list] of Object.entries(wanted)) {
      if (kind === "spillway" || kind === "databases") continue;
      for (const item of list) expect(got[kind]).toContainEqual(expect.objectContaining(item));
    }
  });

  test("from one installation to an empty one", async () => {
    const text = stringify(await exported()).replace("u:[redacted]@", "u:other@");
    const other = await createTestDatabase();
    const options = { conninfo: other.url, clock: systemClock, log: silentLogger };
    await installControl(options);
    const second = await Control.open(options);
    await second.change((tx) => applyManifest(tx, parseManifest(parse(text))));
    expect(await second.read((c) => exportManifest(c))).toEqual(await exported());
    await second.close();
    await other.drop();
  });

  test("the difference is said before anything is done, and then done", async () => {
    const changed = TEXT.replace("readonlyNodes: 2", "readonlyNodes: 3")
      .replace("privileges: [select]", "privileges: [select, insert]")
      .replace("  - { name: ann, tenant: acme }\n", "")
      .replace("  - { group: acme/staff, user: ann }\n", "  - { group: acme/staff, user: bob }\n");
    const manifest = parseManifest(parse(changed));
    const diff = await control.read((c) => diffManifest(c, manifest, { prune: false }));
    expect(diff).toEqual([
      {
        action: "update",
        kind: "pool",
        object: "acme/sales/main",
        fields: [{ name: "readonlyNodes", from: 2, to: 3 }],
      },
      { action: "create", kind: "membership", object: "acme/staff bob", fields: [] },
      {
        action: "update",
        kind: "table-grant",
        object: "acme/analyst acme/sales public *",
        fields: [{ name: "privileges", from: ["select"], to: ["select", "insert"] }],
      },
    ]);
    expect(await apply(TEXT)).toEqual([]);
    const pruned = await apply(changed.replace("users:\n", "users:\n  - { name: admin, isAdmin: true }\n"), true);
    expect(pruned.filter((c) => c.action === "delete").map((c) => `${c.kind} ${c.object}`)).toEqual([
      "membership acme/staff ann",
      "user ann",
    ]);
  });

  test("a mistake anywhere leaves everything as it was", async () => {
    const before = await exported();
    for (const text of [
      `${TEXT}\n  - { database: acme/nope, schema: a, table: b, name: c, column: d, action: deny }`,
      TEXT.replace("action: deny", "action: hide"),
      TEXT.replace("- name: globex", "- name: globex\n  - name: initech\n    color: red"),
      TEXT.replace("name: staff", "name: 'st/aff'"),
      TEXT.replace("spillway: 1", "spillway: 2"),
      TEXT.replace("tenants:", "tenant:"),
      TEXT.replace(
        "- { tenant: acme, name: analyst }",
        "- { tenant: acme, name: analyst }\n  - { tenant: acme, name: analyst }",
      ),
      "[1, 2]",
      "spillway: 1\nroles: 5",
    ]) {
      await expect((async () => apply(text))()).rejects.toMatchObject({
        code: expect.stringMatching(/^(control_|manifest_)/),
      });
      expect(await exported()).toEqual(before);
    }
  });

  test("a new password in a connection string is seen, and not shown", async () => {
    const [change] = await apply(TEXT.replace("u:pw@", "u:other@"));
    expect(change).toMatchObject({ kind: "database", fields: [{ name: "sourceUrl" }] });
    expect(JSON.stringify(change)).not.toMatch(/other|pw/);
    expect((await db.client.query("SELECT source_url FROM spillway_control.database WHERE name = 'ops'")).rows).toEqual(
      [{ source_url: "postgres://u:other@h/ops" }],
    );
  });

  test("a password in a manifest is set and never shown", async () => {
    const before = (await db.client.query("SELECT password_hash FROM spillway_control.app_user WHERE name = 'bob'"))
      .rows;
    const [change] = await apply("spillway: 1\nusers:\n  - { name: bob, password: 'brand new one' }");
    expect(change?.fields).toEqual([{ name: "password", from: "(not shown)", to: "(not shown)" }]);
    const after = (await db.client.query("SELECT password_hash FROM spillway_control.app_user WHERE name = 'bob'"))
      .rows;
    expect(after).not.toEqual(before);
  });
});

describe("the audit", () => {
  const dir = mkdtempSync(join(tmpdir(), "spillway-audit-"));
  const spoolFile = join(dir, "audit-1.spool");
  afterAll(() => rmSync(dir, { recursive: true, force: true }));
  const count = async (action: string): Promise<number> =>
    Number(
      (await db.client.query("SELECT count(*) AS n FROM spillway_control.audit WHERE action = $1", [action])).rows[0]
        ?.n,
    );

  const away = { value: false };
  // The connection is real; only whether it is thought to be there is set.
  const fake = {
    get isAway() {
      return away.value;
    },
    read: <T>(work: Parameters<Control["read"]>[0]) => control.read(work) as Promise<T>,
  } as unknown as Control;
  const make = (file = spoolFile): AuditLog =>
    new AuditLog({
      control: fake,
      clock: systemClock,
      log: silentLogger,
      managerId: null,
      spoolFile: file,
      intervalMs: 20,
    });

  test("records reach the database; while it is away they wait in a file, and each arrives once", async () => {
    const first = make();
    for (let i = 0; i < 1200; i++) first.record({ action: "one", allowed: i % 2 === 0, reason: "r", details: { i } });
    await expect.poll(() => count("one"), { timeout: 5000 }).toBe(1200);
    away.value = true;
    for (let i = 0; i < 700; i++) first.record({ action: "two", allowed: true }, true);
    await first.close();
    expect(readFileSync(spoolFile, "utf8").trim().split("\n")).toHaveLength(700);
    expect(await count("two")).toBe(0);
    // The process ended and another one begins, which finds the file; half of it had arrived already.
    away.value = false;
    const rows = readFileSync(spoolFile, "utf8").trim().split("\n").slice(0, 300).join(",");
    await db.client.query(
      "INSERT INTO spillway_control.audit SELECT * FROM jsonb_populate_recordset(null::spillway_control.audit, $1::jsonb)",
      [`[${rows}]`],
    );
    const second = make();
    await expect.poll(() => count("two"), { timeout: 5000 }).toBe(700);
    await expect.poll(() => existsSync(spoolFile), { timeout: 2000 }).toBe(false);
    await second.close();
  });

  test("a text that Postgres cannot hold does not hold up the others", async () => {
    const log = make();
    log.record({
      action: "five",
      allowed: false,
      userName: "a\0b",
      reason: "\ud800 half",
      details: { x: "\0", y: ["\udc00"] },
    });
    log.record({ action: "five", allowed: false, object: "😀".repeat(3000) });
    await expect.poll(() => count("five"), { timeout: 5000 }).toBe(2);
    await log.close();
    expect(existsSync(spoolFile)).toBe(false);
  });

  test("what an ended process left is taken over by the next, once", async () => {
    away.value = true;
    const gone = make();
    for (let i = 0; i < 20; i++) gone.record({ action: "four", allowed: true });
    await gone.close();
    const old = new Date(Date.now() - 3_600_000);
    utimesSync(spoolFile, old, old);
    away.value = false;
    const others = [2, 3].map((n) => make(join(dir, `audit-${n}.spool`)));
    await expect.poll(() => count("four"), { timeout: 5000 }).toBe(20);
    await Promise.all(others.map((o) => o.close()));
    expect(readdirSync(dir)).toEqual([]);
  });

  test("where nothing can take more, reads go on and are counted, writes are refused", async () => {
    const fake = { isAway: true, read: control.read.bind(control) } as unknown as Control;
    let dropped = 0;
    const log = new AuditLog({
      control: fake,
      clock: systemClock,
      log: silentLogger,
      managerId: null,
      spoolFile,
      spoolBytes: 5000,
      intervalMs: 10,
      onDropped: (n) => (dropped += n),
    });
    for (let i = 0; i < 100; i++) log.record({ action: "three", allowed: true });
    await expect.poll(() => dropped, { timeout: 2000 }).toBeGreaterThan(0);
    log.record({ action: "three", allowed: true });
    expect(() => log.record({ action: "three", allowed: true }, true)).toThrow(
      expect.objectContaining({ code: "audit_unavailable" }),
    );
    await log.close();
  });
});
