/** Where the rows of rewritten files are now: old positions, new positions, in the same order. Pure. */
import { must } from "@spillway/base/assert";
import { PositionSet } from "@spillway/lake/puffin/position-set";

export interface OldFile {
  readonly path: string;
  readonly rows: bigint;
  /** Deleted when the rewrite began: those rows were not copied. */
  readonly deleted: PositionSet | null;
}

/** Rows of old files, in their order and without the deleted ones, lie one after the other in new files. */
export class Remap {
  readonly #starts = new Map<string, number>();
  readonly #deleted = new Map<string, Float64Array>();
  readonly #ends: number[] = [];
  readonly total: number;

  constructor(old: readonly OldFile[], newRows: readonly bigint[]) {
    let at = 0;
    for (const file of old) {
      const deleted = file.deleted?.toSorted() ?? new Float64Array(0);
      this.#starts.set(file.path, at);
      this.#deleted.set(file.path, deleted);
      at += Number(file.rows) - deleted.length;
    }
    this.total = at;
    let end = 0;
    for (const rows of newRows) this.#ends.push((end += Number(rows)));
  }

  /** Positions in each new file (by its index) of rows that are deleted now and were not when the rewrite began. */
  remap(now: ReadonlyMap<string, PositionSet>): Map<number, PositionSet> {
    const result = new Map<number, PositionSet>();
    for (const [path, positions] of now) {
      const start = this.#starts.get(path);
      if (start === undefined) continue;
      const deleted = must(this.#deleted.get(path), "deleted positions");
      let before = 0;
      for (const position of positions) {
        while (before < deleted.length && (deleted[before] ?? 0) < position) before++;
        if (deleted[before] === position) continue;
        this.#add(result, start + position - before);
      }
    }
    return result;
  }

  /** Positions of the path that were deleted since, in the old file. */
  since(path: string, now: PositionSet): number[] {
    const deleted = new Set(this.#deleted.get(path) ?? []);
    return [...now].filter((p) => !deleted.has(p));
  }

  #add(result: Map<number, PositionSet>, row: number): void {
    let file = 0;
    while (row >= must(this.#ends[file], "a new file for every row")) file++;
    const first = file === 0 ? 0 : must(this.#ends[file - 1], "end");
    let set = result.get(file);
    if (!set) result.set(file, (set = new PositionSet()));
    set.add(row - first);
  }
}
