/**
 * Decodes pgoutput's messages where they lie, and calls a sink for each: no object is made for a row. Protocol
 * versions 1 to 4, streamed transactions included; two-phase ones are never asked for and are an error.
 * Source: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
 */
import type { Lsn } from "@spillway/base/lsn";
import { SpillwayError } from "@spillway/base/errors";
import type { ColumnBuilder } from "../columns/builder.ts";

export interface PgRelationColumn {
  readonly name: string;
  readonly typeOid: number;
  readonly typmod: number;
  /** Part of the replica identity. */
  readonly isKey: boolean;
}

/** A table as the stream describes it. A changed table comes as a new object. */
export interface PgRelation<S = unknown> {
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  /** `d`efault, `n`othing, `f`ull, `i`ndex. */
  readonly replicaIdentity: string;
  readonly columns: readonly PgRelationColumn[];
  /** For the sink to keep what it knows about the table, at hand for every row. */
  state: S | null;
}

export const TUPLE_NULL = 0x6e;
/** An unchanged TOASTed value, which was not sent. */
export const TUPLE_UNCHANGED = 0x75;
export const TUPLE_TEXT = 0x74;
export const TUPLE_BINARY = 0x62;

/** One row version: value i is `buffer[start[i], end[i])` in the form `kind[i]`. Valid until the sink's method returns. */
export class Tuple {
  length = 0;
  buffer: Buffer = Buffer.alloc(0);
  kind = new Uint8Array(64);
  start = new Int32Array(64);
  end = new Int32Array(64);

  isNull(column: number): boolean {
    return this.kind[column] === TUPLE_NULL;
  }

  isUnchanged(column: number): boolean {
    return this.kind[column] === TUPLE_UNCHANGED;
  }

  /** Appends the value to a builder; an unchanged TOASTed one as NULL, for the caller to fill in later. */
  appendTo(builder: ColumnBuilder, column: number): void {
    const kind = this.kind[column];
    const start = this.start[column] ?? 0;
    const end = this.end[column] ?? 0;
    if (kind === TUPLE_TEXT) builder.appendText(this.buffer, start, end);
    else if (kind === TUPLE_BINARY) builder.appendBinary(this.buffer, start, end);
    else builder.appendNull();
  }

  /** The value's text, or null; throws for a binary or unchanged one. For messages and tests. */
  text(column: number): string | null {
    const kind = this.kind[column];
    if (kind === TUPLE_NULL) return null;
    if (kind !== TUPLE_TEXT) throw malformed(`value ${column} is not text`);
    return this.buffer.toString("utf8", this.start[column], this.end[column]);
  }

  /** Reads the tuple at `at`; returns where it ends. */
  read(buffer: Buffer, at: number, end: number): number {
    const length = buffer.readUInt16BE(at);
    at += 2;
    this.buffer = buffer;
    this.length = length;
    if (length > this.kind.length) this.#grow(length);
    const { kind, start, end: ends } = this;
    for (let i = 0; i < length; i++) {
      const what = buffer[at++] ?? 0;
      kind[i] = what;
      if (what === TUPLE_NULL || what === TUPLE_UNCHANGED) continue;
      if (what !== TUPLE_TEXT && what !== TUPLE_BINARY) throw malformed(`tuple data of kind ${what}`);
      const size =
        ((buffer[at] ?? 0) << 24) |
        ((buffer[at + 1] ?? 0) << 16) |
        ((buffer[at + 2] ?? 0) << 8) |
        (buffer[at + 3] ?? 0);
      start[i] = at + 4;
      at += 4 + size;
      if (size < 0 || at > end) throw malformed("tuple data beyond the message");
      ends[i] = at;
    }
    if (at > end) throw malformed("a tuple beyond the message");
    return at;
  }

  #grow(length: number): void {
    this.kind = new Uint8Array(length);
    this.start = new Int32Array(length);
    this.end = new Int32Array(length);
  }
}

/** What the old tuple of an update or delete holds: the replica identity's columns (the others NULL), or all. */
export type OldTuple = "key" | "full";

/**
 * Receives the changes. `xid` is the (sub)transaction of a change inside a streamed block, else 0: then it belongs to
 * the transaction of the last `onBegin`. Times are µs since 1970.
 */
export interface PgOutputSink<S = unknown> {
  onBegin(xid: number, finalLsn: Lsn, commitTime: bigint): void;
  /** `endLsn` is the position after the commit: what is confirmed once the transaction is safe. */
  onCommit(commitLsn: Lsn, endLsn: Lsn, commitTime: bigint): void;
  onRelation(relation: PgRelation<S>, xid: number): void;
  onInsert(relation: PgRelation<S>, tuple: Tuple, xid: number): void;
  /** `old` is given when the replica identity changed, or is full. */
  onUpdate(relation: PgRelation<S>, kind: OldTuple | null, old: Tuple | null, tuple: Tuple, xid: number): void;
  onDelete(relation: PgRelation<S>, kind: OldTuple, old: Tuple, xid: number): void;
  onTruncate(relations: readonly PgRelation<S>[], cascade: boolean, restartIdentity: boolean, xid: number): void;
  /** A logical decoding message. `content` is the sink's to keep. Without transaction it may come at any time. */
  onMessage(transactional: boolean, lsn: Lsn, prefix: string, content: Buffer, xid: number): void;
  /** A block of changes of a transaction that is still open, and its end. */
  onStreamStart(xid: number, firstSegment: boolean): void;
  onStreamStop(): void;
  onStreamCommit(xid: number, commitLsn: Lsn, endLsn: Lsn, commitTime: bigint): void;
  /** A streamed transaction (`subxid` = `xid`) or one of its savepoints was rolled back. */
  onStreamAbort(xid: number, subxid: number): void;
  onOrigin?(name: string, lsn: Lsn): void;
  onType?(oid: number, schema: string, name: string): void;
}

/** µs from 1970 to 2000. */
const EPOCH_US = 946_684_800_000_000n;

export class PgOutputDecoder<S = unknown> {
  readonly #sink: PgOutputSink<S>;
  readonly #relations = new Map<number, PgRelation<S>>();
  /** Definitions that a streamed, still open transaction has brought: they hold for it alone until it commits. */
  readonly #streamed = new Map<number, Map<number, PgRelation<S>>>();
  readonly #old = new Tuple();
  readonly #new = new Tuple();
  /** The transaction of the streamed block that is open, or 0. */
  #streamXid = 0;
  #last: PgRelation<S> | null = null;
  #buffer: Buffer = Buffer.alloc(0);
  #at = 0;
  #end = 0;

  constructor(sink: PgOutputSink<S>) {
    this.#sink = sink;
  }

  /** Decodes the message in [start, end). Throws pg_protocol_error for what cannot be understood. */
  decode(buffer: Buffer, start: number, end: number): void {
    this.#buffer = buffer;
    this.#at = start + 1;
    this.#end = end;
    switch (buffer[start]) {
      case 0x49: // I
        return this.#insert();
      case 0x55: // U
        return this.#update();
      case 0x44: // D
        return this.#delete();
      case 0x42: // B
        return this.#begin();
      case 0x43: // C
        return this.#commit();
      case 0x52: // R
        return this.#relation();
      case 0x53: // S
        return this.#streamStart();
      case 0x45: // E
        this.#streamXid = 0;
        this.#last = null;
        return this.#sink.onStreamStop();
      case 0x63: // c
        return this.#streamCommit();
      case 0x41: // A
        return this.#streamAbort();
      case 0x54: // T
        return this.#truncate();
      case 0x4d: // M
        return this.#message();
      default:
        return this.#rare(buffer[start] ?? 0);
    }
  }

  #rare(type: number): void {
    const letter = String.fromCharCode(type);
    if (letter === "O") {
      const lsn = this.#int64();
      this.#sink.onOrigin?.(this.#string(), lsn);
      return;
    }
    if (letter === "Y") {
      this.#changeXid();
      const oid = this.#uint32();
      const schema = this.#string();
      this.#sink.onType?.(oid, schema, this.#string());
      return;
    }
    if ("bPKrp".includes(letter)) throw malformed(`two-phase message ${letter}, which was not asked for`);
    throw malformed(`message of type ${type}`);
  }

  #insert(): void {
    const xid = this.#changeXid();
    const relation = this.#relationOf(this.#uint32());
    if (this.#byte() !== 0x4e) throw malformed("an insert without its row");
    this.#tuple(this.#new);
    this.#sink.onInsert(relation, this.#new, xid);
  }

  #update(): void {
    const xid = this.#changeXid();
    const relation = this.#relationOf(this.#uint32());
    let marker = this.#byte();
    let kind: OldTuple | null = null;
    if (marker === 0x4b || marker === 0x4f) {
      kind = marker === 0x4b ? "key" : "full";
      this.#tuple(this.#old);
      marker = this.#byte();
    }
    if (marker !== 0x4e) throw malformed("an update without its row");
    this.#tuple(this.#new);
    this.#sink.onUpdate(relation, kind, kind === null ? null : this.#old, this.#new, xid);
  }

  #delete(): void {
    const xid = this.#changeXid();
    const relation = this.#relationOf(this.#uint32());
    const marker = this.#byte();
    if (marker !== 0x4b && marker !== 0x4f) throw malformed("a delete without its row");
    this.#tuple(this.#old);
    this.#sink.onDelete(relation, marker === 0x4b ? "key" : "full", this.#old, xid);
  }

  #begin(): void {
    const lsn = this.#int64();
    const time = this.#time();
    this.#sink.onBegin(this.#uint32(), lsn, time);
  }

  #commit(): void {
    this.#byte();
    const commitLsn = this.#int64();
    const endLsn = this.#int64();
    this.#sink.onCommit(commitLsn, endLsn, this.#time());
  }

  #relation(): void {
    const xid = this.#changeXid();
    const oid = this.#uint32();
    const schema = this.#string() || "pg_catalog";
    const name = this.#string();
    const replicaIdentity = String.fromCharCode(this.#byte());
    const columns: PgRelationColumn[] = [];
    for (let i = this.#uint16(); i > 0; i--) {
      const isKey = (this.#byte() & 1) === 1;
      const column = this.#string();
      columns.push({ name: column, typeOid: this.#uint32(), typmod: this.#uint32() | 0, isKey });
    }
    const relation: PgRelation<S> = { oid, schema, name, replicaIdentity, columns, state: null };
    this.#last = null;
    if (this.#streamXid === 0) this.#relations.set(oid, relation);
    else this.#overlay(this.#streamXid).set(oid, relation);
    this.#sink.onRelation(relation, xid);
  }

  #overlay(xid: number): Map<number, PgRelation<S>> {
    const found = this.#streamed.get(xid) ?? new Map<number, PgRelation<S>>();
    this.#streamed.set(xid, found);
    return found;
  }

  #truncate(): void {
    const xid = this.#changeXid();
    const count = this.#uint32();
    const options = this.#byte();
    const relations: PgRelation<S>[] = [];
    for (let i = 0; i < count; i++) relations.push(this.#relationOf(this.#uint32()));
    this.#sink.onTruncate(relations, (options & 1) === 1, (options & 2) === 2, xid);
  }

  #message(): void {
    const xid = this.#changeXid();
    const transactional = (this.#byte() & 1) === 1;
    const lsn = this.#int64();
    const prefix = this.#string();
    const size = this.#uint32();
    if (this.#at + size > this.#end) throw malformed("a logical message beyond its end");
    const content = Buffer.from(this.#buffer.subarray(this.#at, this.#at + size));
    this.#sink.onMessage(transactional, lsn, prefix, content, xid);
  }

  #streamStart(): void {
    if (this.#streamXid !== 0) throw malformed("a streamed block inside another");
    const xid = this.#uint32();
    this.#streamXid = xid;
    this.#last = null;
    this.#sink.onStreamStart(xid, this.#byte() === 1);
  }

  #streamCommit(): void {
    const xid = this.#uint32();
    this.#byte();
    const commitLsn = this.#int64();
    const endLsn = this.#int64();
    for (const [oid, relation] of this.#streamed.get(xid) ?? []) this.#relations.set(oid, relation);
    this.#streamed.delete(xid);
    this.#last = null;
    this.#sink.onStreamCommit(xid, commitLsn, endLsn, this.#time());
  }

  #streamAbort(): void {
    // With `streaming parallel` the position and time of the abort follow; nobody needs them.
    const xid = this.#uint32();
    const subxid = this.#uint32();
    if (xid === subxid) this.#streamed.delete(xid);
    this.#last = null;
    this.#sink.onStreamAbort(xid, subxid);
  }

  /** Inside a streamed block every change carries the (sub)transaction that made it. */
  #changeXid(): number {
    return this.#streamXid === 0 ? 0 : this.#uint32();
  }

  #relationOf(oid: number): PgRelation<S> {
    if (this.#last !== null && this.#last.oid === oid) return this.#last;
    const overlay = this.#streamXid === 0 ? undefined : this.#streamed.get(this.#streamXid);
    const found = overlay?.get(oid) ?? this.#relations.get(oid);
    if (!found) throw malformed(`a change of relation ${oid}, which was not described`);
    this.#last = found;
    return found;
  }

  #tuple(into: Tuple): void {
    this.#at = into.read(this.#buffer, this.#at, this.#end);
  }

  #byte(): number {
    if (this.#at >= this.#end) throw malformed("a message that ends too early");
    return this.#buffer[this.#at++] ?? 0;
  }

  #uint16(): number {
    return (this.#byte() << 8) | this.#byte();
  }

  #uint32(): number {
    const at = this.#at;
    if (at + 4 > this.#end) throw malformed("a message that ends too early");
    this.#at = at + 4;
    return this.#buffer.readUInt32BE(at);
  }

  #int64(): bigint {
    const high = this.#uint32();
    return (BigInt(high) << 32n) | BigInt(this.#uint32());
  }

  #time(): bigint {
    return BigInt.asIntN(64, this.#int64()) + EPOCH_US;
  }

  #string(): string {
    const zero = this.#buffer.indexOf(0, this.#at);
    if (zero < 0 || zero >= this.#end) throw malformed("a name without an end");
    const text = this.#buffer.toString("utf8", this.#at, zero);
    this.#at = zero + 1;
    return text;
  }
}

function malformed(what: string): SpillwayError {
  return new SpillwayError("pg_protocol_error", `the change stream has ${what}`);
}
