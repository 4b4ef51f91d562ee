/** Which files a snapshot takes away, and which manifests can hold them. */
import { SpillwayError } from "@spillway/base/errors";
import { mayHoldTuple } from "../manifest-summary.ts";
import type { DataFile, ManifestFile, PartitionTuple, PrimitiveType } from "../model.ts";

/** What tells a file in a table from another: its path, and for a deletion vector the place inside. */
export function fileKey(file: DataFile): string {
  return file.contentOffset === undefined ? file.path : `${file.path}#${file.contentOffset}`;
}

/** A partition as text: equal exactly for equal spec and tuple. */
export function partitionKey(file: DataFile): string {
  return `${file.specId}:${JSON.stringify(file.partition.map(valueKey))}`;
}

function valueKey(value: PartitionTuple[number]): string {
  if (value instanceof Uint8Array) return `x${Buffer.from(value).toString("hex")}`;
  return Object.is(value, -0) ? "number:-0" : `${typeof value}:${String(value)}`;
}

/** Files to look for in manifests of one content, by what they are or by the data file they refer to. */
export class Removals {
  readonly #wanted = new Map<string, DataFile>();
  readonly #found = new Map<string, DataFile>();
  readonly #byReference = new Set<string>();
  /** One file for each partition in which something is looked for. */
  readonly #places = new Map<string, DataFile>();

  /** Files that must be found. */
  require(files: readonly DataFile[]): void {
    for (const file of files) {
      const key = fileKey(file);
      if (this.#wanted.has(key)) throw new SpillwayError("lake_update_invalid", `${key} is removed twice`);
      this.#wanted.set(key, file);
      this.#places.set(partitionKey(file), file);
    }
  }

  /** Delete files that refer to one of these data files go too, if there are any. */
  alsoReferringTo(dataFiles: readonly DataFile[]): void {
    for (const file of dataFiles) {
      this.#byReference.add(file.path);
      this.#places.set(partitionKey(file), file);
    }
  }

  /** Looks at the partitions of these files too. */
  alsoVisit(files: readonly DataFile[]): void {
    for (const file of files) this.#places.set(partitionKey(file), file);
  }

  /** Whether the manifest can hold any of it. Never a false no. */
  mayBeIn(manifest: ManifestFile, types: readonly PrimitiveType[]): boolean {
    for (const place of this.#places.values()) {
      if (place.specId === manifest.partitionSpecId && mayHoldTuple(manifest, place.partition, types)) return true;
    }
    return false;
  }

  /** Whether a live file is to go; remembers it. */
  take(file: DataFile): boolean {
    const key = fileKey(file);
    const refers = file.referencedDataFile !== undefined && this.#byReference.has(file.referencedDataFile);
    if (!this.#wanted.has(key) && !refers) return false;
    this.#found.set(key, file);
    return true;
  }

  /** The removed files as the table has them. */
  get found(): DataFile[] {
    return [...this.#found.values()];
  }

  /** Throws `lake_commit_conflict` if a file that must go is not there (any more). */
  checkAllFound(): void {
    for (const key of this.#wanted.keys()) {
      if (!this.#found.has(key)) {
        throw new SpillwayError("lake_commit_conflict", `the file ${key} is not in the branch any more`);
      }
    }
  }
}
