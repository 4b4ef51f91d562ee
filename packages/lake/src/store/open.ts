/** The store of a warehouse location, and files that were written beside it. */
import { createReadStream } from "node:fs";
import { unlink } from "node:fs/promises";
import { FileStore } from "./file.ts";
import { S3Store, type S3StoreOptions } from "./s3.ts";
import { localPathOf, normalizeLocation, type ObjectStore, type PutOptions } from "./store.ts";

/** `root` may be an absolute path, a `file:` or an `s3:` location; what concerns S3 is ignored for files. */
export function openStore(options: S3StoreOptions): ObjectStore {
  const root = normalizeLocation(options.root);
  return localPathOf(root) === null ? new S3Store({ ...options, root }) : new FileStore({ root });
}

/**
 * Makes a finished local file an object and removes it: by moving it where the store is a directory
 * of the same file system, else by uploading it. After an error the file is still there.
 */
export async function putFile(
  store: ObjectStore,
  localFile: string,
  path: string,
  options: PutOptions = {},
): Promise<{ size: number }> {
  if (store instanceof FileStore) {
    const moved = await store.adopt(localFile, path, options).catch((error: unknown) => {
      if (isOtherFileSystem(error)) return null;
      throw error;
    });
    if (moved) return moved;
  }
  const written = await store.put(path, createReadStream(localFile, { highWaterMark: 1 << 20 }), options);
  await unlink(localFile);
  return written;
}

function isOtherFileSystem(error: unknown): boolean {
  const cause = error instanceof Error ? (error.cause ?? error) : null;
  return cause instanceof Error && "code" in cause && cause.code === "EXDEV";
}
