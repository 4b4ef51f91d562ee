/** Making a data directory, or looking at one that is there, before anything is changed. */
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
  rmSync,
} from "node:fs";
import { dirname, join, resolve } from "node:path";
import { SpillwayError } from "@spillway/base/errors";
import { program, type Binaries } from "./binaries.ts";
import { readControlData, type ControlData } from "./control-file.ts";
import { isAlive, postmasterPid, serverProcesses } from "./processes.ts";
import { mustRun } from "./programs.ts";

export type DataDirectory =
  | { readonly kind: "absent" }
  | { readonly kind: "cluster"; readonly major: number; readonly control: ControlData };

/** Major version of a data directory, or null when it is none. */
export function dataDirectoryMajor(pgdata: string): number | null {
  try {
    const major = Number.parseInt(readFileSync(join(pgdata, "PG_VERSION"), "utf8"), 10);
    return Number.isInteger(major) ? major : null;
  } catch {
    return null;
  }
}

/**
 * What is at the path. Throws the typed reason when it cannot be used: no permission, not empty and no
 * cluster, configuration kept elsewhere, or a server that runs there (unless that is allowed).
 */
export async function inspectDataDirectory(pgdata: string, allowRunning = false): Promise<DataDirectory> {
  requireWritable(pgdata);
  const names = existsSync(pgdata) ? readdirSync(pgdata) : [];
  if (names.length === 0) return { kind: "absent" };
  const major = dataDirectoryMajor(pgdata);
  if (major === null) {
    throw new SpillwayError("ha_data_dir_invalid", `${pgdata} is not empty and has no PG_VERSION`);
  }
  if (!names.includes("postgresql.conf") || !names.includes("pg_hba.conf")) {
    throw new SpillwayError("ha_data_dir_invalid", `${pgdata} has no postgresql.conf or pg_hba.conf of its own`, {
      remedy: "Move the cluster's configuration files into the data directory first.",
    });
  }
  if (!allowRunning) requireUnused(pgdata);
  return { kind: "cluster", major, control: await readControlData(pgdata) };
}

/** Throws `ha_data_dir_in_use` when a server runs in the directory. */
export function requireUnused(pgdata: string): void {
  const pid = postmasterPid(pgdata);
  const running = serverProcesses(pgdata);
  if (pid !== null && isAlive(pid) && running.some((p) => p.pid === pid)) {
    throw new SpillwayError("ha_data_dir_in_use", `a Postgres with pid ${pid} runs in ${pgdata}`);
  }
}

function requireWritable(pgdata: string): void {
  const existing = existsSync(pgdata) ? pgdata : nearestExisting(dirname(resolve(pgdata)));
  try {
    accessSync(existing, constants.R_OK | constants.W_OK | constants.X_OK);
  } catch (cause) {
    throw new SpillwayError("ha_data_dir_permission", `${existing} cannot be read and written by this user`, { cause });
  }
  const { uid } = statSync(existing);
  if (existing === pgdata && process.getuid && uid !== process.getuid()) {
    throw new SpillwayError("ha_data_dir_permission", `${pgdata} belongs to uid ${uid}, not to this user`);
  }
}

function nearestExisting(path: string): string {
  return existsSync(path) || dirname(path) === path ? path : nearestExisting(dirname(path));
}

export interface InitOptions {
  readonly superuser: string;
  readonly superuserPassword: string;
  /** Where the password passes through to initdb; removed afterwards. */
  readonly stateDir: string;
}

/** Makes a new cluster. A failed initdb leaves nothing behind. */
export async function initCluster(binaries: Binaries, pgdata: string, options: InitOptions): Promise<ControlData> {
  const existed = existsSync(pgdata);
  const passwordFile = join(options.stateDir, "initdb.password");
  writeFileSync(passwordFile, `${options.superuserPassword}\n`, { mode: 0o600 });
  try {
    await mustRun(program(binaries, "initdb"), initdbArgs(pgdata, options.superuser, passwordFile), {
      timeoutMs: 120_000,
    });
  } catch (error) {
    emptyDirectory(pgdata);
    if (!existed) rmSync(pgdata, { recursive: true, force: true });
    throw error;
  } finally {
    rmSync(passwordFile, { force: true });
  }
  return readControlData(pgdata);
}

function initdbArgs(pgdata: string, superuser: string, passwordFile: string): string[] {
  const access = ["--auth-local=peer", "--auth-host=scram-sha-256"];
  return ["-D", pgdata, "-U", superuser, `--pwfile=${passwordFile}`, ...access, "-E", "UTF8", "--locale=C", "-k"];
}

/** Removes what is in a directory but not the directory (it may be a mount point). */
export function emptyDirectory(path: string): void {
  if (!existsSync(path)) return;
  for (const name of readdirSync(path)) rmSync(join(path, name), { recursive: true, force: true });
}

/** Makes a private directory. Throws `ha_data_dir_permission`. */
export function makePrivateDirectory(path: string): void {
  try {
    mkdirSync(path, { recursive: true, mode: 0o700 });
    accessSync(path, constants.R_OK | constants.W_OK | constants.X_OK);
  } catch (cause) {
    throw new SpillwayError("ha_data_dir_permission", `${path} cannot be made or written by this user`, { cause });
  }
}

/** The value of a setting as the directory's files give it, with or without a running server. */
export async function configuredValue(binaries: Binaries, pgdata: string, name: string): Promise<string> {
  const args = ["-D", pgdata, "-C", name];
  const { stdout } = await mustRun(program(binaries, "postgres"), args, { timeoutMs: 20_000 });
  return stdout.trim();
}
