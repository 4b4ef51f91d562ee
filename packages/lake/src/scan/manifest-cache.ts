/** Manifests and manifest lists, parsed once: they are immutable. Bounded in bytes, least recently used first out. */
import type { ManifestContext } from "../manifest.ts";
import { readManifest } from "../manifest.ts";
import { readManifestList } from "../manifest-list.ts";
import type { ManifestEntry, ManifestFile } from "../model.ts";
import { normalizeLocation, type ObjectStore } from "../store/store.ts";
import { type ManifestTable, readManifestTable } from "./manifest-table.ts";

const DEFAULT_BYTES = 256 << 20;
const LINE_BYTES = 600;
const DELETE_ENTRY_BYTES = 1500;

interface Slot {
  readonly value: Promise<unknown>;
  /** Asked again at each use: a table grows with the columns that filters ask for. 0 while it is read. */
  measure: () => number;
  bytes: number;
}

export class ManifestCache {
  readonly #maxBytes: number;
  readonly #slots = new Map<string, Slot>();
  #bytes = 0;
  #hits = 0;
  #misses = 0;

  constructor(maxBytes: number = DEFAULT_BYTES) {
    this.#maxBytes = maxBytes;
  }

  get stats(): { bytes: number; files: number; hits: number; misses: number } {
    return { bytes: this.#bytes, files: this.#slots.size, hits: this.#hits, misses: this.#misses };
  }

  /** The lines of a manifest list. */
  list(store: ObjectStore, path: string): Promise<readonly ManifestFile[]> {
    const read = async (): Promise<ManifestFile[]> => readManifestList(await store.get(normalizeLocation(path)));
    return this.#get(path, read, (lines) => lines.length * LINE_BYTES);
  }

  /** The live files of a data manifest. */
  data(store: ObjectStore, manifest: ManifestFile, context: () => ManifestContext): Promise<ManifestTable> {
    const read = async (): Promise<ManifestTable> =>
      readManifestTable(await store.get(normalizeLocation(manifest.path)), manifest, context());
    return this.#get(manifest.path, read, (table) => table.memoryBytes);
  }

  /** The live entries of a delete manifest. */
  deletes(
    store: ObjectStore,
    manifest: ManifestFile,
    context: () => ManifestContext,
  ): Promise<readonly ManifestEntry[]> {
    const read = async (): Promise<ManifestEntry[]> => {
      const bytes = await store.get(normalizeLocation(manifest.path));
      return readManifest(bytes, manifest, context()).filter((entry) => entry.status !== "deleted");
    };
    return this.#get(manifest.path, read, (entries) => entries.length * DELETE_ENTRY_BYTES);
  }

  #get<T>(path: string, read: () => Promise<T>, measure: (value: T) => number): Promise<T> {
    const known = this.#slots.get(path);
    if (known) {
      this.#hits++;
      this.#slots.delete(path);
      this.#slots.set(path, known);
      this.#account(known);
      return known.value as Promise<T>;
    }
    this.#misses++;
    const slot: Slot = { value: read(), measure: () => 0, bytes: 0 };
    this.#slots.set(path, slot);
    slot.value.then(
      (value) => {
        slot.measure = () => measure(value as T);
        if (this.#slots.get(path) === slot) this.#account(slot);
      },
      () => {
        if (this.#slots.get(path) === slot) this.#slots.delete(path);
      },
    );
    return slot.value as Promise<T>;
  }

  #account(slot: Slot): void {
    const bytes = slot.measure();
    this.#bytes += bytes - slot.bytes;
    slot.bytes = bytes;
    for (const [path, old] of this.#slots) {
      if (this.#bytes <= this.#maxBytes) return;
      if (old.bytes === 0) continue;
      this.#slots.delete(path);
      this.#bytes -= old.bytes;
    }
  }
}
