/** One embedded Postgres for the demo, the benches and a first try: on loopback, in a directory of its own. */
import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { randomBytes } from "node:crypto";
import {
  appendFileSync,
  chownSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { SpillwayError } from "@spillway/base/errors";
import { embeddedBinDir, reachableTemp, runAsPostgres, type RunAs } from "./binaries.ts";

export interface EmbeddedOptions {
  /** Kept when given, else a temporary directory that is removed at the end. */
  readonly dir?: string;
  readonly settings?: Readonly<Record<string, string>>;
  /** Default: a free one. */
  readonly port?: number;
}

export interface EmbeddedPostgres {
  readonly url: (database?: string) => string;
  readonly port: number;
  readonly dataDir: string;
  readonly pid: number;
  stop(): Promise<void>;
}

const DEFAULT_SETTINGS: Readonly<Record<string, string>> = {
  wal_level: "logical",
  shared_buffers: "256MB",
  max_connections: "100",
  max_wal_size: "2GB",
  max_prepared_transactions: "20",
  timezone: "UTC",
};

const READY_TIMEOUT_MS = 60_000;

/** Makes a cluster where there is none, starts it, and waits until it accepts connections. */
export async function startEmbedded(options: EmbeddedOptions = {}): Promise<EmbeddedPostgres> {
  const runAs = runAsPostgres();
  const binDir = embeddedBinDir(runAs);
  const home = options.dir ?? mkdtempSync(join(reachableTemp(runAs), "spillway-pg-"));
  mkdirSync(home, { recursive: true });
  give(home, runAs);
  const dataDir = join(home, "data");
  const password = initialise(binDir, home, dataDir, runAs);
  const port = options.port ?? (await freePort());
  const settings = {
    ...DEFAULT_SETTINGS,
    ...options.settings,
    listen_addresses: "127.0.0.1",
    port: String(port),
    unix_socket_directories: home,
  };
  const lines = Object.entries(settings).map(([k, v]) => `${k} = '${v.replaceAll("'", "''")}'\n`);
  appendFileSync(join(dataDir, "postgresql.conf"), lines.join(""));
  const child = launch(binDir, home, dataDir, runAs);
  await ready(child, dataDir, join(home, "server.log"));
  const killAtExit = (): void => void child.kill("SIGQUIT");
  process.on("exit", killAtExit);
  return {
    url: (database = "postgres") => `postgres://postgres:${password}@127.0.0.1:${port}/${encodeURIComponent(database)}`,
    port,
    dataDir,
    pid: child.pid ?? 0,
    stop: async () => {
      process.off("exit", killAtExit);
      if (child.exitCode === null && child.signalCode === null) {
        const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
        child.kill("SIGINT");
        await ended;
      }
      if (options.dir === undefined) rmSync(home, { recursive: true, force: true });
    },
  };
}

/** initdb with a random password for `postgres`, kept beside the data, readable by its owner only. */
function initialise(binDir: string, home: string, dataDir: string, runAs: RunAs): string {
  const passwordFile = join(home, "password");
  if (existsSync(join(dataDir, "PG_VERSION"))) return readFileSync(passwordFile, "utf8").trim();
  const password = randomBytes(18).toString("base64url");
  writeFileSync(passwordFile, `${password}\n`, { mode: 0o600 });
  give(passwordFile, runAs);
  const args = [
    "-U",
    "postgres",
    "-E",
    "UTF8",
    "--locale=C",
    "--auth=scram-sha-256",
    `--pwfile=${passwordFile}`,
    "-D",
    dataDir,
  ];
  try {
    execFileSync(join(binDir, "initdb"), args, {
      ...runAs,
      cwd: "/",
      env: environment(),
      stdio: ["ignore", "ignore", "pipe"],
    });
  } catch (error) {
    const text = String((error as { stderr?: Buffer }).stderr ?? error);
    throw new SpillwayError("embedded_unavailable", `initdb failed: ${text}`, { cause: error });
  }
  return password;
}

function launch(binDir: string, home: string, dataDir: string, runAs: RunAs): ChildProcess {
  const log = openSync(join(home, "server.log"), "a", 0o644);
  const child = spawn(join(binDir, "postgres"), ["-D", dataDir], {
    ...runAs,
    cwd: "/",
    env: environment(),
    stdio: ["ignore", log, log],
    // Its own process group: Ctrl-C reaches us, and we stop it in order.
    detached: true,
  });
  closeSync(log);
  return child;
}

async function ready(child: ChildProcess, dataDir: string, logPath: string): Promise<void> {
  const deadline = performance.now() + READY_TIMEOUT_MS;
  const pidFile = join(dataDir, "postmaster.pid");
  while (performance.now() < deadline && child.exitCode === null && child.pid !== undefined) {
    const lines = existsSync(pidFile) ? readFileSync(pidFile, "latin1").split("\n") : [];
    if (Number(lines[0]) === child.pid && lines[7]?.trim() === "ready") return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  child.kill("SIGQUIT");
  const tail = existsSync(logPath) ? readFileSync(logPath, "utf8").trimEnd().split("\n").slice(-3).join(" | ") : "";
  throw new SpillwayError("embedded_unavailable", `the embedded Postgres did not start: ${tail}`);
}

function environment(): NodeJS.ProcessEnv {
  return { PATH: "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" };
}

function give(path: string, runAs: RunAs): void {
  if (runAs.uid !== undefined && runAs.gid !== undefined) chownSync(path, runAs.uid, runAs.gid);
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address ? address.port : 0));
    });
  });
}
