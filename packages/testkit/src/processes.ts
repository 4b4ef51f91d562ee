/** Real processes in tests: the command line, or any script of the repository, with real signals. */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { REPO_ROOT } from "./host.ts";
import { type Guard, guardGroup, isAlive } from "./reaper.ts";
import { waitFor } from "./wait.ts";

export interface ProcessOptions {
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly cwd?: string;
  readonly input?: string;
}

export interface ProcessResult {
  /** null when a signal ended it. */
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A running process that leads its own group; ended with this process at the latest. */
export class TestProcess {
  readonly pid: number;
  /** Resolves when the process has ended and its output is complete. */
  readonly done: Promise<ProcessResult>;
  readonly #child: ChildProcess;
  readonly #guard: Guard;
  readonly #out = { stdout: "", stderr: "" };
  #result: ProcessResult | null = null;

  constructor(command: string, args: readonly string[], options: ProcessOptions = {}) {
    const env = { ...process.env, NO_COLOR: "1", ...options.env };
    this.#child = spawn(command, args, { cwd: options.cwd ?? REPO_ROOT, env, stdio: "pipe", detached: true });
    if (this.#child.pid === undefined) throw new Error(`could not run ${command}`);
    this.pid = this.#child.pid;
    this.#guard = guardGroup(this.pid);
    for (const name of ["stdout", "stderr"] as const) {
      this.#child[name]?.setEncoding("utf8").on("data", (text: string) => (this.#out[name] += text));
    }
    this.#child.stdin?.on("error", () => {});
    if (options.input !== undefined) this.#child.stdin?.end(options.input);
    this.done = new Promise((resolve) => {
      this.#child.once("close", (code, signal) => {
        this.#result = { code, signal, ...this.#out };
        if (!groupExists(this.pid)) this.#guard.release();
        resolve(this.#result);
      });
    });
  }

  get stdout(): string {
    return this.#out.stdout;
  }

  get stderr(): string {
    return this.#out.stderr;
  }

  get result(): ProcessResult | null {
    return this.#result;
  }

  get isRunning(): boolean {
    return isAlive(this.pid);
  }

  write(text: string): void {
    this.#child.stdin?.write(text);
  }

  /** Sends a signal to this process alone. */
  signal(signal: NodeJS.Signals): void {
    process.kill(this.pid, signal);
  }

  /** SIGSTOP: the process keeps its connections and does nothing. */
  stop(): void {
    this.signal("SIGSTOP");
  }

  cont(): void {
    this.signal("SIGCONT");
  }

  /** Sends a signal that ends the process (default SIGKILL) and waits for the end. */
  async kill(signal: NodeJS.Signals = "SIGKILL"): Promise<ProcessResult> {
    if (this.isRunning) this.signal(signal);
    return this.done;
  }

  /** Kills the process with everything that it started in its group. */
  async killGroup(): Promise<ProcessResult> {
    if (groupExists(this.pid)) process.kill(-this.pid, "SIGKILL");
    return this.done;
  }

  /** Waits for a line of either output that matches, and gives the match. Fails when the process ends first. */
  async waitForLine(pattern: RegExp, timeoutMs = 20_000): Promise<RegExpExecArray> {
    const find = (): RegExpExecArray | null => {
      const lines = `${this.#out.stdout}\n${this.#out.stderr}`.split("\n");
      const match = lines.map((line) => pattern.exec(line)).find((m) => m !== null) ?? null;
      if (match === null && this.#result !== null)
        throw new Error(`the process ended before ${pattern}: ${this.#tail()}`);
      return match;
    };
    return waitFor(`${pattern} in the output: ${this.#tail()}`, find, { timeoutMs });
  }

  #tail(): string {
    return `${this.#out.stdout}${this.#out.stderr}`.slice(-2000);
  }
}

function groupExists(pid: number): boolean {
  try {
    process.kill(-pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** Starts a TypeScript file of the repository (path from its root, or absolute) as the tests themselves run. */
export function spawnScript(file: string, args: readonly string[] = [], options: ProcessOptions = {}): TestProcess {
  const path = file.startsWith("/") ? file : join(REPO_ROOT, file);
  return new TestProcess(process.execPath, ["--import", "tsx", "--conditions=source", path, ...args], options);
}

/**
 * Starts `spillway` with these arguments: from the source, or from `dist` when `SPILLWAY_TEST_CLI=dist` says that it is
 * freshly built (starts three times as fast).
 */
export function spawnCli(args: readonly string[], options: ProcessOptions = {}): TestProcess {
  const dist = join(REPO_ROOT, "packages/cli/dist/main.js");
  if (process.env["SPILLWAY_TEST_CLI"] === "dist" && existsSync(dist)) {
    return new TestProcess(process.execPath, [dist, ...args], options);
  }
  return spawnScript("packages/cli/src/main.ts", args, options);
}

/** Runs `spillway` to its end; kills it after `timeoutMs`. */
export async function runCli(
  args: readonly string[],
  options: ProcessOptions & { readonly timeoutMs?: number } = {},
): Promise<ProcessResult> {
  const child = spawnCli(args, { input: "", ...options });
  const timer = setTimeout(() => void child.killGroup(), options.timeoutMs ?? 60_000);
  try {
    return await child.done;
  } finally {
    clearTimeout(timer);
  }
}

/** The peak of a process's resident memory so far, in MB (10^6 bytes). Reads `VmHWM` of /proc/<pid>/status. */
export function rssPeakMb(pid: number): number {
  const kib = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
  return (Number(kib) * 1024) / 1e6;
}
