#!/usr/bin/env node
// `npm run test:pg -- 14|16|17 [vitest arguments]`: the tests that need a real Postgres, on another major. The binaries come
// from npm, on demand, into a cache outside the repository. Prints `N passed, N failed` alone on its last line.
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = new URL("..", import.meta.url).pathname;
const [major, ...rest] = process.argv.slice(2);
if (!["14", "15", "16", "17", "18"].includes(major)) {
  console.error("usage: npm run test:pg -- 14|15|16|17|18 [vitest arguments]");
  process.exit(2);
}
const dir = mkdtempSync(join(tmpdir(), "spillway-test-pg-"));
const out = join(dir, "results.json");
const args = ["vitest", "run", "--project", "pg", "--project", "kill", "--reporter=default", "--reporter=json"];
const tests = spawnSync("npx", [...args, `--outputFile.json=${out}`, ...rest], {
  cwd: root,
  stdio: "inherit",
  env: { ...process.env, SPILLWAY_TEST_PG_MAJOR: major },
});
let passed = 0;
let failed = tests.status === 0 ? 0 : 1;
if (existsSync(out)) {
  const results = JSON.parse(readFileSync(out, "utf8"));
  const unread = results.testResults.filter((t) => t.status === "failed" && t.assertionResults.length === 0).length;
  passed = results.numPassedTests;
  failed = Math.max(failed, results.numFailedTests + unread);
}
rmSync(dir, { recursive: true, force: true });
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed > 0 ? 1 : 0);
