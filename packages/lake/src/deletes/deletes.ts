/**
 * Deleted positions: written as deletion vectors (format v3) or position delete files (v2), loaded
 * from either. A new deletion vector must hold what the old deletes of its data file held, and the
 * old ones leave in the same commit: `mergeDeletes` gives the union, the commit is the caller's.
 */
import { assert, must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { newUuid } from "@spillway/base/ids";
import { limiter } from "../limiter.ts";
import type { DataFile } from "../model.ts";
import { DELETION_VECTOR, decodeDeletionVector, deletionVectorBlob } from "../puffin/deletion-vector.ts";
import { PositionSet } from "../puffin/position-set.ts";
import { encodePuffin, readPuffinFooter } from "../puffin/puffin.ts";
import type { ObjectStore } from "../store/store.ts";
import { type FileDeletes, readPositionDeletes } from "./position-deletes.ts";

export { type FileDeletes, mayConcern, writePositionDeletes } from "./position-deletes.ts";

/** Deleted positions by the location of their data file. */
export type DeletesByFile = ReadonlyMap<string, PositionSet>;

/** What an entry of the cache takes beside its sets. */
const ENTRY_BYTES = 300;
const DEFAULT_CACHE_BYTES = 64 << 20;
const PARALLEL = 16;
/** Vectors this close are fetched by one request, up to this much. */
const GAP_BYTES = 64 << 10;
const RANGE_BYTES = 8 << 20;

/**
 * Writes one Puffin file below `folder` with one deletion vector for each data file. The sets must
 * already hold what older deletes of the data files held. Empty sets give no vector.
 */
export async function writeDeletionVectors(
  store: ObjectStore,
  folder: string,
  deletes: readonly FileDeletes[],
): Promise<DataFile[]> {
  const real = deletes.filter(({ positions }) => !positions.isEmpty);
  if (real.length === 0) return [];
  assert(new Set(real.map((d) => d.dataFile.path)).size === real.length, "two deletion vectors for one data file");
  const blobs = real.map(({ dataFile, positions }) => deletionVectorBlob(dataFile.path, positions));
  const { bytes, footer } = encodePuffin(blobs, { "created-by": "spillway" });
  const path = `${folder}/${newUuid()}-deletes.puffin`;
  await store.put(path, bytes, { ifNoneMatch: true });
  return real.map(({ dataFile, positions }, i) => {
    const place = must(footer.blobs[i], "blob");
    return {
      content: "position-deletes",
      path,
      format: "puffin",
      specId: dataFile.specId,
      partition: dataFile.partition,
      recordCount: BigInt(positions.cardinality),
      fileSizeBytes: BigInt(bytes.length),
      referencedDataFile: dataFile.path,
      contentOffset: BigInt(place.offset),
      contentSizeInBytes: BigInt(place.length),
    };
  });
}

/** The union of both, file by file. Changes neither. */
export function mergeDeletes(existing: DeletesByFile, added: DeletesByFile): Map<string, PositionSet> {
  const merged = new Map<string, PositionSet>();
  for (const [path, positions] of existing) merged.set(path, positions.clone());
  for (const [path, positions] of added) {
    const old = existing.get(path);
    merged.set(path, old ? old.union(positions) : positions.clone());
  }
  return merged;
}

/** Loads deletes, keeping what it decoded: delete files are immutable. Bounded in bytes. */
export class DeleteLoader {
  readonly #store: ObjectStore;
  readonly #maxBytes: number;
  readonly #limit = limiter(PARALLEL);
  /** In the order of use. */
  readonly #cache = new Map<string, { value: Promise<DeletesByFile>; bytes: number }>();
  #bytes = 0;

  constructor(store: ObjectStore, maxBytes: number = DEFAULT_CACHE_BYTES) {
    this.#store = store;
    this.#maxBytes = maxBytes;
  }

  /** Bytes that the cache holds, roughly. */
  get cachedBytes(): number {
    return this.#bytes;
  }

  /**
   * The deleted positions of each data file that the delete files name: of `wanted` only, when given.
   * The sets are shared with the cache: clone before changing one.
   * Errors: those of the store, `puffin_invalid`, `deletes_invalid`, `equality_deletes_unsupported`.
   */
  async load(deletes: readonly DataFile[], wanted?: ReadonlySet<string>): Promise<Map<string, PositionSet>> {
    const loaded = await Promise.all(this.#loadAll(deletes));
    const result = new Map<string, PositionSet>();
    for (const byFile of loaded) {
      for (const [path, positions] of byFile) {
        if (wanted && !wanted.has(path)) continue;
        const old = result.get(path);
        result.set(path, old ? old.union(positions) : positions);
      }
    }
    return result;
  }

  /** Deletion vectors of one Puffin file that lie close together are fetched at once. */
  #loadAll(files: readonly DataFile[]): Promise<DeletesByFile>[] {
    const missing = files.filter((file) => file.format === "puffin" && !this.#cache.has(cacheKey(file)));
    const ranges = new Map(
      rangesOf(missing).flatMap((range) => range.files.map((file) => [cacheKey(file), range] as const)),
    );
    return files.map((file) => this.#loadFile(file, ranges.get(cacheKey(file))));
  }

  #loadFile(file: DataFile, range: VectorRange | undefined): Promise<DeletesByFile> {
    const key = cacheKey(file);
    const hit = this.#cache.get(key);
    if (hit) {
      this.#cache.delete(key);
      this.#cache.set(key, hit);
      return hit.value;
    }
    const entry = { value: this.#read(file, range), bytes: 0 };
    this.#cache.set(key, entry);
    entry.value.then(
      (byFile) => {
        if (this.#cache.get(key) !== entry) return;
        entry.bytes = ENTRY_BYTES;
        for (const positions of byFile.values()) entry.bytes += positions.memoryBytes;
        this.#bytes += entry.bytes;
        this.#evict();
      },
      () => {
        if (this.#cache.get(key) === entry) this.#cache.delete(key);
      },
    );
    return entry.value;
  }

  async #read(file: DataFile, range: VectorRange | undefined): Promise<DeletesByFile> {
    if (file.content === "equality-deletes") {
      throw new SpillwayError("equality_deletes_unsupported", `${file.path} holds equality deletes.`);
    }
    if (!range) return this.#limit(() => readPositionDeletes(this.#store, file));
    const { offset, length } = placeOf(file);
    range.bytes ??= this.#limit(() => this.#store.getRange(range.path, range.start, range.end - range.start));
    const bytes = (await range.bytes).subarray(offset - range.start, offset - range.start + length);
    return new Map([[file.referencedDataFile ?? "", decodeDeletionVector(bytes, file.recordCount)]]);
  }

  #evict(): void {
    for (const [key, entry] of this.#cache) {
      if (this.#bytes <= this.#maxBytes) return;
      // Still being read.
      if (entry.bytes === 0) continue;
      this.#cache.delete(key);
      this.#bytes -= entry.bytes;
    }
  }
}

interface VectorRange {
  readonly path: string;
  readonly start: number;
  readonly end: number;
  readonly files: readonly DataFile[];
  bytes: Promise<Uint8Array> | null;
}

function cacheKey(file: DataFile): string {
  return `${file.path}#${file.contentOffset ?? ""}`;
}

function placeOf(file: DataFile): { offset: number; length: number } {
  const { referencedDataFile, contentOffset, contentSizeInBytes } = file;
  if (referencedDataFile === undefined || contentOffset === undefined || contentSizeInBytes === undefined) {
    throw new SpillwayError("puffin_invalid", `The manifest does not say where in ${file.path} the vector is.`);
  }
  return { offset: Number(contentOffset), length: Number(contentSizeInBytes) };
}

/** The byte ranges to fetch for the vectors: neighbors with a small gap between them together. */
function rangesOf(vectors: readonly DataFile[]): VectorRange[] {
  const placed = vectors.map((file) => ({ file, ...placeOf(file) }));
  placed.sort((a, b) => (a.file.path === b.file.path ? a.offset - b.offset : a.file.path < b.file.path ? -1 : 1));
  const ranges: (VectorRange & { end: number; files: DataFile[] })[] = [];
  for (const { file, offset, length } of placed) {
    const last = ranges.at(-1);
    const near =
      last?.path === file.path && offset - last.end <= GAP_BYTES && offset + length - last.start <= RANGE_BYTES;
    if (last && near) {
      last.end = Math.max(last.end, offset + length);
      last.files.push(file);
    } else {
      ranges.push({ path: file.path, start: offset, end: offset + length, files: [file], bytes: null });
    }
  }
  return ranges;
}

/**
 * Checks a deletion vector's entry against the Puffin footer: offset, length, type, data file and
 * count. For verification; a scan does not need the footer. Throws `puffin_invalid`.
 */
export async function checkDeletionVector(store: ObjectStore, file: DataFile): Promise<void> {
  const footer = await readPuffinFooter(store, file.path, Number(file.fileSizeBytes));
  const blob = footer.blobs.find((place) => BigInt(place.offset) === file.contentOffset);
  const right =
    blob?.type === DELETION_VECTOR &&
    BigInt(blob.length) === file.contentSizeInBytes &&
    blob.properties["referenced-data-file"] === file.referencedDataFile &&
    blob.properties["cardinality"] === file.recordCount.toString();
  if (!right) {
    throw new SpillwayError(
      "puffin_invalid",
      `The footer of ${file.path} does not have the vector that its manifest names.`,
    );
  }
}
