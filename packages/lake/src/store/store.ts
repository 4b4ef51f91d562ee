/**
 * Object stores behind one small interface. Objects are immutable once written, and every write is
 * atomic: a reader sees the whole object or none. Paths are full locations, as Iceberg metadata
 * holds them: `file:///lake/db/t/x.parquet`, `s3://bucket/db/t/x.parquet`. A file location is not
 * percent-decoded, just as pyiceberg and DuckDB do not decode it.
 */
import { SpillwayError } from "@spillway/base/errors";

export type Body = Uint8Array | AsyncIterable<Uint8Array>;

export interface PutOptions {
  /** Write only if nothing is there; otherwise `store_precondition`. */
  readonly ifNoneMatch?: boolean;
}

export interface ObjectInfo {
  /** Bytes. */
  readonly size: number;
  readonly etag?: string;
}

export interface ListedObject {
  /** Full location. */
  readonly path: string;
  readonly size: number;
  readonly modifiedMs: number;
}

/**
 * Errors of every method: `store_unreachable` (passing, the retry budget is used up), `store_denied`,
 * `store_path_invalid` (outside the root), `store_bucket_missing`, `disk_full`.
 */
export interface ObjectStore {
  /** The location below which everything of this store lies, without a trailing slash. */
  readonly root: string;

  /** The whole object. `store_not_found` if it is not there, `store_corrupt` if it came short. */
  get(path: string): Promise<Uint8Array>;

  /** Exactly `length` bytes from `offset`. `store_corrupt` if the object ends before. */
  getRange(path: string, offset: number, length: number): Promise<Uint8Array>;

  /**
   * Writes the object whole or not at all. An existing one is replaced, unless `ifNoneMatch`.
   * `store_outcome_unknown` when a conditional write's answer was lost and cannot be looked up.
   */
  put(path: string, data: Body, options?: PutOptions): Promise<{ size: number }>;

  /** Null when it is not there. */
  head(path: string): Promise<ObjectInfo | null>;

  /** Every object whose location starts with `prefix`, in no promised order. */
  list(prefix: string): AsyncIterable<ListedObject>;

  /** Removes objects; one that is not there is no error. */
  delete(paths: readonly string[]): Promise<void>;

  /**
   * Removes what writers that were killed left unfinished (temporary files, parts of uploads), if nobody wrote to it in the last
   * `olderThanMs`. Returns how many.
   */
  sweepTemporary(olderThanMs: number, nowMs: number): Promise<number>;
}

/**
 * The one canonical form of a location: `file:///abs/path` or `s3://bucket/key`. Accepts plain
 * absolute paths, Hadoop's `file:/path` and the `s3a`/`s3n` schemes of other writers.
 * Throws `store_path_invalid`.
 */
export function normalizeLocation(location: string): string {
  if (location.includes("\0")) throw invalidPath(location, "holds a NUL character");
  if (location.startsWith("/")) return `file://${cleanPath(location, location)}`;
  const file = /^file:(?:\/\/(?:localhost)?)?(\/(?:[^/].*)?)$/s.exec(location);
  if (file) return `file://${cleanPath(file[1] ?? "", location)}`;
  const s3 = /^s3[an]?:\/\/([^/]+)(?:\/(.*))?$/s.exec(location);
  if (!s3) throw invalidPath(location, "is neither an absolute path nor a file: or s3: location");
  const key = (s3[2] ?? "").replace(/\/+$/, "");
  if (key.split("/").some((part) => part === ".." || part === ".")) throw invalidPath(location, "holds . or ..");
  return key === "" ? `s3://${s3[1]}` : `s3://${s3[1]}/${key}`;
}

function cleanPath(path: string, location: string): string {
  const parts = path.split("/").filter((part) => part !== "" && part !== ".");
  if (parts.includes("..")) throw invalidPath(location, "holds ..");
  return `/${parts.join("/")}`;
}

export function invalidPath(location: string, why: string): SpillwayError {
  return new SpillwayError("store_path_invalid", `The location ${JSON.stringify(location)} ${why}.`);
}

/** The local path of a `file://` location, or null for one that is not local. */
export function localPathOf(location: string): string | null {
  return location.startsWith("file://") ? location.slice("file://".length) : null;
}

/** Whether `location` is `root` itself or below it. Both canonical. */
export function isWithin(root: string, location: string): boolean {
  if (location === root) return true;
  return location.startsWith(root.endsWith("/") ? root : `${root}/`);
}

/** The error of an object that is not there. */
export function notFound(path: string, cause?: unknown): SpillwayError {
  return new SpillwayError("store_not_found", `There is no object ${path}.`, { cause, details: { path } });
}

/** The error of a conditional write that found the place taken. */
export function taken(path: string, cause?: unknown): SpillwayError {
  return new SpillwayError("store_precondition", `The object ${path} exists already.`, { cause, details: { path } });
}

/** The error of an object that ends too early or reads back otherwise than it must. */
export function corrupt(path: string, why: string, cause?: unknown): SpillwayError {
  return new SpillwayError("store_corrupt", `The object ${path} ${why}.`, { cause, details: { path } });
}

/** The body as chunks. */
export async function* chunksOf(data: Body): AsyncIterable<Uint8Array> {
  if (data instanceof Uint8Array) yield data;
  else yield* data;
}
