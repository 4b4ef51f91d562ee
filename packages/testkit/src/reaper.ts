/**
 * Nothing that a test starts outlives the test's process. Every postmaster, process group and directory is
 * guarded by a small detached process that watches a pipe from this one: when the pipe closes, for
 * whatever reason, it ends what is still guarded. One mechanism for exit, signals and `kill -9` alike.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export interface Guard {
  /** Stops guarding: the thing was ended in order. */
  release(): void;
}

let reaper: ChildProcess | null = null;
let nextId = 1;

/** Guards a postmaster: ended with SIGQUIT, then SIGKILL with its children; the directories are removed. */
export function guardPostmaster(pid: number, dirs: readonly string[] = []): Guard {
  return guard("postmaster", pid, dirs);
}

/** Guards a process that leads its own group: the whole group is killed. */
export function guardGroup(pid: number): Guard {
  return guard("group", pid, []);
}

/** Guards a directory: it is removed with everything in it. */
export function guardDir(dir: string): Guard {
  return guard("dir", 0, [dir]);
}

function guard(kind: "postmaster" | "group" | "dir", pid: number, dirs: readonly string[]): Guard {
  const id = String(nextId++);
  send({ id, kind, pid, start: pid === 0 ? "" : startTimeOf(pid), dirs });
  return { release: () => send({ release: id }) };
}

function send(message: unknown): void {
  reaper ??= startReaper();
  reaper.stdin?.write(`${JSON.stringify(message)}\n`);
}

function startReaper(): ChildProcess {
  const script = fileURLToPath(new URL("../reaper.mjs", import.meta.url));
  const child = spawn(process.execPath, [script], { detached: true, stdio: ["pipe", "ignore", "ignore"], cwd: "/" });
  child.unref();
  // The socket under a child's stdin keeps the event loop alive unless it is told not to.
  (child.stdin as unknown as { unref?: () => void }).unref?.();
  return child;
}

/** The kernel's start time of a process, in ticks: with the pid it names one process for ever. Empty when gone. */
export function startTimeOf(pid: number): string {
  return statFields(pid)?.[19] ?? "";
}

/** True while the process exists and is no zombie. */
export function isAlive(pid: number): boolean {
  const state = statFields(pid)?.[0];
  return state !== undefined && state !== "Z";
}

/** The pids whose parent is `pid`. */
export function childrenOf(pid: number): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((child) => Number(statFields(child)?.[1]) === pid);
}

function statFields(pid: number): string[] | null {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "latin1");
    return text.slice(text.lastIndexOf(")") + 2).split(" ");
  } catch {
    return null;
  }
}
