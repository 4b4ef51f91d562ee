/** Parquet files of the store for hyparquet: ranges on demand, and the codecs that it lacks. */
import { brotliDecompressSync, gunzipSync } from "node:zlib";
import { decompress as unzstd } from "fzstd";
import type { AsyncBuffer, Compressors } from "hyparquet";
import type { ObjectStore } from "../store/store.ts";

/** A file up to this is fetched at once: one request is cheaper than footer and columns apart. */
const WHOLE_BYTES = 4 << 20;

export const COMPRESSORS: Compressors = {
  GZIP: (input) => new Uint8Array(gunzipSync(input)),
  BROTLI: (input) => new Uint8Array(brotliDecompressSync(input)),
  ZSTD: (input, length) => unzstd(input, new Uint8Array(length)),
};

/** The object as hyparquet wants it. */
export async function parquetFile(store: ObjectStore, path: string, sizeBytes: number): Promise<AsyncBuffer> {
  if (sizeBytes <= WHOLE_BYTES) {
    const whole = bufferOf(await store.getRange(path, 0, sizeBytes));
    return { byteLength: sizeBytes, slice: (start, end) => whole.slice(start, end) };
  }
  return {
    byteLength: sizeBytes,
    slice: async (start, end) => bufferOf(await store.getRange(path, start, (end ?? sizeBytes) - start)),
  };
}

function bufferOf(bytes: Uint8Array): ArrayBuffer {
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) as ArrayBuffer;
}
