/** Column builders that grow together: one row at a time, or one column at a time by whoever keeps them even. */
import type { ColumnBatch } from "@spillway/base/columns";
import type { ColumnBuilder } from "./builder.ts";
import { columnBuilder, type PgColumnPlan } from "./plan.ts";

export class BatchBuilder {
  readonly builders: readonly ColumnBuilder[];
  #rows = 0;

  constructor(columns: readonly PgColumnPlan[]) {
    this.builders = columns.map(columnBuilder);
  }

  get length(): number {
    return this.#rows;
  }

  /** Counts a row whose values were appended to every builder. */
  endRow(): void {
    this.#rows++;
  }

  byteLength(): number {
    let sum = 0;
    for (const builder of this.builders) sum += builder.byteLength();
    return sum;
  }

  /** The rows so far; the builder is empty then. */
  finish(): ColumnBatch {
    const length = this.#rows;
    this.#rows = 0;
    return { length, columns: this.builders.map((builder) => builder.finish()) };
  }

  /** Forgets all rows and keeps the memory. */
  reset(): void {
    this.#rows = 0;
    for (const builder of this.builders) builder.reset();
  }
}
