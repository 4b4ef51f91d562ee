/** Which band a row belongs to, and the bands' new checksums after rows went and came. Pure. */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { Checksum, type RowHashes } from "@spillway/base/rowhash";
import { type BandChange, type BandPut, type BandRow, KEY_MIN } from "../catalog/catalog.ts";

/** Rows by their tier keys and hashes. */
export interface HashedRows {
  readonly keys: BigInt64Array;
  readonly hashes: RowHashes;
}

/** The bands that are, or were, in the lake, in key order. */
export function lakeBands(bands: readonly BandRow[]): BandRow[] {
  return bands.filter((b) => b.state !== "capturing");
}

/** Finds the band of a key; the last answer is tried first, because rows come in runs. */
export class BandIndex {
  readonly #bands: readonly BandRow[];
  #last = 0;

  constructor(bands: readonly BandRow[]) {
    this.#bands = bands;
  }

  /** Index of the band, or -1. */
  find(key: bigint): number {
    const near = this.#bands[this.#last];
    if (near && key >= near.lo && key < near.hi) return this.#last;
    let [low, high] = [0, this.#bands.length];
    while (low < high) {
      const mid = (low + high) >>> 1;
      if (must(this.#bands[mid], "band").hi <= key) low = mid + 1;
      else high = mid;
    }
    const found = this.#bands[low];
    if (!found || key < found.lo) return -1;
    this.#last = low;
    return low;
  }

  /** Adds each row to the sum of its band; -1 collects those of none. */
  addTo(sums: Map<number, Checksum>, rows: HashedRows): void {
    const { keys, hashes } = rows;
    for (let start = 0; start < keys.length;) {
      const band = this.find(keys[start] ?? 0n);
      let end = start + 1;
      while (end < keys.length && this.find(keys[end] ?? 0n) === band) end++;
      sumOf(sums, band).add(hashes, start, end);
      start = end;
    }
  }
}

export function sumOf(sums: Map<number, Checksum>, band: number): Checksum {
  let sum = sums.get(band);
  if (!sum) sums.set(band, (sum = new Checksum()));
  return sum;
}

export interface BandMoves {
  readonly changes: readonly BandChange[];
  readonly puts: readonly BandPut[];
}

export interface BandMoveRequest {
  readonly relationId: bigint;
  readonly bands: readonly BandRow[];
  /** The cut-line: the upper bound of a band that has to be made below all others. */
  readonly t: bigint;
  readonly removed: readonly HashedRows[];
  readonly added: readonly HashedRows[];
  readonly fieldIds: readonly number[];
}

/** Throws `checksum_mismatch` when more rows went than the journaled checksum knows. */
export function moveBands(request: BandMoveRequest): BandMoves {
  const bands = lakeBands(request.bands);
  const index = new BandIndex(bands);
  const [gone, come] = [new Map<number, Checksum>(), new Map<number, Checksum>()];
  for (const rows of request.removed) index.addTo(gone, rows);
  for (const rows of request.added) index.addTo(come, rows);
  const changes: BandChange[] = [];
  const puts: BandPut[] = [];
  for (const i of new Set([...gone.keys(), ...come.keys()])) {
    const band = bands[i];
    const before = band ? checksumOf(band) : new Checksum();
    const after = before.merge(sumOf(come, i)).subtract(sumOf(gone, i));
    if (after.rows < 0n || (after.rows === 0n && after.sum !== 0n)) {
      const name = band ? `the band [${band.lo}, ${band.hi})` : "no band";
      throw new SpillwayError("checksum_mismatch", `${name} would have ${after.toString()} after this movement`);
    }
    const moved = { rows: after.rows, checksum: after.toString() };
    if (band) changes.push({ bandId: band.bandId, ...moved, checksumFields: union(band, request.fieldIds) });
    else puts.push({ ...emptyBand(request, bands), ...moved, checksumFields: request.fieldIds });
  }
  return { changes, puts };
}

/** The journaled checksum of a band. Throws `checksum_mismatch` when it has none that can be read. */
export function checksumOf(band: BandRow): Checksum {
  const parsed = band.checksum === null ? null : Checksum.parse(band.checksum);
  if (parsed) return parsed;
  throw new SpillwayError("checksum_mismatch", `the band [${band.lo}, ${band.hi}) has no readable checksum`);
}

function union(band: BandRow, fieldIds: readonly number[]): number[] {
  return [...new Set([...(band.checksumFields ?? []), ...fieldIds])].toSorted((a, b) => a - b);
}

/** Rows older than every partition that there ever was: a band of their own, without a leaf. */
function emptyBand(request: BandMoveRequest, bands: readonly BandRow[]): BandPut {
  return {
    relationId: request.relationId,
    lo: KEY_MIN,
    hi: bands[0]?.lo ?? request.t,
    leaf: null,
    leafName: "",
    leafLo: null,
    state: "dropped",
    rows: 0n,
    checksum: null,
    checksumFields: null,
    leafFilenode: null,
    leafSignature: null,
    bytes: null,
  };
}
