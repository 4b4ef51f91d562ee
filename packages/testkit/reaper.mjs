// Ends what a test process started, however that process ended. Its parent writes one JSON line for each thing
// to guard or to release; when the pipe closes (exit, signal, kill -9) everything still guarded is ended, after
// checking that the pid is still the process that was recorded. Plain JavaScript, so that it starts in 40 ms.
import { readFileSync, readdirSync, rmSync } from "node:fs";
import { createInterface } from "node:readline";

/** @type {Map<string, {id: string, kind: "postmaster" | "group" | "dir", pid: number, start: string, dirs: string[]}>} */
const guarded = new Map();
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The parent's pid and the kernel's start time of a process, or null. Fields 4 and 22 of /proc/<pid>/stat. */
function stat(pid) {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "latin1");
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    return { ppid: Number(fields[1]), start: fields[19], zombie: fields[0] === "Z" };
  } catch {
    return null;
  }
}

function isSame(entry) {
  const now = stat(entry.pid);
  return now !== null && now.start === entry.start && !now.zombie;
}

function childrenOf(pid) {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map((name) => ({ pid: Number(name), stat: stat(Number(name)) }))
    .filter((p) => p.stat?.ppid === pid)
    .map((p) => ({ pid: p.pid, start: p.stat.start }));
}

function signal(pid, name) {
  try {
    process.kill(pid, name);
    return true;
  } catch {
    return false;
  }
}

/** An immediate shutdown lets the postmaster end its own children; what is left after 1.5 s is killed. */
async function endPostmaster(entry) {
  if (!isSame(entry)) return;
  const children = childrenOf(entry.pid);
  for (const p of [...children, entry]) signal(p.pid, "SIGCONT");
  signal(entry.pid, "SIGQUIT");
  for (let i = 0; i < 75 && isSame(entry); i++) await sleep(20);
  if (isSame(entry)) signal(entry.pid, "SIGKILL");
  for (const child of children) {
    if (isSame(child)) signal(child.pid, "SIGKILL");
  }
}

/** A process that leads its own group, with whatever it started. A dead leader's group keeps its number. */
function endGroup(entry) {
  const leader = stat(entry.pid);
  if (leader === null || leader.start === entry.start) signal(-entry.pid, "SIGKILL");
}

async function end(entry) {
  if (entry.kind === "postmaster") await endPostmaster(entry);
  if (entry.kind === "group") endGroup(entry);
}

for (const name of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(name, () => {});
createInterface({ input: process.stdin })
  .on("line", (line) => {
    const entry = JSON.parse(line);
    if (entry.release) guarded.delete(entry.release);
    else guarded.set(entry.id, entry);
  })
  .on("close", async () => {
    await Promise.all([...guarded.values()].map(end));
    for (const entry of guarded.values()) {
      for (const dir of entry.dirs) rmSync(dir, { recursive: true, force: true, maxRetries: 3, retryDelay: 50 });
    }
    process.exit(0);
  });
