/** The demo with a sample of its data: every check holds, the last line is for scripts, and nothing is left behind. */
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runCli, spawnCli } from "@spillway/testkit/processes";
import { afterAll, beforeAll, expect, test } from "vitest";

let home: string;
beforeAll(() => {
  home = mkdtempSync(join(tmpdir(), "spillway-test-"));
  mkdirSync(join(home, "tmp"));
});
afterAll(() => rmSync(home, { recursive: true, force: true }));

test("demo --exit --json ends with one line and exit code 0", async () => {
  const env = { TMPDIR: join(home, "tmp"), SPILLWAY_DATABASE_URL: "postgres://nobody@127.0.0.1:1/none" };
  const done = await runCli(["demo", "--exit", "--json", "--rows", "30000"], { env, timeoutMs: 110_000 });
  expect([done.code, done.stderr]).toEqual([0, ""]);
  const lines = done.stdout.trimEnd().split("\n");
  expect(lines).toHaveLength(1);
  const result = JSON.parse(lines[0] ?? "");
  expect(result).toMatchObject({ checks_failed: 0, flights_loaded: 30_000 });
  expect(result.heap_rows + result.lake_rows).toBe(result.rows_total);
  expect(result.lake_rows).toBeGreaterThan(20_000);
  expect(result.checks.length).toBeGreaterThanOrEqual(10);
  expect(readdirSync(join(home, "tmp")).filter((name) => name.startsWith("spillway-demo"))).toEqual([]);
});

test("without --exit it goes on until Ctrl-C, and cleans up", async () => {
  const child = spawnCli(["demo", "--rows", "5000"], { env: { TMPDIR: join(home, "tmp") } });
  await child.waitForLine(/Ctrl-C ends everything/, 110_000);
  const ended = await child.kill("SIGINT");
  expect([ended.code, ended.signal]).toEqual([0, null]);
  expect(readdirSync(join(home, "tmp")).filter((name) => name.startsWith("spillway-demo"))).toEqual([]);
});
