/** Finding the server programs of a stock Postgres, and what they can do. */
import { accessSync, constants, mkdtempSync, readdirSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { SpillwayError } from "@spillway/base/errors";
import { mustRun, runProgram } from "./programs.ts";

export const OLDEST_MAJOR = 14;
export const NEWEST_MAJOR = 18;

export interface Binaries {
  readonly dir: string;
  readonly major: number;
  /** As the server says it, e.g. `15.18 (Debian 15.18-0+deb12u1)`. */
  readonly version: string;
  readonly hasBaseBackup: boolean;
  readonly hasRewind: boolean;
  /** Crash recovery may flush the file system in one call instead of opening every file (Linux). */
  readonly hasSyncfs: boolean;
}

/** A program's path in the folder. */
export function program(binaries: Binaries, name: string): string {
  return join(binaries.dir, name);
}

export interface DetectOptions {
  /** `--pg-bin`: then nothing else is looked at. */
  readonly pgBin?: string | undefined;
  /** The major version of an existing data directory, which then must be met. */
  readonly wantMajor?: number | undefined;
  readonly path?: string | undefined;
  /** Where distributions keep versions side by side. */
  readonly roots?: readonly string[];
}

const ROOTS = ["/usr/lib/postgresql", "/usr/pgsql", "/opt/postgresql"];

/**
 * The binaries to use: `--pg-bin`; else those in PATH; else the newest supported version under the
 * distribution's folders. Throws `ha_binaries_missing`, `ha_version_unsupported` or `ha_version_mismatch`.
 */
export async function detectBinaries(options: DetectOptions = {}): Promise<Binaries> {
  if (options.pgBin !== undefined) {
    if (!isServerDir(options.pgBin)) {
      throw new SpillwayError("ha_binaries_missing", `${options.pgBin} has no initdb and postgres`);
    }
    return checked(await inspect(options.pgBin), options.wantMajor);
  }
  const candidates = candidateDirs(options);
  const seen: Binaries[] = [];
  for (const dir of candidates) seen.push(await inspect(dir));
  const first = seen.find((b) => supported(b.major) && (options.wantMajor ?? b.major) === b.major);
  if (first) return first;
  if (seen[0]) return checked(seen[0], options.wantMajor);
  throw new SpillwayError("ha_binaries_missing", "no initdb and postgres in PATH or under /usr/lib/postgresql");
}

function candidateDirs(options: DetectOptions): string[] {
  const fromPath = (options.path ?? process.env["PATH"] ?? "").split(":").filter((dir) => dir !== "");
  const fromRoots = (options.roots ?? ROOTS).flatMap((root) => {
    const versions = listDir(root).filter((name) => /^\d+$/.test(name));
    return versions.toSorted((a, b) => Number(b) - Number(a)).map((name) => join(root, name, "bin"));
  });
  return [...new Set([...fromPath, ...fromRoots].filter(isServerDir).map(homeOf))];
}

/** A folder of links (`/usr/local/bin`) rarely has them all: where the server itself is, pg_rewind is as well. */
function homeOf(dir: string): string {
  const home = dirname(realpathSync(join(dir, "postgres")));
  return isServerDir(home) ? home : dir;
}

function listDir(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

function isServerDir(dir: string): boolean {
  return isExecutable(join(dir, "initdb")) && isExecutable(join(dir, "postgres"));
}

async function inspect(dir: string): Promise<Binaries> {
  const { stdout } = await mustRun(join(dir, "postgres"), ["--version"], { timeoutMs: 10_000 });
  const { major, version } = parseVersion(stdout);
  const usable = async (name: string): Promise<boolean> => {
    if (!isExecutable(join(dir, name))) return false;
    return (await mustRun(join(dir, name), ["--version"], { timeoutMs: 10_000 })).code === 0;
  };
  return {
    dir,
    major,
    version,
    hasBaseBackup: await usable("pg_basebackup").catch(() => false),
    hasRewind: await usable("pg_rewind").catch(() => false),
    hasSyncfs: await knowsSyncfs(dir),
  };
}

/** Asks the server itself, which would not start with a value that it does not know. */
async function knowsSyncfs(dir: string): Promise<boolean> {
  const probe = mkdtempSync(join(tmpdir(), "spillway-ha-probe-"));
  try {
    writeFileSync(join(probe, "postgresql.conf"), "");
    const name = "recovery_init_sync_method";
    const args = ["-C", name, "-D", probe, "-c", `${name}=syncfs`];
    const { code, stdout } = await runProgram(join(dir, "postgres"), args, { timeoutMs: 10_000 });
    return code === 0 && stdout.trim() === "syncfs";
  } finally {
    rmSync(probe, { recursive: true, force: true });
  }
}

/** Reads `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`. */
export function parseVersion(text: string): { major: number; version: string } {
  const match = /\(PostgreSQL\)\s+((\d+)\S*.*)/.exec(text.trim());
  if (!match) throw new SpillwayError("ha_version_unsupported", `not a Postgres server: ${text.trim().slice(0, 80)}`);
  return { major: Number(match[2]), version: match[1] ?? "" };
}

/** server_version_num, as far as the programs tell it. */
export function versionNumber(binaries: Binaries): number {
  const minor = Number(/^\d+\.(\d+)/.exec(binaries.version)?.[1] ?? 0);
  return binaries.major * 10_000 + minor;
}

function supported(major: number): boolean {
  return major >= OLDEST_MAJOR && major <= NEWEST_MAJOR;
}

function checked(binaries: Binaries, wantMajor: number | undefined): Binaries {
  const { dir, major, version } = binaries;
  if (!supported(major)) {
    throw new SpillwayError("ha_version_unsupported", `${dir} is Postgres ${version}, not 14 to 18`);
  }
  if (wantMajor !== undefined && wantMajor !== major) {
    throw new SpillwayError(
      "ha_version_mismatch",
      `the data directory is of Postgres ${wantMajor}, the programs in ${dir} are of ${major}`,
    );
  }
  return binaries;
}
