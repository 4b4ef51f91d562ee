import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { testMajors } from "@spillway/testkit/binaries";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { type PgInstance, startPostgres } from "@spillway/testkit/postgres";
import { startProxy } from "@spillway/testkit/proxy";
import { startStandby } from "@spillway/testkit/standby";
import { sleep, waitFor } from "@spillway/testkit/wait";
import { Pool, type PoolOptions } from "./pool.ts";

const pools: Pool[] = [];
function poolOf(options: Partial<PoolOptions> & { conninfo: string }): Pool {
  const pool = new Pool({ size: 2, clock: systemClock, log: silentLogger, ...options });
  pools.push(pool);
  return pool;
}
afterEach(() => Promise.all(pools.splice(0).map((p) => p.end())));

describe.each(testMajors())("the pool on Postgres %i", (major) => {
  let db: TestDatabase;
  beforeAll(async () => {
    db = await createTestDatabase({ major });
    await db.client.query("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0), (2, 0)");
  });
  afterAll(() => db.drop());

  test("lends at most its size, in turn, and reuses", async () => {
    const pool = poolOf({ conninfo: db.url });
    let inUse = 0;
    let most = 0;
    const pids = new Set<number>();
    await Promise.all(
      Array.from({ length: 20 }, () =>
        pool.withClient(async (c) => {
          most = Math.max(most, ++inUse);
          const { rows } = await c.query<{ pid: number }>("SELECT pg_backend_pid() AS pid, pg_sleep(0.005)");
          pids.add(rows[0]?.pid ?? 0);
          inUse -= 1;
        }),
      ),
    );
    expect({ most, pids: pids.size }).toEqual({ most: 2, pids: 2 });
    expect(pool.stats).toEqual({ total: 2, idle: 2, waiting: 0 });
  });

  test("waiting is bounded in time and in number", async () => {
    const pool = poolOf({ conninfo: db.url, size: 1, waitMs: 100, maxWaiting: 1 });
    const busy = pool.withClient(() => sleep(400));
    await sleep(50);
    const waiting = pool.withClient(async () => "never").catch((e: unknown) => e);
    await expect(pool.withClient(async () => "never")).rejects.toMatchObject({ code: "pg_pool_timeout" });
    expect(await waiting).toMatchObject({ code: "pg_pool_timeout" });
    await busy;
    expect(await pool.withClient(async () => "free")).toBe("free");
  });

  test("a transaction left open is rolled back; an error leaves the connection usable", async () => {
    const pool = poolOf({ conninfo: db.url, size: 1 });
    await pool.withClient(async (c) => void (await c.query("BEGIN; UPDATE t SET n = 99")));
    await expect(pool.withClient((c) => c.query("SELECT 1/0"))).rejects.toMatchObject({ code: "22012" });
    await pool.withClient(async (c) => {
      expect((await c.query("SELECT n FROM t WHERE id = 1")).rows).toEqual([{ n: 0 }]);
    });
    expect(pool.stats.total).toBe(1);
  });

  test("serialization failures and deadlocks run again, within the budget", async () => {
    const pool = poolOf({ conninfo: db.url, size: 4 });
    const add = (): Promise<void> =>
      pool.transaction(
        { isolation: "serializable", retries: { attempts: 50, totalMs: 20_000, firstDelayMs: 2, maxDelayMs: 50 } },
        async (c) => {
          const { rows } = await c.query<{ n: number }>("SELECT n FROM t WHERE id = 1");
          await c.query("UPDATE t SET n = $1 WHERE id = 1", [(rows[0]?.n ?? 0) + 1]);
        },
      );
    await Promise.all(Array.from({ length: 12 }, add));
    const { rows } = await db.client.query("SELECT n FROM t WHERE id = 1");
    expect(rows).toEqual([{ n: 12 }]);

    let runs = 0;
    const failing = pool.transaction({ retries: null }, async (c) => {
      runs += 1;
      await c.query("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$");
    });
    await expect(failing).rejects.toMatchObject({ code: "40001" });
    expect(runs).toBe(1);
  });

  test("a COMMIT that rolls back is an error", async () => {
    const pool = poolOf({ conninfo: db.url });
    const swallowed = pool.transaction({}, async (c) => {
      await c.query("SELECT 1/0").catch(() => {});
    });
    await expect(swallowed).rejects.toMatchObject({ code: "pg_error" });
  });

  test("a connection that ends during COMMIT: the outcome is unknown, and is said to be", async () => {
    const proxy = await startProxy(db.server);
    const pool = poolOf({ conninfo: proxy.through(db.url) });
    await db.client.query(
      "CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END'",
    );
    await db.client.query("CREATE TABLE IF NOT EXISTS u (a int); DROP TRIGGER IF EXISTS s ON u");
    await db.client.query(
      "CREATE CONSTRAINT TRIGGER s AFTER INSERT ON u DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    const lost = pool.transaction({}, async (c) => {
      await c.query("INSERT INTO u VALUES (1)");
      setTimeout(() => proxy.cut(), 200);
    });
    await expect(lost).rejects.toMatchObject({ code: "pg_commit_unknown", kind: "unknown" });
    await proxy.close();
  });

  test("ended idle connections are replaced, and one bad one drops all of its age", async () => {
    const pool = poolOf({ conninfo: db.url, size: 3 });
    await Promise.all([1, 2, 3].map(() => pool.withClient((c) => c.query("SELECT pg_sleep(0.05)"))));
    expect(pool.stats.idle).toBe(3);
    await db.client.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'spillway'");
    await waitFor("the pool to notice", () => pool.stats.idle === 0);
    expect((await pool.withClient((c) => c.query("SELECT 1 AS one"))).rows).toEqual([{ one: 1 }]);
  });

  test("a closed pool refuses", async () => {
    const pool = poolOf({ conninfo: db.url, size: 1 });
    const busy = pool.withClient(() => sleep(100));
    await sleep(20);
    const waiting = pool.withClient(async () => 1).catch((e: unknown) => e);
    await pool.end();
    expect(await waiting).toMatchObject({ code: "interrupted" });
    await busy;
    await expect(pool.withClient(async () => 1)).rejects.toMatchObject({ code: "interrupted" });
    expect(pool.stats.total).toBe(0);
  });
});

describe.each(testMajors())("a failover on Postgres %i", (major) => {
  let primary: PgInstance;
  let standby: PgInstance;
  beforeAll(async () => {
    primary = await startPostgres({ major });
    standby = await startStandby(primary);
  });
  afterAll(async () => {
    await primary.destroy();
    await standby.destroy();
  });

  test("the pool finds the new primary by itself", async () => {
    const hosts = `127.0.0.1:${primary.port},127.0.0.1:${standby.port}`;
    const pool = poolOf({
      conninfo: `postgres://postgres@${hosts}/postgres?target_session_attrs=read-write`,
      waitMs: 20_000,
    });
    const write = (): Promise<number> =>
      pool.transaction({}, async (c) => {
        await c.query("CREATE TABLE IF NOT EXISTS f (a int)");
        await c.query("INSERT INTO f VALUES (1)");
        const { rows } = await c.query<{ port: number }>("SELECT inet_server_port() AS port");
        return rows[0]?.port ?? 0;
      });
    expect(await write()).toBe(primary.port);
    await primary.kill("SIGKILL");
    await waitFor("the pool to notice", () => pool.stats.idle === 0);
    const waiting = write();
    await sleep(300);
    const promoted = await standby.connect();
    await promoted.query("SELECT pg_promote(true, 10)");
    await promoted.end();
    expect(await waiting).toBe(standby.port);
  });
});
