/**
 * A flush that is under way, beside which the stream goes on: what the stream finds out of a table waits for its end, because the
 * files that it has in hand are to be the table's, or nobody's.
 */
import type { SpillwayError } from "@spillway/base/errors";
import type { MirrorTable } from "./mirror-table.ts";

export class Underway {
  #flush: Promise<unknown> | null = null;
  readonly #late: { readonly table: MirrorTable; readonly error: SpillwayError }[] = [];

  async run<T>(flush: Promise<T>): Promise<T> {
    this.#flush = flush;
    try {
      return await flush;
    } finally {
      this.#flush = null;
      for (const { table, error } of this.#late.splice(0)) table.failure ??= error;
    }
  }

  /** Resolves when none is, however it ended. */
  async over(): Promise<void> {
    await this.#flush?.catch(() => {});
  }

  fail(table: MirrorTable, error: SpillwayError): void {
    if (this.#flush === null) table.failure ??= error;
    else this.#late.push({ table, error });
  }
}
