/**
 * The audit: every decision and every change, with its reason. Records go to the control database in batches; while it is away they go
 * to a file of bounded size and from there to the database later, each once (a record has an id, made before it is sent). When
 * neither can take more, records of reads are dropped and counted, and writes are refused.
 */
import { appendFile, readdir, readFile, rename, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Clock } from "@spillway/base/clock";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { newUuid } from "@spillway/base/ids";
import type { Logger } from "@spillway/base/log";
import type { Db } from "../catalog/catalog.ts";
import type { Control } from "./plane.ts";

export interface AuditEvent {
  /** `login`, `statement`, `create role`, … */
  readonly action: string;
  readonly allowed: boolean;
  /** Why; for a refusal its code and message. */
  readonly reason?: string;
  readonly object?: string;
  readonly userId?: string | null;
  readonly userName?: string;
  readonly tenantName?: string;
  readonly databaseName?: string;
  readonly protocol?: string;
  readonly address?: string;
  readonly sessionId?: string | null;
  /** Never secrets, never values of rows. */
  readonly details?: Readonly<Record<string, unknown>>;
}

export interface AuditOptions {
  readonly control: Control;
  readonly clock: Clock;
  readonly log: Logger;
  /** Null for a command. */
  readonly managerId: string | null;
  /** `audit-<something of its own>.spool`; what ended processes left beside it is taken over. */
  readonly spoolFile: string;
  /** Default 64 MiB. */
  readonly spoolBytes?: number;
  /** Records that may wait in memory. Default 10 000. */
  readonly waiting?: number;
  readonly intervalMs?: number;
  readonly onDropped?: (count: number) => void;
}

interface AuditRow {
  readonly at: string;
  readonly id: string;
  readonly manager_id: string | null;
  readonly session_id: string | null;
  readonly user_id: string | null;
  readonly user_name: string;
  readonly tenant_name: string;
  readonly database_name: string;
  readonly protocol: string;
  readonly address: string;
  readonly action: string;
  readonly object: string;
  readonly allowed: boolean;
  readonly reason: string;
  readonly details: Readonly<Record<string, unknown>>;
}

const BATCH = 500;
/** A spool that nobody wrote to for so long is nobody's. */
const ABANDONED_MS = 60_000;
const MAX_TEXT = 2000;
const INSERT = `insert into spillway_control.audit
  select * from jsonb_populate_recordset(null::spillway_control.audit, $1::jsonb) on conflict do nothing`;

export class AuditLog {
  readonly #options: AuditOptions;
  readonly #waiting: AuditRow[] = [];
  /** Files of ended processes. */
  readonly #claimed: string[] = [];
  readonly #closed = new AbortController();
  #wake = new AbortController();
  #spooled = 0;
  #full = false;
  readonly #running: Promise<void>;

  constructor(options: AuditOptions) {
    this.#options = options;
    this.#running = this.#run();
  }

  /** Never waits. Throws `audit_unavailable` for a write of which no record can be kept. */
  record(event: AuditEvent, write = false): void {
    const { waiting = 10_000, clock, managerId } = this.#options;
    if (this.#full || this.#waiting.length >= waiting) {
      if (write) throw new SpillwayError("audit_unavailable", "the record of this write cannot be kept anywhere");
      this.#options.onDropped?.(1);
      return;
    }
    this.#waiting.push(rowOf(event, managerId, clock.wallMs()));
    if (this.#waiting.length >= BATCH) this.#wake.abort();
  }

  /** Writes what waits, to the database or the file. */
  async close(): Promise<void> {
    this.#closed.abort();
    this.#wake.abort();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { clock, intervalMs = 500, spoolFile, log } = this.#options;
    this.#spooled = await stat(spoolFile).then(
      (s) => s.size,
      () => 0,
    );
    await this.#claim().catch((error: unknown) => log.warn("audit.not_claimed", { error: messageOf(error) }));
    for (;;) {
      try {
        await this.#flush();
      } catch (error) {
        log.error("audit.failed", { error: messageOf(error) });
        // What could not be written anywhere stays; the bound of what may wait holds.
      }
      if (this.#closed.signal.aborted) return;
      this.#wake = new AbortController();
      if (this.#waiting.length < BATCH) await clock.sleep(intervalMs, this.#wake.signal);
    }
  }

  /** Renaming gives each file to one process. A live one makes itself a new file. */
  async #claim(): Promise<void> {
    const { spoolFile, clock } = this.#options;
    const dir = dirname(spoolFile);
    for (const name of await readdir(dir)) {
      const path = join(dir, name);
      if (!/^audit-.*\.spool$/.test(name) || path === spoolFile) continue;
      const known = await stat(path).catch(() => null);
      if (known === null || clock.wallMs() - known.mtimeMs < ABANDONED_MS) continue;
      const own = join(dir, `audit-${newUuid()}.spool`);
      const isOurs = await rename(path, own).then(
        () => true,
        () => false,
      );
      if (isOurs) this.#claimed.push(own);
    }
  }

  async #flush(): Promise<void> {
    if (!this.#options.control.isAway) {
      while (this.#claimed[0] !== undefined && (await this.#replay(this.#claimed[0]))) this.#claimed.shift();
      if (this.#spooled > 0 && (await this.#replay(this.#options.spoolFile))) {
        this.#spooled = 0;
        this.#full = false;
      }
    }
    while (this.#waiting.length > 0) {
      const batch = this.#waiting.slice(0, BATCH);
      if (this.#spooled > 0 || !(await this.#insert(batch))) await this.#spool(batch);
      this.#waiting.splice(0, batch.length);
    }
  }

  async #insert(rows: readonly AuditRow[]): Promise<boolean> {
    const { control, log } = this.#options;
    if (control.isAway) return false;
    try {
      await control.read((db) => db.query(INSERT, [JSON.stringify(rows)]));
      return true;
    } catch (error) {
      log.warn("audit.not_inserted", { error });
      return false;
    }
  }

  async #spool(rows: readonly AuditRow[]): Promise<void> {
    const { spoolFile, spoolBytes = 64 << 20 } = this.#options;
    const text = rows.map((row) => `${JSON.stringify(row)}\n`).join("");
    if (this.#spooled + text.length > spoolBytes) {
      this.#full = true;
      this.#options.onDropped?.(rows.length);
      return;
    }
    await appendFile(spoolFile, text, { mode: 0o600 });
    this.#spooled += Buffer.byteLength(text);
  }

  /** The file's records into the database; again after a failure, which the ids make harmless. */
  async #replay(path: string): Promise<boolean> {
    const { log } = this.#options;
    const text = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return "";
      throw error;
    });
    const lines = text.split("\n").filter((line) => line !== "");
    // A line that was cut off by the end of a process is no record.
    const rows = lines.flatMap((line): AuditRow[] => {
      try {
        return [JSON.parse(line) as AuditRow];
      } catch {
        return [];
      }
    });
    for (let i = 0; i < rows.length; i += BATCH) if (!(await this.#insert(rows.slice(i, i + BATCH)))) return false;
    await rm(path, { force: true });
    log.info("audit.replayed", { records: rows.length });
    return true;
  }
}

/** Of a command, in the transaction of what it changes. */
export async function insertAudit(tx: Db, event: AuditEvent, wallMs: number): Promise<void> {
  await tx.query(INSERT, [JSON.stringify([rowOf(event, null, wallMs)])]);
}

function rowOf(event: AuditEvent, managerId: string | null, wallMs: number): AuditRow {
  return {
    at: new Date(wallMs).toISOString(),
    id: newUuid(),
    manager_id: managerId,
    session_id: event.sessionId ?? null,
    user_id: event.userId ?? null,
    user_name: plainText(event.userName),
    tenant_name: plainText(event.tenantName),
    database_name: plainText(event.databaseName),
    protocol: plainText(event.protocol),
    address: plainText(event.address),
    action: plainText(event.action),
    object: plainText(event.object),
    allowed: event.allowed,
    reason: plainText(event.reason),
    details: JSON.parse(
      JSON.stringify(event.details ?? {}, (_, v: unknown) => (typeof v === "string" ? plainText(v) : v)),
    ),
  };
}

/** What clients sent can hold what no text of Postgres can: one such record must not hold up all that follow. */
function plainText(text = ""): string {
  return text.slice(0, MAX_TEXT).replace(/[\0\ud800-\udfff]/gu, "\ufffd");
}
