/**
 * BASE_BACKUP: a running server's files as tar archives, one for each tablespace, and the manifest.
 * Source: https://www.postgresql.org/docs/current/protocol-replication.html (BASE_BACKUP)
 */
import { assert, must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { parseLsn, type Lsn } from "@spillway/base/lsn";
import { quoteLiteral } from "../quote.ts";
import type { Operation, RawConnection } from "../wire/connection.ts";
import { queryMessage } from "../wire/frontend.ts";
import { guardOperation, parseDataRow } from "../wire/query.ts";

export interface BaseBackupOptions {
  readonly connection: RawConnection;
  readonly label: string;
  /** `fast` begins with an immediate checkpoint, `spread` waits for the next one. Default fast. */
  readonly checkpoint?: "fast" | "spread";
  /** Puts the WAL that is needed for consistency into the base archive. Default true. */
  readonly includeWal?: boolean;
  readonly manifest?: boolean;
  /** KiB a second, 32 to 1 048 576; no limit by default. */
  readonly maxRateKb?: number;
  readonly signal?: AbortSignal | undefined;
}

export type BackupEvent =
  | {
      readonly kind: "start";
      readonly lsn: Lsn;
      readonly timeline: number;
      readonly tablespaces: readonly Tablespace[];
    }
  /** The archive that the following data belong to; `path` is null for the data directory itself. */
  | { readonly kind: "archive"; readonly name: string; readonly path: string | null }
  /** The manifest is what the following data are. */
  | { readonly kind: "manifest" }
  | { readonly kind: "data"; readonly bytes: Buffer }
  | { readonly kind: "progress"; readonly bytes: bigint }
  /** The WAL up to here makes the copy consistent. Only after it is the backup complete. */
  | { readonly kind: "end"; readonly lsn: Lsn; readonly timeline: number };

export interface Tablespace {
  /** Null for the data directory. */
  readonly oid: number | null;
  readonly path: string | null;
  readonly sizeKb: bigint | null;
}

/** Data that may wait before the socket is paused. */
const MAX_WAITING_BYTES = 4 * 1024 * 1024;

/**
 * The backup, in the server's order, ended by `end`. Whatever goes wrong throws; then what was written is worthless.
 * The connection must be a physical replication connection of Postgres 14 or later.
 */
export async function* baseBackup(options: BaseBackupOptions): AsyncGenerator<BackupEvent, void, void> {
  const { connection } = options;
  const backup = new BaseBackup(connection);
  connection.begin(backup);
  connection.send(queryMessage(backupSql(connection.serverVersion, options)));
  const guard = guardOperation(connection, { signal: options.signal });
  try {
    for (;;) {
      const event = await backup.next();
      if (event === null) return;
      yield event;
    }
  } catch (error) {
    throw guard.reason() ?? error;
  } finally {
    // A backup that is given up cannot be drained in reasonable time.
    if (!backup.isOver) connection.destroy();
    await guard.release();
  }
}

export function backupSql(serverVersion: number, options: BaseBackupOptions): string {
  const { label, checkpoint = "fast", includeWal = true, manifest = true, maxRateKb } = options;
  const name = quoteLiteral(label).trim();
  if (serverVersion < 150_000) {
    const list = [`LABEL ${name}`, "PROGRESS", checkpoint === "fast" ? "FAST" : "", includeWal ? "WAL" : ""];
    list.push("NOWAIT", maxRateKb === undefined ? "" : `MAX_RATE ${maxRateKb}`, "TABLESPACE_MAP");
    list.push(manifest ? "MANIFEST 'yes'" : "");
    return `BASE_BACKUP ${list.filter((option) => option !== "").join(" ")}`;
  }
  const list = [`LABEL ${name}`, "PROGRESS", `CHECKPOINT '${checkpoint}'`, "WAIT false", "TABLESPACE_MAP"];
  if (includeWal) list.push("WAL");
  if (maxRateKb !== undefined) list.push(`MAX_RATE ${maxRateKb}`);
  list.push(`MANIFEST '${manifest ? "yes" : "no"}'`);
  return `BASE_BACKUP (${list.join(", ")})`;
}

class BaseBackup implements Operation {
  readonly #connection: RawConnection;
  readonly #events: BackupEvent[] = [];
  #waiting = 0;
  #rows: (string | null)[][] = [];
  #start: { lsn: Lsn; timeline: number } | null = null;
  #tablespaces: Tablespace[] | null = null;
  /** Before 15 every tablespace is a COPY of its own: how many have begun. */
  #copies = 0;
  #inTypedCopy = false;
  #ended = false;
  #over = false;
  #error: SpillwayError | null = null;
  #wake: (() => void) | null = null;

  constructor(connection: RawConnection) {
    this.#connection = connection;
  }

  get isOver(): boolean {
    return this.#over;
  }

  async next(): Promise<BackupEvent | null> {
    for (;;) {
      if (this.#error) throw this.#error;
      const event = this.#events.shift();
      if (event) {
        if (event.kind === "data") this.#waiting -= event.bytes.length;
        if (this.#waiting < MAX_WAITING_BYTES / 2) this.#connection.resume();
        return event;
      }
      if (this.#over) return null;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  message(type: number, buffer: Buffer, start: number, end: number): void {
    switch (String.fromCharCode(type)) {
      case "T":
        this.#rows = [];
        return;
      case "D":
        this.#rows.push(parseDataRow(buffer, start));
        return;
      case "C":
        return this.#result();
      case "H":
        return this.#beginCopy();
      case "d":
        return this.#data(buffer, start, end);
      case "Z":
        if (!this.#ended) this.#error ??= new SpillwayError("pg_protocol_error", "the base backup ended too early");
        this.#over = true;
        return this.#notify();
      default:
        return;
    }
  }

  error(error: SpillwayError): void {
    this.#error ??= error;
    this.#notify();
  }

  fail(error: SpillwayError): void {
    this.#error ??= error;
    this.#over = true;
    this.#notify();
  }

  /** The three results: start, tablespaces, and after the archives the end. The last `C` is the command's own. */
  #result(): void {
    const [row] = this.#rows;
    if (!row) return;
    if (this.#start === null) {
      this.#start = { lsn: parseLsn(must(row[0], "recptr")), timeline: Number(row[1]) };
    } else if (this.#tablespaces === null) {
      this.#tablespaces = this.#rows.map(([oid, path, size]) => ({
        oid: typeof oid === "string" ? Number(oid) : null,
        path: path ?? null,
        sizeKb: typeof size === "string" ? BigInt(size) : null,
      }));
      this.#push({ kind: "start", ...this.#start, tablespaces: this.#tablespaces });
    } else if (!this.#ended) {
      this.#ended = true;
      this.#push({ kind: "end", lsn: parseLsn(must(row[0], "recptr")), timeline: Number(row[1]) });
    }
    this.#rows = [];
  }

  #beginCopy(): void {
    if (this.#tablespaces === null) this.#result();
    this.#inTypedCopy = this.#connection.serverVersion >= 150_000;
    if (this.#inTypedCopy) return;
    const tablespace = this.#tablespaces?.[this.#copies++];
    if (!tablespace) return this.#push({ kind: "manifest" });
    const name = tablespace.oid === null ? "base.tar" : `${tablespace.oid}.tar`;
    this.#push({ kind: "archive", name, path: tablespace.path });
  }

  #data(buffer: Buffer, start: number, end: number): void {
    if (!this.#inTypedCopy) return this.#pushData(buffer, start, end);
    switch (String.fromCharCode(buffer[start] ?? 0)) {
      case "n": {
        const [name = "", path = ""] = buffer.toString("utf8", start + 1, end).split("\0");
        return this.#push({ kind: "archive", name, path: path === "" ? null : path });
      }
      case "m":
        return this.#push({ kind: "manifest" });
      case "d":
        return this.#pushData(buffer, start + 1, end);
      case "p":
        return this.#push({ kind: "progress", bytes: buffer.readBigInt64BE(start + 1) });
      default:
        assert(false, "base backup data are of a known type");
    }
  }

  #pushData(buffer: Buffer, start: number, end: number): void {
    // The read buffer is used again: what waits must be a copy.
    const bytes = Buffer.from(buffer.subarray(start, end));
    this.#waiting += bytes.length;
    if (this.#waiting >= MAX_WAITING_BYTES) this.#connection.pause();
    this.#push({ kind: "data", bytes });
  }

  #push(event: BackupEvent): void {
    this.#events.push(event);
    this.#notify();
  }

  #notify(): void {
    const wake = this.#wake;
    this.#wake = null;
    wake?.();
  }
}
