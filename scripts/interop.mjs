#!/usr/bin/env node
// `npm run interop`: what this project writes is read by pyiceberg and by DuckDB's Iceberg extension,
// and the other way round. Makes a Python environment once, then runs the tests `*.interop.ts`.
// Further arguments go to vitest. Prints `N passed, N failed` alone on its last line.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const PACKAGES = [
  "pyiceberg[pyarrow,sql-sqlite,pyiceberg-core]==0.12.0",
  "pyarrow==26.0.1",
  "duckdb==1.5.5",
  "duckdb-extension-iceberg==1.5.5",
  "duckdb-extension-avro==1.5.5",
  "duckdb-extension-httpfs==1.5.5",
  "adbc-driver-flightsql==1.13.0",
  "adbc-driver-manager==1.13.0",
  "pandas==3.1.1",
  "polars==2.1.0",
  "psycopg[binary]==3.3.9",
  "sqlalchemy==2.1.9",
  "asyncpg==0.32.0",
];
const root = new URL("..", import.meta.url).pathname;
const venv = join(process.env.SPILLWAY_INTEROP_VENV ?? join(tmpdir(), "spillway-interop-venv"));
const python = join(venv, "bin", "python");
const stamp = join(venv, "spillway-packages.txt");

function run(command, args, options = {}) {
  return spawnSync(command, args, { cwd: root, stdio: "inherit", ...options });
}

function fail(message) {
  console.error(message);
  console.log("0 passed, 1 failed");
  process.exit(1);
}

/** Made anew when the list of packages changed. */
function ensurePython() {
  const wanted = PACKAGES.join("\n");
  if (existsSync(python) && existsSync(stamp) && readFileSync(stamp, "utf8") === wanted) return;
  rmSync(venv, { recursive: true, force: true });
  mkdirSync(venv, { recursive: true });
  if (run("python3", ["-m", "venv", venv]).status !== 0) fail("interop needs Python 3.10 or later, with venv.");
  const install = run(python, ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", ...PACKAGES]);
  if (install.status !== 0) fail("interop could not install the foreign readers with pip.");
  writeFileSync(stamp, wanted);
}

ensurePython();
const dir = mkdtempSync(join(tmpdir(), "spillway-interop-"));
const out = join(dir, "results.json");
const reporters = ["--reporter=default", "--reporter=json", `--outputFile.json=${out}`];
const env = { ...process.env, SPILLWAY_INTEROP: python };
const tests = run("npx", ["vitest", "run", "--project", "interop", ...reporters, ...process.argv.slice(2)], { env });
const results = existsSync(out) ? JSON.parse(readFileSync(out, "utf8")) : { numPassedTests: 0, numFailedTests: 1 };
rmSync(dir, { recursive: true, force: true });
const failed = Math.max(results.numFailedTests, tests.status === 0 ? 0 : 1);
console.log(`${results.numPassedTests} passed, ${failed} failed`);
process.exit(failed > 0 ? 1 : 0);
