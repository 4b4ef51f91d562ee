/** `spillway serve` as a process: from nothing to an answer, its death and its successor, its end. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { spawnCli, type TestProcess } from "@spillway/testkit/processes";
import { guardGroup } from "@spillway/testkit/reaper";
import { waitFor } from "@spillway/testkit/wait";
import pg from "pg";
import { afterAll, beforeAll, expect, test } from "vitest";
import { testSource, type TestSource } from "../serve/session/test-serve.ts";
import { processStart } from "./local-nodes.ts";

let source: TestSource;
let control: TestDatabase;
let stateDir: string;

beforeAll(async () => {
  source = await testSource();
  control = await createTestDatabase({});
  stateDir = mkdtempSync(join(tmpdir(), "spsv-"));
});
afterAll(async () => {
  for (const pid of await nodePids().catch(() => [])) if (processStart(pid) !== null) process.kill(-pid, "SIGKILL");
  await control.drop();
  await source.close();
  rmSync(stateDir, { recursive: true, force: true });
});

interface Served {
  readonly process: TestProcess;
  readonly pgwire: number;
  readonly http: number;
  readonly password: string | null;
}

async function serve(): Promise<Served> {
  const process = spawnCli(
    [
      "serve",
      "--database-url",
      source.db.url,
      "--warehouse",
      source.store.root,
      "--control-url",
      control.url,
      "--pgwire-listen",
      "127.0.0.1:0",
      "--flight-listen",
      "off",
      "--http-listen",
      "127.0.0.1:0",
      "--serve-state-dir",
      stateDir,
    ],
    {},
  );
  const line = await process.waitForLine(/Serving: pgwire (\d+), flight off, http (\d+)/, 60_000);
  const password = /password (\S+) /.exec(process.stdout)?.[1] ?? null;
  return { process, pgwire: Number(line[1]), http: Number(line[2]), password };
}

async function nodePids(): Promise<number[]> {
  const { rows } = await control.client.query(
    "select pid from spillway_control.node where pid is not null order by pid",
  );
  return rows.map((r) => r.pid as number);
}

async function connect(served: Served, password: string): Promise<pg.Client> {
  const client = new pg.Client({ host: "127.0.0.1", port: served.pgwire, user: "admin", password, database: "main" });
  client.on("error", () => {});
  await client.connect();
  return client;
}

const get = async (served: Served, path: string): Promise<number> =>
  (await fetch(`http://127.0.0.1:${served.http}${path}`)).status;

test("a manager answers, dies, and its successor goes on with its nodes", async () => {
  const first = await serve();
  const password = first.password ?? "";
  expect(password).not.toBe("");
  const client = await connect(first, password);
  const { rows } = await client.query("SELECT count(*)::INT AS n FROM items");
  expect(rows).toEqual([{ n: 3000 }]);
  expect([await get(first, "/health"), await get(first, "/ready"), await get(first, "/metrics")]).toEqual([
    200, 200, 200,
  ]);
  const pids = await nodePids();
  for (const pid of pids) guardGroup(pid);
  // Left in the middle of a transaction.
  await client.query("BEGIN");
  await client.query("UPDATE items SET label = 'half' WHERE id IN (1, 2999)");
  await first.process.kill("SIGKILL");
  expect(pids.map(processStart).every((s) => s !== null)).toBe(true);
  const second = await serve();
  expect(second.password).toBeNull();
  const again = await connect(second, password);
  const startMs = performance.now();
  expect((await again.query("SELECT count(*)::INT AS n FROM items WHERE label = 'half'")).rows).toEqual([{ n: 0 }]);
  expect(performance.now() - startMs).toBeLessThan(5000);
  expect(await nodePids()).toEqual(pids);
  // Nobody waits for what the dead one held.
  await again.query("UPDATE items SET label = 'after' WHERE id IN (1, 2999)");
  expect((await again.query("SELECT count(*)::INT AS n FROM items WHERE label = 'after'")).rows).toEqual([{ n: 2 }]);
  // A node that is killed under it is replaced, and the session does not notice.
  process.kill(pids[0] ?? 0, "SIGKILL");
  expect((await again.query("SELECT count(*)::INT AS n FROM items")).rows).toEqual([{ n: 3000 }]);
  for (const pid of await nodePids()) guardGroup(pid);
  await again.end();
  const result = await second.process.kill("SIGTERM");
  expect(result.code).toBe(0);
  await waitFor("no node is left", async () => (await nodePids()).length === 0 || null);
});

test("a database that cannot be reached is one clear line", async () => {
  const process = spawnCli([
    "serve",
    "--control-url",
    "postgres://nobody@127.0.0.1:1/x",
    "--serve-state-dir",
    stateDir,
  ]);
  const result = await process.done;
  expect(result.code).toBe(1);
  expect(result.stderr).toMatch(/^pg_unreachable: /m);
});
