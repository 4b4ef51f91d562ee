/**
 * Which directory of a machine's cache belongs to which process. Two processes that evicted from one
 * directory would take away files that the other holds.
 */
import { linkSync, mkdirSync, readFileSync, renameSync, rmSync, unlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { messageOf, SpillwayError } from "@spillway/base/errors";

export interface ClaimedDir {
  readonly dir: string;
  /** Gives the directory, and what it holds, back for the next process. */
  release(): void;
}

/** Locks of this process: its own number in a lock file may also be that of a dead namesake. */
const own = new Set<string>();

/**
 * A directory under `base` that no other live process uses: `base/0`, `base/1`, … The first whose
 * owner is gone is taken over with what it holds.
 */
export function claimCacheDir(base: string, pid: number): ClaimedDir {
  try {
    for (let slot = 0; ; slot++) {
      const dir = join(base, String(slot));
      const lock = join(base, `${slot}.owner`);
      mkdirSync(dir, { recursive: true });
      if (!takeLock(lock, pid)) continue;
      own.add(lock);
      return { dir, release: () => giveBack(lock) };
    }
  } catch (error) {
    const message = `The cache directory ${base} cannot be used: ${messageOf(error)}.`;
    throw new SpillwayError("store_denied", message, { cause: error, remedy: "Set --cache-dir to a writable folder." });
  }
}

function giveBack(lock: string): void {
  if (own.delete(lock)) rmSync(lock, { force: true });
}

function takeLock(lock: string, pid: number): boolean {
  for (let tries = 0; tries < 2; tries++) {
    try {
      writeFileSync(lock, String(pid), { flag: "wx" });
      return true;
    } catch (error) {
      if (!isCode(error, "EEXIST")) throw error;
    }
    if (own.has(lock) || isOwned(lock, pid)) return false;
    if (!clearStale(lock, pid)) return false;
  }
  return false;
}

/** Moves a stale lock away. False if a live one turned out to have replaced it, which is put back. */
function clearStale(lock: string, pid: number): boolean {
  const aside = `${lock}.${pid}`;
  try {
    renameSync(lock, aside);
  } catch (error) {
    if (isCode(error, "ENOENT")) return true;
    throw error;
  }
  const live = isOwned(aside, pid);
  if (live) linkSync(aside, lock);
  unlinkSync(aside);
  return !live;
}

function isOwned(lock: string, pid: number): boolean {
  let owner: number;
  try {
    owner = Number(readFileSync(lock, "utf8").trim());
  } catch (error) {
    if (isCode(error, "ENOENT")) return false;
    throw error;
  }
  return owner > 0 && owner !== pid && isAlive(owner);
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return isCode(error, "EPERM");
  }
}

function isCode(error: unknown, code: string): boolean {
  return error instanceof Error && "code" in error && error.code === code;
}
