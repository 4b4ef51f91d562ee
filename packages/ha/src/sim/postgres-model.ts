/**
 * A model of Postgres as far as high availability can tell: WAL as a list of record ids, one writer,
 * streaming, `synchronous_standby_names`, promotion to a new timeline, rewind. A record's id is unique, so
 * a server's WAL is a prefix of another's exactly when its last id stands at the same place there.
 */
import { formatLsn } from "@spillway/base/lsn";
import { nodeIdOf } from "../protocol/messages.ts";

export interface Ssn {
  readonly k: number;
  readonly members: readonly number[];
}

export function parseSsn(text: string): Ssn {
  const match = /^ANY (\d+) \((.*)\)$/.exec(text);
  if (!match) return { k: 0, members: [] };
  return { k: Number(match[1]), members: (match[2] ?? "").split(", ").map((n) => nodeIdOf(n) ?? -1) };
}

const RECORD_BYTES = 64;
let nextRecord = 1;

/** Unique over all runs of the process; only identity matters. */
export function newRecord(): number {
  return nextRecord++;
}

export class PostgresModel {
  running = false;
  inRecovery = false;
  readOnly = false;
  /** The last stop was an orderly one. */
  clean = false;
  tli = 1;
  wal: number[] = [];
  ssn: Ssn = { k: 0, members: [] };
  /** The node that it streams from, and a number that changes with every (re)connection. */
  upstream: number | null = null;
  connection = 0;
  /** Changes with every start: what was sent to an earlier one is lost. */
  incarnation = 0;
  /** Promoted and stopped again without having been the primary: only a rewind helps. */
  forked = false;
  /** Primary: what each standby has flushed, and when it last said so. */
  readonly flushed = new Map<number, { length: number; atMs: number; connection: number }>();
  /** Commits that wait for the quorum: index + 1 in the WAL. */
  waiting: number[] = [];
  /** A rewind or copy was begun and not finished. */
  broken = false;

  lsn(): string {
    return formatLsn(BigInt(this.wal.length * RECORD_BYTES));
  }

  isPrefixOf(other: PostgresModel): boolean {
    const n = this.wal.length;
    return n === 0 || (other.wal.length >= n && other.wal[n - 1] === this.wal[n - 1]);
  }

  accepts(): boolean {
    return this.running && !this.inRecovery && !this.readOnly;
  }

  stop(clean: boolean): void {
    this.running = false;
    this.clean = clean;
    this.incarnation++;
    this.disconnect();
    this.flushed.clear();
    this.waiting = [];
  }

  disconnect(): void {
    this.upstream = null;
    this.connection++;
  }

  follow(nodeId: number): void {
    if (this.upstream === nodeId && this.running) return;
    this.upstream = nodeId;
    this.connection++;
  }

  startStandby(): void {
    this.running = true;
    this.inRecovery = true;
    this.clean = false;
  }

  startPrimary(): void {
    this.running = true;
    this.inRecovery = false;
    this.clean = false;
    this.readOnly = false;
    this.flushed.clear();
    this.waiting = [];
  }

  promote(): void {
    this.inRecovery = false;
    this.disconnect();
    this.tli += 1;
    this.wal.push(newRecord());
    this.flushed.clear();
    this.waiting = [];
  }

  /** True when the quorum has flushed the first `length` records. */
  hasQuorum(length: number): boolean {
    if (this.ssn.k === 0) return true;
    const have = this.ssn.members.filter((id) => (this.flushed.get(id)?.length ?? 0) >= length);
    return have.length >= this.ssn.k;
  }

  copyFrom(other: PostgresModel, length = other.wal.length): void {
    this.wal = other.wal.slice(0, length);
    this.tli = other.tli;
    this.forked = false;
  }

  lsnLength(lsn: bigint): number {
    return Number(lsn) / RECORD_BYTES;
  }
}
