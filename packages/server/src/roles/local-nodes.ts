/**
 * Nodes as child processes of this machine: each in a process group of its own, so that it outlives its manager and takes all
 * that it started along when it is ended.
 */
import { type ChildProcess, spawn } from "node:child_process";
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
  const spare = new Spare(options);
  return {
    kind: "local",
    place: (nodeId) => ({
      socketPath: join(options.directory, `${nodeId.slice(0, 13)}.sock`),
      cacheDir: join(options.directory, `cache-${nodeId.slice(0, 13)}`),
    }),
    start: (config, onExit) => start(spare.take(), config, onExit),
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

function start(child: ChildProcess, config: NodeConfig, onExit: (why: string) => void): NodeProcess {
  const pid = child.pid ?? 0;
  child.once("error", (error) => onExit(messageOf(error)));
  child.once("exit", (code, signal) => onExit(signal === null ? `exit code ${code}` : signal));
  child.stdin?.end(JSON.stringify(config));
  child.unref();
  return { pid, startedAt: processStart(pid) ?? "" };
}

const SPARE_AFTER_MS = 1500;
/** libuv's threads are counted when a process begins: enough for what one node runs at a time. */
const THREADS = "48";

/**
 * One process beside the nodes that has loaded its program and waits for a configuration, so that the successor of a node that
 * died need not wait for that. It belongs to no tenant yet. It ends when its standard input does: with this process at the latest.
 */
class Spare {
  readonly #options: LocalNodesOptions;
  #child: ChildProcess | null = null;
  #timer: NodeJS.Timeout | null = null;

  constructor(options: LocalNodesOptions) {
    this.#options = options;
  }

  take(): ChildProcess {
    const kept = this.#child;
    this.#child = null;
    // When the pool has what it wants, and the machine a moment.
    if (this.#timer) clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#refill(), SPARE_AFTER_MS);
    this.#timer.unref();
    return kept && kept.exitCode === null && kept.signalCode === null ? kept : this.#launch();
  }

  #refill(): void {
    try {
      this.#child ??= this.#launch();
      this.#child.unref();
      // Nothing of it keeps this process from ending.
      (this.#child.stdin as { unref?: () => void } | null)?.unref?.();
    } catch (error) {
      this.#options.log.warn("node.spare_failed", { error: messageOf(error) });
    }
  }

  #launch(): ChildProcess {
    const { command, directory, env } = this.#options;
    const [program, ...args] = command;
    if (program === undefined) throw new SpillwayError("internal", "There is no command for nodes.");
    const log = openSync(join(directory, "nodes.log"), "a", 0o600);
    try {
      const child = spawn(program, [...args, "node"], {
        detached: true,
        stdio: ["pipe", log, log],
        env: { ...process.env, UV_THREADPOOL_SIZE: THREADS, ...env },
      });
      child.once("error", () => {});
      child.stdin?.on("error", () => {});
      if (child.pid === undefined) {
        throw new SpillwayError("no_node", `A node could not be started: ${program} does not run.`);
      }
      return child;
    } finally {
      closeSync(log);
    }
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
