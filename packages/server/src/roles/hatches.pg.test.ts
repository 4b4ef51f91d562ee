/** Every escape hatch over the Postgres wire, by both of its query protocols, with everything behind it real. */
import { afterAll, beforeAll, expect, test } from "vitest";
import pg from "pg";
import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { Metrics } from "@spillway/base/metrics";
import { Control, type ControlObject, createObject, installControl, resourceNamed } from "../control/control.ts";
import { Engine } from "../engine/engine.ts";
import { AccessControl, Authenticator, createGuard, SourceFacts } from "../serve/serve.ts";
import { HATCHES } from "../serve/access/test-hatches.ts";
import { inProcessSessions } from "../serve/session/sessions.ts";
import { testSource, type TestSource } from "../serve/session/test-serve.ts";
import { type PgWireListener, startPgWire } from "./pgwire.ts";

let source: TestSource;
let control: Control;
let engine: Engine;
let access: AccessControl;
let facts: SourceFacts;
let sessions: ReturnType<typeof inProcessSessions>;
let listener: PgWireListener;
const clients: pg.Client[] = [];

beforeAll(async () => {
  source = await testSource();
  await source.db.client
    .query(`create table secret (id int, x int, k int); create table orders (id int, name text, x int);
    create table notes (id int, body text); create schema work;
    drop role if exists hatch_ann; create role hatch_ann login; grant select on orders, plain to hatch_ann`);
  const at = { conninfo: source.db.url, clock: systemClock, log: silentLogger };
  const first = { tenant: "acme", database: "sales", sourceUrl: source.db.url, warehouse: null, pool: {} };
  await installControl(at, { adminPassword: "admin password", first });
  control = await Control.open(at);
  engine = await Engine.open({ memoryBytes: 128 << 20, threads: 1 });
  access = new AccessControl({ control, engine, log: silentLogger });
  const auth = new Authenticator({ control, clock: systemClock, log: silentLogger });
  await create("users", { name: "ann", tenant: "acme", password: "password of ann" });
  await create("users", { name: "mapped", tenant: "acme", password: "password of mapped" });
  await create("roles", { tenant: "acme", name: "analyst" });
  for (const user of ["ann", "mapped"]) await create("role-grants", { role: "acme/analyst", user });
  for (const [table, privileges] of [
    ["orders", ["select"]],
    ["notes", ["select", "insert", "update", "delete", "ddl"]],
  ] as const) {
    await create("table-grants", { role: "acme/analyst", database: "acme/sales", schema: "public", table, privileges });
  }
  await create("source-logins", {
    user: "mapped",
    database: "acme/sales",
    loginUrl: source.db.url.replace("postgres@", "hatch_ann@"),
  });
  facts = new SourceFacts({
    access,
    databaseId: (principal, name) => auth.requireDatabase(principal, name),
    secret: (text) => Promise.resolve(text),
    clock: systemClock,
    log: silentLogger,
  });
  sessions = inProcessSessions({ seam: source.seam, clock: systemClock, guard: createGuard({ control, access }) });
  listener = await startPgWire({
    host: "127.0.0.1",
    port: 0,
    tls: null,
    sessions,
    auth,
    source: facts,
    secret: await auth.scramSecret(),
    clock: systemClock,
    log: silentLogger,
    metrics: new Metrics(),
  });
});
afterAll(async () => {
  for (const client of clients) await client.end().catch(() => {});
  await listener.stop(1000);
  await facts.close();
  await sessions.close();
  access.close();
  engine.close();
  await control.close();
  await source.db.client.query("drop owned by hatch_ann; drop role hatch_ann");
  await source.close();
});

function create(name: string, body: ControlObject): Promise<ControlObject> {
  return control.change((tx) => createObject(tx, must(resourceNamed(name), name), body));
}

async function connect(user: string): Promise<pg.Client> {
  const client = new pg.Client({
    host: "127.0.0.1",
    port: listener.port,
    user,
    password: user === "admin" ? "admin password" : `password of ${user}`,
    database: "sales",
    query_timeout: 5000,
  });
  client.on("error", () => {});
  await client.connect();
  clients.push(client);
  return client;
}

/** Questions about the catalog have answers on this wire: those of Postgres, filtered. */
const CATALOG = /\b(pg_class|information_schema)\b|txid_current|regclass$/;

/** By a connection that is logged in as his own role these do what they do there, with that role's rights. */
const OF_POSTGRES = /sleep|repeat|lpad|^(VACUUM|ANALYZE|LISTEN|NOTIFY)\b|current_query|setseed/;

test.each(["ann", "mapped", "admin"])("as %s", { timeout: 120_000 }, async (user) => {
  const client = await connect(user);
  const open: string[] = [];
  for (const [i, sql] of HATCHES.entries()) {
    if (
      CATALOG.test(sql) ||
      (user === "mapped" && OF_POSTGRES.test(sql)) ||
      (user === "admin" && /^(EXPLAIN|DECLARE|PREPARE)/.test(sql))
    )
      continue;
    for (const query of [sql, { name: `h${i}`, text: sql }]) {
      const error = await client.query(query).then(
        () => "allowed",
        (e: { code?: string }) => e.code ?? String(e),
      );
      if (!/^[0-9A-Z]{5}$/.test(error) || /^(XX|08|57P)/.test(error)) {
        open.push(`${typeof query === "string" ? "simple" : "extended"} ${sql}: ${error}`);
      }
    }
  }
  expect(open).toEqual([]);
  expect((await client.query("select count(*) as n from orders")).rows).toEqual([{ n: "0" }]);
});

test("what is seen of the catalog is what is granted", async () => {
  const client = await connect("ann");
  const { rows } = await client.query("select relname from pg_catalog.pg_class where relkind in ('r', 'p')");
  const names = rows.map((r: { relname: string }) => r.relname);
  expect(names).toContain("orders");
  for (const hidden of ["secret", "items", "app_user", "relation"]) expect(names).not.toContain(hidden);
  const listed = await client.query("select table_schema, table_name from information_schema.tables");
  expect(JSON.stringify(listed.rows)).not.toMatch(/secret|app_user|spillway/);
  const ask = (sql: string) =>
    client.query({ text: sql, rowMode: "array" }).then(
      (r) => JSON.stringify(r.rows),
      (e: { code?: string }) => e.code,
    );
  expect(await ask("select to_regclass('public.secret')::text")).toBe(
    await ask("select to_regclass('public.nothing')::text"),
  );
  expect(await ask("select 'secret'::regclass")).toBe(await ask("select 'nothing'::regclass"));
});
