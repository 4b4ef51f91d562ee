/**
 * A process that writes objects into a directory store until it is killed. Argument: the root. Keeps
 * replacing `current` and adding `<n>`; says `wrote <n>` when both are acknowledged. Every object
 * carries its own checksum: a torn one cannot pass for whole.
 */
import { createHash } from "node:crypto";
import { fileURLToPath } from "node:url";
import { FileStore } from "@spillway/lake/store/file";

export const STORE_WRITER = fileURLToPath(import.meta.url);
const CHUNK_BYTES = 64 << 10;
const CHUNKS = 24;

/** The object of a number: chunks of that number, then the SHA-256 of them. */
async function* body(n: number): AsyncIterable<Uint8Array> {
  const hash = createHash("sha256");
  for (let i = 0; i < CHUNKS + (n % 7); i++) {
    const chunk = Buffer.alloc(CHUNK_BYTES, `${n} `);
    hash.update(chunk);
    yield chunk;
    await new Promise((resolve) => setImmediate(resolve));
  }
  yield hash.digest();
}

/** Whether the bytes are an object of this writer, all of it. */
export function isWholeObject(bytes: Uint8Array): boolean {
  const end = bytes.length - 32;
  if (end < CHUNKS * CHUNK_BYTES) return false;
  return createHash("sha256").update(bytes.subarray(0, end)).digest().equals(bytes.subarray(end));
}

if (process.argv[1] === STORE_WRITER) {
  const store = new FileStore({ root: process.argv[2] ?? "" });
  for (let n = 0; ; n++) {
    await store.put(`${store.root}/current`, body(n));
    await store.put(`${store.root}/deep/${n}`, body(n), { ifNoneMatch: true });
    process.stdout.write(`wrote ${n}\n`);
  }
}
