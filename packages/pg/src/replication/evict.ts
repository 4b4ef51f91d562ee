/** Freeing a slot that another session holds: a former leader, alive, stopped or cut off. */
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import { quoteLiteral } from "../quote.ts";
import { DEFAULT_REPLICATION_TIMEOUTS, type TextRunner } from "./session.ts";

export interface EvictOptions {
  readonly sql: TextRunner;
  readonly slot: string;
  readonly clock: Clock;
  /** Gives up after this. Default 10 000. */
  readonly timeoutMs?: number;
  /**
   * How long a holder that is blocked in writing is left to the timeouts that it was started with: to be told to end
   * while it is blocked can keep it alive for longer. Default wal_sender_timeout and a half.
   */
  readonly blockedGraceMs?: number;
  readonly signal?: AbortSignal;
}

interface Holder {
  readonly pid: number;
  readonly blocked: boolean;
}

const DEFAULT_TIMEOUT_MS = 10_000;
const POLL_MS = 50;
const TERMINATE_EVERY_MS = 1_000;

/**
 * Resolves when nobody holds the slot, with the number of ms that it took. A holder that waits for changes is ended at
 * once; one that is blocked in writing to a client that does not read is left to its timeouts first.
 * Throws pg_slot_invalid (there is none), pg_slot_active (still held at the deadline), or what the server says.
 */
export async function evictSlotHolder(options: EvictOptions): Promise<number> {
  const { clock, slot, signal } = options;
  const graceMs = options.blockedGraceMs ?? DEFAULT_REPLICATION_TIMEOUTS.walSenderTimeoutMs * 1.5;
  const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
  const start = clock.monotonicMs();
  let terminatedMs = -Infinity;
  for (;;) {
    const holder = await readHolder(options);
    const spentMs = clock.monotonicMs() - start;
    if (holder === null) return spentMs;
    if (spentMs >= timeoutMs || signal?.aborted) {
      const text = `slot ${slot} is still held by the process ${holder.pid} after ${Math.round(spentMs)} ms`;
      throw new SpillwayError("pg_slot_active", text, { details: { slot, pid: holder.pid, blocked: holder.blocked } });
    }
    if (shouldTerminate(holder, spentMs, spentMs - terminatedMs, graceMs)) {
      await options.sql.query(`SELECT pg_catalog.pg_terminate_backend(${holder.pid})`, { timeoutMs });
      terminatedMs = spentMs;
    }
    await clock.sleep(POLL_MS, signal);
  }
}

/** Whether to tell this holder to end now. */
export function shouldTerminate(holder: Holder, spentMs: number, sinceLastMs: number, graceMs: number): boolean {
  return (!holder.blocked || spentMs >= graceMs) && sinceLastMs >= TERMINATE_EVERY_MS;
}

async function readHolder({ sql, slot, timeoutMs = DEFAULT_TIMEOUT_MS }: EvictOptions): Promise<Holder | null> {
  const [result] = await sql.query(
    `SELECT s.active_pid::text, (a.wait_event IN ('WalSenderWriteData', 'ClientWrite'))::text
      FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
      WHERE s.slot_name = ${quoteLiteral(slot)}`,
    { timeoutMs },
  );
  const row = result?.rows[0];
  if (!row) throw new SpillwayError("pg_slot_invalid", `there is no replication slot ${slot}`, { details: { slot } });
  const pid = row[0];
  return typeof pid === "string" ? { pid: Number(pid), blocked: row[1] === "true" } : null;
}
