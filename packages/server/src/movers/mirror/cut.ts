/**
 * A flush that ends exactly at a position which somebody else names: for `verify`, which has a snapshot of the heap there. The
 * stream is held while the snapshot is made, so that it cannot have passed it.
 *
 *     verify: files `mirror-cut`          pump: claims it, stops reading
 *     verify: makes a temporary slot,     pump: waits for the position, bounded
 *             writes its position
 *                                         pump: reads up to the first commit at or behind it, flushes, answers
 */
import { formatLsn, type Lsn, parseLsn } from "@spillway/base/lsn";
import { answerRequest, claimRequests, loadLakeTable } from "../../catalog/catalog.ts";
import type { MoverContext } from "../context.ts";
import type { MirrorTable } from "./mirror-table.ts";

export const CUT_REQUEST = "mirror-cut";

/** How long the stream is held for a position. */
const HOLD_MS = 15_000;
const [BEGIN, STREAM_COMMIT] = [0x42, 0x63];

export class Cuts {
  readonly #ctx: MoverContext;
  #requests: bigint[] = [];
  #heldSinceMs = 0;
  #at: Lsn | null = null;
  #isReached = false;

  constructor(ctx: MoverContext) {
    this.#ctx = ctx;
  }

  /** The stream is to be held. */
  get isWaiting(): boolean {
    return this.#requests.length > 0 && this.#at === null;
  }

  get at(): Lsn | null {
    return this.#at;
  }

  /** Everything before the position is in the logs, and nothing behind it. */
  get isReached(): boolean {
    return this.#isReached;
  }

  /** Looks for requests, or for the position of the one in hand. */
  async poll(): Promise<void> {
    if (this.#at !== null) return;
    const { pool, clock } = this.#ctx;
    if (this.#requests.length === 0) {
      const claimed = await pool.withClient((c) => claimRequests(c, [CUT_REQUEST]));
      this.#requests = claimed.slice(0, 1).map((r) => r.requestId);
      this.#heldSinceMs = clock.monotonicMs();
      return;
    }
    const { rows } = await pool.withClient((c) =>
      c.query<{ lsn: string | null; state: string }>(
        "select detail ->> 'lsn' as lsn, state from spillway.request where request_id = $1",
        [String(this.#requests[0])],
      ),
    );
    const lsn = rows[0]?.lsn;
    if (typeof lsn === "string") this.#at = parseLsn(lsn);
    else if (clock.monotonicMs() - this.#heldSinceMs > HOLD_MS || rows[0]?.state !== "claimed") {
      await this.#answer("failed", { reason: "no position came in time" });
    }
  }

  /** Whether this message is the first one behind the position. */
  stops(buffer: Buffer, start: number): boolean {
    if (this.#at === null) return false;
    if (this.#isReached) return true;
    const type = buffer[start];
    const at = type === BEGIN ? start + 1 : type === STREAM_COMMIT ? start + 6 : -1;
    if (at >= 0 && buffer.readBigUInt64BE(at) >= this.#at) this.#isReached = true;
    return this.#isReached;
  }

  /** The server has looked beyond the position, and nothing came. */
  sawUpTo(lsn: Lsn): void {
    if (this.#at !== null && lsn >= this.#at) this.#isReached = true;
  }

  /** After the flush: says what belongs to the position. */
  async answer(tables: readonly MirrorTable[]): Promise<void> {
    const live: Record<string, unknown> = {};
    for (const { relation, phase, failure } of tables) {
      if (phase !== "live" || failure !== null || relation.lakeId === null) continue;
      const { lakeId } = relation;
      const row = await this.#ctx.pool.withClient((c) => loadLakeTable(c, lakeId));
      if (row) live[relation.relationId.toString()] = row.metadataLocation;
    }
    await this.#answer("done", { lsn: formatLsn(this.#at ?? 0n), tables: live });
  }

  async #answer(state: "done" | "failed", result: Record<string, unknown>): Promise<void> {
    const [id] = this.#requests;
    this.#requests = [];
    this.#at = null;
    this.#isReached = false;
    if (id !== undefined) await this.#ctx.pool.withClient((c) => answerRequest(c, id, state, result));
  }
}
