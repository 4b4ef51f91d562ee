/** The command line on a real source: init, register, worker, sql, explain, verify, status, as an operator types them. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { type ProcessResult, runCli } from "@spillway/testkit/processes";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

let db: TestDatabase;
let home: string;
let env: Record<string, string>;

beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "spillway-test-"));
  db = await createTestDatabase();
  env = {
    SPILLWAY_DATABASE_URL: db.url,
    SPILLWAY_WAREHOUSE: join(home, "lake"),
    SPILLWAY_CACHE_DIR: join(home, "cache"),
    SPILLWAY_LOG_LEVEL: "warn",
  };
  await db.client.query(`
    create table events (id bigint, k int, v text, w numeric(12,3), seen timestamptz, ok boolean, f double precision,
      primary key (id, k)) partition by range (k);
    create table events_0 partition of events for values from (0) to (10);
    create table events_10 partition of events for values from (10) to (20);
    create table events_20 partition of events for values from (20) to (30);
    insert into events select 9007199254740990 + i, i % 30, case when i % 7 = 0 then null else 'v' || i end, i / 8.0,
      timestamptz '2026-01-01 00:00:00+00' + i * interval '1 minute', i % 2 = 0, i / 3.0 from generate_series(1, 3000) i;
    create table events_plain as select * from events;
    create table names (k int primary key, name text);
    insert into names select i, case when i = 3 then '' else 'name, "' || i || '"' end from generate_series(0, 29) i;`);
  for (const args of [
    ["init"],
    ["register", "--table", "events", "--lag", "5"],
    ["worker", "--once", "--cycle-interval", "100ms"],
  ]) {
    expect(await spillway(args)).toMatchObject({ code: 0 });
  }
}, 120_000);
afterAll(async () => {
  await db.drop();
  rmSync(home, { recursive: true, force: true });
});

const spillway = (args: readonly string[], input = ""): Promise<ProcessResult> => runCli(args, { env, input });
const sql = (...args: string[]): Promise<ProcessResult> => spillway(["sql", ...args]);

describe("spillway sql", () => {
  test("both tiers are one table, as a table for people and a line about it", async () => {
    const done = await sql("SELECT count(*) AS n, sum(w) AS w, min(k) AS least FROM events");
    expect(done.stdout).toBe("   n           w  least\n----  ----------  -----\n3000  562687.500      0\n");
    expect(done.stderr).toMatch(/^\(1 row, \d+ ms; heap .* lake \d+ of \d+ files, .*\)\n$/);
    expect(done.code).toBe(0);
  });

  test("csv, json and ndjson keep every value exact", async () => {
    const query =
      "SELECT id, v, w, seen, ok, f, k FROM events WHERE id IN (9007199254740997, 9007199254740999) ORDER BY id";
    const csv = await sql("--format", "csv", query);
    expect(csv.stdout).toBe(
      "id,v,w,seen,ok,f,k\n9007199254740997,,0.875,2026-01-01 00:07:00+00,false,2.3333333333333335,7\n" +
        "9007199254740999,v9,1.125,2026-01-01 00:09:00+00,false,3,9\n",
    );
    const line = JSON.parse((await sql("--json", query)).stdout);
    expect(line).toMatchObject({
      columns: expect.arrayContaining([{ name: "id", type: "int64" }]),
      rows: [
        ["9007199254740997", null, 0.875, "2026-01-01 00:07:00+00", false, 2.3333333333333335, 7],
        ["9007199254740999", "v9", 1.125, "2026-01-01 00:09:00+00", false, 3, 9],
      ],
      rowCount: 2,
    });
    const ndjson = (await sql("--format", "ndjson", "SELECT 1 AS a, NULL AS a, 'x' AS b")).stdout;
    expect(ndjson).toBe('{"a":1,"a_2":null,"b":"x"}\n');
    const text = await sql("--format", "csv", "SELECT name FROM names WHERE k IN (3, 4) ORDER BY k");
    expect(text.stdout).toBe('name\n""\n"name, ""4"""\n');
  });

  test("all rows stream out as Postgres has them", async () => {
    const { stdout } = await sql("--format", "csv", "--no-timing", "SELECT id, k, v, w FROM events ORDER BY id");
    const { rows } = await db.client.query<{ line: string }>(
      "select concat(id, ',', k, ',', v, ',', w) as line from events_plain order by id",
    );
    expect(stdout.trimEnd().split("\n").slice(1)).toEqual(rows.map((r) => r.line));
  });

  test("parameters, a file and standard input", async () => {
    const query = "SELECT v FROM events WHERE id = $1 AND v = $2";
    const params = ["--params", '[9007199254740999, "v9"]', "--format", "csv"];
    expect((await sql(...params, query)).stdout).toBe("v\nv9\n");
    writeFileSync(join(home, "query.sql"), `-- a comment\n${query};\n`);
    expect((await sql(...params, "--file", join(home, "query.sql"))).stdout).toBe("v\nv9\n");
    const piped = await spillway(["sql", "--format", "csv", "-"], "SELECT count(*) AS n FROM events");
    expect(piped.stdout).toBe("n\n3000\n");
  });

  test("corrects rows of both tiers, with RETURNING", async () => {
    for (const statement of [
      "UPDATE @ SET w = w + 1 WHERE k IN (3, 25)",
      "DELETE FROM @ WHERE id = 9007199254740992",
      "INSERT INTO @ (id, k, v) VALUES (7, 5, 'late'), (8, 28, 'new')",
    ]) {
      const plain = await db.client.query(statement.replace("@", "events_plain"));
      const done = await sql(statement.replace("@", "events"));
      expect([done.code, done.stdout]).toEqual([0, `${statement.split(" ")[0]} ${plain.rowCount}\n`]);
    }
    const returned = await sql("--json", "UPDATE events SET v = 'again' WHERE id = 7 RETURNING id, k, v, seen");
    expect(JSON.parse(returned.stdout)).toMatchObject({
      command: "UPDATE",
      rowCount: 1,
      rows: [[7, 5, "again", null]],
    });
    await db.client.query("update events_plain set v = 'again' where id = 7");
    const differing = await sql(
      "--format",
      "csv",
      `SELECT count(*) AS n FROM ((SELECT * FROM events EXCEPT ALL SELECT * FROM events_plain) UNION ALL
        (SELECT * FROM events_plain EXCEPT ALL SELECT * FROM events)) x`,
    );
    expect(differing.stdout).toBe("n\n0\n");
  });

  test("the lake as it was", async () => {
    const { rows } = await db.client.query("select s from spillway.seam");
    const before = await sql("--format", "csv", "--as-of", String(rows[0].s), "SELECT count(*) AS n FROM events");
    expect(before.stdout).toBe("n\n2000\n");
    const early = await sql("--as-of", "2020-01-01", "SELECT count(*) FROM events");
    expect(early.code).not.toBe(0);
    expect(early.stderr).toMatch(/^[a-z_]+: .*\n$/);
  });
});

describe("spillway explain", () => {
  test("names files, rows and conditions of each tier", async () => {
    const text = await spillway(["explain", "SELECT v FROM events WHERE k = 3"]);
    expect(text.stdout).toMatch(/lake: snapshot \d+, files 2 considered, 1 skipped, 1 read/);
    const json = JSON.parse(
      (await spillway(["explain", "--json", "--analyze", "SELECT v FROM events WHERE k = 3"])).stdout,
    );
    expect(json).toMatchObject({
      rows: expect.any(Number),
      tables: [{ filesConsidered: 2, filesSkipped: 1, filesRead: 1 }],
    });
  });
});
