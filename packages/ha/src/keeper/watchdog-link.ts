/** The keeper's end of the watchdog: sees that one runs, and writes its beats. */
import { spawn } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Logger } from "@spillway/base/log";
import { replaceIfChanged } from "../postgres/config-files.ts";
import { isAlive, readStat, sendSignal } from "../postgres/processes.ts";
import { BeatWriter } from "../watchdog/beat.ts";
import type { KeeperFiles } from "./files.ts";

/** The lease is over at the deadline for the keeper; the watchdog acts when the keeper did not, a little later. */
const GRACE_NS = 60_000_000n;

export class WatchdogLink {
  readonly #files: KeeperFiles;
  readonly #pgdata: string;
  readonly #log: Logger;
  readonly #beats: BeatWriter;
  #pid: number | null = null;

  constructor(files: KeeperFiles, pgdata: string, log: Logger) {
    this.#files = files;
    this.#pgdata = pgdata;
    this.#log = log;
    this.#beats = BeatWriter.open(files.path("beat"));
  }

  /** Takes over the running watchdog, or starts one. */
  ensure(): void {
    if (this.#pid !== null && isAlive(this.#pid)) return;
    this.#pid = this.#running();
    if (this.#pid !== null) return;
    const log = openSync(this.#files.path("watchdog.log"), "a", 0o600);
    const child = spawn(process.execPath, [...entry(), this.#files.path("beat"), this.#pgdata, this.#files.dir], {
      detached: true,
      cwd: "/",
      stdio: ["ignore", "ignore", log],
    });
    closeSync(log);
    child.on("error", (error) => this.#log.error("the watchdog cannot be started", { error }));
    child.unref();
    if (child.pid === undefined) return;
    this.#pid = child.pid;
    replaceIfChanged(this.#files.path("watchdog.pid"), `${child.pid} ${readStat(child.pid)?.startTicks ?? "0"}\n`);
    this.#log.info("watchdog started", { pid: child.pid });
  }

  #running(): number | null {
    try {
      const [pid, ticks] = readFileSync(this.#files.path("watchdog.pid"), "utf8").trim().split(" ");
      const stat = readStat(Number(pid));
      return stat !== null && stat.startTicks === ticks && isAlive(Number(pid)) ? Number(pid) : null;
    } catch {
      return null;
    }
  }

  /** `remainingMs` from now until Postgres must be gone; null = no limit. */
  beat(remainingMs: number | null): void {
    const deadline =
      remainingMs === null ? null : process.hrtime.bigint() + BigInt(Math.round(remainingMs * 1e6)) + GRACE_NS;
    this.#beats.write(deadline, process.pid);
  }

  /** Ends the watch: Postgres is stopped, or is left to the operator. */
  stop(): void {
    this.beat(null);
    if (this.#pid !== null && isAlive(this.#pid)) sendSignal(this.#pid, "SIGTERM");
    this.#pid = null;
  }
}

/** Node's arguments for the watchdog's entry: compiled, or from the source. */
function entry(): string[] {
  const here = import.meta.url;
  if (here.endsWith(".ts")) {
    const path = fileURLToPath(new URL("../roles/watchdog.ts", here));
    return ["--import", import.meta.resolve("tsx"), "--conditions=source", path];
  }
  return ["--max-old-space-size=32", fileURLToPath(new URL("../roles/watchdog.js", here))];
}
