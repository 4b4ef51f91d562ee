import type { Cursor } from "./cursor.ts";

/**
 * A map that stays encoded until somebody asks: a manifest holds five of them for each file, and a
 * scan looks at few. It reads and compares like the Map that it stands for.
 */
export class LazyMap<K, V> implements ReadonlyMap<K, V> {
  #cursor: Cursor | null;
  readonly #start: number;
  readonly #decode: (cursor: Cursor) => Map<K, V>;
  #map: Map<K, V> | null = null;

  constructor(cursor: Cursor, start: number, decode: (cursor: Cursor) => Map<K, V>) {
    this.#cursor = cursor;
    this.#start = start;
    this.#decode = decode;
  }

  #full(): Map<K, V> {
    if (this.#map) return this.#map;
    const cursor = this.#cursor as Cursor;
    // The cursor is shared with the file's other maps, and perhaps still reading: put it back.
    const at = cursor.at;
    cursor.at = this.#start;
    try {
      this.#map = this.#decode(cursor);
    } finally {
      cursor.at = at;
    }
    this.#cursor = null;
    return this.#map;
  }

  get size(): number {
    return this.#full().size;
  }

  get(key: K): V | undefined {
    return this.#full().get(key);
  }

  has(key: K): boolean {
    return this.#full().has(key);
  }

  keys(): MapIterator<K> {
    return this.#full().keys();
  }

  values(): MapIterator<V> {
    return this.#full().values();
  }

  entries(): MapIterator<[K, V]> {
    return this.#full().entries();
  }

  forEach(callback: (value: V, key: K, map: ReadonlyMap<K, V>) => void): void {
    for (const [key, value] of this.#full()) callback(value, key, this);
  }

  [Symbol.iterator](): MapIterator<[K, V]> {
    return this.#full()[Symbol.iterator]();
  }

  get [Symbol.toStringTag](): string {
    return "Map";
  }
}

Object.defineProperty(LazyMap.prototype, "constructor", { value: Map });
