/** `spillway restore` on real copies of a real server: the original lives on, and the copy says which it is. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type PgInstance, startPostgres } from "@spillway/testkit/postgres";
import { type ProcessResult, runCli, spawnCli } from "@spillway/testkit/processes";
import type pg from "pg";
import { afterAll, beforeAll, expect, test } from "vitest";

let server: PgInstance;
let client: pg.Client;
let home: string;
const closers: (() => Promise<void>)[] = [];

beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "spillway-test-"));
  server = await startPostgres();
  client = await server.connect("postgres");
  await client.query(
    `create table t (id int, k int, v text, primary key (id, k)) partition by range (k);
     create table t_0 partition of t for values from (0) to (10);
     create table t_1 partition of t for values from (10) to (20);
     create table t_2 partition of t for values from (20) to (30);
     insert into t select i, i % 30, 'v' || i from generate_series(1, 3000) i`,
  );
  expect(await run(["init"])).toMatchObject({ code: 0 });
  expect(await run(["register", "--table", "t", "--lag", "5"])).toMatchObject({ code: 0 });
  expect(await run(["worker", "--once"])).toMatchObject({ code: 0 });
  await client.query('select spillway.upsert(\'t\', \'{"id": 1, "k": 1, "v": "corrected"}\')');
  expect(await run(["maintain", "--all", "--pass", "fold"])).toMatchObject({ code: 0 });
});
afterAll(async () => {
  for (const close of closers.toReversed()) await close();
  await client.end().catch(() => {});
  await server.destroy();
  rmSync(home, { recursive: true, force: true });
});

function envOf(url: string, warehouse: string): Record<string, string> {
  return {
    SPILLWAY_DATABASE_URL: url,
    SPILLWAY_WAREHOUSE: warehouse,
    SPILLWAY_CACHE_DIR: join(home, "cache"),
    SPILLWAY_CAMPAIGN_INTERVAL: "300ms",
    SPILLWAY_CYCLE_INTERVAL: "200ms",
    SPILLWAY_METRICS_LISTEN: "off",
    SPILLWAY_TAKEOVER_WATCH: "1s",
  };
}

function run(args: readonly string[], env = envOf(server.url("postgres"), join(home, "lake"))): Promise<ProcessResult> {
  return runCli(args, { env, timeoutMs: 60_000 });
}

function lakeFiles(): [string, number][] {
  return readdirSync(join(home, "lake"), { recursive: true, withFileTypes: true })
    .filter((f) => f.isFile() && f.name !== "owner.json")
    .map((f): [string, number] => [join(f.parentPath, f.name), readFileSync(join(f.parentPath, f.name)).length])
    .toSorted();
}

test("a copy is refused while its original lives, and goes on in a fork", async () => {
  const data = mkdtempSync(join(tmpdir(), "spillway-test-"));
  await client.end();
  await server.stop();
  execFileSync("cp", ["-a", server.dataDir, join(data, "data")]);
  execFileSync("chmod", ["755", data]);
  await server.start();
  client = await server.connect("postgres");
  const copy = await startPostgres({ dataDir: join(data, "data") });
  closers.push(async () => {
    await copy.destroy();
    rmSync(data, { recursive: true, force: true });
  });
  // The original's worker claims its lake again after the restart, and shows itself from then on.
  const original = spawnCli(["worker"], { env: { ...envOf(server.url("postgres"), join(home, "lake")) } });
  closers.push(async () => void (await original.kill("SIGTERM")));
  const generation = (): string => readFileSync(join(home, "lake/_spillway/owner.json"), "utf8");
  for (const was = generation(); generation() === was;) await new Promise((resolve) => setTimeout(resolve, 50));

  const shared = envOf(copy.url("postgres"), join(home, "lake"));
  const refused = await run(["worker", "--once"], shared);
  expect(refused).toMatchObject({ code: 1 });
  expect(refused.stderr).toContain("lake_not_ours");
  const before = lakeFiles();
  const forked = envOf(copy.url("postgres"), join(home, "forked"));
  const answer = await run(["restore", "fork", "--json"], forked);
  expect(answer, answer.stderr).toMatchObject({ code: 0 });
  const result = JSON.parse(answer.stdout.trim().split("\n").at(-1) ?? "") as Record<string, unknown>;
  expect(result).toMatchObject({ outcome: "forked", tables: 1, droppedSnapshots: expect.any(Number) });
  expect(result["droppedSnapshots"]).toBeGreaterThan(0);
  expect(await run(["worker", "--once"], forked)).toMatchObject({ code: 0 });
  expect(await run(["verify", "--all"], forked)).toMatchObject({ code: 0 });
  const count = ["sql", "select count(*), min(v), sum(k) from t", "--format", "csv"];
  const [here, there] = [await run(count), await run(count, forked)];
  expect(there.stdout).toBe(here.stdout);
  expect(there.stdout).toContain("3000");
  // What is written in the fork is the fork's alone.
  expect(await run(["sql", "update t set v = 'forked' where id = 2 and k = 2"], forked)).toMatchObject({ code: 0 });
  expect(await run(["maintain", "--all"], forked)).toMatchObject({ code: 0 });
  expect((await run(["restore", "fork"], forked)).stderr).toContain("restore_not_needed");
  expect((await run(["restore", "fork"], shared)).code).not.toBe(0);
  expect(lakeFiles()).toEqual(before);
  expect((await run(count)).stdout).toBe(here.stdout);
  expect(await run(["verify", "--all"])).toMatchObject({ code: 0 });
});
