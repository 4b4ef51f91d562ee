/** The demo's other processes: `spillway` itself, as an operator would start it. None outlives this one. */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { SpillwayError } from "@spillway/base/errors";

export interface Finished {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunningChild {
  /** The first line of its output that matches. Fails when it ends before, or takes longer than the time. */
  line(pattern: RegExp, timeoutMs: number): Promise<RegExpExecArray>;
  readonly done: Promise<Finished>;
  /** SIGTERM, then SIGKILL after ten seconds. */
  stop(): Promise<Finished>;
}

const KEPT_CHARACTERS = 1 << 20;
const STOP_MS = 10_000;

export class Children {
  readonly #env: NodeJS.ProcessEnv;
  readonly #running = new Set<ChildProcess>();
  readonly #killAll = (): void => {
    for (const child of this.#running) child.kill("SIGKILL");
  };

  constructor(env: NodeJS.ProcessEnv) {
    this.#env = env;
    process.on("exit", this.#killAll);
  }

  /** Starts `spillway <args>` in a process group of its own: Ctrl-C reaches this process, which stops it in order. */
  start(args: readonly string[]): RunningChild {
    const [script] = process.argv.slice(1);
    const child = spawn(process.execPath, [...process.execArgv, script ?? "", ...args], {
      env: { ...this.#env, NO_COLOR: "1" },
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    this.#running.add(child);
    const kept = { stdout: "", stderr: "" };
    const watchers = new Set<(line: string) => void>();
    for (const name of ["stdout", "stderr"] as const) {
      createInterface({ input: child[name] }).on("line", (line) => {
        kept[name] = `${kept[name]}${line}\n`.slice(-KEPT_CHARACTERS);
        for (const watch of watchers) watch(line);
      });
    }
    const done = new Promise<Finished>((resolve, reject) => {
      child.once("error", reject);
      child.once("close", (code) => {
        this.#running.delete(child);
        resolve({ code, ...kept });
      });
    });
    done.catch(() => {});
    return {
      done,
      line: (pattern, timeoutMs) => firstLine(watchers, kept, done, pattern, timeoutMs),
      stop: async () => {
        child.kill("SIGTERM");
        const timer = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
        return done.finally(() => clearTimeout(timer));
      },
    };
  }

  /** Runs it to its end. */
  run(args: readonly string[]): Promise<Finished> {
    return this.start(args).done;
  }

  async close(): Promise<void> {
    process.off("exit", this.#killAll);
    const ended = [...this.#running].map(
      (child) =>
        new Promise<void>((resolve) => {
          child.once("close", () => resolve());
          child.kill("SIGKILL");
        }),
    );
    await Promise.all(ended);
  }
}

function firstLine(
  watchers: Set<(line: string) => void>,
  kept: { readonly stdout: string; readonly stderr: string },
  done: Promise<Finished>,
  pattern: RegExp,
  timeoutMs: number,
): Promise<RegExpExecArray> {
  const [seen] = `${kept.stdout}${kept.stderr}`.split("\n").flatMap((line) => pattern.exec(line) ?? []);
  if (seen !== undefined) {
    const match = pattern.exec(seen);
    if (match) return Promise.resolve(match);
  }
  return new Promise((resolve, reject) => {
    const fail = (why: string): void => {
      finish();
      reject(new SpillwayError("demo_failed", `${why}: ${errorLine(kept.stderr)}`));
    };
    const watch = (line: string): void => {
      const match = pattern.exec(line);
      if (!match) return;
      finish();
      resolve(match);
    };
    const timer = setTimeout(() => fail(`nothing came in ${timeoutMs} ms`), timeoutMs);
    const finish = (): void => {
      clearTimeout(timer);
      watchers.delete(watch);
    };
    watchers.add(watch);
    void done.then(
      () => fail("the process ended"),
      () => fail("the process could not be started"),
    );
  });
}

/** The line that says what was wrong: `code: cause`, or else the last. */
export function errorLine(stderr: string): string {
  const lines = stderr.trim().split("\n");
  return lines.findLast((line) => /^\w*(error|_\w+|internal|usage): /i.test(line)) ?? lines.at(-1) ?? "";
}
