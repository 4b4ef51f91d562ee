/**
 * Nodes as child processes of this machine: each in a process group of its own, so that it outlives its manager and takes all
 * that it started along when it is ended.
 */
import { spawn } from "node:child_process";
import { chmodSync, closeSync, existsSync, mkdirSync, openSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import type { NodeBackend, NodeProcess } from "../serve/serve.ts";
import type { NodeConfig } from "./node.ts";

export interface LocalNodesOptions {
  /** A private directory (0700): sockets, caches and logs. Short: a socket's path has at most about 100 bytes. */
  readonly directory: string;
  /** What starts a node: the program and its first arguments. */
  readonly command: readonly string[];
  readonly log: Logger;
  readonly env?: Readonly<Record<string, string | undefined>>;
}

export function localNodes(options: LocalNodesOptions): NodeBackend<NodeConfig> {
  mkdirSync(options.directory, { recursive: true, mode: 0o700 });
  chmodSync(options.directory, 0o700);
  return {
    kind: "local",
    place: (nodeId) => ({
      socketPath: join(options.directory, `${nodeId.slice(0, 13)}.sock`),
      cacheDir: join(options.directory, `cache-${nodeId.slice(0, 13)}`),
    }),
    start: (config, onExit) => start(options, config, onExit),
    isAlive: ({ pid, startedAt }) => processStart(pid) === startedAt,
    end: ({ pid, startedAt }, signal) => {
      if (processStart(pid) !== startedAt) return;
      try {
        process.kill(-pid, signal);
      } catch {
        // It ended by itself in between.
      }
    },
  };
}

function start(
  { command, directory, env }: LocalNodesOptions,
  config: NodeConfig,
  onExit: (why: string) => void,
): NodeProcess {
  const [program, ...args] = command;
  if (program === undefined) throw new SpillwayError("internal", "There is no command for nodes.");
  const log = openSync(join(directory, `${config.nodeId.slice(0, 13)}.log`), "a", 0o600);
  const threads = String(Math.max(8, config.concurrency * 2 + 8));
  try {
    const child = spawn(program, [...args, "node", "--id", config.nodeId], {
      detached: true,
      stdio: ["pipe", log, log],
      env: { ...process.env, UV_THREADPOOL_SIZE: threads, ...env },
    });
    if (child.pid === undefined) {
      child.once("error", () => {});
      throw new SpillwayError("no_node", `A node could not be started: ${program} does not run.`);
    }
    child.once("error", (error) => onExit(messageOf(error)));
    child.once("exit", (code, signal) => onExit(signal === null ? `exit code ${code}` : signal));
    child.stdin?.on("error", () => {});
    child.stdin?.end(JSON.stringify(config));
    child.unref();
    return { pid: child.pid, startedAt: processStart(child.pid) ?? "" };
  } finally {
    closeSync(log);
  }
}

/** When a process began, in the kernel's own words, so that a number that is used again is told apart; null: there is none. */
export function processStart(pid: number): string | null {
  const path = `/proc/${pid}/stat`;
  if (!existsSync("/proc/self/stat")) return isRunning(pid) ? "unknown" : null;
  try {
    const text = readFileSync(path, "utf8");
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    // A process that has ended and was not waited for is none.
    return fields[0] === "Z" || fields[0] === "X" ? null : (fields[19] ?? null);
  } catch {
    return null;
  }
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
