/**
 * The processes of one Postgres, found by what the kernel says rather than by what a pid file says.
 * A postmaster that was killed leaves children behind that hold its shared memory and its port; a zombie
 * is not alive, although signal 0 reaches it. Every server process has the data directory as its
 * working directory (source: ChangeToDataDir in src/backend/utils/init/miscinit.c).
 *
 * This file is also used by the watchdog and so imports nothing of ours.
 */
import { readdirSync, readFileSync, readlinkSync, realpathSync } from "node:fs";
import { join } from "node:path";

export interface ServerProcess {
  readonly pid: number;
  readonly parent: number;
}

/** Whether the process exists and is no zombie. */
export function isAlive(pid: number): boolean {
  if (!Number.isInteger(pid) || pid <= 0) return false;
  const stat = readStat(pid);
  if (stat !== null) return stat.state !== "Z" && stat.state !== "X";
  try {
    readFileSync("/proc/self/stat");
    return false;
  } catch {
    return signalReaches(pid);
  }
}

function signalReaches(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

interface Stat {
  readonly command: string;
  readonly state: string;
  readonly parent: number;
  /** Ticks since boot at which the process began: with the pid, its identity. */
  readonly startTicks: string;
}

/** The fields of /proc/<pid>/stat that matter; null when there is no such process. */
export function readStat(pid: number): Stat | null {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch {
    return null;
  }
  const close = text.lastIndexOf(")");
  const rest = text.slice(close + 2).split(" ");
  return {
    command: text.slice(text.indexOf("(") + 1, close),
    state: rest[0] ?? "X",
    parent: Number(rest[1]),
    startTicks: rest[19] ?? "0",
  };
}

/** All live server processes of a data directory, the postmaster (if any) first. */
export function serverProcesses(pgdata: string): ServerProcess[] {
  let home: string;
  try {
    home = realpathSync(pgdata);
  } catch {
    return [];
  }
  const found: ServerProcess[] = [];
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const pid = Number(name);
    if (cwdOf(pid) !== home) continue;
    const stat = readStat(pid);
    if (stat && stat.state !== "Z" && stat.state !== "X" && /^(postgres|postmaster)/.test(stat.command)) {
      found.push({ pid, parent: stat.parent });
    }
  }
  const pids = new Set(found.map((p) => p.pid));
  return found.toSorted((a, b) => Number(pids.has(a.parent)) - Number(pids.has(b.parent)));
}

/** Programs of an earlier keeper that still change the directory: pg_basebackup, pg_rewind and initdb outlive it. */
export function rebuildPrograms(pgdata: string): number[] {
  return readdirSync("/proc").flatMap((name) => {
    if (!/^\d+$/.test(name) || !isAlive(Number(name))) return [];
    try {
      const [program = "", ...args] = readFileSync(`/proc/${name}/cmdline`, "utf8").split("\0");
      const rebuilds = /(^|\/)(pg_basebackup|pg_rewind|initdb)$/.test(program);
      return rebuilds && args[args.indexOf("-D") + 1] === pgdata ? [Number(name)] : [];
    } catch {
      return [];
    }
  });
}

/** Ends them by force. False when one does not go within `limitMs`. */
export async function endRebuildPrograms(
  pgdata: string,
  sleep: (ms: number) => Promise<void>,
  limitMs = 5000,
): Promise<boolean> {
  for (let waited = 0; waited < limitMs; waited += FENCE_STEP_MS) {
    const left = rebuildPrograms(pgdata);
    if (left.length === 0) return true;
    for (const pid of left) sendSignal(pid, "SIGKILL");
    await sleep(FENCE_STEP_MS);
  }
  return rebuildPrograms(pgdata).length === 0;
}

/** Whether this very process is a live server process of the directory (a pid may have been given anew). */
export function isServerProcess(pid: number, pgdata: string): boolean {
  if (!isAlive(pid)) return false;
  const cwd = cwdOf(pid);
  try {
    return cwd !== null && cwd === realpathSync(pgdata);
  } catch {
    return false;
  }
}

function cwdOf(pid: number): string | null {
  try {
    return readlinkSync(`/proc/${pid}/cwd`);
  } catch {
    return null;
  }
}

/** The pid in postmaster.pid, alive or not; null without the file. */
export function postmasterPid(pgdata: string): number | null {
  try {
    const pid = Number.parseInt(readFileSync(join(pgdata, "postmaster.pid"), "utf8"), 10);
    return Number.isInteger(pid) && pid > 0 ? pid : null;
  } catch {
    return null;
  }
}

/** Sends a signal; false when the process is gone. */
export function sendSignal(pid: number, signal: NodeJS.Signals): boolean {
  try {
    process.kill(pid, signal);
    return true;
  } catch {
    return false;
  }
}

const FENCE_QUIT_MS = 300;
const FENCE_STEP_MS = 20;

/**
 * Stops a Postgres at once, whatever state it is in: SIGQUIT (immediate shutdown), and SIGKILL for
 * whatever is left after 300 ms, the postmaster first so that it starts no new children. A stopped
 * (SIGSTOP) process obeys only the latter. Resolves with whether everything is gone within `limitMs`.
 */
export async function fencePostgres(
  pgdata: string,
  sleep: (ms: number) => Promise<void>,
  limitMs = 5000,
): Promise<boolean> {
  const postmaster = postmasterPid(pgdata);
  const first = serverProcesses(pgdata);
  if (first.length === 0) return true;
  if (postmaster !== null && first.some((p) => p.pid === postmaster)) sendSignal(postmaster, "SIGQUIT");
  else for (const { pid } of first) sendSignal(pid, "SIGQUIT");
  for (let waited = 0; waited < limitMs; waited += FENCE_STEP_MS) {
    const left = serverProcesses(pgdata);
    if (left.length === 0) return true;
    if (waited >= FENCE_QUIT_MS) for (const { pid } of left) sendSignal(pid, "SIGKILL");
    await sleep(FENCE_STEP_MS);
  }
  return serverProcesses(pgdata).length === 0;
}
