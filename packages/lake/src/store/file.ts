/**
 * A local directory as an object store. An object appears by link(2) or rename(2) of a finished,
 * fsynced temporary file in the same directory, and the directory is fsynced after; so a reader sees
 * whole files only, and what was acknowledged survives a power cut. Temporary names are
 * recognizable (`.<16 hex>.spillway-tmp`), never listed, and swept when old.
 */
import { constants } from "node:fs";
import { link, lstat, mkdir, open, opendir, realpath, rename, stat, unlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { isSpillwayError, messageOf, SpillwayError } from "@spillway/base/errors";
import { randomHex } from "@spillway/base/ids";
import {
  type Body,
  chunksOf,
  corrupt,
  invalidPath,
  isWithin,
  type ListedObject,
  localPathOf,
  normalizeLocation,
  notFound,
  type ObjectInfo,
  type ObjectStore,
  type PutOptions,
  taken,
} from "./store.ts";

const TEMP = /^\.[0-9a-f]{16}\.spillway-tmp$/;
const MKDIR_TRIES = 3;

export interface FileStoreOptions {
  /** An absolute path or a `file:` location. Created on the first write. */
  readonly root: string;
  /** Off only for tests and benchmarks that do not need to survive a power cut. Default true. */
  readonly fsync?: boolean;
}

export class FileStore implements ObjectStore {
  readonly root: string;
  readonly #rootPath: string;
  readonly #fsync: boolean;
  #realRoot: string | null = null;

  constructor(options: FileStoreOptions) {
    this.root = normalizeLocation(options.root);
    const path = localPathOf(this.root);
    if (path === null) throw invalidPath(options.root, "is not a local directory");
    this.#rootPath = path;
    this.#fsync = options.fsync ?? true;
  }

  async get(path: string): Promise<Uint8Array> {
    const local = await this.#resolveForRead(path);
    return this.#guard(path, async () => {
      await using file = await openForRead(local, path);
      const { size } = await file.stat();
      return await readExactly(file, path, 0, size);
    });
  }

  async getRange(path: string, offset: number, length: number): Promise<Uint8Array> {
    const local = await this.#resolveForRead(path);
    return this.#guard(path, async () => {
      await using file = await openForRead(local, path);
      return await readExactly(file, path, offset, length);
    });
  }

  async put(path: string, data: Body, options: PutOptions = {}): Promise<{ size: number }> {
    const target = this.#locate(path);
    return this.#guard(path, async () => {
      const temp = await this.#openTemp(target, path);
      let size = 0;
      try {
        try {
          for await (const chunk of chunksOf(data)) {
            await writeAll(temp.file, chunk);
            size += chunk.length;
          }
          if (this.#fsync) await temp.file.sync();
        } finally {
          await temp.file.close();
        }
        await this.#publish(temp.path, target, path, options.ifNoneMatch === true);
      } catch (error) {
        await unlink(temp.path).catch(() => {});
        throw error;
      }
      return { size };
    });
  }

  /**
   * Makes a finished local file of the same file system an object, without copying it: fsyncs it,
   * moves it into place, fsyncs the directory. The file is gone from where it was.
   */
  async adopt(localFile: string, path: string, options: PutOptions = {}): Promise<{ size: number }> {
    const target = this.#locate(path);
    return this.#guard(path, async () => {
      await this.#makeParents(target, path);
      await using file = await open(localFile, constants.O_RDONLY);
      const { size } = await file.stat();
      if (this.#fsync) await file.sync();
      await this.#publish(localFile, target, path, options.ifNoneMatch === true);
      return { size };
    });
  }

  async head(path: string): Promise<ObjectInfo | null> {
    try {
      const local = await this.#resolveForRead(path);
      const found = await this.#guard(path, () => stat(local));
      return found.isFile() ? { size: found.size, etag: `${found.ino}-${found.mtimeMs}-${found.size}` } : null;
    } catch (error) {
      if (isSpillwayError(error, "store_not_found")) return null;
      throw error;
    }
  }

  async *list(prefix: string): AsyncIterable<ListedObject> {
    const location = normalizeLocation(prefix);
    if (!isWithin(this.root, location)) throw outside(prefix);
    const local = localPathOf(location) ?? "";
    const whole = prefix.endsWith("/") || local === this.#rootPath;
    yield* this.#walk(whole ? local : dirname(local), whole ? `${local}/` : local);
  }

  async delete(paths: readonly string[]): Promise<void> {
    const parents = new Set<string>();
    for (const path of paths) {
      const target = this.#locate(path);
      await this.#guard(path, async () => {
        try {
          await this.#checkInside(dirname(target), path);
          await unlink(target);
          parents.add(dirname(target));
        } catch (error) {
          if (!isCode(error, "ENOENT", "ENOTDIR") && !isSpillwayError(error, "store_not_found")) throw error;
        }
      });
    }
    for (const parent of parents) await this.#guard(parent, () => this.#syncDir(parent));
  }

  /** Removes temporary files that a killed writer left, if older than `olderThanMs`. Returns how many. */
  async sweepTemporary(olderThanMs: number, nowMs: number): Promise<number> {
    let removed = 0;
    for await (const file of this.#files(this.#rootPath)) {
      if (!TEMP.test(file.name)) continue;
      const found = await lstat(file.path).catch(() => null);
      if (found === null || found.mtimeMs > nowMs - olderThanMs) continue;
      await this.#guard(file.path, () => unlink(file.path));
      removed++;
    }
    return removed;
  }

  async *#walk(base: string, prefix: string): AsyncIterable<ListedObject> {
    for await (const file of this.#files(base, prefix)) {
      if (!file.path.startsWith(prefix) || TEMP.test(file.name)) continue;
      const found = await lstat(file.path).catch(() => null);
      if (found?.isFile()) yield { path: `file://${file.path}`, size: found.size, modifiedMs: found.mtimeMs };
    }
  }

  /** Files below a directory, links not followed; directories that `prefix` excludes are not entered. */
  async *#files(base: string, prefix = ""): AsyncIterable<{ path: string; name: string }> {
    const queue = [base];
    for (let dir = queue.pop(); dir !== undefined; dir = queue.pop()) {
      const handle = await this.#guard(dir, () => opendir(dir ?? "")).catch((error: unknown) => {
        if (isSpillwayError(error, "store_not_found")) return null;
        throw error;
      });
      if (handle === null) continue;
      for await (const entry of handle) {
        const path = join(dir, entry.name);
        if (entry.isFile()) yield { path, name: entry.name };
        const worth = prefix.startsWith(`${path}/`) || `${path}/`.startsWith(prefix);
        if (entry.isDirectory() && worth) queue.push(path);
      }
    }
  }

  /** The local path of a location, textually inside the root. */
  #locate(path: string): string {
    const location = normalizeLocation(path);
    if (!isWithin(this.root, location) || location === this.root) throw outside(path);
    return localPathOf(location) ?? "";
  }

  async #resolveForRead(path: string): Promise<string> {
    const local = this.#locate(path);
    return this.#guard(path, async () => {
      await this.#checkInside(local, path);
      return local;
    });
  }

  /** Refuses a path that symbolic links lead out of the root. The path must exist. */
  async #checkInside(local: string, path: string): Promise<void> {
    this.#realRoot ??= await realpath(this.#rootPath);
    const real = await realpath(local);
    if (!isWithin(this.#realRoot, real)) throw outside(path);
  }

  async #openTemp(target: string, path: string) {
    for (let tries = 1; ; tries++) {
      await this.#makeParents(target, path);
      const temp = join(dirname(target), `.${randomHex(16)}.spillway-tmp`);
      try {
        return { path: temp, file: await open(temp, "wx", 0o644) };
      } catch (error) {
        // Somebody removed the empty directory between the two calls.
        if (!isCode(error, "ENOENT") || tries >= MKDIR_TRIES) throw error;
      }
    }
  }

  /** Creates missing directories durably: each new one is fsynced into its parent. */
  async #makeParents(target: string, path: string): Promise<void> {
    const parent = dirname(target);
    const first = await mkdir(parent, { recursive: true });
    await this.#checkInside(parent, path);
    if (first === undefined) return;
    for (let dir = parent; dir.length >= first.length; dir = dirname(dir)) await this.#syncDir(dirname(dir));
  }

  async #publish(temp: string, target: string, path: string, ifNoneMatch: boolean): Promise<void> {
    if (ifNoneMatch) {
      await link(temp, target).catch((error: unknown) => {
        throw isCode(error, "EEXIST") ? taken(path, error) : error;
      });
      await unlink(temp);
    } else {
      await rename(temp, target);
    }
    await this.#syncDir(dirname(target));
  }

  async #syncDir(dir: string): Promise<void> {
    if (!this.#fsync) return;
    await using handle = await open(dir, constants.O_RDONLY | constants.O_DIRECTORY);
    await handle.sync();
  }

  async #guard<T>(path: string, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw translate(error, path);
    }
  }
}

type FileHandle = Awaited<ReturnType<typeof open>>;

async function openForRead(local: string, path: string): Promise<FileHandle> {
  const file = await open(local, constants.O_RDONLY);
  const found = await file.stat();
  if (found.isFile()) return file;
  await file.close();
  throw notFound(path);
}

async function readExactly(file: FileHandle, path: string, offset: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  let done = 0;
  while (done < length) {
    const { bytesRead } = await file.read(bytes, done, length - done, offset + done);
    if (bytesRead === 0) throw corrupt(path, `ends at byte ${offset + done}, before byte ${offset + length}`);
    done += bytesRead;
  }
  return bytes;
}

async function writeAll(file: FileHandle, chunk: Uint8Array): Promise<void> {
  for (let done = 0; done < chunk.length;) {
    const { bytesWritten } = await file.write(chunk, done, chunk.length - done);
    done += bytesWritten;
  }
}

function isCode(error: unknown, ...codes: string[]): boolean {
  return error instanceof Error && "code" in error && codes.includes(String(error.code));
}

function outside(path: string): SpillwayError {
  return invalidPath(path, "leads outside the store's root");
}

/** A system error as one of ours. What the caller's own stream threw passes unchanged. */
function translate(error: unknown, path: string): unknown {
  if (error instanceof SpillwayError || !(error instanceof Error) || !("syscall" in error)) return error;
  if (error.syscall === "mkdir" && isCode(error, "ENOTDIR", "EEXIST")) {
    return invalidPath(path, "lies below something that is not a folder");
  }
  if (isCode(error, "ENOENT", "ENOTDIR", "EISDIR")) return notFound(path, error);
  const options = { cause: error, details: { path } };
  if (isCode(error, "ENOSPC", "EDQUOT")) {
    return new SpillwayError("disk_full", `No space is left to write ${path}.`, options);
  }
  if (isCode(error, "EACCES", "EPERM", "EROFS")) {
    return new SpillwayError("store_denied", `Access to ${path} is denied: ${messageOf(error)}.`, options);
  }
  if (isCode(error, "ENAMETOOLONG", "EINVAL", "ELOOP")) return invalidPath(path, `is refused: ${messageOf(error)}`);
  return new SpillwayError("store_unreachable", `${path} cannot be read or written: ${messageOf(error)}.`, options);
}
