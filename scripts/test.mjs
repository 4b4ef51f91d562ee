#!/usr/bin/env node
// `npm test`: installs what the tests need and lack, then runs every kind of test.
// Prints `N passed, N failed` alone on its last line.
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = new URL("..", import.meta.url).pathname;

function run(command, args, options = {}) {
  return spawnSync(command, args, { cwd: root, stdio: "inherit", ...options });
}

/** Debian's Postgres 15: installed when root and missing, otherwise one clear line. */
function ensurePostgres() {
  if (existsSync("/usr/lib/postgresql/15/bin/postgres")) return;
  if (process.getuid?.() !== 0) {
    console.error("npm test needs PostgreSQL 15: install it with `sudo apt-get install postgresql-15`.");
    process.exit(2);
  }
  run("apt-get", ["update", "-q"], { stdio: "ignore" });
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  const done = run("apt-get", ["install", "-y", "-q", "--no-install-recommends", "postgresql-15"], {
    env,
    stdio: "ignore",
  });
  if (done.status !== 0 || !existsSync("/usr/lib/postgresql/15/bin/postgres")) {
    console.error("npm test needs PostgreSQL 15, and `apt-get install postgresql-15` failed here.");
    process.exit(2);
  }
}

ensurePostgres();
const build = run("npx", ["tsc", "-b"]);
if (build.status !== 0) {
  console.log("0 passed, 1 failed");
  process.exit(1);
}
const dir = mkdtempSync(join(tmpdir(), "spillway-test-"));
const out = join(dir, "results.json");
const args = [
  "vitest",
  "run",
  "--reporter=default",
  "--reporter=json",
  `--outputFile.json=${out}`,
  ...process.argv.slice(2),
];
// The build above is fresh: the command line starts from it, three times as fast as from the source.
const tests = run("npx", args, { env: { SPILLWAY_TEST_CLI: "dist", ...process.env } });
let passed = 0;
let failed = tests.status === 0 ? 0 : 1;
if (existsSync(out)) {
  const results = JSON.parse(readFileSync(out, "utf8"));
  passed = results.numPassedTests;
  failed = Math.max(
    failed,
    results.numFailedTests +
      results.testResults.filter((t) => t.status === "failed" && t.assertionResults.length === 0).length,
  );
}
rmSync(dir, { recursive: true, force: true });
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed > 0 ? 1 : 0);
