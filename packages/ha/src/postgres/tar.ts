/**
 * Unpacking the tar stream of a base backup: files, directories and symbolic links, in order, without
 * holding more than a chunk. Format: POSIX ustar, as src/common/tar… of Postgres writes it.
 */
import { closeSync, fchmodSync, mkdirSync, openSync, symlinkSync, writeSync } from "node:fs";
import { dirname, join, normalize, sep } from "node:path";
import { SpillwayError } from "@spillway/base/errors";

const BLOCK = 512;

export interface TarEntry {
  readonly name: string;
  readonly size: number;
  /** `0` file, `5` directory, `2` symbolic link. */
  readonly type: string;
  readonly mode: number;
  readonly linkTarget: string;
}

/** Decodes one header block; null for the zero block at the end. */
export function parseTarHeader(block: Buffer): TarEntry | null {
  if (block.every((byte) => byte === 0)) return null;
  const text = (from: number, length: number): string => {
    const end = block.indexOf(0, from);
    return block.toString("utf8", from, end < 0 || end > from + length ? from + length : end);
  };
  const octal = (from: number, length: number): number => {
    // Sizes of 8 GiB and more are big-endian binary, marked by the first bit.
    if (((block[from] ?? 0) & 0x80) !== 0) return Number(block.readBigUInt64BE(from + length - 8));
    return Number.parseInt(text(from, length).trim() || "0", 8);
  };
  const prefix = text(345, 155);
  const name = text(0, 100);
  return {
    name: prefix === "" ? name : `${prefix}/${name}`,
    size: octal(124, 12),
    type: String.fromCharCode(block[156] ?? 0x30),
    mode: octal(100, 8) & 0o777,
    linkTarget: text(157, 100),
  };
}

/** Takes the bytes of one archive in any pieces. `end` throws when the archive was cut off. */
export class TarExtractor {
  readonly #root: string;
  #header = Buffer.alloc(0);
  #fd: number | null = null;
  #left = 0;
  #padding = 0;

  constructor(root: string) {
    this.#root = root;
  }

  push(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length) {
      if (this.#left > 0) at += this.#data(chunk, at);
      else if (this.#padding > 0) at += this.#skip(chunk.length - at);
      else at += this.#take(chunk, at);
    }
  }

  end(): void {
    const cutOff = this.#left > 0 || this.#header.length > 0;
    this.close();
    if (cutOff) throw new SpillwayError("ha_base_backup_failed", "the base backup was cut off");
  }

  close(): void {
    if (this.#fd !== null) closeSync(this.#fd);
    this.#fd = null;
  }

  #data(chunk: Buffer, at: number): number {
    const size = Math.min(this.#left, chunk.length - at);
    for (let done = 0; this.#fd !== null && done < size;) {
      done += writeSync(this.#fd, chunk, at + done, size - done);
    }
    this.#left -= size;
    if (this.#left === 0) this.close();
    return size;
  }

  #skip(available: number): number {
    const size = Math.min(this.#padding, available);
    this.#padding -= size;
    return size;
  }

  #take(chunk: Buffer, at: number): number {
    const size = Math.min(BLOCK - this.#header.length, chunk.length - at);
    this.#header = Buffer.concat([this.#header, chunk.subarray(at, at + size)]);
    if (this.#header.length === BLOCK) {
      const entry = parseTarHeader(this.#header);
      this.#header = Buffer.alloc(0);
      if (entry !== null) this.#open(entry);
    }
    return size;
  }

  #open(entry: TarEntry): void {
    const path = join(this.#root, normalize(entry.name));
    if (path !== this.#root && !path.startsWith(this.#root + sep)) {
      throw new SpillwayError("ha_base_backup_failed", `the base backup names a file outside: ${entry.name}`);
    }
    if (entry.type === "5") {
      mkdirSync(path, { recursive: true, mode: 0o700 });
    } else if (entry.type === "2") {
      symlinkSync(entry.linkTarget, path);
    } else {
      mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
      this.#fd = openSync(path, "w", 0o600);
      fchmodSync(this.#fd, entry.mode === 0 ? 0o600 : entry.mode);
      this.#left = entry.size;
      this.#padding = (BLOCK - (entry.size % BLOCK)) % BLOCK;
      if (entry.size === 0) this.close();
    }
  }
}
