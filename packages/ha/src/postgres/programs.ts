/**
 * Running Postgres's own programs: bounded in time and in output, with their words turned into one
 * typed line. Nothing here goes through a shell.
 */
import { spawn } from "node:child_process";
import { SpillwayError, type ErrorCode } from "@spillway/base/errors";

export interface ProgramResult {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface ProgramOptions {
  readonly timeoutMs: number;
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  readonly signal?: AbortSignal;
}

/** The last 64 KiB of each stream are kept: enough for any message, however long the program runs. */
const KEEP_CHARS = 65_536;

/** The environment that server programs see: nothing of ours leaks in, messages are in English. */
export function programEnv(extra: Readonly<Record<string, string>> = {}): Record<string, string> {
  const env: Record<string, string> = { LC_ALL: "C", LC_MESSAGES: "C" };
  for (const name of ["PATH", "HOME", "TZ", "LD_LIBRARY_PATH", "TMPDIR", "PGTZ"]) {
    const value = process.env[name];
    if (value !== undefined) env[name] = value;
  }
  return { ...env, ...extra };
}

/** Runs a program to its end. Its failure is a result, not an error; only a program that cannot run throws. */
export function runProgram(path: string, args: readonly string[], options: ProgramOptions): Promise<ProgramResult> {
  return new Promise((resolve, reject) => {
    const child = spawn(path, [...args], {
      env: programEnv(options.env),
      cwd: options.cwd ?? "/",
      stdio: ["ignore", "pipe", "pipe"],
    });
    let stdout = "";
    let stderr = "";
    const timer = setTimeout(() => child.kill("SIGKILL"), options.timeoutMs);
    const abort = (): void => void child.kill("SIGTERM");
    options.signal?.addEventListener("abort", abort, { once: true });
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout = (stdout + text).slice(-KEEP_CHARS);
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr = (stderr + text).slice(-KEEP_CHARS);
    });
    const done = (): void => {
      clearTimeout(timer);
      options.signal?.removeEventListener("abort", abort);
    };
    child.on("error", (error) => {
      done();
      reject(new SpillwayError("ha_program_failed", `${path} cannot be run: ${error.message}`, { cause: error }));
    });
    child.on("close", (code, signal) => {
      done();
      resolve({ code, signal, stdout, stderr });
    });
  });
}

/** As `runProgram`, but a failure throws the error that the program's words mean. */
export async function mustRun(
  path: string,
  args: readonly string[],
  options: ProgramOptions,
  code: ErrorCode = "ha_program_failed",
): Promise<ProgramResult> {
  const result = await runProgram(path, args, options);
  if (result.code !== 0) throw programError(path, result, code);
  return result;
}

/** The rules by which a server program's words become a code; the first that matches wins. */
const WORDS: readonly (readonly [RegExp, ErrorCode])[] = [
  [/No space left on device|could not extend file|Disk quota exceeded/i, "ha_disk_full"],
  [/cannot be run as root|cannot be executed by "root"|must not be run as root/i, "ha_run_as_root"],
  [/could not bind|Address already in use|could not create any TCP\/IP sockets/i, "ha_port_taken"],
  [/lock file "postmaster.pid" already exists|pre-existing shared memory block/i, "ha_data_dir_in_use"],
  [/was initialized by PostgreSQL version|incompatible with server/i, "ha_version_mismatch"],
  [/exists but is not empty/i, "ha_data_dir_invalid"],
  [/Permission denied|has wrong ownership|has invalid permissions|Operation not permitted/i, "ha_data_dir_permission"],
];

/** Maps a program's (or the server log's) words to a code, or null when they are not known. */
export function codeOfWords(text: string): ErrorCode | null {
  return WORDS.find(([pattern]) => pattern.test(text))?.[1] ?? null;
}

function programError(path: string, result: ProgramResult, fallback: ErrorCode): SpillwayError {
  const name = path.split("/").at(-1) ?? path;
  const how = result.signal === null ? `exit code ${result.code}` : `signal ${result.signal}`;
  const words = tellingLine(result.stderr) ?? tellingLine(result.stdout) ?? "no message";
  return new SpillwayError(codeOfWords(result.stderr) ?? fallback, `${name} failed (${how}): ${words}`);
}

/** The line of an output that says why: the last error, else the last line. */
export function tellingLine(text: string): string | null {
  const lines = text
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "");
  return lines.findLast((line) => /\b(error|fatal|panic|could not|cannot)\b/i.test(line)) ?? lines.at(-1) ?? null;
}
