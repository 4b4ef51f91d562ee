/**
 * Statements over tables of both tiers, for a user whose role is mapped and for one who has none, against a plain table of Postgres
 * with the same rows: the same values, tags and SQLSTATEs, by cursors, COPY, prepared statements and transactions.
 */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { OWNER, startTestEdge, type TestEdge } from "./test-edge.ts";

let edge: TestEdge;
beforeAll(async () => {
  edge = await startTestEdge([
    OWNER,
    {
      name: "ann",
      password: "ann",
      mapped: null,
      sees: (schema, name) => (schema === "public" && name.startsWith("items") ? {} : null),
    },
  ]);
  await edge.source.db.client.query(
    "GRANT USAGE ON SCHEMA model TO app; GRANT ALL ON ALL TABLES IN SCHEMA model TO app",
  );
});
afterAll(() => edge.close());

const RAW = { getTypeParser: () => (value: unknown) => value } as unknown as pg.CustomTypesConfig;

async function see(client: pg.Client, sql: string, values: readonly unknown[] | null): Promise<unknown> {
  const query = { text: sql, rowMode: "array" as const, types: RAW, ...(values ? { values: [...values] } : {}) };
  try {
    const answer = (await client.query(query)) as unknown as pg.QueryArrayResult | pg.QueryArrayResult[];
    const results = Array.isArray(answer) ? answer : [answer];
    return results.map((r) => [`${r.command} ${r.rowCount}`, r.fields.map((f) => `${f.name} ${f.dataTypeID}`), r.rows]);
  } catch (error) {
    await new Promise((resolve) => setTimeout(resolve, 5));
    return `${(error as pg.DatabaseError).code} ${String(client.getTransactionStatus())}`;
  }
}

type Statement = string | readonly [string, readonly unknown[]];

/** Where DuckDB's types of a result are others than Postgres's, the statement casts. */
const STATEMENTS: readonly Statement[] = [
  "SELECT * FROM items WHERE id IN (5, 1500, 2500) ORDER BY id",
  "SELECT count(*) FROM items",
  "SELECT min(k), max(k), min(day), max(price) FROM items",
  "SELECT label, count(*) AS n FROM items GROUP BY label ORDER BY label",
  ["SELECT id, price FROM items WHERE k BETWEEN $1 AND $2 ORDER BY id LIMIT 4", [1998, 2010]],
  ["SELECT count(*) FROM items WHERE day >= $1 AND label = $2", ["2024-01-15", "label 3"]],
  ["SELECT label FROM items WHERE id = $1", [null]],
  "SELECT a.id, b.label FROM items a JOIN items b ON a.id = b.id + 1 WHERE a.id < 4 ORDER BY 1",
  "WITH x AS (SELECT id FROM items WHERE id < 3) SELECT id FROM x ORDER BY id DESC",
  "SELECT id FROM items WHERE id < 2 UNION ALL SELECT id FROM items WHERE id > 2998 ORDER BY 1",
  "SELECT nope FROM items",
  "SELECT * FROM items WHERE",
  "SELECT 'abc'::int FROM items",
  "INSERT INTO items VALUES (9001, 9001, 'new', 1.25, '2024-05-05')",
  "INSERT INTO items VALUES (9001, 9001, 'again', 1, '2024-05-05')",
  ["INSERT INTO items (id, k) VALUES ($1, $2) RETURNING id, label, price", [9002, 7]],
  "SELECT label FROM items WHERE id = 9002",
  "UPDATE items SET label = 'moved' WHERE id IN (9001, 9002, 3)",
  "SELECT id, label FROM items WHERE label = 'moved' ORDER BY id",
  "DELETE FROM items WHERE id = 9001 RETURNING id",
  "BEGIN",
  "UPDATE items SET price = 99 WHERE id IN (10, 2010)",
  "SAVEPOINT s",
  "DELETE FROM items WHERE id IN (10, 2010)",
  "SELECT count(*) FROM items WHERE id IN (10, 2010)",
  "ROLLBACK TO s",
  "SELECT id, price FROM items WHERE id IN (10, 2010) ORDER BY id",
  "SELECT nope FROM items",
  "SELECT 1 FROM items",
  "ROLLBACK TO s",
  "SELECT count(*) FROM items WHERE price = 99",
  "ROLLBACK",
  "SELECT count(*) FROM items WHERE price = 99",
  "BEGIN",
  "DECLARE c CURSOR FOR SELECT id FROM items ORDER BY id",
  "FETCH 3 FROM c",
  "SELECT count(*) FROM items WHERE id < 10",
  "FETCH FORWARD 2 FROM c",
  "MOVE 2990 FROM c",
  "FETCH ALL FROM c",
  "FETCH c",
  "CLOSE c",
  "COMMIT",
  "BEGIN",
  "DECLARE h CURSOR WITH HOLD FOR SELECT id FROM items WHERE id < 5 ORDER BY id",
  "FETCH 2 FROM h",
  "COMMIT",
  "FETCH 2 FROM h",
  "CLOSE h",
  "FETCH h",
  "DECLARE d CURSOR FOR SELECT id FROM items",
  "PREPARE p AS SELECT label FROM items WHERE id = $1",
  "EXECUTE p(8)",
  "PREPARE p AS SELECT 1 FROM items",
  "DEALLOCATE p",
  "EXECUTE p(8)",
  "BEGIN; UPDATE items SET label = 'x' WHERE id = 20; ROLLBACK",
  "SELECT label FROM items WHERE id = 20",
  "UPDATE items SET label = 'y' WHERE id = 21; SELECT nope FROM items",
  "SELECT label FROM items WHERE id = 21",
  "DELETE FROM items WHERE id = 9002",
  "UPDATE items SET label = 'label 3' WHERE id = 3",
];

describe.each(["owner", "ann"])("as %s", (user) => {
  test("as Postgres answers over the whole table", async () => {
    const through = await edge.connect(user);
    const direct = new pg.Client({ connectionString: edge.direct, options: "-c search_path=model" });
    await direct.connect();
    try {
      for (const statement of STATEMENTS) {
        const [sql, values] = typeof statement === "string" ? [statement, null] : statement;
        const [ours, theirs] = [await see(through, sql, values), await see(direct, sql, values)];
        expect.soft({ sql, answer: ours }).toEqual({ sql, answer: theirs });
      }
    } finally {
      await direct.end();
    }
  });

  const run = async (url: string, sql: string, input?: string): Promise<Buffer> => {
    const child = promisify(execFile)("psql", [url, "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql], {
      encoding: "buffer",
      maxBuffer: 64 << 20,
    });
    child.child.stdin?.end(input ?? "");
    return (await child).stdout;
  };

  test.each([
    "FORMAT text",
    "FORMAT csv, HEADER",
    "FORMAT csv, FORCE_QUOTE *, NULL 'nil'",
    "FORMAT binary",
    "FORMAT text, DELIMITER '|', NULL ''",
  ])("COPY out: %s", async (options) => {
    for (const from of [
      "(SELECT id, k, label, price, day FROM items ORDER BY id)",
      "(SELECT id, NULL::text AS n, price FROM items WHERE id % 500 = 1 ORDER BY id)",
    ]) {
      const ours = await run(edge.url(user), `COPY ${from} TO STDOUT (${options})`);
      const theirs = await run(
        `${edge.direct}?options=-c%20search_path%3Dmodel`,
        `COPY ${from} TO STDOUT (${options})`,
      );
      expect(ours.equals(theirs)).toBe(true);
    }
  });

  test("COPY in: text, csv and binary, all or nothing", async () => {
    const rows = "SELECT id, k, label, price, day FROM items WHERE id >= 20000 ORDER BY id";
    const text = "20000\t20000\ta\\tb\\n\\\\c\t1.50\t2024-01-01\n20001\t5\t\\N\t\\N\t\\N\n";
    await run(edge.url(user), "COPY items FROM STDIN", text);
    const csv = 'id,k,label\n20002,20002,"a,""b""\nc"\n20003,20003,\n';
    await run(edge.url(user), "COPY items (id, k, label) FROM STDIN (FORMAT csv, HEADER)", csv);
    const expected = [
      ["20000", "20000", "a\tb\n\\c", "1.50", "2024-01-01"],
      ["20001", "5", null, null, null],
      ["20002", "20002", 'a,"b"\nc', null, null],
      ["20003", "20003", null, null, null],
    ];
    const client = await edge.connect(user);
    expect((await client.query({ text: rows, rowMode: "array", types: RAW })).rows).toEqual(expected);
    const bad = "20004\t20004\tx\t1\t2024-01-01\n20005\tnope\tx\t1\t2024-01-01\n";
    await expect(run(edge.url(user), "COPY items FROM STDIN", bad)).rejects.toThrow(/ERROR/);
    await expect(run(edge.url(user), "COPY items FROM STDIN", "20006\t20006\n")).rejects.toThrow(
      /missing data for column "label"/,
    );
    expect((await client.query({ text: rows, rowMode: "array", types: RAW })).rows).toEqual(expected);
    await client.query("DELETE FROM items WHERE id >= 20000");
  });
});

test("what leads out of the database is refused, mapped or not", async () => {
  const refused: readonly (readonly [string, RegExp])[] = [
    ["DO $$ BEGIN END $$", /42501/],
    ["SET ROLE postgres", /42501/],
    ["SET SESSION AUTHORIZATION postgres", /42501/],
    ["RESET ROLE", /42501/],
    ["SELECT set_config('role', 'postgres', false)", /42501/],
    ["COPY plain TO '/tmp/x'", /42501/],
    ["COPY plain FROM PROGRAM 'id'", /42501/],
    ["COPY items TO PROGRAM 'id'", /42501/],
    ["SELECT pg_read_file('/etc/passwd')", /42501|42883/],
    ["SELECT lo_import('/etc/passwd')", /42501|42883/],
    ["SELECT query_to_xml('select 1', true, true, '')", /42501|42883/],
    ["LOAD 'x'", /42501/],
    ["ALTER SYSTEM SET work_mem = '1GB'", /42501/],
    ["EXPLAIN ANALYZE SELECT pg_ls_dir('/')", /42501|42883/],
    ["WITH x AS (SELECT pg_read_file('/etc/passwd')) SELECT * FROM x", /42501|42883/],
    ["SELECT * FROM pg_authid", /42501/],
    ["SELECT usename, passwd FROM pg_shadow", /42501/],
  ];
  for (const user of ["owner", "ann"]) {
    const client = await edge.connect(user);
    for (const [sql, state] of refused) {
      const code = await client.query(sql).then(
        () => "ran",
        (error: pg.DatabaseError) => error.code,
      );
      expect.soft({ user, sql, code }).toEqual({ user, sql, code: expect.stringMatching(state) as unknown });
    }
  }
});

test("a user sees nothing of what is not granted, in tables and in catalogs", async () => {
  const client = await edge.connect("ann");
  const codeOf = (sql: string): Promise<unknown> =>
    client.query(sql).then(
      () => "ran",
      (error: pg.DatabaseError) => `${error.code} ${error.position ?? ""}`,
    );
  expect(await codeOf("SELECT * FROM plain")).toBe("42P01 15");
  expect(await codeOf("SELECT 'plain'::regclass")).toBe("42P01 8");
  expect(await codeOf("INSERT INTO plain VALUES (1)")).toMatch(/^42P01/);
  expect(await codeOf("SELECT 1 FROM items, pg_class")).toMatch(/^0A000/);
  const count = async (sql: string): Promise<number> => (await client.query(sql)).rows.length;
  expect(await count("SELECT 1 FROM pg_class WHERE relname LIKE 'plain%'")).toBe(0);
  expect(
    await count("SELECT 1 FROM pg_catalog.pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE a.attname = 'b'"),
  ).toBe(0);
  expect(await count("SELECT 1 FROM information_schema.columns WHERE table_name = 'plain'")).toBe(0);
  expect(await count("SELECT 1 FROM information_schema.tables WHERE table_name = 'items'")).toBe(1);
  expect(await count("SELECT 1 FROM pg_tables WHERE tablename = 'plain'")).toBe(0);
  expect(await count("SELECT 1 FROM pg_type WHERE typname IN ('plain', '_plain')")).toBe(0);
  const { rows } = await edge.source.db.client.query<{ oid: number; conoid: number; mine: number }>(
    "SELECT 'plain_pkey'::regclass::oid::int AS oid, (SELECT oid::int FROM pg_constraint WHERE conrelid = 'plain'::regclass) AS conoid, 'items_pkey'::regclass::oid::int AS mine",
  );
  const { oid, conoid, mine } = rows[0] ?? { oid: 0, conoid: 0, mine: 0 };
  const guessed = await client.query({
    text: `SELECT pg_get_indexdef(${oid}), pg_catalog.pg_get_constraintdef(${conoid}, true), pg_get_indexdef(${mine}) LIKE '%items_pkey%'`,
    rowMode: "array",
  });
  expect(guessed.rows).toEqual([[null, null, true]]);
  expect(await codeOf("SELECT pg_relation_size('plain'), 1 FROM pg_class")).toMatch(/^42P01/);
  expect(await codeOf("SELECT has_table_privilege('public.plain', 'select'), relname FROM pg_class")).toMatch(/^42P01/);
  expect(await codeOf(`SELECT ${oid}::regclass`)).toMatch(/^42P01/);
  const me = await client.query("SELECT current_user, current_database(), session_user AS s");
  expect(me.rows).toEqual([{ current_user: "ann", current_database: "db", s: "ann" }]);
});

test("a transaction over both ways commits when one of them wrote, and is refused as a whole when both did", async () => {
  const client = await edge.connect();
  const state = async (): Promise<unknown> => [
    (await client.query("SELECT label FROM items WHERE id = 30")).rows,
    (await client.query("SELECT b FROM plain WHERE a = 1")).rows,
  ];
  const before = await state();
  await client.query("BEGIN");
  await client.query("UPDATE items SET label = 'both' WHERE id = 30");
  await client.query("UPDATE plain SET b = 'both' WHERE a = 1");
  await expect(client.query("COMMIT")).rejects.toMatchObject({ code: "0A000" });
  expect(await state()).toEqual(before);
  await client.query("BEGIN");
  await client.query("SELECT b FROM plain");
  await client.query("UPDATE items SET label = 'one' WHERE id = 30");
  expect((await client.query("COMMIT")).command).toBe("COMMIT");
  await client.query("BEGIN");
  await client.query("SELECT count(*) FROM items");
  await client.query("UPDATE plain SET b = 'one' WHERE a = 1");
  expect((await client.query("COMMIT")).command).toBe("COMMIT");
  expect(await state()).toEqual([[{ label: "one" }], [{ b: "one" }]]);
  await client.query("UPDATE items SET label = 'label 2' WHERE id = 30");
  await client.query("UPDATE plain SET b = 'b1' WHERE a = 1");
});
