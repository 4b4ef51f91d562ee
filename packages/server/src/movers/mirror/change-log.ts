/**
 * Changes of one table in the order of the stream, as columns: an operation code for each, the rows' images, the keys
 * of old versions, and which values were not sent. No object is made for a row.
 */
import { must } from "@spillway/base/assert";
import type { ColumnBatch } from "@spillway/base/columns";
import type { Lsn } from "@spillway/base/lsn";
import { RowHasher } from "@spillway/base/rowhash";
import type { DataFile } from "@spillway/lake/model";
import { BatchBuilder } from "@spillway/pg/columns/batch-builder";
import type { PgColumnPlan } from "@spillway/pg/columns/plan";
import { type Tuple, TUPLE_UNCHANGED } from "@spillway/pg/replication/pgoutput";
import type { LakeField } from "../../engine/engine.ts";

/** The columns of a table as the stream sends them. */
export interface TableShape {
  readonly attnums: readonly number[];
  readonly plans: readonly PgColumnPlan[];
  readonly fields: readonly LakeField[];
  /** Which columns find a row: the replica identity, or the primary key where that is the whole row. */
  readonly keyAt: readonly number[];
}

export const OP = {
  insert: 0,
  /** The key stays. */
  update: 1,
  /** With the old version's key. */
  updateKey: 2,
  delete: 3,
  truncate: 4,
} as const;

/** Values that an update left out. */
export interface ToastMark {
  readonly row: number;
  readonly columns: readonly number[];
}

/** 40 bits of a key's hash for each row. */
export interface KeyHashes {
  readonly tags: Uint32Array;
  readonly lows: Uint8Array;
}

/** Operations [.., end) up to the previous mark belong to a transaction whose commit record lies at `lsn`. */
export interface CommitMark {
  readonly end: number;
  readonly lsn: Lsn;
}

export interface Segment {
  readonly shape: TableShape;
  readonly ops: Uint8Array;
  readonly rowCount: number;
  /** The rows; null once they are in `staged` files. */
  rows: ColumnBatch | null;
  /** In the order of the rows. */
  staged: readonly DataFile[];
  /** The operation that keeps those files until a commit takes them. */
  stageOp: bigint | null;
  /** Nobody wants it any more: if it is being staged, that is taken back. */
  isDiscarded: boolean;
  readonly hashes: KeyHashes;
  readonly oldKeys: ColumnBatch;
  readonly oldHashes: KeyHashes;
  readonly toast: readonly ToastMark[];
  readonly commits: CommitMark[];
  /** Operations that were rolled back to a savepoint: [start, end). */
  readonly skips: (readonly [number, number])[];
  /** Of a streamed transaction: runs of operations of one subtransaction. */
  readonly runs: readonly SubRun[];
}

interface SubRun {
  readonly xid: number;
  readonly start: number;
  end: number;
}

export function keyFields(shape: TableShape): LakeField[] {
  return shape.keyAt.map((i) => must(shape.fields[i], "key field"));
}

export function keyHasher(shape: TableShape): RowHasher {
  return new RowHasher(keyFields(shape).map((f) => ({ fieldId: f.id, kind: f.kind })));
}

/** The hashes of rows that are keys only. */
export function hashKeys(hasher: RowHasher, keys: ColumnBatch): KeyHashes {
  const { lo, hi } = hasher.hashBatch(keys);
  return { tags: hi, lows: Uint8Array.from(lo, (word) => word & 255) };
}

export function keyColumns(shape: TableShape, rows: ColumnBatch): ColumnBatch {
  return { length: rows.length, columns: shape.keyAt.map((i) => must(rows.columns[i], "key column")) };
}

const FIRST_OPS = 1024;

export class ChangeLog {
  #shape: TableShape;
  #hasher: RowHasher;
  #ops = new Uint8Array(FIRST_OPS);
  #count = 0;
  #rows: BatchBuilder;
  #oldKeys: BatchBuilder;
  #toast: ToastMark[] = [];
  #commits: CommitMark[] = [];
  #runs: SubRun[] = [];
  #skips: [number, number][] = [];
  /** Sealed parts, oldest first. */
  #segments: Segment[] = [];

  constructor(shape: TableShape) {
    this.#shape = shape;
    this.#hasher = keyHasher(shape);
    this.#rows = new BatchBuilder(shape.plans);
    this.#oldKeys = new BatchBuilder(keyPlans(shape));
  }

  get shape(): TableShape {
    return this.#shape;
  }

  /** Operations that were not taken yet. */
  get isEmpty(): boolean {
    return this.#count === 0 && this.#segments.length === 0;
  }

  /** Rows and keys in memory that are not sealed. */
  get openRows(): number {
    return this.#rows.length + this.#oldKeys.length;
  }

  openBytes(): number {
    return this.#rows.byteLength() + this.#oldKeys.byteLength();
  }

  get segments(): readonly Segment[] {
    return this.#segments;
  }

  /** What comes from now on has these columns. */
  reshape(shape: TableShape): void {
    if (shape === this.#shape) return;
    this.seal();
    this.#shape = shape;
    this.#hasher = keyHasher(shape);
    this.#rows = new BatchBuilder(shape.plans);
    this.#oldKeys = new BatchBuilder(keyPlans(shape));
  }

  insert(tuple: Tuple, xid: number): void {
    this.#op(OP.insert, xid);
    this.#row(tuple);
  }

  update(old: Tuple | null, tuple: Tuple, xid: number): void {
    this.#op(old === null ? OP.update : OP.updateKey, xid);
    if (old !== null) this.#old(old);
    this.#row(tuple);
  }

  delete(old: Tuple, xid: number): void {
    this.#op(OP.delete, xid);
    this.#old(old);
  }

  truncate(xid: number): void {
    this.#op(OP.truncate, xid);
  }

  /** Everything so far that has no commit yet belongs to this one. */
  commit(lsn: Lsn): void {
    for (const segment of this.#segments) {
      const end = segment.ops.length;
      if ((segment.commits.at(-1)?.end ?? 0) < end) segment.commits.push({ end, lsn });
    }
    if ((this.#commits.at(-1)?.end ?? 0) < this.#count) this.#commits.push({ end: this.#count, lsn });
  }

  /** Takes back what a subtransaction did. */
  rollback(xid: number): void {
    const skip = (runs: readonly SubRun[], skips: (readonly [number, number])[]): void => {
      for (const run of runs) if (run.xid === xid) skips.push([run.start, run.end]);
      skips.sort((a, b) => a[0] - b[0]);
    };
    for (const segment of this.#segments) skip(segment.runs, segment.skips);
    skip(this.#runs, this.#skips);
  }

  /** Closes the part under construction, so that its rows can be staged. */
  seal(): void {
    if (this.#count === 0) return;
    const rows = this.#rows.finish();
    const oldKeys = this.#oldKeys.finish();
    this.#segments.push({
      shape: this.#shape,
      ops: this.#ops.slice(0, this.#count),
      rowCount: rows.length,
      rows,
      staged: [],
      stageOp: null,
      isDiscarded: false,
      hashes: hashKeys(this.#hasher, keyColumns(this.#shape, rows)),
      oldKeys,
      oldHashes: hashKeys(this.#hasher, oldKeys),
      toast: this.#toast,
      commits: this.#commits,
      skips: this.#skips,
      runs: this.#runs,
    });
    this.#count = 0;
    this.#toast = [];
    this.#commits = [];
    this.#runs = [];
    this.#skips = [];
  }

  /** Everything so far; the log is empty then. */
  take(): Segment[] {
    this.seal();
    const taken = this.#segments;
    this.#segments = [];
    return taken;
  }

  /** Gives everything up. Returns the operations that keep staged files. */
  discard(): bigint[] {
    return this.take().flatMap((segment) => {
      segment.isDiscarded = true;
      return segment.stageOp ?? [];
    });
  }

  /** Puts a transaction of its own log behind what is here. */
  append(segments: readonly Segment[]): void {
    this.seal();
    this.#segments.push(...segments);
  }

  #op(op: number, xid: number): void {
    if (this.#count === this.#ops.length) {
      const grown = new Uint8Array(this.#count * 2);
      grown.set(this.#ops);
      this.#ops = grown;
    }
    if (xid !== 0) {
      const last = this.#runs.at(-1);
      if (last?.xid === xid && last.end === this.#count) last.end++;
      else this.#runs.push({ xid, start: this.#count, end: this.#count + 1 });
    }
    this.#ops[this.#count++] = op;
  }

  #row(tuple: Tuple): void {
    const { builders } = this.#rows;
    let left: number[] | null = null;
    for (let i = 0; i < builders.length; i++) {
      if (tuple.kind[i] === TUPLE_UNCHANGED) (left ??= []).push(i);
      tuple.appendTo(must(builders[i], "builder"), i);
    }
    if (left !== null) this.#toast.push({ row: this.#rows.length, columns: left });
    this.#rows.endRow();
  }

  #old(tuple: Tuple): void {
    const { builders } = this.#oldKeys;
    const { keyAt } = this.#shape;
    for (let i = 0; i < keyAt.length; i++) tuple.appendTo(must(builders[i], "builder"), keyAt[i] ?? 0);
    this.#oldKeys.endRow();
  }
}

function keyPlans(shape: TableShape): PgColumnPlan[] {
  return shape.keyAt.map((i) => must(shape.plans[i], "key plan"));
}
