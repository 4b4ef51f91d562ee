import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { testMajors } from "./binaries.ts";
import { createTestDatabase, withDatabase } from "./database.ts";
import { type PgInstance, startPostgres } from "./postgres.ts";
import { isAlive } from "./reaper.ts";

describe.each(testMajors())("Postgres %i", (major) => {
  const started: PgInstance[] = [];
  const start = async (options: Parameters<typeof startPostgres>[0] = {}): Promise<PgInstance> => {
    const server = await startPostgres({ major, ...options });
    started.push(server);
    return server;
  };
  afterAll(() => Promise.all(started.map((s) => s.destroy())));

  test("starts on loopback, as another user than root, with the settings asked for", async () => {
    const server = await start({ settings: { work_mem: "7MB" } });
    const client = await server.connect();
    const { rows } = await client.query(
      "SELECT current_setting('server_version_num')::int / 10000 AS major, current_setting('work_mem') AS work_mem, current_setting('wal_level') AS wal, inet_server_addr() AS addr",
    );
    expect(rows).toEqual([{ major, work_mem: "7MB", wal: "logical", addr: "127.0.0.1" }]);
    expect(statSync(`/proc/${server.pid}`).uid).not.toBe(0);
    expect(existsSync(join(server.socketDir, `.s.PGSQL.${server.port}`))).toBe(true);
    await client.end();
  });

  test("keeps its data and port over kill -9 and restart", async () => {
    const server = await start({ settings: { fsync: "on" } });
    const before = await server.connect();
    await before.query("CREATE TABLE t AS SELECT 42 AS n");
    const { pid } = server;
    await server.kill("SIGKILL");
    expect(isAlive(pid)).toBe(false);
    expect(server.isRunning).toBe(false);
    await server.start();
    const after = await server.connect();
    expect((await after.query("SELECT n FROM t")).rows).toEqual([{ n: 42 }]);
    await after.end();
    await server.restart();
    await server.stop("immediate");
  });

  test("asks for a password when told to", async () => {
    const server = await start({ auth: "scram-sha-256" });
    const client = await server.connect();
    await client.end();
    expect(server.url()).toContain(":test-password@");
    const wrong = server.connect("postgres", { password: "wrong" });
    await expect(wrong).rejects.toMatchObject({ code: "28P01" });
  });

  test("clones a template for each test, and drops a database with slots and sessions", async () => {
    let setups = 0;
    const template = {
      name: "one-table",
      setup: async (client: import("pg").Client) => {
        setups += 1;
        await client.query("CREATE TABLE t (a int)");
      },
    };
    const [a, b] = await Promise.all([1, 2].map(() => createTestDatabase({ major, template })));
    if (!a || !b) throw new Error("no databases");
    await a.client.query("INSERT INTO t VALUES (1)");
    expect((await b.client.query("SELECT * FROM t")).rows).toEqual([]);
    expect(setups).toBe(1);
    expect(a.server).toBe(b.server);
    await a.client.query("SELECT pg_create_logical_replication_slot('left_over', 'pgoutput')");
    await a.connect();
    await a.drop();
    await b.drop();
    await withDatabase(
      async (db) => {
        const { rows } = await db.client.query("SELECT datname FROM pg_database WHERE datname IN ($1, $2)", [
          a.name,
          b.name,
        ]);
        expect(rows).toEqual([]);
      },
      { major },
    );
  });
});
