/** Capture against a model: the SQL functions, every kind of key and name, types, changed columns, privileges, refusals. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { CATALOG_MIGRATIONS } from "./catalog.ts";
import { makeTable, type ModelOptions, type ModelTable } from "./test-model.ts";

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
  await db.client.query("create schema spillway");
  for (const migration of CATALOG_MIGRATIONS) await db.client.query(migration.sql);
});
afterAll(() => db.drop());

async function tieredInts(options: ModelOptions = {}, tier = true): Promise<ModelTable> {
  const columns = "id int, k int, v text default 'none', w numeric, primary key (id, k)";
  const t = await makeTable(await db.connect(), "k", columns, ["0", "10", "20", "30"], options);
  await t.both("insert into @ select i, i % 30, 'v' || i, i / 8.0 from generate_series(1, 90) i");
  if (tier) await t.tier(`${t.name}_0`);
  return t;
}

async function stateOf(work: Promise<unknown>): Promise<string> {
  return work.then(
    () => "ok",
    (error: { code?: string }) => error.code ?? String(error),
  );
}

const json = (value: unknown): string => JSON.stringify(value);

describe("spillway.upsert, delete, insert_if_absent", () => {
  test("rows of both tiers, defaults for what is not given, together with the client's own work", async () => {
    const t = await tieredInts();
    await t.client.query("begin");
    await t.client.query("select spillway.upsert($1, $2)", [t.sql, json({ id: 31, k: 1, v: "a", w: "1.50" })]);
    await t.client.query("select spillway.upsert($1, $2)", [t.sql, json({ id: 42, k: 12 })]);
    await t.client.query("select spillway.upsert($1, $2)", [t.sql, json({ id: 500, k: -3, v: null })]);
    await t.client.query("select spillway.delete($1, $2)", [t.sql, json({ id: 32, k: 2 })]);
    await t.client.query("select spillway.delete($1, $2)", [t.sql, json({ id: 43, k: 13 })]);
    await t.client.query("select spillway.insert_if_absent($1, $2)", [t.sql, json({ id: 44, k: 14, v: "no" })]);
    await t.client.query("select spillway.insert_if_absent($1, $2)", [t.sql, json({ id: 600, k: 14, v: "yes" })]);
    await t.client.query("commit");
    await t.client.query(`update ${t.model} set v = 'a', w = 1.50 where id = 31`);
    await t.client.query(`update ${t.model} set v = 'none', w = null where id = 42`);
    await t.client.query(`insert into ${t.model} values (500, -3, null), (600, 14, 'yes')`);
    await t.client.query(`delete from ${t.model} where id in (32, 43)`);
    await t.check();
    await t.client.query("begin");
    await t.client.query("select spillway.delete($1, $2)", [t.sql, json({ id: 31, k: 1 })]);
    await t.client.query("rollback");
    await t.check();
  });

  test("refuse what is no row, and what they cannot know", async () => {
    const t = await tieredInts();
    const call = (name: string, row: unknown): Promise<string> =>
      stateOf(t.client.query(`select spillway.${name}($1, $2)`, [t.sql, json(row)]));
    expect(await call("upsert", { id: 1, k: 1, nope: 1 })).toBe("SPW05");
    expect(await call("upsert", { id: 1 })).toBe("SPW05");
    expect(await call("delete", [1])).toBe("SPW05");
    expect(await call("insert_if_absent", { id: 1, k: 1 })).toBe("SPW08");
    await t.client.query("create table plain (id int primary key)");
    expect(await stateOf(t.client.query("select spillway.upsert('plain', '{\"id\": 1}')"))).toBe("SPW06");
  });

  test("a reader with no privileges gets none through them", async () => {
    const t = await tieredInts();
    const role = `role_${t.name}`;
    await t.client.query(`create role ${role}; grant insert on ${t.sql} to ${role}; set role ${role}`);
    // RETURNING and ON CONFLICT would need SELECT.
    expect(await stateOf(t.client.query(`insert into ${t.sql} values (900, 2, 'allowed')`))).toBe("ok");
    expect(await stateOf(t.client.query("select spillway.delete($1, $2)", [t.sql, json({ id: 31, k: 1 })]))).toBe(
      "42501",
    );
    expect(await stateOf(t.client.query("select spillway.tombstone($1, $2)", [t.sql, json({ id: 31, k: 1 })]))).toBe(
      "42501",
    );
    expect(await stateOf(t.client.query(`select * from spillway.delta_${t.spec.relationId}`))).toBe("42501");
    expect(await stateOf(t.client.query("select spillway.slow_capture(1, 1, 1)"))).toBe("42501");
    expect(await stateOf(t.client.query("update spillway.seam set t = 0"))).toBe("42501");
    await t.client.query("reset role");
    await t.client.query(`insert into ${t.model} values (900, 2, 'allowed')`);
    await t.check();
  });
});

describe("keys and names", () => {
  const kinds: [string, string, string[], string[]][] = [
    ["smallint", "smallint", ["0", "100", "200"], ["-7", "50", "150"]],
    ["bigint", "bigint", ["9007199254740993", "9007199254740999", "9007199254741999"], ["9007199254740994", "9007199254740999", "-9007199254740993"]],
    ["date", "date", ["'2024-01-01'", "'2024-02-01'", "'2024-03-01'"], ["'2024-01-31'", "'2024-02-01'", "'0044-03-15 BC'"]],
    ["timestamp", "timestamp", ["'2024-01-01'", "'2024-01-02'", "'2024-01-03'"], ["'2024-01-01 23:59:59.999999'", "'2024-01-02'", "'1969-12-31 23:59:59.5'"]],
    ["timestamptz", "timestamptz", ["'2024-01-01 00:00+00'", "'2024-01-02 00:00+00'", "'2024-01-03 00:00+00'"], ["'2024-01-01 23:59:59.999999+00'", "'2024-01-02 00:00+00'", "'2024-01-01 01:00+02'"]],
  ]; // prettier-ignore
  for (const [label, type, bounds, keys] of kinds) {
    test(`a ${label} key in a table with names that need quotes and a composite key`, async () => {
      const name = `Tést "${label}" of 'x', $capture$`;
      const columns = `"the ""Key"" %I" ${type}, "order" text, "Value" int, primary key ("order", "the ""Key"" %I")`;
      const t = await makeTable(await db.connect(), 'the "Key" %I', columns.replaceAll("%I", "%I"), bounds, {}, name);
      const values = keys.map((k, i) => `(${k}, 'o''${i}', ${i})`).join(", ");
      await t.both(`insert into @ values ${values}`);
      await t.tier(`${t.name}_0`);
      await t.check();
      await t.both(`insert into @ select * from (values (${keys[0]}::${type}, 'late', 9)) v`);
      const key = 'the "Key" %I';
      const quoted = keys[0]?.replaceAll("'", "");
      await t.client.query("select spillway.delete($1, $2)", [t.sql, json({ order: "o'0", [key]: quoted })]);
      await t.client.query(`delete from ${t.model} where "order" = 'o''0'`);
      await t.client.query("select spillway.upsert($1, $2)", [t.sql, json({ order: "up", [key]: quoted, Value: 5 })]);
      await t.client.query(`insert into ${t.model} values (${keys[0]}, 'up', 5)`);
      await t.check();
      expect(await t.landingCount()).toBe(0);
    });
  }

  test("values that the delta holds as text come back exactly", async () => {
    const client = await db.connect();
    await client.query(
      "create type mood as enum ('sad', 'it''s fine'); create domain small as int check (value < 100)",
    );
    await client.query("set datestyle = 'SQL, DMY'; set intervalstyle = 'sql_standard'; set extra_float_digits = 0");
    const columns =
      "id mood, k int, a inet, b jsonb, c numeric, d interval, e text[], f float8, g small, h char(5), i tstzrange, j bytea, l json, primary key (id, k)";
    const t = await makeTable(client, "k", columns, ["0", "10", "20"]);
    await client.query("set timezone = 'Asia/Tokyo'");
    const row = (k: number): string =>
      `('sad', ${k}, '10.0.0.1', '{"a": 1.500}', 12345678901234567890.1234500, '1 mon -3 days 04:05:06.789', '{"a,b",NULL}', 0.1::float8 + 0.2::float8, 42, 'ab', '[2024-01-01 00:00+00,)', '\\x00ff', '{"b":1,  "b":2}')`;
    await t.both(
      `insert into @ values ${row(5)}, ${row(15)}, ('it''s fine', 6, null, null, 'NaN', null, null, 'infinity', null, null, null, null, null)`,
    );
    await t.tier(`${t.name}_0`);
    await t.both(
      `insert into @ values ${row(7)}, ('it''s fine', 7, null, null, 'NaN', null, null, '-infinity', null, null, null, null, null)`,
    );
    await client.query("set timezone = 'UTC'; set datestyle = 'ISO'");
    await t.check();
  });
});

describe("columns that changed and were not followed yet", () => {
  test("nothing is lost and no client sees an error", async () => {
    const t = await tieredInts();
    for (const name of [t.sql, t.model]) {
      await t.client.query(`alter table ${name} add column "new, 1" timestamptz default '2024-01-01 00:00+00'`);
      await t.client.query(`alter table ${name} rename column v to "V 2"`);
      await t.client.query(`alter table ${name} alter column w type text`);
    }
    await t.both(`insert into @ (id, k, "V 2", w) values (700, 3, 'renamed', 'text'), (701, 4, 'also', null)`);
    await t.both(`insert into @ (id, k, "new, 1") values (702, 50, null), (703, 51, now())`);
    await t.both("delete from @ where id = 703");
    await t.both(`update @ set k = 5 where id = 45`);
    expect(await t.landingCount()).toBe(1);
    await t.client.query("select spillway.delete($1, $2)", [t.sql, json({ id: 701, k: 4 })]);
    const { rows } = await t.client.query(
      `select op, key::int as key, c1, c3, x from spillway.delta_${t.spec.relationId} order by c1, key`,
    );
    expect(rows).toEqual([
      { op: "U", key: 5, c1: 45, c3: "v45", x: { 4: "5.6250000000000000", 5: "2024-01-01 00:00:00+00" } },
      { op: "U", key: 3, c1: 700, c3: "renamed", x: { 4: "text", 5: "2024-01-01 00:00:00+00" } },
      { op: "D", key: 4, c1: 701, c3: null, x: null },
      { op: "U", key: 50, c1: 702, c3: "none", x: { 4: null, 5: null } },
      { op: "D", key: 51, c1: 703, c3: null, x: null },
    ]);
  });

  test("a dropped column, and one of the same name added again", async () => {
    const t = await tieredInts();
    await t.client.query(`alter table ${t.sql} drop column v; alter table ${t.sql} add column v text`);
    await t.client.query(`insert into ${t.sql} (id, k, v) values (800, 1, 'second')`);
    const { rows } = await t.client.query(`select c1, c3, x from spillway.delta_${t.spec.relationId}`);
    expect(rows).toEqual([{ c1: 800, c3: null, x: { 5: "second" } }]);
  });

  test("a transaction whose snapshot is older than the change gets 40001, not a row without its new column", async () => {
    const t = await tieredInts();
    const client = await db.connect();
    await client.query("begin isolation level repeatable read; select 1 from pg_class limit 1");
    await t.client.query(`alter table ${t.sql} add column extra int`);
    expect(await stateOf(client.query(`insert into ${t.sql} values (810, 1, 'v', 1, 2)`))).toBe("40001");
  });

  test("a partition that was renamed", async () => {
    const t = await tieredInts();
    await t.capture(`${t.name}_1`);
    await t.client.query(`alter table "${t.name}_1" rename to "${t.name}_one"`);
    await t.both("update @ set v = 'renamed leaf' where k = 11");
    await t.both("delete from @ where k = 12");
    await t.advance(`${t.name}_one`);
    await t.check();
  });
});

describe("refusals", () => {
  test("of direct tables, retention, infinite keys, and historical INSERTs where they are not wanted", async () => {
    const direct = await tieredInts({ mode: "direct" });
    expect(await stateOf(direct.client.query(`insert into ${direct.sql} values (1, 1)`))).toBe("SPW01");
    expect(
      await stateOf(direct.client.query("select spillway.delete($1, $2)", [direct.sql, json({ id: 1, k: 1 })])),
    ).toBe("SPW01");
    expect(
      await stateOf(direct.client.query("select spillway.upsert($1, $2)", [direct.sql, json({ id: 1, k: 1 })])),
    ).toBe("SPW01");
    await direct.check();

    const retained = await tieredInts({ lakeRetention: 5n });
    await retained.client.query("update spillway.seam_guard set r = 5 where relation_id = $1", [
      retained.spec.relationId.toString(),
    ]);
    expect(await stateOf(retained.client.query(`insert into ${retained.sql} values (1000, 4)`))).toBe("SPW02");
    expect(
      await stateOf(retained.client.query("select spillway.delete($1, $2)", [retained.sql, json({ id: 4, k: 4 })])),
    ).toBe("SPW02");
    await retained.both("insert into @ values (1000, 5)");
    await retained.check();

    const refusing = await tieredInts({ historicalInserts: "refuse" });
    expect(await stateOf(refusing.client.query(`insert into ${refusing.sql} values (1000, 4)`))).toBe("SPW07");
    await refusing.client.query("select spillway.upsert($1, $2)", [refusing.sql, json({ id: 1000, k: 4 })]);
    await refusing.client.query(`insert into ${refusing.model} values (1000, 4)`);
    expect(await stateOf(refusing.client.query(`insert into ${refusing.sql} values (1001, 4)`))).toBe("SPW07");
    await refusing.check();

    const t = await makeTable(await db.connect(), "k", "k timestamp primary key", ["'2024-01-01'", "'2025-01-01'"]);
    expect(await stateOf(t.client.query(`insert into ${t.sql} values ('-infinity')`))).toBe("SPW03");
    await t.both("insert into @ values ('infinity'), ('2024-05-05')");
  });

  test("an unfollowed column changes none of them", async () => {
    const direct = await tieredInts({ mode: "direct" });
    await direct.client.query(`alter table ${direct.sql} add column extra int`);
    expect(await stateOf(direct.client.query(`insert into ${direct.sql} values (1, 1)`))).toBe("SPW01");
  });
});
