/**
 * A bounded cache of immutable objects as local files, for an engine that reads local files only.
 * An object is fetched once however many ask for it, appears by rename, is held while somebody uses
 * it, and is dropped least recently used first when space is needed. What is in the directory is
 * found again after a restart; a file whose length is not the one in its name is thrown away.
 *
 * The directory is one process's own: claim it with `claimCacheDir` (cache-dir.ts).
 */
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, rmSync, statSync, utimesSync } from "node:fs";
import { open, rename, stat, unlink } from "node:fs/promises";
import { join } from "node:path";
import type { Clock } from "@spillway/base/clock";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { newUuid } from "@spillway/base/ids";
import { localPathOf, normalizeLocation, notFound, type ObjectStore } from "./store.ts";

/** A file found cut or removed is fetched anew this often. */
const FETCH_TRIES = 3;
const HASH_LENGTH = 64;
const NAME = /^([0-9a-f]{64})-(\d+)$/;

export interface CacheOptions {
  readonly store: ObjectStore;
  /** A directory of this process alone. Created if missing. */
  readonly dir: string;
  readonly maxBytes: number;
  readonly clock: Clock;
  /** How many objects are fetched at once. Default 8. */
  readonly parallel?: number;
  /** Bytes of one range request; bounds memory together with `parallel`. Default 8 MiB. */
  readonly chunkBytes?: number;
  /** How long to wait for other holders to let go when the space is taken. Default 30 s. */
  readonly waitMs?: number;
}

/** Local files, held until `release` (which may be called more than once). */
export interface Localized {
  readonly paths: readonly string[];
  release(): void;
}

/** What to localize: a location, with its size in bytes when known, which saves a request. */
export type CacheRequest = string | { readonly path: string; readonly size: number };

export interface CacheStats {
  readonly bytes: number;
  readonly files: number;
  readonly hits: number;
  readonly misses: number;
  readonly evictions: number;
  readonly fetchedBytes: number;
}

interface Entry {
  readonly name: string;
  readonly size: number;
  holds: number;
  /** Null when the file is there; the fetch otherwise. */
  fetching: Promise<void> | null;
}

export class LocalCache {
  readonly #options: Required<CacheOptions>;
  /** In the order of use: the first is the least recently used. */
  readonly #entries = new Map<string, Entry>();
  /** The size of each object in the cache, by the hash of its location. */
  readonly #sizes = new Map<string, number>();
  readonly #waiters = new Set<() => void>();
  #bytes = 0;
  #running = 0;
  readonly #queue: (() => void)[] = [];
  readonly #count = { hits: 0, misses: 0, evictions: 0, fetchedBytes: 0 };

  constructor(options: CacheOptions) {
    this.#options = { parallel: 8, chunkBytes: 8 << 20, waitMs: 30_000, ...options };
    mkdirSync(options.dir, { recursive: true });
    this.#scan();
    this.#evictFor(0);
  }

  get stats(): CacheStats {
    return { bytes: this.#bytes, files: this.#entries.size, ...this.#count };
  }

  /**
   * Local files of the objects, in the same order. For a local store these are the objects
   * themselves. Errors: `cache_full`, `store_not_found`, and those of the store.
   */
  async localize(requests: readonly CacheRequest[]): Promise<Localized> {
    const own = requests.map((request) => localPathOf(normalizeLocation(pathOf(request))));
    if (own.every((path) => path !== null)) return { paths: own, release: () => {} };
    const sized = await Promise.all(requests.map((request) => this.#sized(request)));
    for (let tries = 1; ; tries++) {
      const entries = await this.#reserve(sized);
      const release = once(() => this.#release(entries));
      try {
        await Promise.all(entries.map((entry) => entry.fetching));
        if (await this.#areWhole(entries)) {
          return { paths: entries.map((entry) => join(this.#options.dir, entry.name)), release };
        }
      } catch (error) {
        release();
        throw error;
      }
      release();
      if (tries >= FETCH_TRIES) throw this.#tampered();
    }
  }

  async #sized(request: CacheRequest): Promise<{ path: string; size: number }> {
    const path = normalizeLocation(pathOf(request));
    if (typeof request !== "string") return { path, size: request.size };
    const known = this.#sizes.get(hashOf(path));
    if (known !== undefined) return { path, size: known };
    const found = await this.#options.store.head(path);
    if (found === null) throw notFound(path);
    return { path, size: found.size };
  }

  /** Holds every entry at once or none, so that two that wait cannot wait for each other. */
  async #reserve(files: readonly { path: string; size: number }[]): Promise<Entry[]> {
    const deadline = this.#options.clock.monotonicMs() + this.#options.waitMs;
    const unique = new Map(files.map((file) => [nameOf(file), file]));
    const whole = [...unique.values()].reduce((sum, file) => sum + file.size, 0);
    for (;;) {
      const missing = [...unique].filter(([name]) => !this.#entries.has(name));
      const needed = missing.reduce((sum, [, file]) => sum + file.size, 0);
      if (whole <= this.#options.maxBytes && this.#evictFor(needed, unique)) {
        this.#count.misses += missing.length;
        this.#count.hits += unique.size - missing.length;
        for (const [name, file] of missing) this.#start(name, file);
        return files.map((file) => this.#hold(nameOf(file)));
      }
      const left = deadline - this.#options.clock.monotonicMs();
      if (whole > this.#options.maxBytes || left <= 0) throw this.#full(whole);
      await this.#waitForRelease(left);
    }
  }

  #full(whole: number): SpillwayError {
    const { maxBytes } = this.#options;
    const message = `${whole} bytes of lake files do not fit into the cache of ${maxBytes} bytes, of which others hold a part.`;
    return new SpillwayError("cache_full", message, { details: { needed: whole, maxBytes } });
  }

  #hold(name: string): Entry {
    const entry = this.#entries.get(name);
    if (entry === undefined) throw new SpillwayError("store_corrupt", `The cache lost ${name}.`);
    entry.holds++;
    this.#entries.delete(name);
    this.#entries.set(name, entry);
    return entry;
  }

  #release(entries: readonly Entry[]): void {
    const now = this.#options.clock.wallMs() / 1000;
    for (const entry of entries) {
      entry.holds--;
      try {
        utimesSync(join(this.#options.dir, entry.name), now, now);
      } catch {
        // Only the order of eviction after a restart depends on it.
      }
    }
    this.#evictFor(0);
    for (const wake of this.#waiters) wake();
  }

  async #waitForRelease(ms: number): Promise<void> {
    const abort = new AbortController();
    const wake = (): void => abort.abort();
    this.#waiters.add(wake);
    await this.#options.clock.sleep(ms, abort.signal);
    this.#waiters.delete(wake);
  }

  /** Drops unheld files until `needed` more bytes fit; false (and nothing dropped for it) if they cannot. */
  #evictFor(needed: number, keep: ReadonlyMap<string, unknown> = new Map()): boolean {
    const over = this.#bytes + needed - this.#options.maxBytes;
    if (over <= 0) return true;
    const free = [...this.#entries.values()].filter((e) => e.holds === 0 && e.fetching === null && !keep.has(e.name));
    if (free.reduce((sum, entry) => sum + entry.size, 0) < over) return false;
    let dropped = 0;
    for (const entry of free) {
      if (dropped >= over) break;
      this.#forget(entry);
      this.#count.evictions++;
      dropped += entry.size;
    }
    return true;
  }

  #forget(entry: Entry): void {
    this.#entries.delete(entry.name);
    this.#sizes.delete(entry.name.slice(0, HASH_LENGTH));
    this.#bytes -= entry.size;
    // Synchronous: the same name may be fetched again right after.
    rmSync(join(this.#options.dir, entry.name), { force: true });
  }

  #start(name: string, file: { path: string; size: number }): void {
    const entry: Entry = { name, size: file.size, holds: 0, fetching: null };
    this.#add(entry);
    entry.fetching = this.#fetch(entry, file.path).then(
      () => {
        entry.fetching = null;
      },
      (error: unknown) => {
        this.#forget(entry);
        throw error;
      },
    );
    entry.fetching.catch(() => {});
  }

  async #fetch(entry: Entry, path: string): Promise<void> {
    await this.#enter();
    const temp = join(this.#options.dir, `.${newUuid()}.spillway-tmp`);
    try {
      await using file = await open(temp, "wx");
      for (let at = 0; at < entry.size; at += this.#options.chunkBytes) {
        const length = Math.min(this.#options.chunkBytes, entry.size - at);
        const chunk = await this.#options.store.getRange(path, at, length);
        for (let done = 0; done < length;)
          done += (await file.write(chunk, done, length - done, at + done)).bytesWritten;
      }
      await rename(temp, join(this.#options.dir, entry.name));
      this.#count.fetchedBytes += entry.size;
    } catch (error) {
      await unlink(temp).catch(() => {});
      throw translate(error, this.#options.dir);
    } finally {
      this.#leave();
    }
  }

  /** False when a file was removed or cut behind our back; such an entry is forgotten. */
  async #areWhole(entries: readonly Entry[]): Promise<boolean> {
    let whole = true;
    for (const entry of entries) {
      const found = await stat(join(this.#options.dir, entry.name)).catch(() => null);
      if (found?.size === entry.size) continue;
      whole = false;
      if (this.#entries.get(entry.name) === entry) this.#forget(entry);
    }
    return whole;
  }

  #tampered(): SpillwayError {
    const message = `Something else removes or changes files in the cache ${this.#options.dir}.`;
    return new SpillwayError("store_unreachable", message, { remedy: "Give the cache a directory of its own." });
  }

  async #enter(): Promise<void> {
    if (this.#running >= this.#options.parallel) await new Promise<void>((resolve) => this.#queue.push(resolve));
    else this.#running++;
  }

  #leave(): void {
    const next = this.#queue.shift();
    if (next) next();
    else this.#running--;
  }

  #scan(): void {
    const found: { entry: Entry; usedMs: number }[] = [];
    for (const name of readdirSync(this.#options.dir)) {
      const path = join(this.#options.dir, name);
      const match = NAME.exec(name);
      const info = statSync(path, { throwIfNoEntry: false });
      if (match && info?.isFile() && info.size === Number(match[2])) {
        found.push({ entry: { name, size: info.size, holds: 0, fetching: null }, usedMs: info.mtimeMs });
      } else if (match || name.endsWith(".spillway-tmp")) {
        rmSync(path, { force: true, recursive: true });
      }
    }
    found.sort((a, b) => a.usedMs - b.usedMs);
    for (const { entry } of found) this.#add(entry);
  }

  #add(entry: Entry): void {
    this.#entries.set(entry.name, entry);
    this.#sizes.set(entry.name.slice(0, HASH_LENGTH), entry.size);
    this.#bytes += entry.size;
  }
}

function pathOf(request: CacheRequest): string {
  return typeof request === "string" ? request : request.path;
}

function hashOf(path: string): string {
  return createHash("sha256").update(path).digest("hex");
}

function nameOf(file: { path: string; size: number }): string {
  return `${hashOf(file.path)}-${file.size}`;
}

function once(work: () => void): () => void {
  let done = false;
  return () => {
    if (done) return;
    done = true;
    work();
  };
}

function isCode(error: unknown, code: string): boolean {
  return error instanceof Error && "code" in error && error.code === code;
}

function translate(error: unknown, dir: string): unknown {
  if (error instanceof SpillwayError || !(error instanceof Error) || !("syscall" in error)) return error;
  if (isCode(error, "ENOSPC")) {
    return new SpillwayError("disk_full", `No space is left in the cache ${dir}.`, { cause: error });
  }
  return new SpillwayError("store_unreachable", `The cache ${dir} fails: ${messageOf(error)}.`, { cause: error });
}
