/**
 * Control of one postmaster: start, stop, reload, promote.
 *
 * The postmaster is spawned directly, in a session of its own, so that it outlives the keeper: a keeper
 * that is restarted or killed does not take the database with it (the watchdog decides about that), and
 * the next keeper finds it through postmaster.pid. While the keeper that started it lives, it learns of
 * its end at once, by the exit event; else by the 100 ms poll of `isRunning`.
 */
import { spawn } from "node:child_process";
import { closeSync, openSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import { program, type Binaries } from "./binaries.ts";
import { parseControlData } from "./control-file.ts";
import { fencePostgres, isAlive, isServerProcess, postmasterPid, sendSignal, serverProcesses } from "./processes.ts";
import { codeOfWords, programEnv, tellingLine } from "./programs.ts";

export type PostmasterStatus = "stopped" | "starting" | "ready" | "standby" | "stopping";
export type StopMode = "fast" | "immediate";

export interface PostmasterOptions {
  readonly binaries: Binaries;
  readonly pgdata: string;
  readonly logFile: string;
  readonly clock: Clock;
  /** Addresses and port that the server is about to listen on: checked before each start. */
  readonly port: number;
  readonly listen: readonly string[];
}

const POLL_MS = 15;
/** The server's own log (until its logging_collector takes over) is kept in two files of this size. */
const LOG_BYTES = 32 * 1024 * 1024;

/** Reads line 8 of postmaster.pid, as pg_ctl does (source: src/include/utils/pidfile.h). */
export function parsePidFile(text: string): { pid: number; port: number; status: string } {
  const lines = text.split("\n");
  return { pid: Number(lines[0]), port: Number(lines[3]), status: (lines[7] ?? "").trim() };
}

export class Postmaster {
  readonly #options: PostmasterOptions;
  #exited: ((pid: number) => void) | null = null;

  constructor(options: PostmasterOptions) {
    this.#options = options;
  }

  get pgdata(): string {
    return this.#options.pgdata;
  }

  /** Called at once when a postmaster that this object started ends, for whatever reason. */
  onExit(handler: (pid: number) => void): void {
    this.#exited = handler;
  }

  /** The pid of the live postmaster, or null. */
  pid(): number | null {
    const pid = postmasterPid(this.#options.pgdata);
    return pid !== null && isServerProcess(pid, this.#options.pgdata) ? pid : null;
  }

  status(): PostmasterStatus {
    if (this.pid() === null) return "stopped";
    const text = this.#pidFile();
    switch (text === null ? "" : parsePidFile(text).status) {
      case "ready":
        // A hot standby is as ready as a primary; only the control file tells them apart.
        return this.#inProduction() ? "ready" : "standby";
      case "stopping":
        return "stopping";
      default:
        return "starting";
    }
  }

  #inProduction(): boolean {
    try {
      const bytes = readFileSync(join(this.#options.pgdata, "global", "pg_control"));
      return parseControlData(bytes)?.state === "in production";
    } catch {
      return false;
    }
  }

  #pidFile(): string | null {
    try {
      return readFileSync(join(this.#options.pgdata, "postmaster.pid"), "utf8");
    } catch {
      return null;
    }
  }

  /**
   * Starts the server and waits until it accepts connections. Orphans of a killed postmaster are ended
   * first. Throws the typed reason when it does not come up; a server that comes up too slowly (crash
   * recovery) is left running and `deadline_exceeded` thrown.
   */
  async start(timeoutMs: number): Promise<void> {
    const { pgdata, binaries, logFile, clock } = this.#options;
    const now = this.status();
    if (now === "ready" || now === "standby") return;
    if (now === "stopped") {
      await this.endOrphans();
      await checkPortFree(this.#options.port, this.#options.listen);
    }
    const logStart = rotateLog(logFile);
    let exit: string | null = null;
    if (now === "stopped") {
      const log = openSync(logFile, "a", 0o600);
      const child = spawn(program(binaries, "postgres"), ["-D", pgdata], {
        detached: true,
        cwd: pgdata,
        env: programEnv(),
        stdio: ["ignore", log, log],
      });
      closeSync(log);
      child.on("error", (error) => {
        exit = error.message;
      });
      child.on("exit", (code, signal) => {
        exit = signal ?? `exit code ${code}`;
        if (child.pid !== undefined) this.#exited?.(child.pid);
      });
      child.unref();
    }
    const deadline = clock.monotonicMs() + timeoutMs;
    for (;;) {
      const status = this.status();
      if (status === "ready" || status === "standby") return;
      if (exit !== null) throw startError(logFile, logStart, exit);
      if (clock.monotonicMs() > deadline) {
        throw new SpillwayError("deadline_exceeded", `Postgres in ${pgdata} is still starting after ${timeoutMs} ms`);
      }
      await clock.sleep(POLL_MS);
    }
  }

  /**
   * Stops the server. Fast: sessions are ended, a checkpoint is written and standbys get all WAL; what is
   * not done in `timeoutMs` becomes an immediate stop. Immediate: within a second or so, by force.
   */
  async stop(mode: StopMode, timeoutMs: number): Promise<void> {
    const { pgdata, clock } = this.#options;
    const pid = this.pid();
    if (pid !== null && mode === "fast") {
      sendSignal(pid, "SIGINT");
      const deadline = clock.monotonicMs() + timeoutMs;
      while (clock.monotonicMs() < deadline) {
        if (!isAlive(pid) && serverProcesses(pgdata).length === 0) return;
        await clock.sleep(POLL_MS);
      }
    }
    const gone = await fencePostgres(pgdata, (ms) => clock.sleep(ms));
    if (!gone) throw new SpillwayError("ha_postgres_stop_failed", `Postgres in ${pgdata} does not end`);
  }

  /** Ends what a killed postmaster left behind; a pid file without a postmaster is removed. */
  async endOrphans(): Promise<void> {
    const { pgdata, clock } = this.#options;
    if (this.pid() !== null) return;
    const gone = await fencePostgres(pgdata, (ms) => clock.sleep(ms));
    if (!gone)
      throw new SpillwayError("ha_postgres_stop_failed", `children of a killed Postgres in ${pgdata} do not end`);
    if (this.pid() === null) rmSync(join(pgdata, "postmaster.pid"), { force: true });
  }

  reload(): void {
    const pid = this.pid();
    if (pid !== null) sendSignal(pid, "SIGHUP");
  }

  /** Ends recovery, as `pg_ctl promote` does, and waits until the server takes writes. */
  async promote(timeoutMs: number): Promise<void> {
    const { pgdata, clock } = this.#options;
    const deadline = clock.monotonicMs() + timeoutMs;
    if (this.status() === "ready") return;
    const pid = this.pid();
    if (pid === null) throw new SpillwayError("ha_action_waiting", "Postgres is not running and cannot be promoted");
    writeFileSync(join(pgdata, "promote"), "", { mode: 0o600 });
    sendSignal(pid, "SIGUSR1");
    for (;;) {
      const status = this.status();
      if (status === "ready") return;
      if (status === "stopped") throw new SpillwayError("ha_action_waiting", "Postgres ended while it was promoted");
      if (clock.monotonicMs() > deadline) {
        throw new SpillwayError("deadline_exceeded", `the promotion is not done after ${timeoutMs} ms`);
      }
      await clock.sleep(POLL_MS);
    }
  }
}

function rotateLog(path: string): number {
  try {
    const { size } = statSync(path);
    if (size <= LOG_BYTES) return size;
    renameSync(path, `${path}.1`);
  } catch {
    // no log yet
  }
  return 0;
}

function startError(logFile: string, from: number, exit: string): SpillwayError {
  let text = "";
  try {
    text = readFileSync(logFile).subarray(from).toString("utf8").slice(-65_536);
  } catch {
    // then there are no words
  }
  const words = logWords(text) ?? exit;
  const code = codeOfWords(text) ?? "ha_postgres_start_failed";
  return new SpillwayError(code, `Postgres did not start (${exit}): ${words} (log: ${logFile})`);
}

/** The last failure in a server log, with what it refers to when it only says that there were errors. */
function logWords(text: string): string | null {
  const strip = (line: string): string => line.replace(/^.*?(?=(LOG|FATAL|PANIC|ERROR): )/, "");
  const lines = text.split("\n").filter((line) => line.trim() !== "" && !/(HINT|DETAIL|CONTEXT):/.test(line));
  const fatal = lines.findLast((line) => /(FATAL|PANIC): /.test(line)) ?? tellingLine(text);
  if (fatal === null) return null;
  const why = /contains errors/.test(fatal)
    ? lines.find((l) => /syntax error|unrecognized|invalid value/.test(l))
    : undefined;
  return strip(why === undefined ? fatal : `${strip(why)}; ${strip(fatal)}`);
}

/** Throws `ha_port_taken` when an address:port that Postgres is to listen on is not free. */
export async function checkPortFree(port: number, listen: readonly string[]): Promise<void> {
  for (const host of listen) {
    const taken = await new Promise<boolean>((resolve) => {
      const server = createServer();
      server.once("error", (error: NodeJS.ErrnoException) => resolve(error.code === "EADDRINUSE"));
      server.listen({ port, host: host === "*" ? "0.0.0.0" : host, exclusive: true }, () => {
        server.close(() => resolve(false));
      });
    });
    if (taken) throw new SpillwayError("ha_port_taken", `port ${port} of ${host} is taken by another program`);
  }
}
