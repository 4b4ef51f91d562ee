/**
 * What pgoutput says, into change logs. Transactions that come whole are appended to their tables' logs as they come; a
 * streamed one has logs of its own until it commits. Nothing is taken out while a transaction is under way.
 */
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { type Lsn, maxLsn } from "@spillway/base/lsn";
import type { OldTuple, PgOutputSink, PgRelation, Tuple } from "@spillway/pg/replication/pgoutput";
import { ChangeLog, type Segment, type TableShape } from "./change-log.ts";

/** A table that the stream has described. */
export interface Feed {
  readonly oid: number;
  /** Null: its changes are thrown away. */
  log: ChangeLog | null;
  /** TRUNCATEs that were seen. */
  truncates: number;
}

/** What the sink keeps at a relation of the stream. */
export interface FeedState {
  readonly feed: Feed;
  readonly shape: TableShape;
}

export interface SinkHost {
  /** Known at once, or null: the stream is held back until the host has set `relation.state`. */
  stateOf(relation: PgRelation<FeedState>, xid: number): FeedState | null;
  /** A change that cannot be taken: the feed's log is given up, the others go on. `commit`: of a transaction that has ended. */
  failed(feed: Feed, error: SpillwayError, commit: Lsn | null): void;
  /** Operations whose staged files nobody wants any more. */
  discarded(operations: readonly bigint[]): void;
  message(transactional: boolean, lsn: Lsn, prefix: string, content: Buffer): void;
  /** A transaction has ended at `endLsn`: a flush may be cut here. */
  committed(endLsn: Lsn): void;
}

export interface LastCommit {
  /** The end of the last commit, or how far the server has looked when nothing came since. */
  readonly lsn: Lsn;
  /** µs since 1970; null when there was none. */
  readonly time: bigint | null;
}

interface Streamed {
  readonly logs: Map<number, { readonly feed: Feed; readonly log: ChangeLog }>;
  /** Tables that cannot take this transaction, if it commits. */
  readonly spoiled: Map<Feed, SpillwayError>;
}

export class MirrorSink implements PgOutputSink<FeedState> {
  readonly #host: SinkHost;
  readonly #streamed = new Map<number, Streamed>();
  #stream: Streamed | null = null;
  /** The commit record's LSN of the transaction under way; null between transactions. */
  #open: Lsn | null = null;
  /** Tables of the transaction under way. */
  readonly #touched = new Set<Feed>();
  #position: Lsn;
  /** How far this stream has come; behind the position while it catches up with F. */
  #seen: Lsn = 0n;
  #time: bigint | null = null;
  #transactions = 0;

  constructor(host: SinkHost, position: Lsn) {
    this.#host = host;
    this.#position = position;
  }

  /** Whether everything in the logs is committed. */
  get isAtCommit(): boolean {
    return this.#open === null;
  }

  /** The commit record of the transaction under way; null between transactions, and within a streamed one. */
  get openCommit(): Lsn | null {
    return this.#open;
  }

  /** Inside a block of a transaction that may yet be rolled back. */
  get isInStream(): boolean {
    return this.#stream !== null;
  }

  /** Inside such a block: the table fails if the transaction commits. False outside of one. */
  spoil(feed: Feed, error: SpillwayError): boolean {
    if (this.#stream === null) return false;
    this.#stream.spoiled.set(feed, error);
    const held = this.#stream.logs.get(feed.oid);
    if (held) this.#host.discarded(held.log.discard());
    return true;
  }

  get last(): LastCommit {
    return { lsn: this.#position, time: this.#time };
  }

  get seen(): Lsn {
    return this.#seen;
  }

  get transactions(): number {
    return this.#transactions;
  }

  /** Logs of streamed transactions that are under way. */
  *openLogs(): Iterable<ChangeLog> {
    for (const { logs } of this.#streamed.values()) for (const { log } of logs.values()) yield log;
  }

  /** The server has looked at everything up to here. */
  sawUpTo(lsn: Lsn): void {
    if (this.#open !== null || this.#stream !== null) return;
    this.#position = maxLsn(this.#position, lsn);
    this.#seen = maxLsn(this.#seen, lsn);
  }

  onBegin(_xid: number, finalLsn: Lsn): void {
    this.#open = finalLsn;
  }

  onCommit(commitLsn: Lsn, endLsn: Lsn, commitTime: bigint): void {
    for (const feed of this.#touched) feed.log?.commit(commitLsn);
    this.#touched.clear();
    this.#open = null;
    this.#ended(endLsn, commitTime);
  }

  onRelation(relation: PgRelation<FeedState>, xid: number): void {
    relation.state = this.#host.stateOf(relation, xid);
  }

  onInsert(relation: PgRelation<FeedState>, tuple: Tuple, xid: number): void {
    this.#change(relation, (log) => log.insert(tuple, xid));
  }

  onUpdate(
    relation: PgRelation<FeedState>,
    _kind: OldTuple | null,
    old: Tuple | null,
    tuple: Tuple,
    xid: number,
  ): void {
    this.#change(relation, (log) => log.update(old, tuple, xid));
  }

  onDelete(relation: PgRelation<FeedState>, _kind: OldTuple, old: Tuple, xid: number): void {
    this.#change(relation, (log) => log.delete(old, xid));
  }

  onTruncate(relations: readonly PgRelation<FeedState>[], _cascade: boolean, _restart: boolean, xid: number): void {
    for (const relation of relations) {
      if (relation.state) relation.state.feed.truncates++;
      this.#change(relation, (log) => log.truncate(xid));
    }
  }

  onMessage(transactional: boolean, lsn: Lsn, prefix: string, content: Buffer): void {
    this.#host.message(transactional, lsn, prefix, content);
  }

  onStreamStart(xid: number): void {
    const found = this.#streamed.get(xid) ?? { logs: new Map(), spoiled: new Map() };
    this.#streamed.set(xid, found);
    this.#stream = found;
  }

  onStreamStop(): void {
    this.#stream = null;
  }

  onStreamCommit(xid: number, commitLsn: Lsn, endLsn: Lsn, commitTime: bigint): void {
    const streamed = this.#streamed.get(xid);
    this.#streamed.delete(xid);
    for (const [feed, error] of streamed?.spoiled ?? []) this.#host.failed(feed, error, commitLsn);
    for (const { feed, log } of streamed?.logs.values() ?? []) {
      log.commit(commitLsn);
      const segments: readonly Segment[] = log.take();
      // The transaction may have changed the table's columns: what follows has the new ones.
      feed.log?.append(segments);
      feed.log?.reshape(log.shape);
    }
    this.#ended(endLsn, commitTime);
  }

  onStreamAbort(xid: number, subxid: number): void {
    if (xid === subxid) {
      for (const { log } of this.#streamed.get(xid)?.logs.values() ?? []) this.#host.discarded(log.discard());
      this.#streamed.delete(xid);
      return;
    }
    for (const { log } of this.#streamed.get(xid)?.logs.values() ?? []) log.rollback(subxid);
  }

  /** Forgets what streamed transactions hold of a table. */
  drop(feed: Feed): void {
    if (feed.log !== null) this.#host.discarded(feed.log.discard());
    feed.log = null;
    for (const { logs } of this.#streamed.values()) {
      const held = logs.get(feed.oid);
      if (held) this.#host.discarded(held.log.discard());
      logs.delete(feed.oid);
    }
  }

  #ended(endLsn: Lsn, commitTime: bigint): void {
    this.#position = maxLsn(this.#position, endLsn);
    this.#seen = maxLsn(this.#seen, endLsn);
    this.#time = commitTime;
    this.#transactions++;
    this.#host.committed(endLsn);
  }

  #change(relation: PgRelation<FeedState>, work: (log: ChangeLog) => void): void {
    const { state } = relation;
    if (state === null) throw new SpillwayError("internal", `relation ${relation.oid} has no state in the mirror`);
    const { feed, shape } = state;
    if (feed.log === null) return;
    try {
      const log = this.#logOf(feed, shape);
      log.reshape(shape);
      work(log);
    } catch (error) {
      if (!isSpillwayError(error) || error.code === "internal") throw error;
      this.#host.failed(feed, error, null);
    }
  }

  #logOf(feed: Feed, shape: TableShape): ChangeLog {
    if (this.#stream === null) {
      this.#touched.add(feed);
      return feed.log ?? new ChangeLog(shape);
    }
    // What comes of it is thrown away.
    if (this.#stream.spoiled.has(feed)) return new ChangeLog(shape);
    const found = this.#stream.logs.get(feed.oid);
    if (found) return found.log;
    const log = new ChangeLog(shape);
    this.#stream.logs.set(feed.oid, { feed, log });
    return log;
  }
}
