/**
 * What a read may see. Rows come in pairs (ids 2n and 2n + 1); every transaction leaves both rows of a pair with one stamp,
 * or deletes both, so a read that sees two stamps, or one row alone, is torn. Each pair's versions have the interval in which
 * they were committed: from the COMMIT's sending to its answer. A read may return a version unless another one was
 * surely committed after it and surely before the read began, and unless it was surely committed after the read ended.
 */

/** Null: both rows are absent. */
export type PairState = { readonly stamp: number; readonly keys: readonly [number, number] } | null;

export interface Version {
  readonly state: PairState;
  /** Monotonic milliseconds, the same clock for all processes. */
  readonly startMs: number;
  readonly endMs: number;
}

export interface SeenRow {
  readonly id: number;
  readonly key: number;
  readonly stamp: number;
}

export interface Read {
  readonly startMs: number;
  readonly endMs: number;
  /** Rows with a key in [low, high) were asked for. */
  readonly low: number;
  readonly high: number;
  readonly rows: readonly SeenRow[];
}

export type FaultKind = "lost" | "doubled" | "torn";

export interface Fault {
  readonly kind: FaultKind;
  readonly detail: string;
}

export class Model {
  readonly #pairs = new Map<number, Version[]>();

  /** In the order of the pair's own transactions; nobody else writes it. */
  commit(pair: number, version: Version): void {
    const versions = this.#pairs.get(pair);
    if (versions) versions.push(version);
    else this.#pairs.set(pair, [version]);
  }

  current(pair: number): PairState {
    return this.#pairs.get(pair)?.at(-1)?.state ?? null;
  }

  get pairs(): readonly number[] {
    return [...this.#pairs.keys()];
  }

  check(read: Read): Fault[] {
    const faults: Fault[] = [];
    const seen = new Map<number, SeenRow>();
    for (const row of read.rows) {
      const before = seen.get(row.id);
      if (before) faults.push({ kind: "doubled", detail: `row ${row.id} twice: ${text(before)} and ${text(row)}` });
      else seen.set(row.id, row);
    }
    for (const [pair, versions] of this.#pairs) {
      const possible = possibleStates(versions, read);
      const rows = [seen.get(2 * pair), seen.get(2 * pair + 1)] as const;
      const fault = checkPair(pair, possible, rows, read);
      if (fault) faults.push(fault);
    }
    for (const row of read.rows) {
      if (!this.#pairs.has(row.id >> 1)) faults.push({ kind: "doubled", detail: `row ${row.id} was never committed` });
    }
    return faults;
  }
}

/** The states that the read may have found; absence before the first version among them. */
function possibleStates(versions: readonly Version[], read: Read): PairState[] {
  const all: Version[] = [{ state: null, startMs: -Infinity, endMs: -Infinity }, ...versions];
  const surelyThere = all.reduce((last, v, i) => (v.endMs < read.startMs ? i : last), 0);
  return all.filter((v, i) => i >= surelyThere && v.startMs <= read.endMs).map((v) => v.state);
}

function checkPair(
  pair: number,
  possible: readonly PairState[],
  rows: readonly [SeenRow | undefined, SeenRow | undefined],
  read: Read,
): Fault | null {
  const matches = (state: PairState): boolean =>
    matchesRow(state, 0, rows[0], read) && matchesRow(state, 1, rows[1], read);
  if (possible.some(matches)) return null;
  const detail = `pair ${pair}: read ${rows.map(text).join(" and ")}, possible ${possible.map(textOf).join(" | ")}, keys [${read.low}, ${read.high}) at ${read.startMs.toFixed(1)}..${read.endMs.toFixed(1)}`;
  // Each row alone is possible, but not both together.
  const each = [0, 1].every((i) => possible.some((state) => matchesRow(state, i as 0 | 1, rows[i as 0 | 1], read)));
  if (each) return { kind: "torn", detail };
  const tooMuch = possible.every((state) => state === null);
  return { kind: tooMuch ? "doubled" : "lost", detail };
}

function matchesRow(state: PairState, i: 0 | 1, row: SeenRow | undefined, read: Read): boolean {
  const key = state?.keys[i] ?? Number.NaN;
  const expected = state !== null && key >= read.low && key < read.high;
  if (!expected || row === undefined) return !expected && row === undefined;
  return row.stamp === state.stamp && row.key === key;
}

function text(row: SeenRow | undefined): string {
  return row === undefined ? "nothing" : `(key ${row.key}, stamp ${row.stamp})`;
}

function textOf(state: PairState): string {
  return state === null ? "absent" : `stamp ${state.stamp} at ${state.keys.join(",")}`;
}
