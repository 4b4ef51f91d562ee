/**
 * What the machine gives: a directory that Postgres can reach, the user that it runs as, free ports.
 * Postgres refuses to run as root; as root, everything of it belongs to the user `postgres`.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, chownSync, mkdirSync, mkdtempSync, statSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { guardDir } from "./reaper.ts";

/** The user that Postgres runs as; empty when the tests do not run as root. */
export interface RunAs {
  readonly uid?: number;
  readonly gid?: number;
}

export const REPO_ROOT = new URL("../../..", import.meta.url).pathname.replace(/\/$/, "");

let runAs: RunAs | null = null;

export function postgresUser(): RunAs {
  runAs ??= process.getuid?.() === 0 ? { uid: idOf("-u"), gid: idOf("-g") } : {};
  return runAs;
}

function idOf(flag: "-u" | "-g"): number {
  if (spawnSync("id", ["-u", "postgres"]).status !== 0) {
    execFileSync("useradd", [
      "--system",
      "--user-group",
      "--no-create-home",
      "--shell",
      "/usr/sbin/nologin",
      "postgres",
    ]);
  }
  return Number(execFileSync("id", [flag, "postgres"], { encoding: "utf8" }));
}

/** True when a user who is neither owner nor in the group can read the file at this path. */
export function readableByOthers(path: string): boolean {
  for (let dir = path; ; dir = dirname(dir)) {
    const needed = dir === path ? 0o005 : 0o001;
    if ((statSync(dir).mode & needed) !== needed) return false;
    if (dir === "/") return true;
  }
}

/** The directory for temporary files: the system's, or `/tmp` where user `postgres` cannot reach that. */
export function tempRoot(): string {
  const dir = tmpdir();
  return postgresUser().uid === undefined || readableByOthers(dir) ? dir : "/tmp";
}

/** A directory that outlives the process, for binaries and empty clusters that take long to make. */
export function cacheDir(): string {
  const dir = join(tempRoot(), `spillway-testkit-${process.getuid?.() ?? 0}`);
  mkdirSync(dir, { recursive: true, mode: 0o755 });
  chmodSync(dir, 0o755);
  return dir;
}

/** A new directory that is removed when this process ends. Owned by the user of Postgres when `forPostgres`. */
export function scratchDir(name: string, options: { readonly forPostgres?: boolean } = {}): string {
  const dir = mkdtempSync(join(tempRoot(), `spillway-${name}-`));
  guardDir(dir);
  if (options.forPostgres) giveToPostgres(dir);
  return dir;
}

export function giveToPostgres(path: string): void {
  const { uid, gid } = postgresUser();
  if (uid !== undefined && gid !== undefined) chownSync(path, uid, gid);
}

/**
 * A free TCP port of the loopback interface, below the range that the kernel gives to outgoing connections:
 * so a stopped server finds its port free when it comes back.
 */
export async function freePort(): Promise<number> {
  for (let attempt = 0; attempt < 100; attempt++) {
    const port = 15_000 + Math.floor(Math.random() * 17_000);
    if (await isFree(port)) return port;
  }
  throw new Error("no free port between 15000 and 32000");
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(false));
    server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
  });
}
