/** Texts by text, least recently used first out: parsed trees and final statements of queries that come again. */
const MAX_ENTRIES = 1000;
const MAX_LENGTH = 64 * 1024;

export class TextCache {
  readonly #entries = new Map<string, string>();

  async get(key: string, make: () => Promise<string>): Promise<string> {
    const known = this.#entries.get(key);
    if (known !== undefined) {
      this.#entries.delete(key);
      this.#entries.set(key, known);
      return known;
    }
    const made = await make();
    if (key.length + made.length <= MAX_LENGTH) this.#entries.set(key, made);
    if (this.#entries.size > MAX_ENTRIES) {
      for (const oldest of this.#entries.keys()) {
        this.#entries.delete(oldest);
        break;
      }
    }
    return made;
  }
}
