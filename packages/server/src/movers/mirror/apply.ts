/**
 * Runs a table's operations, in the order of the stream, against its index: which rows are there in the end, and which
 * positions of older files are dead. The index is changed in place: if the flush fails, it is thrown away.
 */
import { must } from "@spillway/base/assert";
import type { ColumnBatch } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import type { Lsn } from "@spillway/base/lsn";
import { type KeyHashes, OP, type Segment } from "./change-log.ts";
import type { KeyIndex } from "./key-index.ts";
import type { Block, LakeState } from "./lake-state.ts";

/** A row whose values were not all sent, and where its old version is. */
export interface Fixup {
  readonly segment: Segment;
  readonly row: number;
  readonly columns: readonly number[];
  readonly from: number;
}

/** A key whose row is looked for: in memory, or that of another row. */
export type WantedKey = { readonly keys: ColumnBatch; readonly at: number } | { readonly ordinal: number };

/** Tells keys with the same hash apart: which of the ordinals is the row of this key, or null. */
export type Discern = (ordinals: readonly number[], key: WantedKey) => Promise<number | null>;

export interface Applied {
  /** The blocks of each segment's rows, in order. */
  readonly blocks: ReadonlyMap<Segment, readonly Block[]>;
  /** Bits of dead rows. */
  readonly dead: ReadonlyMap<Block, Uint8Array>;
  /** Blocks of which no row is left, by TRUNCATE. */
  readonly wiped: ReadonlySet<Block>;
  readonly fixups: readonly Fixup[];
  readonly operations: number;
}

/** For a table that joins: what its copy was read under. */
export interface JoinLsns {
  readonly min: Lsn;
  readonly max: Lsn;
}

/** Operations between two breaths, so that status still goes to the server. */
const BREATH = 200_000;

export function needsIndex(segments: readonly Segment[]): boolean {
  return segments.some(({ ops }) => ops.some((op) => op !== OP.insert && op !== OP.truncate));
}

export class Applier {
  readonly #state: LakeState;
  readonly #index: KeyIndex | null;
  readonly #discern: Discern;
  readonly #join: JoinLsns | null;
  readonly #blocks = new Map<Segment, Block[]>();
  readonly #dead = new Map<Block, Uint8Array>();
  readonly #wiped = new Set<Block>();
  readonly #fixups: Fixup[] = [];
  #operations = 0;
  #lastBlock: Block | null = null;

  /** `gone`: blocks that leave the table whatever the operations are. */
  constructor(
    state: LakeState,
    index: KeyIndex | null,
    discern: Discern,
    join: JoinLsns | null,
    gone: readonly Block[] = [],
  ) {
    for (const block of gone) this.#wiped.add(block);
    this.#state = state;
    this.#index = index;
    this.#discern = discern;
    this.#join = join;
  }

  /** Throws `mirror_row_missing` when the stream names a row that is not there. */
  async run(segments: readonly Segment[]): Promise<Applied> {
    for (const segment of segments) await this.#segment(segment);
    return {
      blocks: this.#blocks,
      dead: this.#dead,
      wiped: this.#wiped,
      fixups: this.#fixups,
      operations: this.#operations,
    };
  }

  async #segment(segment: Segment): Promise<void> {
    const { ops, skips, commits } = segment;
    const base = this.#place(segment);
    const toast = new Map(segment.toast.map((mark) => [mark.row, mark.columns]));
    let row = 0;
    let old = 0;
    let skip = 0;
    let commit = 0;
    for (let i = 0; i < ops.length; i++) {
      if (++this.#operations % BREATH === 0) await new Promise((resolve) => setImmediate(resolve));
      const op = ops[i] ?? 0;
      while (skip < skips.length && (skips[skip]?.[1] ?? 0) <= i) skip++;
      while (commit < commits.length && (commits[commit]?.end ?? 0) <= i) commit++;
      const skipped = skip < skips.length && (skips[skip]?.[0] ?? 0) <= i;
      const hasRow = op <= OP.updateKey;
      const hasOld = op === OP.updateKey || op === OP.delete;
      if (skipped) {
        if (hasRow) this.#kill(base + row);
      } else if (this.#join !== null && (commits[commit]?.lsn ?? 0n) < this.#join.max) {
        await this.#joining(segment, op, base, row, old, must(commits[commit], "a commit").lsn);
      } else if (op === OP.insert) {
        this.#index?.add(segment.hashes.tags[row] ?? 0, segment.hashes.lows[row] ?? 0, base + row);
      } else if (op === OP.update) {
        const slot =
          this.#slot(segment.hashes, row) ??
          (await this.#slotAmong(segment.hashes, row, this.#newKey(segment, base, row)));
        this.#supersede(segment, slot, row, toast);
        this.#the.replaceAt(slot, base + row);
      } else if (op === OP.updateKey) {
        const slot =
          this.#slot(segment.oldHashes, old) ??
          (await this.#slotAmong(segment.oldHashes, old, { keys: segment.oldKeys, at: old }));
        this.#supersede(segment, slot, row, toast);
        this.#the.removeAt(slot);
        this.#the.add(segment.hashes.tags[row] ?? 0, segment.hashes.lows[row] ?? 0, base + row);
      } else if (op === OP.delete) {
        const slot =
          this.#slot(segment.oldHashes, old) ??
          (await this.#slotAmong(segment.oldHashes, old, { keys: segment.oldKeys, at: old }));
        this.#kill(this.#the.ordinalAt(slot));
        this.#the.removeAt(slot);
      } else {
        this.#truncate(base, row);
      }
      if (hasRow) row++;
      if (hasOld) old++;
    }
  }

  /** Gives the segment's rows their ordinals. */
  #place(segment: Segment): number {
    const base = this.#state.reserve(segment.rowCount);
    const blocks: Block[] = [];
    // Staged rows that lack values are written anew once those are known.
    if (segment.rows === null && segment.toast.length === 0) {
      let at = base;
      for (const file of segment.staged) {
        blocks.push(this.#state.addFile(file, null, [], null, at));
        at += Number(file.recordCount);
      }
    } else if (segment.rowCount > 0) {
      const rows = segment.rowCount;
      const block: Block = { base, rows, file: null, deletes: null, deleteFiles: [], copyLsn: null, segment };
      this.#state.blocks.push(block);
      blocks.push(block);
    }
    this.#blocks.set(segment, blocks);
    return base;
  }

  get #the(): KeyIndex {
    return must(this.#index, "the key index");
  }

  /** The one slot of the hash; null when there are several. */
  #slot(hashes: KeyHashes, at: number): number | null {
    const index = this.#the;
    const tag = hashes.tags[at] ?? 0;
    const low = hashes.lows[at] ?? 0;
    const slot = index.find(tag, low);
    if (slot < 0) throw new SpillwayError("mirror_row_missing", "the stream changes a row that the lake does not have");
    return index.find(tag, low, slot) < 0 ? slot : null;
  }

  async #slotAmong(hashes: KeyHashes, at: number, key: WantedKey): Promise<number> {
    const slot = await this.#exact(hashes, at, key);
    if (slot !== null) return slot;
    throw new SpillwayError("mirror_row_missing", "the stream changes a row that the lake does not have");
  }

  #newKey(segment: Segment, base: number, row: number): WantedKey {
    const keys = segmentKeys(segment);
    return keys === null ? { ordinal: base + row } : { keys, at: row };
  }

  #slots(hashes: KeyHashes, at: number): number[] {
    const index = this.#the;
    const [tag, low] = [hashes.tags[at] ?? 0, hashes.lows[at] ?? 0];
    const slots: number[] = [];
    for (let slot = index.find(tag, low); slot >= 0; slot = index.find(tag, low, slot)) slots.push(slot);
    return slots;
  }

  #supersede(segment: Segment, slot: number, row: number, toast: ReadonlyMap<number, readonly number[]>): void {
    const from = this.#the.ordinalAt(slot);
    const columns = toast.size === 0 ? undefined : toast.get(row);
    if (columns !== undefined) this.#fixups.push({ segment, row, columns, from });
    this.#kill(from);
  }

  /** An operation from before the last snapshot of the copy: it counts only for keys that were read before it. */
  async #joining(segment: Segment, op: number, base: number, row: number, old: number, lsn: Lsn): Promise<void> {
    const join = must(this.#join, "join");
    const hasRow = op <= OP.updateKey;
    if (lsn < join.min) {
      if (hasRow) this.#kill(base + row);
      return;
    }
    if (op === OP.truncate) {
      throw new SpillwayError("mirror_row_missing", "the table was truncated between two snapshots of its copy");
    }
    if (op === OP.updateKey || op === OP.delete) {
      const slot = await this.#exact(segment.oldHashes, old, { keys: segment.oldKeys, at: old });
      if (slot !== null && this.#isOlder(slot, lsn)) {
        const columns = segment.toast.find((mark) => hasRow && mark.row === row)?.columns;
        if (columns) this.#fixups.push({ segment, row, columns, from: this.#the.ordinalAt(slot) });
        this.#kill(this.#the.ordinalAt(slot));
        this.#the.removeAt(slot);
      }
    }
    if (!hasRow) return;
    const slot = await this.#exact(segment.hashes, row, this.#newKey(segment, base, row));
    if (slot !== null && !this.#isOlder(slot, lsn)) return this.#kill(base + row);
    const columns = op === OP.update ? segment.toast.find((mark) => mark.row === row)?.columns : undefined;
    if (columns && slot === null) {
      throw new SpillwayError("mirror_toast_missing", "a row moved between two snapshots of the copy");
    }
    if (columns && slot !== null) this.#fixups.push({ segment, row, columns, from: this.#the.ordinalAt(slot) });
    if (slot !== null) {
      this.#kill(this.#the.ordinalAt(slot));
      this.#the.replaceAt(slot, base + row);
    } else {
      this.#the.add(segment.hashes.tags[row] ?? 0, segment.hashes.lows[row] ?? 0, base + row);
    }
  }

  /** Whether the row of the slot was read, or written by the stream, before this commit. */
  #isOlder(slot: number, lsn: Lsn): boolean {
    const { copyLsn } = this.#state.blockOf(this.#the.ordinalAt(slot));
    return copyLsn === null || copyLsn <= lsn;
  }

  async #exact(hashes: KeyHashes, at: number, key: WantedKey): Promise<number | null> {
    const slots = this.#slots(hashes, at);
    if (slots.length === 0) return null;
    const ordinals = slots.map((slot) => this.#the.ordinalAt(slot));
    const found = await this.#discern(ordinals, key);
    return found === null ? null : (slots[ordinals.indexOf(found)] ?? null);
  }

  #truncate(base: number, row: number): void {
    for (const block of this.#state.blocks) {
      if (block.base < base) this.#wiped.add(block);
    }
    // The rows of this segment that came before.
    for (let i = 0; i < row; i++) this.#kill(base + i);
    this.#index?.clear();
  }

  #kill(ordinal: number): void {
    let block = this.#lastBlock;
    if (block === null || ordinal < block.base || ordinal >= block.base + block.rows) {
      block = this.#lastBlock = this.#state.blockOf(ordinal);
    }
    let bits = this.#dead.get(block);
    if (bits === undefined) this.#dead.set(block, (bits = new Uint8Array((block.rows + 7) >> 3)));
    const at = ordinal - block.base;
    bits[at >> 3] = (bits[at >> 3] ?? 0) | (1 << (at & 7));
  }
}

/** The key columns of the rows, while they are in memory. */
function segmentKeys({ shape, rows }: Segment): ColumnBatch | null {
  if (rows === null) return null;
  return { length: rows.length, columns: shape.keyAt.map((i) => must(rows.columns[i], "key column")) };
}

export function isDead(bits: Uint8Array | undefined, at: number): boolean {
  return bits !== undefined && ((bits[at >> 3] ?? 0) & (1 << (at & 7))) !== 0;
}

export function* deadPositions(bits: Uint8Array): Iterable<number> {
  for (let byte = 0; byte < bits.length; byte++) {
    const value = bits[byte] ?? 0;
    if (value === 0) continue;
    for (let bit = 0; bit < 8; bit++) if ((value & (1 << bit)) !== 0) yield byte * 8 + bit;
  }
}
