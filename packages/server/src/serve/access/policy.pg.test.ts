/** What a restricted user sees through a session, against what Postgres's own row security shows him for the same policies. */
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type pg from "pg";
import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { Engine } from "../../engine/engine.ts";
import {
  Control,
  type ControlObject,
  createObject,
  installControl,
  resourceNamed,
  updateObject,
  deleteObject,
  listObjects,
} from "../../control/control.ts";
import { principalOf } from "../auth/auth.ts";
import { inProcessSessions } from "../session/sessions.ts";
import type { ServeSession } from "../session/session.ts";
import { ask, testSource, type TestSource } from "../session/test-serve.ts";
import { AccessControl } from "./access.ts";
import { createGuard, type Decision } from "./guard.ts";
import { compilePolicy, markParameters } from "./policy-sql.ts";
import { HATCHES } from "./test-hatches.ts";
import { queries } from "./test-queries.ts";

let source: TestSource;
let control: Control;
let parser: Engine;
let access: AccessControl;
let sessions: ReturnType<typeof inProcessSessions>;
const decisions: Decision[] = [];
const open = new Map<string, ServeSession>();
/** Connected to the model, as each user. */
const oracles = new Map<string, pg.Client>();

const kind = (name: string) => must(resourceNamed(name), name);
const create = (name: string, body: ControlObject): Promise<ControlObject> =>
  control.change((tx) => createObject(tx, kind(name), body));
const on = (table: string) => ({ database: "acme/sales", schema: "public", table });

const USERS = ["ann", "bob", "carl", "dora"];

beforeAll(async () => {
  source = await testSource();
  const { db } = source;
  await db.client.query(`
    create table public.people (id int primary key, name text, owner text, region text, ssn text, boss int);
    insert into public.people select i, 'p' || i, (array['ann', 'bob', 'carl', null])[1 + i % 4],
      (array['north', 'south', 'west', null])[1 + i % 5 % 4], 's' || i, nullif(i / 3, 0) from generate_series(1, 60) i;
    create table model.people as table public.people;
    create table public.secret (id int primary key); create table model.secret as table public.secret;
    delete from model.items where id >= 120 and id < 2900`);
  // Fewer rows, so that joins stay small: in both tiers the same ones.
  const owner = inProcessSessions({ seam: source.seam, clock: systemClock });
  const session = await owner.open(principal("admin"), options("ann"));
  await ask(session, "DELETE FROM items WHERE id >= 120 AND id < 2900");
  await owner.close();
  await controlState();
  await oracleState();
  sessions = inProcessSessions({
    seam: source.seam,
    clock: systemClock,
    guard: createGuard({ control, access, onDecision: (d) => decisions.push(d) }),
  });
  for (const name of USERS) {
    const user = must(await control.user(name), name);
    open.set(name, await sessions.open(principalOf(user), options(name)));
  }
});
afterAll(async () => {
  await sessions.close();
  access.close();
  parser.close();
  await control.close();
  for (const client of oracles.values()) await client.query("reset role");
  const { client } = source.db;
  await client.query(`drop schema model cascade; drop owned by ${[...USERS, "reader", "north", "own"].map((u) => `fz_${u}`).join(", ")};
    drop role ${[...USERS, "reader", "north", "own"].map((u) => `fz_${u}`).join(", ")}`);
  await source.close();
});

function principal(name: string) {
  return { userId: name, userName: name, tenantId: "", tenantName: "", isAdmin: true, roles: [], groups: [] };
}
function options(application: string) {
  return { protocol: "pgwire" as const, application, address: "127.0.0.1", database: "sales" };
}

/**
 * ann: own rows · bob: own rows and those of the north, by a group · carl: a grant and no policy, so nothing of the tables that have
 * one · dora: as bob, and everything is masked for her in people.
 */
async function controlState(): Promise<void> {
  const at = { conninfo: source.db.url, clock: systemClock, log: silentLogger };
  await installControl(at, {
    first: { tenant: "acme", database: "sales", sourceUrl: "env:X", warehouse: null, pool: {} },
  });
  control = await Control.open(at);
  parser = await Engine.open({ memoryBytes: 128 << 20, threads: 1 });
  access = new AccessControl({ control, engine: parser, log: silentLogger });
  for (const name of USERS) await create("users", { name, tenant: "acme" });
  for (const name of ["reader", "own", "north", "masked"]) await create("roles", { tenant: "acme", name });
  await create("groups", { tenant: "acme", name: "northerners" });
  await create("role-grants", { role: "acme/north", group: "acme/northerners" });
  for (const user of ["bob", "dora"]) await create("memberships", { group: "acme/northerners", user });
  for (const user of USERS) await create("role-grants", { role: "acme/reader", user });
  for (const user of ["ann", "bob", "dora"]) await create("role-grants", { role: "acme/own", user });
  await create("role-grants", { role: "acme/masked", user: "dora" });
  for (const table of ["people", "items", "plain"]) {
    await create("table-grants", { role: "acme/reader", ...on(table), privileges: ["select"] });
  }
  await create("row-policies", { ...on("people"), name: "own", role: "acme/own", predicate: "owner = ${user}" });
  await create("row-policies", {
    ...on("people"),
    name: "north",
    role: "acme/north",
    predicate: "region = 'north' AND list_contains(${groups}, 'northerners')",
  });
  await create("row-policies", {
    ...on("items"),
    name: "sevens",
    role: "acme/own",
    predicate: "k % 7 = length(${user})",
  });
  await create("row-policies", { ...on("items"), name: "labels", role: "acme/north", predicate: "label LIKE '% 1'" });
  await create("column-policies", { ...on("people"), name: "s", column: "SSN", role: "acme/masked", action: "deny" });
  await create("column-policies", {
    ...on("people"),
    name: "n",
    column: "name",
    role: "acme/masked",
    action: "mask",
    expression: "left(name, 1) || '…'",
  });
}

/** The same in Postgres. */
async function oracleState(): Promise<void> {
  const { db } = source;
  const roles = ["reader", "own", "north"];
  await db.client.query([...USERS, ...roles].map((r) => `create role fz_${r}`).join(";"));
  await db.client.query(`
    grant usage on schema model to fz_reader; grant select on all tables in schema model to fz_reader;
    grant fz_reader to ${USERS.map((u) => `fz_${u}`).join(", ")};
    grant fz_own to fz_ann, fz_bob, fz_dora; grant fz_north to fz_bob, fz_dora;
    alter table model.people enable row level security; alter table model.items enable row level security;
    create policy own on model.people to fz_own using (owner = substr(current_user, 4));
    create policy north on model.people to fz_north using (region = 'north');
    create policy sevens on model.items to fz_own using (k % 7 = length(substr(current_user, 4)));
    create policy labels on model.items to fz_north using (label like '% 1')`);
  await db.client.query("create view model.plain as table public.plain; grant select on model.plain to fz_reader");
  for (const user of USERS) {
    const client = await db.connect();
    await client.query(`set search_path = model; set role fz_${user}`);
    oracles.set(user, client);
  }
}

async function oracle(user: string, sql: string): Promise<(string | null)[][]> {
  const types = { getTypeParser: () => (text: string) => text };
  const client = must(oracles.get(user), user);
  return (await client.query({ text: sql, rowMode: "array", types: types as never })).rows as (string | null)[][];
}

const sorted = (rows: (string | null)[][]): string[] => rows.map((r) => JSON.stringify(r)).toSorted();
const session = (user: string): ServeSession => must(open.get(user), user);
const seen = async (user: string, sql: string): Promise<(string | null)[][]> => ask(session(user), sql);
const code = (user: string, sql: string): Promise<string> =>
  seen(user, sql).then(
    () => "allowed",
    (e: { code?: string }) => e.code ?? String(e),
  );

describe("row policies", () => {
  test("each user sees what Postgres's row security shows him", async () => {
    const counts: Record<string, number> = {};
    for (const user of USERS) {
      for (const table of ["people", "items", "plain"]) {
        const sql = `select * from ${table}`;
        if (user === "dora" && table === "people") continue;
        const rows = await seen(user, sql);
        expect(sorted(rows)).toEqual(sorted(await oracle(user, sql)));
        counts[`${user} ${table}`] = rows.length;
      }
    }
    // Not all the same, not all nothing.
    expect(counts).toMatchObject({ "ann people": 15, "carl people": 0, "carl items": 0, "carl plain": 10 });
    expect(counts["bob people"]).toBeGreaterThan(15);
    expect(counts["ann items"]).toBeGreaterThan(10);
  });

  test("random queries", { timeout: 300_000 }, async () => {
    let rows = 0;
    await fc.assert(
      fc.asyncProperty(fc.constantFrom("ann", "bob", "carl"), queries(), async (user, sql) => {
        const expected = await oracle(user, sql);
        const got = await seen(user, sql);
        expect(sorted(got), sql).toEqual(sorted(expected));
        rows += got.length;
      }),
      { numRuns: Number(process.env["SPILLWAY_FUZZ_RUNS"] ?? 150), endOnFailure: true },
    );
    expect(rows).toBeGreaterThan(300);
  });

  test("an error of the user's own expression tells nothing about hidden rows", async () => {
    for (const sql of [
      "select 1 / (id - 1) from people where owner = 'ann'",
      "select * from people where (case when owner = 'bob' then 'x' else '1' end)::int = 1",
      "select * from people p join people q on (p.ssn || 'x')::int = q.id and p.owner <> 'ann'",
    ]) {
      const [own, theirs] = await Promise.all([
        code("ann", sql),
        oracle("ann", sql).then(
          () => "allowed",
          () => "error",
        ),
      ]);
      if (theirs === "allowed") expect(own, sql).toBe("allowed");
    }
  });
});

describe("column policies", () => {
  test("a denied column does not exist, a masked one is its mask everywhere", async () => {
    const rows = await seen("dora", "select * from people order by id");
    expect(rows[0]).toHaveLength(5);
    expect(new Set(rows.map((r) => r[1]))).toEqual(new Set(["p…"]));
    expect(await code("dora", "select ssn from people")).not.toBe("allowed");
    expect(await code("dora", "select 1 from people where ssn = 's1'")).not.toBe("allowed");
    expect(await code("dora", 'select p."SSN" from people p')).not.toBe("allowed");
    expect(await code("dora", "select people from people")).toBe("allowed");
    expect(JSON.stringify(await seen("dora", "select people::text from people"))).not.toMatch(/s\d/);
    expect(await seen("dora", "select count(*) from people where name = 'p5'")).toEqual([["0"]]);
    expect(await seen("dora", "select count(distinct name), min(name), max(name) from people")).toEqual([
      ["1", "p…", "p…"],
    ]);
    expect(await seen("dora", "select count(*) from people p join plain on p.name = 'p' || plain.a")).toEqual([["0"]]);
    expect(
      await seen("dora", "select count(*) from (select name from people order by name) where name like '%1%'"),
    ).toEqual([["0"]]);
    expect((await seen("bob", "select ssn, name from people order by id"))[0]).not.toContain("p…");
  });
});

describe("names", () => {
  test("what is not granted does not exist, in the same words as what does not", async () => {
    const message = (name: string) =>
      seen("ann", `select * from ${name}`).catch((e: Error) => e.message.replaceAll(name, "?"));
    expect(await message("secret")).toBe(await message("nothing"));
    expect(await code("ann", "select * from secret")).toBe("access_denied");
    expect(await code("ann", "select * from model.people")).toBe("access_denied");
    expect(await code("ann", "select * from spillway_control.app_user")).toBe("access_denied");
    expect(decisions.at(-1)).toMatchObject({ allowed: false, principal: { userName: "ann" } });
  });

  test("the search path finds what is granted only", async () => {
    expect(await code("ann", "set search_path = model, public")).toBe("allowed");
    expect(sorted(await seen("ann", "select * from people"))).toEqual(
      sorted(await oracle("ann", "select * from people")),
    );
    // Elsewhere a name without its schema might be another table to Postgres.
    expect(await code("ann", "delete from people")).toBe("access_denied");
    await seen("ann", "set search_path = public");
  });

  test("the session says who it is, not the engine", async () => {
    expect(await seen("ann", "select current_user, current_schema(), current_database()")).toEqual([
      ["ann", "public", "sales"],
    ]);
    expect(await seen("bob", "select current_user")).toEqual([["bob"]]);
  });
});

describe("escape hatches", () => {
  const TYPED = /^(access_\w+|sql_\w+|transaction_\w+|session_\w+)$/;
  test("each is refused by a session, however it is prepared, and harms none", async () => {
    const root = await sessions.open(principalOf(must(await control.user("admin"), "admin")), options("root"));
    for (const sql of HATCHES) {
      // These name a table that an administrator may well explain.
      const by = /^(EXPLAIN|DECLARE)/.test(sql) ? [session("ann")] : [session("ann"), root];
      for (const one of by) {
        // A simple query is split first; an extended one is one statement, with types of parameters or without.
        for (const way of [
          async () => {
            for (const text of await one.split(sql)) await one.run(await one.prepare(text));
          },
          () => one.prepare(sql, []),
          () => one.prepare(sql, [23]),
        ]) {
          const error: unknown = await way().then(
            () => "allowed",
            (e: { code?: string }) => e.code ?? String(e),
          );
          expect(error, sql).toMatch(TYPED);
        }
      }
    }
    expect(await ask(root, "select 1")).toEqual([["1"]]);
    expect(await seen("ann", "select 1")).toEqual([["1"]]);
    await root.close();
  });
});

describe("changes reach live sessions within a second", () => {
  test("a revoked grant, a new policy, a prepared statement", async () => {
    const [grant] = await control.read((c) => listObjects(c, kind("table-grants"), { table: "plain" }));
    const prepared = await session("bob").prepare("select * from plain");
    const run = async (): Promise<string> => {
      try {
        const result = await session("bob").run(prepared);
        for await (const _ of result.batches()) void _;
        return "allowed";
      } catch (e) {
        return (e as { code: string }).code;
      }
    };
    expect(await run()).toBe("allowed");
    await control.change((tx) => deleteObject(tx, kind("table-grants"), String(grant?.["id"])));
    await expect.poll(run, { timeout: 1000 }).toBe("access_denied");
    await create("table-grants", { role: "acme/reader", ...on("plain"), privileges: ["select"] });
    await expect.poll(run, { timeout: 1000 }).toBe("allowed");
    const policy = await create("row-policies", { ...on("plain"), name: "few", predicate: "a < 3", shadow: true });
    await expect
      .poll(async () => (await seen("bob", "select * from plain"), decisions.at(-1)?.shadow), { timeout: 1000 })
      .toEqual([expect.stringContaining("public.plain: rows where")]);
    expect(await seen("bob", "select count(*) from plain")).toEqual([["10"]]);
    await control.change((tx) => updateObject(tx, kind("row-policies"), String(policy["id"]), { shadow: false }));
    await expect.poll(() => seen("bob", "select count(*) from plain"), { timeout: 1000 }).toEqual([["2"]]);
    await control.change((tx) => deleteObject(tx, kind("row-policies"), String(policy["id"])));
    await expect.poll(() => seen("bob", "select count(*) from plain"), { timeout: 1000 }).toEqual([["10"]]);
  });

  test("a user who is disabled", async () => {
    await control.change((tx) => updateObject(tx, kind("users"), "carl", { disabled: true }));
    await expect.poll(() => code("carl", "select 1"), { timeout: 1000 }).toBe("access_denied");
    await control.change((tx) => updateObject(tx, kind("users"), "carl", { disabled: false }));
  });

  test("a policy that cannot be understood lets nothing through", async () => {
    const policy = await create("row-policies", { ...on("plain"), name: "bad", predicate: "a < (select 1)" });
    await expect.poll(() => code("bob", "select * from plain"), { timeout: 1000 }).toBe("access_policy_invalid");
    // The other tables are not its matter.
    expect(await code("bob", "select * from people")).toBe("allowed");
    await control.change((tx) => deleteObject(tx, kind("row-policies"), String(policy["id"])));
    await expect.poll(() => code("bob", "select * from plain"), { timeout: 1000 }).toBe("allowed");
  });
});

describe("the text of a policy", () => {
  const params = { user: "o'neill", tenant: "t", roles: ["a'b", "c"], groups: [] };
  const compiled = async (text: string): Promise<string> => {
    const engine = await parser.session();
    try {
      return await compilePolicy(engine, text, params);
    } finally {
      engine.close();
    }
  };

  test("parameters are values, whatever they hold", async () => {
    const engine = await parser.session();
    const value = async (text: string): Promise<unknown> =>
      (await engine.rows(`SELECT ${await compiled(text)}`))[0]?.[0];
    expect(await value("${user}")).toBe("o'neill");
    expect(await value("concat(${user}, ' of ', ${tenant})")).toBe("o'neill of t");
    expect(await value("list_contains(${roles}, 'a''b')")).toBe(true);
    expect(await value("list_contains(${groups}, 'x') or len(${roles}) = 2")).toBe(true);
    expect(await value("current_user = ${user}")).toBe(true);
    engine.close();
  });

  test.each([
    "", "a = 1; drop table x", "true) or (select true", "a = 1 -- c", "a = /* c */ 1", "'${user}'", '"${user}" = 1', "${password}",
    "$1", "$user", "a = $$x$$", "count(*) > 1", "row_number() over () = 1", "exists (select 1)", "a in (select 1 from secret)",
    "read_text('/etc/passwd') = ''", "current_setting('threads') = '1'", "getvariable('x')", "*", "columns('a') = 1", "a) x, (b",
    "true) from secret where (true", "true) union select (true", "a = 'x", "e'\\'' = ${user}", "sleep_ms(1)", "pg_sleep(1)",
  ])("%s is refused", async (text) => {
    await expect(compiled(text)).rejects.toMatchObject({ code: "access_policy_invalid" });
  }); // prettier-ignore

  test("quotes are kept apart", () => {
    expect(markParameters("a = 'it''s' and \"b c\" = ${user}")).toBe("a = 'it''s' and \"b c\" =  $user ");
  });
});
