/** `spillway` commands as processes of their own, so that their memory is theirs alone and that they can be killed. */
import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { SpillwayError } from "@spillway/base/errors";

export type ChildEnv = Readonly<Record<string, string>>;

/** A running `spillway` command, started as this process was. */
export class Child {
  readonly pid: number;
  /** Resolves with the exit code, or the signal that ended it. */
  readonly ended: Promise<number | NodeJS.Signals>;
  readonly #child: ChildProcess;
  readonly #killAtExit: () => void;
  #stdout = "";
  #stderr = "";
  #isOver = false;

  constructor(args: readonly string[], env: ChildEnv) {
    const main = process.argv[1] ?? "";
    this.#child = spawn(process.execPath, [...process.execArgv, main, ...args], {
      env: { ...cleanEnvironment(), ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    if (this.#child.pid === undefined) throw new SpillwayError("internal", `could not start spillway ${args[0] ?? ""}`);
    this.pid = this.#child.pid;
    this.#killAtExit = () => void this.#child.kill("SIGKILL");
    process.on("exit", this.#killAtExit);
    this.#child.stdout?.setEncoding("utf8").on("data", (text: string) => (this.#stdout = tail(this.#stdout + text)));
    this.#child.stderr?.setEncoding("utf8").on("data", (text: string) => (this.#stderr = tail(this.#stderr + text)));
    this.ended = new Promise((resolve) => {
      this.#child.once("close", (code, signal) => {
        this.#isOver = true;
        process.off("exit", this.#killAtExit);
        resolve(code ?? signal ?? 1);
      });
    });
  }

  get stdout(): string {
    return this.#stdout;
  }

  get stderr(): string {
    return this.#stderr;
  }

  get isOver(): boolean {
    return this.#isOver;
  }

  signal(name: NodeJS.Signals): void {
    if (!this.#isOver) this.#child.kill(name);
  }

  /** Sends a signal and waits for the end; a process that was stopped is woken up for it. */
  async end(name: NodeJS.Signals = "SIGTERM"): Promise<number | NodeJS.Signals> {
    this.signal(name);
    this.signal("SIGCONT");
    return this.ended;
  }

  /** Processor seconds that it used so far: in all, and on its JavaScript thread. */
  cpuSeconds(): { readonly all: number; readonly main: number } {
    return { all: ticks(`/proc/${this.pid}/stat`), main: ticks(`/proc/${this.pid}/task/${this.pid}/stat`) };
  }

  /** The peak of its resident memory so far, in MB (10^6 bytes); null where the system does not say, or it is over. */
  peakMb(): number | null {
    try {
      const kib = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${this.pid}/status`, "utf8"))?.[1];
      return kib === undefined ? null : (Number(kib) * 1024) / 1e6;
    } catch {
      return null;
    }
  }
}

/** Runs a command to its end. Throws with what it said when it fails. */
export async function runChild(args: readonly string[], env: ChildEnv): Promise<string> {
  const child = new Child(args, env);
  const code = await child.ended;
  if (code !== 0) {
    throw new SpillwayError("internal", `spillway ${args.join(" ")} ended with ${code}: ${child.stderr.trim()}`);
  }
  return child.stdout;
}

/** Nothing of the caller's own settings may change what is measured. */
function cleanEnvironment(): NodeJS.ProcessEnv {
  const kept = Object.entries(process.env).filter(([name]) => !name.startsWith("SPILLWAY_") && !name.startsWith("PG"));
  return Object.fromEntries(kept);
}

/** utime and stime, in Linux's hundredths; NaN elsewhere. */
function ticks(path: string): number {
  try {
    const text = readFileSync(path, "latin1");
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) / 100;
  } catch {
    return Number.NaN;
  }
}

const TAIL = 1 << 20;

function tail(text: string): string {
  return text.length > TAIL ? text.slice(-TAIL / 2) : text;
}
