/**
 * The embedded store: one append-only file of lines, each with its checksum, synced before a commit
 * resolves. A torn last line (power loss, kill -9 in a write) is what nobody was told of, and is cut off;
 * a bad line before good ones is damage and refuses to open. When the file has grown, a new one begins
 * with a snapshot and takes the old one's place by rename. One writer: a lock file with pid and start time.
 */
import { closeSync, openSync, readdirSync, readFileSync, renameSync, rmSync, truncateSync, writeSync } from "node:fs";
import { open, rename, rm, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import { isSpillwayError, messageOf, SpillwayError } from "@spillway/base/errors";
import type { Formation } from "../fsm/model.ts";
import { isAlive, readStat } from "../postgres/processes.ts";
import { MAX_EVENTS, type Commit, type MonitorStore, type StoredEvent, type StoredState } from "./store.ts";

/** A log larger than this is replaced by a snapshot. */
const ROTATE_BYTES = 8 * 1024 * 1024;
const LOCK = "lock";

interface Line {
  readonly formations?: readonly Formation[];
  readonly events?: readonly StoredEvent[];
}

export class LogStore implements MonitorStore {
  readonly #dir: string;
  readonly #formations = new Map<string, Formation>();
  #events: StoredEvent[] = [];
  #number = 0;
  #size = 0;
  #file: FileHandle | null = null;
  #failed: unknown = null;
  #queue: { readonly line: string; readonly done: (error: unknown) => void }[] = [];
  #writing = false;
  readonly #rotateBytes: number;

  private constructor(dir: string, rotateBytes: number) {
    this.#dir = dir;
    this.#rotateBytes = rotateBytes;
  }

  /** Opens (or creates) the store in a folder. Throws `ha_store_locked`, `ha_store`. */
  static async open(dir: string, rotateBytes = ROTATE_BYTES): Promise<LogStore> {
    takeLock(dir);
    const store = new LogStore(dir, rotateBytes);
    try {
      await store.#load();
    } catch (error) {
      rmSync(join(dir, LOCK), { force: true });
      throw isSpillwayError(error)
        ? error
        : new SpillwayError("ha_store", `${dir}: ${messageOf(error)}`, { cause: error });
    }
    return store;
  }

  lead(): Promise<StoredState> {
    return Promise.resolve({ formations: [...this.#formations.values()], events: this.#events });
  }

  leads(): boolean {
    return this.#failed === null && this.#file !== null;
  }

  leaderUrl(): null {
    return null;
  }

  commit(commit: Commit): Promise<void> {
    if (this.#failed !== null) return Promise.reject(this.#failed as Error);
    this.#apply({ formations: [commit.formation], events: commit.events });
    const line = encode({ formations: [commit.formation], events: commit.events });
    return new Promise((resolve, reject) => {
      this.#queue.push({ line, done: (error) => (error === null ? resolve() : reject(error as Error)) });
      void this.#drain();
    });
  }

  async close(): Promise<void> {
    while (this.#writing || this.#queue.length > 0) await new Promise((resolve) => setTimeout(resolve, 5));
    await this.#file?.close();
    this.#file = null;
    rmSync(join(this.#dir, LOCK), { force: true });
  }

  // ------------------------------------------------------------------ writing

  /** Everything that came in the meantime is written with one sync. */
  async #drain(): Promise<void> {
    if (this.#writing) return;
    this.#writing = true;
    while (this.#queue.length > 0) {
      const batch = this.#queue;
      this.#queue = [];
      let failure: unknown = this.#failed;
      if (failure === null) failure = await this.#append(batch.map((b) => b.line).join(""));
      for (const item of batch) item.done(failure);
    }
    this.#writing = false;
  }

  /** A failed write or sync ends the store: what is on disk is not known any more until it is read again. */
  async #append(text: string): Promise<unknown> {
    try {
      if (this.#file === null) throw new SpillwayError("ha_store", "the store is closed");
      await this.#file.appendFile(text);
      await this.#file.datasync();
      this.#size += Buffer.byteLength(text);
      if (this.#size > this.#rotateBytes) await this.#rotate();
      return null;
    } catch (cause) {
      const full = (cause as NodeJS.ErrnoException).code === "ENOSPC";
      this.#failed = new SpillwayError(full ? "disk_full" : "ha_store", `${this.#dir}: ${messageOf(cause)}`, { cause });
      return this.#failed;
    }
  }

  async #rotate(): Promise<void> {
    const next = this.#number + 1;
    const text = encode({ formations: [...this.#formations.values()], events: this.#events });
    const temporary = join(this.#dir, `log.${next}.tmp`);
    const file = await open(temporary, "w", 0o600);
    await file.appendFile(text);
    await file.datasync();
    await file.close();
    await rename(temporary, this.#path(next));
    await syncFolder(this.#dir);
    const old = this.#file;
    this.#file = await open(this.#path(next), "a", 0o600);
    await old?.close();
    await rm(this.#path(this.#number), { force: true });
    this.#number = next;
    this.#size = Buffer.byteLength(text);
  }

  // ------------------------------------------------------------------ reading

  async #load(): Promise<void> {
    const names = readdirSync(this.#dir);
    const numbers = names
      .map((n) => /^log\.(\d+)$/.exec(n)?.[1])
      .filter((n) => n !== undefined)
      .map(Number);
    this.#number = Math.max(0, ...numbers);
    for (const name of names) if (/^log\.\d+\.tmp$/.test(name)) rmSync(join(this.#dir, name));
    if (numbers.length > 0) this.#read(this.#path(this.#number));
    for (const n of numbers) if (n !== this.#number) rmSync(this.#path(n));
    this.#file = await open(this.#path(this.#number), "a", 0o600);
    await syncFolder(this.#dir);
  }

  #read(path: string): void {
    const bytes = readFileSync(path);
    let start = 0;
    while (start < bytes.length) {
      const end = bytes.indexOf(0x0a, start);
      const line = end < 0 ? null : decode(bytes.subarray(start, end).toString("utf8"));
      if (line === null) {
        if (end >= 0 && end + 1 < bytes.length) {
          throw new SpillwayError("ha_store", `${path} is damaged at byte ${start}`, {
            remedy:
              "Restore the monitor's directory from a copy, or create a new monitor and register the nodes again.",
          });
        }
        truncateSync(path, start);
        break;
      }
      this.#apply(line);
      start = end + 1;
    }
    this.#size = start;
  }

  #apply(line: Line): void {
    for (const f of line.formations ?? []) this.#formations.set(f.name, f);
    // A snapshot may already hold events of the lines that follow it.
    const last = this.#events.at(-1)?.seq ?? 0;
    const fresh = (line.events ?? []).filter((e) => e.seq > last);
    if (fresh.length > 0) this.#events = [...this.#events, ...fresh].slice(-MAX_EVENTS);
  }

  #path(number: number): string {
    return join(this.#dir, `log.${number}`);
  }
}

function encode(line: Line): string {
  const json = JSON.stringify(line);
  return `${crc32(json).toString(16).padStart(8, "0")} ${json}\n`;
}

function decode(text: string): Line | null {
  const json = text.slice(9);
  if (text[8] !== " " || crc32(json).toString(16).padStart(8, "0") !== text.slice(0, 8)) return null;
  return JSON.parse(json) as Line;
}

async function syncFolder(dir: string): Promise<void> {
  const folder = await open(dir, "r");
  await folder.sync();
  await folder.close();
}

/** Moves a dead lock away; if somebody put a live one there meanwhile, puts that one back. */
function setAside(path: string, dead: string): void {
  const aside = `${path}.${process.pid}`;
  try {
    renameSync(path, aside);
    if (readFileSync(aside, "utf8") !== dead) renameSync(aside, path);
    else rmSync(aside);
  } catch {
    // Another monitor was faster: the next attempt sees its lock.
  }
}

/** A lock whose process is gone (or is another one under the same pid) is taken over. */
function takeLock(dir: string): void {
  const path = join(dir, LOCK);
  const mine = `${process.pid} ${readStat(process.pid)?.startTicks ?? ""}\n`;
  for (let attempt = 0; attempt < 3; attempt++) {
    try {
      const fd = openSync(path, "wx", 0o600);
      writeSync(fd, mine);
      closeSync(fd);
      return;
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException;
      if (code !== "EEXIST") throw new SpillwayError("ha_store", `${path}: ${messageOf(cause)}`, { cause });
    }
    const found = readFileSync(path, "utf8");
    const [pid, started] = found.trim().split(" ");
    const running = isAlive(Number(pid)) && String(readStat(Number(pid))?.startTicks ?? "") === started;
    if (running) throw new SpillwayError("ha_store_locked", `a monitor (pid ${pid}) is using ${dir}`);
    setAside(path, found);
  }
  throw new SpillwayError("ha_store_locked", `${path} keeps coming back`);
}
