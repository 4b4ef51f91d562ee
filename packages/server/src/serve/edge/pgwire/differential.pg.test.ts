/**
 * The same statements through the edge and to Postgres itself, in the same order: the same rows, tags, types and errors. Plain objects
 * pass to the source as they are; for tables of both tiers the oracle is a table of plain Postgres that holds the same rows.
 */
import pg from "pg";
import { afterAll, beforeAll, expect, test } from "vitest";
import { startTestEdge, type TestEdge } from "./test-edge.ts";

let edge: TestEdge;
beforeAll(async () => {
  edge = await startTestEdge();
  const { client } = edge.source.db;
  await client.query("GRANT USAGE ON SCHEMA model TO app; GRANT ALL ON ALL TABLES IN SCHEMA model TO app");
});
afterAll(() => edge.close());

interface Seen {
  readonly tags: readonly string[];
  readonly rows: readonly unknown[];
  readonly types: readonly (readonly [string, number])[];
  readonly error: string | null;
  readonly status: string;
}

const RAW = { getTypeParser: () => (value: unknown) => value } as unknown as pg.CustomTypesConfig;

async function see(
  client: pg.Client,
  sql: string,
  values: readonly unknown[] | null,
  withPosition: boolean,
): Promise<Seen> {
  const query = { text: sql, rowMode: "array" as const, types: RAW, ...(values ? { values: [...values] } : {}) };
  const done = (part: Omit<Seen, "status">): Seen => ({ ...part, status: String(client.getTransactionStatus()) });
  try {
    const answer = (await client.query(query)) as unknown as pg.QueryArrayResult | pg.QueryArrayResult[];
    const results = Array.isArray(answer) ? answer : [answer];
    return done({
      tags: results.map((r) => `${r.command} ${r.rowCount}`),
      rows: results.flatMap((r) => r.rows),
      types: results.flatMap((r) => r.fields.map((f) => [f.name, f.dataTypeID] as const)),
      error: null,
    });
  } catch (error) {
    const { code, message, position, severity } = error as pg.DatabaseError;
    // The state of the transaction comes behind the error.
    await new Promise((resolve) => setTimeout(resolve, 5));
    const text = withPosition ? `${severity} ${code} ${message} @${position ?? ""}` : `${code}`;
    return done({ tags: [], rows: [], types: [], error: text });
  }
}

type Statement = string | readonly [string, readonly unknown[]];

/** Over plain objects and none: everything must be the same, messages and positions too. */
const PLAIN: readonly Statement[] = [
  "SELECT 1",
  "SELECT 1 AS a, 'x' AS b, NULL AS c, 1.50 AS d, true AS e",
  "SELECT 7 / 2, 7 % 3, 2 ^ 10, 1e20::float8, 1e15::float8, 0.1::float4, 'NaN'::float8, '-Infinity'::float4",
  "SELECT 123456789012345678901234567890::numeric, 1.10::numeric(10,3)",
  "SELECT date '2024-02-29', timestamp '2024-02-29 12:34:56.789', timestamptz '2024-01-01 00:00+02', interval '1 day 2 hours', time '24:00'",
  "SELECT 'infinity'::timestamp, '-infinity'::date, '0044-03-15 BC'::date",
  "SELECT '\\xdeadbeef'::bytea, '{1,2,NULL}'::int[], '{\"a\": 1}'::jsonb, '[1,5)'::int4range, gen_random_uuid() IS NOT NULL",
  "SELECT ",
  "",
  ";",
  "SELECT 1; SELECT 2",
  "SELECT 1; SELECT 1/0; SELECT 3",
  "SELEC 1",
  "SELECT * FROM nowhere",
  "SELECT * FROM plain WHERE nope = 1",
  "SELECT nofunc(1)",
  "SELECT 1 FROM plain GROUP BY",
  "SELECT 'abc'::int",
  "SELECT 1/0",
  "SELECT 'é' AS ü, nope",
  "SELECT count(*), min(b), max(b) FROM plain",
  "SELECT a, b FROM plain ORDER BY a DESC LIMIT 3",
  ["SELECT b FROM plain WHERE a = $1", [4]],
  ["SELECT $1::int + $2::int AS s", [1, 2]],
  ["SELECT $1::text", [null]],
  ["SELECT $1::int", ["x"]],
  ["SELECT $1::int[]", [[1, 2, 3]]],
  ["SELECT a FROM plain WHERE b = ANY($1) ORDER BY a", [["b1", "b3"]]],
  ["SELECT nope FROM plain WHERE a = $1", [1]],
  "INSERT INTO plain VALUES (100, 'hundred')",
  "INSERT INTO plain VALUES (100, 'again')",
  ["INSERT INTO plain VALUES ($1, $2) RETURNING a, b", [101, "x"]],
  "INSERT INTO plain VALUES (NULL, 'x')",
  "INSERT INTO plain VALUES (100, 'up') ON CONFLICT (a) DO UPDATE SET b = excluded.b RETURNING *",
  "UPDATE plain SET b = b || '!' WHERE a > 99",
  "UPDATE plain SET b = 'z' WHERE a = 101 RETURNING b",
  "DELETE FROM plain WHERE a = 101",
  "WITH d AS (DELETE FROM plain WHERE a = 100 RETURNING a) SELECT count(*) FROM d",
  "BEGIN",
  "INSERT INTO plain VALUES (200, 'in')",
  "SAVEPOINT s1",
  "INSERT INTO plain VALUES (200, 'dup')",
  "SELECT 1",
  "ROLLBACK TO SAVEPOINT s1",
  "SELECT b FROM plain WHERE a = 200",
  "RELEASE SAVEPOINT s1",
  "ROLLBACK TO SAVEPOINT s1",
  "ROLLBACK",
  "SELECT count(*) FROM plain WHERE a = 200",
  "COMMIT",
  "ROLLBACK",
  "SAVEPOINT outside",
  "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
  "SHOW transaction_isolation",
  "SHOW transaction_read_only",
  "INSERT INTO plain VALUES (201, 'x')",
  "COMMIT",
  "START TRANSACTION ISOLATION LEVEL REPEATABLE READ",
  "SET TRANSACTION READ ONLY",
  "SHOW transaction_read_only",
  "COMMIT",
  "BEGIN; INSERT INTO plain VALUES (300, 'x'); COMMIT",
  "DELETE FROM plain WHERE a = 300",
  "INSERT INTO plain VALUES (301, 'x'); SELECT 1/0",
  "SELECT count(*) FROM plain WHERE a = 301",
  "BEGIN",
  "DECLARE c CURSOR FOR SELECT a FROM plain ORDER BY a",
  "FETCH 2 FROM c",
  "FETCH NEXT FROM c",
  "MOVE 1 FROM c",
  "FETCH ALL FROM c",
  "CLOSE c",
  "FETCH c",
  "ROLLBACK",
  "DECLARE h CURSOR WITH HOLD FOR SELECT a FROM plain ORDER BY a",
  "FETCH 1 FROM h",
  "CLOSE ALL",
  "PREPARE p (int) AS SELECT b FROM plain WHERE a = $1",
  "EXECUTE p(2)",
  "DEALLOCATE p",
  "EXECUTE p(2)",
  "SET search_path TO public, pg_catalog",
  "SHOW search_path",
  "RESET search_path",
  "SHOW search_path",
  "SET nope.nope = 'x'",
  "SHOW nope.nope",
  "SET not_a_setting = 1",
  "SET TimeZone = 'Europe/Berlin'",
  "SELECT timestamptz '2024-07-01 12:00 UTC'",
  "SET TimeZone = 'No/Where'",
  "RESET TimeZone",
  "SET extra_float_digits = 3",
  "SHOW extra_float_digits",
  "SET statement_timeout = 100",
  "SELECT pg_sleep(5)",
  "SET statement_timeout = 0",
  "BEGIN",
  "SET LOCAL statement_timeout = '7s'",
  "SHOW statement_timeout",
  "ROLLBACK",
  "SHOW statement_timeout",
  "CREATE TABLE made (x int PRIMARY KEY, y text DEFAULT 'd')",
  "INSERT INTO made (x) SELECT generate_series(1, 3)",
  "SELECT * FROM made ORDER BY x",
  "ALTER TABLE made ADD COLUMN z int",
  "CREATE INDEX ON made (z)",
  "CREATE VIEW made_view AS SELECT x FROM made",
  "SELECT * FROM made_view ORDER BY x DESC",
  "TRUNCATE made",
  "DROP TABLE made",
  "DROP VIEW made_view",
  "DROP TABLE made",
  "CREATE TEMP TABLE tt (a int)",
  "INSERT INTO tt VALUES (1)",
  "SELECT * FROM tt",
  "DISCARD ALL",
  "SELECT * FROM tt",
  "EXPLAIN (COSTS OFF) SELECT * FROM plain WHERE a = 1",
  "SELECT relname, relkind FROM pg_class WHERE relname = 'plain'",
  "SELECT 'plain'::regclass::text, 'nowhere'::regclass",
  "SELECT table_name FROM information_schema.tables WHERE table_name = 'plain'",
  "LOCK TABLE plain",
  "VALUES (1, 'a'), (2, 'b')",
  "TABLE plain",
  "SELECT current_setting('server_version_num')::int > 140000",
];

test("over plain objects everything is Postgres's own", async () => {
  const through = await edge.connect();
  const direct = new pg.Client({ connectionString: edge.direct });
  await direct.connect();
  const { client } = edge.source.db;
  try {
    expect(PLAIN.length).toBeGreaterThan(100);
    // One after the other as wholes: they lock the same table.
    const ours: unknown[] = [];
    const theirs: unknown[] = [];
    for (const [target, seen] of [
      [through, ours],
      [direct, theirs],
    ] as const) {
      await client.query("TRUNCATE plain; INSERT INTO plain SELECT i, 'b' || i FROM generate_series(1, 10) i");
      for (const statement of PLAIN) {
        const [sql, values] = typeof statement === "string" ? [statement, null] : statement;
        seen.push({ sql, ...(await see(target, sql, values, true)) });
      }
      await target.query("ROLLBACK");
    }
    for (const [i, seen] of ours.entries()) expect.soft(seen).toEqual(theirs[i]);
  } finally {
    await direct.end();
  }
});
