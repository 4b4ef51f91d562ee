/** `sql` and `explain` on a mirrored table that a worker follows, as an operator types them. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { type ProcessResult, runCli, spawnCli, type TestProcess } from "@spillway/testkit/processes";
import { waitFor } from "@spillway/testkit/wait";
import { afterAll, beforeAll, expect, test } from "vitest";

let db: TestDatabase;
let home: string;
let env: Record<string, string>;
let worker: TestProcess;

beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "spillway-test-"));
  db = await createTestDatabase();
  env = {
    SPILLWAY_DATABASE_URL: db.url,
    SPILLWAY_WAREHOUSE: join(home, "lake"),
    SPILLWAY_CACHE_DIR: join(home, "cache"),
    SPILLWAY_LOG_LEVEL: "warn",
    SPILLWAY_METRICS_LISTEN: "off",
  };
  await db.client.query(`create table orders (id int primary key, v text);
    create table notes (id int primary key);
    insert into orders select g, 'v' || g from generate_series(1, 200000) g; analyze orders`);
  expect(await spillway(["init"])).toMatchObject({ code: 0 });
  expect(await spillway(["register", "--mode", "mirrored", "--table", "orders"])).toMatchObject({ code: 0 });
  worker = spawnCli(["worker"], { env });
}, 120_000);
afterAll(async () => {
  await worker.kill("SIGTERM");
  await db.drop();
  rmSync(home, { recursive: true, force: true });
});

const spillway = (args: readonly string[]): Promise<ProcessResult> => runCli(args, { env });

test("strict, an age, a position, and what is said of them", async () => {
  const sql = (...args: string[]): Promise<ProcessResult> => spillway(["sql", "--format", "csv", ...args]);
  await waitFor("the table follows the stream", async () => {
    const { rows } = await db.client.query("select 1 from spillway.mirror_table where phase = 'live'");
    return rows.length > 0;
  });
  await db.client.query("update orders set v = 'first' where id = 1");
  const strict = await spillway([
    "sql",
    "--freshness",
    "strict",
    "--freshness-timeout",
    "30s",
    "SELECT v FROM orders WHERE id = 1",
  ]);
  expect(strict.stdout).toContain("first");
  expect(strict.stderr).toMatch(/; heap 0 rows fetched, lake \d+ of \d+ files/);
  const { rows } = await db.client.query<{ lsn: string }>("select f_lsn::text as lsn from spillway.seam");
  const lsn = String(rows[0]?.lsn);
  await db.client.query("update orders set v = 'second' where id = 1");
  expect((await sql("--freshness", "strict", "SELECT v FROM orders WHERE id = 1")).stdout).toBe("v\nsecond\n");
  expect((await sql("SELECT v FROM orders WHERE id = 1")).stdout).toBe("v\nsecond\n");
  expect((await sql("--as-of-lsn", lsn, "SELECT v FROM orders WHERE id = 1")).stdout).toBe("v\nfirst\n");
  const explained = await spillway(["explain", "--freshness", "1m", "SELECT * FROM orders WHERE v LIKE '%9'"]);
  expect(explained.stdout).toMatch(
    /mirrored tables: lake at [0-9A-F]+\/[0-9A-F]+: it is cheaper, F is \d+ ms old \(expected: heap \d+ ms, lake \d+ ms\)/,
  );
  const mixed = JSON.parse(
    (await spillway(["explain", "--json", "--freshness", "strict", "SELECT count(*) FROM orders, notes"])).stdout,
  );
  expect(mixed).toMatchObject({ mirror: { tier: "heap", why: "other_tables" } });
  const status = await spillway(["status"]);
  expect(status.stdout).toMatch(/public.orders +mirrored +active +[0-9A-F]+\/[0-9A-F]+ +200,000/);
  expect(status.stdout).toMatch(/public.orders: follows the stream, [\d.]+ \w+ of WAL, .* behind; never verified/);
  const ahead = await sql("--as-of-lsn", "FFFF/0", "SELECT v FROM orders");
  expect([ahead.code, ahead.stderr]).toEqual([1, expect.stringMatching(/^as_of_lsn_ahead: the lake of .*\n$/)]);
});

test("without a worker, strict says that the heap has answered", async () => {
  await worker.kill("SIGTERM");
  await db.client.query("update orders set v = 'third' where id = 1");
  const strict = await spillway([
    "sql",
    "--freshness",
    "strict",
    "--freshness-timeout",
    "300ms",
    "SELECT v FROM orders WHERE id = 1",
  ]);
  expect(strict.stdout).toContain("third");
  expect(strict.stderr).toContain("from the heap: the lake did not get to this moment in time");
});
