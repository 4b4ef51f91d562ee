import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { testMajors } from "@spillway/testkit/binaries";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { type Migration, migrate, migrationState } from "./migrate.ts";

const SCHEMA = 'odd "schema';
const Q = '"odd ""schema"';
const first: Migration = { id: 1, name: "first", sql: `CREATE TABLE ${Q}.a (n int); INSERT INTO ${Q}.a VALUES (1);` };
const second: Migration = { id: 2, name: "second", sql: `ALTER TABLE ${Q}.a ADD m int; SELECT pg_sleep(0.05);` };
const broken: Migration = { id: 3, name: "broken", sql: `CREATE TABLE ${Q}.b (); SELECT 1/0;` };

describe.each(testMajors())("migrations on Postgres %i", (major) => {
  let db: TestDatabase;
  beforeEach(async () => {
    db = await createTestDatabase({ major });
  });
  afterEach(() => db.drop());

  const run = (migrations: Migration[], client = db.client, waitMs = 5000): Promise<number[]> =>
    migrate(client, { schema: SCHEMA, migrations, log: silentLogger, clock: systemClock, waitMs });
  const count = async (sql: string): Promise<number> => (await db.client.query(sql)).rowCount ?? 0;

  test("each runs once, in order", async () => {
    expect(await migrationState(db.client, SCHEMA, [first])).toEqual({ current: 0, pending: [first] });
    expect(await run([first])).toEqual([1]);
    expect(await run([first, second])).toEqual([2]);
    expect(await run([first, second])).toEqual([]);
    expect(await count(`SELECT n, m FROM ${Q}.a`)).toBe(1);
  });

  test("racing programs run each once", async () => {
    const clients = await Promise.all(Array.from({ length: 5 }, () => db.connect()));
    const done = await Promise.all(clients.map((c) => run([first, second], c)));
    expect(done.flat()).toEqual([1, 2]);
    expect(await count(`SELECT n, m FROM ${Q}.a`)).toBe(1);
  });

  test("a failure changes nothing of its own, and keeps what came before", async () => {
    await expect(run([first, second, broken])).rejects.toMatchObject({
      code: "pg_error",
      message: expect.stringContaining("migration 3 (broken)"),
      details: { sqlstate: "22012" },
    });
    expect((await migrationState(db.client, SCHEMA, [first, second, broken])).current).toBe(2);
    expect(await count(`SELECT FROM pg_class WHERE relname = 'b'`)).toBe(0);
    expect(await run([first, second, { ...broken, sql: `CREATE TABLE ${Q}.b ()` }])).toEqual([3]);
  });

  test("a newer database is refused, untouched", async () => {
    await run([first, second]);
    await expect(run([first])).rejects.toMatchObject({
      code: "catalog_newer",
      message: expect.stringContaining("2 (second)"),
    });
    await expect(migrationState(db.client, SCHEMA, [first])).rejects.toMatchObject({ code: "catalog_newer" });
  });

  test("an edited migration is refused", async () => {
    await run([first]);
    await expect(run([{ ...first, sql: "SELECT 1" }, second])).rejects.toMatchObject({ code: "catalog_changed" });
    expect((await migrationState(db.client, SCHEMA, [first])).current).toBe(1);
  });

  test("waiting for another program is bounded, and the lock is let go after a failure", async () => {
    const other = await db.connect();
    const slow = run([{ ...first, sql: "SELECT pg_sleep(1)" }], other);
    await new Promise((resolve) => setTimeout(resolve, 200));
    await expect(run([first], db.client, 100)).rejects.toMatchObject({ code: "deadline_exceeded" });
    await slow;
    await db.client.query("SELECT pg_advisory_unlock_all()");
    expect(await count("SELECT FROM pg_locks WHERE locktype = 'advisory'")).toBe(0);
  });

  test("without the privilege to make the schema: refused by name; with a schema made for it: works", async () => {
    await db.client.query("DROP ROLE IF EXISTS migrator");
    await db.client.query("CREATE ROLE migrator");
    const other = await db.connect();
    await other.query("SET ROLE migrator");
    await expect(run([first], other)).rejects.toMatchObject({ code: "pg_permission_denied" });
    await db.client.query(`CREATE SCHEMA ${Q} AUTHORIZATION migrator`);
    expect(await run([first], other)).toEqual([1]);
    await db.client.query("DROP OWNED BY migrator CASCADE");
    await db.client.query("DROP ROLE migrator");
  });
});
