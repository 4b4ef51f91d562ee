/**
 * Bringing a data directory behind another primary: by pg_rewind, or anew by a base backup.
 *
 * Both leave the directory unusable when they are interrupted, so a marker is written (and synced) in the
 * keeper's state directory before the first byte changes, and removed when the directory is whole and
 * configured as a standby. While the marker is there, the only thing done with the directory is a fresh
 * base backup; it is never started.
 */
import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { SpillwayError } from "@spillway/base/errors";
import { program, type Binaries } from "./binaries.ts";
import { conninfo, replaceIfChanged, type Upstream } from "./config-files.ts";
import { emptyDirectory, makePrivateDirectory } from "./provision.ts";
import { codeOfWords, runProgram, tellingLine } from "./programs.ts";

export type RebuildKind = "rewind" | "base_backup";

const MARKER = "rebuild-in-progress";

/** What was being done to the directory when the last keeper ended, or null. */
export function rebuildMarker(stateDir: string): RebuildKind | null {
  const path = join(stateDir, MARKER);
  if (!existsSync(path)) return null;
  return readFileSync(path, "utf8").trim() === "rewind" ? "rewind" : "base_backup";
}

export function setRebuildMarker(stateDir: string, kind: RebuildKind): void {
  replaceIfChanged(join(stateDir, MARKER), `${kind}\n`);
}

export function clearRebuildMarker(stateDir: string): void {
  rmSync(join(stateDir, MARKER), { force: true });
}

export interface RebuildOptions {
  readonly binaries: Binaries;
  readonly pgdata: string;
  readonly stateDir: string;
  readonly upstream: Upstream;
  readonly signal: AbortSignal;
  /** BASE_BACKUP over the replication protocol, for binaries without pg_basebackup. */
  readonly streamBackup: (upstream: Upstream, pgdata: string, signal: AbortSignal) => Promise<void>;
}

/** A replication or ordinary connection to the upstream, as programs take it. */
export function upstreamConninfo(upstream: Upstream, timeoutS = 5): string {
  return conninfo({
    host: upstream.host,
    port: upstream.port,
    user: upstream.user,
    passfile: upstream.passfile,
    dbname: "postgres",
    application_name: upstream.applicationName,
    sslmode: upstream.sslmode,
    connect_timeout: timeoutS,
    tcp_user_timeout: 10_000,
  });
}

/**
 * Replaces the directory by a base backup. The marker stays: the caller writes the node's own
 * configuration and then clears it. Throws `ha_base_backup_failed` or the more exact reason.
 */
export async function baseBackup(options: RebuildOptions): Promise<void> {
  const { binaries, pgdata, upstream } = options;
  setRebuildMarker(options.stateDir, "base_backup");
  makePrivateDirectory(pgdata);
  emptyDirectory(pgdata);
  if (!binaries.hasBaseBackup) {
    await options.streamBackup(upstream, pgdata, options.signal);
    return;
  }
  const slot = upstream.slot === "" ? [] : ["-S", upstream.slot];
  const args = ["-D", pgdata, "-d", upstreamConninfo(upstream), "-X", "stream", ...slot, "-c", "fast", "-w"];
  const result = await runProgram(program(binaries, "pg_basebackup"), args, {
    timeoutMs: 24 * 3600_000,
    signal: options.signal,
  });
  if (result.code === 0) return;
  const words = tellingLine(result.stderr) ?? "no message";
  throw new SpillwayError(codeOfWords(result.stderr) ?? "ha_base_backup_failed", `pg_basebackup failed: ${words}`);
}

/**
 * Rewinds a stopped directory to where it left the upstream's history. pg_rewind first finishes crash
 * recovery by itself. The marker stays, as above. Throws `ha_rewind_missing` (nothing was touched) or
 * `ha_rewind_failed`; then only a base backup will do.
 */
export async function rewind(options: RebuildOptions): Promise<void> {
  const { binaries, pgdata, upstream } = options;
  if (!binaries.hasRewind) throw new SpillwayError("ha_rewind_missing", `${binaries.dir} has no pg_rewind`);
  setRebuildMarker(options.stateDir, "rewind");
  const args = ["-D", pgdata, `--source-server=${upstreamConninfo(upstream)}`];
  if (restoresWal(pgdata)) args.push("--restore-target-wal");
  const result = await runProgram(program(binaries, "pg_rewind"), args, {
    timeoutMs: 6 * 3600_000,
    signal: options.signal,
  });
  if (result.code === 0) return;
  const words = tellingLine(result.stderr) ?? "no message";
  throw new SpillwayError("ha_rewind_failed", `pg_rewind failed: ${words}`);
}

/** Whether the cluster has a restore_command, with which pg_rewind can fetch WAL that is gone here. */
function restoresWal(pgdata: string): boolean {
  return ["postgresql.conf", "postgresql.auto.conf"].some((name) => {
    try {
      return /^\s*restore_command\s*=\s*'[^']+'/m.test(readFileSync(join(pgdata, name), "utf8"));
    } catch {
      return false;
    }
  });
}
