/**
 * A base backup over the replication protocol, for server packages without pg_basebackup. The WAL that
 * makes it consistent comes at the end of the same stream.
 * Source: https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-BASE-BACKUP
 */
import { mkdirSync, readdirSync } from "node:fs";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { RawConnection, type Operation } from "@spillway/pg/wire/connection";
import { queryMessage } from "@spillway/pg/wire/frontend";
import { parseDataRow } from "@spillway/pg/wire/query";
import type { SslMode } from "@spillway/pg/wire/target";
import type { Upstream } from "./config-files.ts";
import { TarExtractor } from "./tar.ts";

/** A server that sends nothing for so long is given up. */
const SILENCE_MS = 60_000;

/** Fills the empty directory `pgdata`. Throws `ha_base_backup_failed`, `ha_disk_full` or `ha_unreachable`. */
export async function streamBaseBackup(
  upstream: Upstream,
  secret: { readonly password: string },
  pgdata: string,
  signal: AbortSignal,
): Promise<void> {
  const connection = await RawConnection.open(
    {
      host: upstream.host,
      port: upstream.port,
      user: upstream.user,
      password: secret.password,
      database: "postgres",
      ssl: { mode: upstream.sslmode as SslMode },
      connectTimeoutMs: 5_000,
      parameters: { replication: "true", application_name: upstream.applicationName },
    },
    { signal },
  ).catch((cause: unknown) => {
    throw new SpillwayError("ha_unreachable", `${upstream.host}:${upstream.port}: ${messageOf(cause)}`, { cause });
  });
  const backup = new Backup(pgdata, connection.serverVersion >= 150_000);
  const abort = (): void =>
    connection.destroy(new SpillwayError("ha_base_backup_failed", "the base backup was given up"));
  signal.addEventListener("abort", abort, { once: true });
  const silence = setInterval(() => {
    if (connection.silentMs > SILENCE_MS)
      connection.destroy(new SpillwayError("ha_base_backup_failed", "the server is silent"));
  }, 1_000);
  try {
    connection.begin(backup);
    connection.send(queryMessage(backup.command));
    await backup.done;
  } finally {
    clearInterval(silence);
    signal.removeEventListener("abort", abort);
    backup.close();
    connection.destroy();
  }
}

class Backup implements Operation {
  readonly done: Promise<void>;
  readonly #pgdata: string;
  readonly #newProtocol: boolean;
  #resolve: () => void = () => {};
  #reject: (error: unknown) => void = () => {};
  #tar: TarExtractor | null = null;
  #error: SpillwayError | null = null;
  /** Before 15: one copy per tablespace, listed in the second result set, the data directory's own last. */
  #spaces: (string | null)[] = [];
  #results = 0;

  constructor(pgdata: string, newProtocol: boolean) {
    this.#pgdata = pgdata;
    this.#newProtocol = newProtocol;
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.done.catch(() => {});
  }

  get command(): string {
    return this.#newProtocol
      ? "BASE_BACKUP (LABEL 'spillway-ha', CHECKPOINT 'fast', WAL true, MANIFEST 'no')"
      : "BASE_BACKUP LABEL 'spillway-ha' FAST WAL NOWAIT MANIFEST 'no'";
  }

  message(type: number, buffer: Buffer, start: number, end: number): void {
    if (this.#error !== null && type !== 0x5a) return;
    try {
      this.#message(String.fromCharCode(type), buffer, start, end);
    } catch (cause) {
      const full = (cause as NodeJS.ErrnoException).code === "ENOSPC";
      const known = cause instanceof SpillwayError;
      this.#error = known
        ? cause
        : new SpillwayError(full ? "ha_disk_full" : "ha_base_backup_failed", messageOf(cause), { cause });
      // Nothing more of the stream is of use; the caller ends the connection.
      this.#reject(this.#error);
    }
  }

  error(error: SpillwayError): void {
    this.#error ??= new SpillwayError("ha_base_backup_failed", error.message, { cause: error });
  }

  fail(error: SpillwayError): void {
    this.#reject(this.#error ?? error);
  }

  close(): void {
    this.#tar?.close();
  }

  #message(type: string, buffer: Buffer, start: number, end: number): void {
    switch (type) {
      case "T":
        this.#results += 1;
        return;
      case "D":
        if (this.#results === 2) this.#spaces.push(parseDataRow(buffer, start)[1] ?? null);
        return;
      case "H":
        if (!this.#newProtocol) this.#open(this.#spaces.shift() ?? null);
        return;
      case "d":
        return this.#newProtocol ? this.#tagged(buffer, start, end) : this.#tar?.push(buffer.subarray(start, end));
      case "c":
        this.#tar?.end();
        this.#tar = null;
        return;
      case "Z":
        if (this.#error) this.#reject(this.#error);
        else this.#resolve();
        return;
      default:
        return;
    }
  }

  /** From 15 on: `n` begins an archive, `d` is its data, `p` progress, `m` the manifest. */
  #tagged(buffer: Buffer, start: number, end: number): void {
    const tag = String.fromCharCode(buffer[start] ?? 0);
    if (tag === "d") this.#tar?.push(buffer.subarray(start + 1, end));
    if (tag !== "n") return;
    this.#tar?.end();
    const [, path = ""] = buffer.toString("utf8", start + 1, end).split("\0");
    this.#open(path === "" ? null : path);
  }

  #open(tablespacePath: string | null): void {
    const root = tablespacePath ?? this.#pgdata;
    if (tablespacePath !== null) {
      mkdirSync(root, { recursive: true, mode: 0o700 });
      if (readdirSync(root).length > 0) {
        throw new SpillwayError("ha_base_backup_failed", `the tablespace's folder ${root} is not empty here`);
      }
    }
    this.#tar = new TarExtractor(root);
  }
}
