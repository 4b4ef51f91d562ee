/** The pump: a session after the other for as long as this process leads. */
import { isSpillwayError, type SpillwayError } from "@spillway/base/errors";
import { parseLsn } from "@spillway/base/lsn";
import { fromPgError } from "@spillway/pg/pg-error";
import type { MoverContext } from "../context.ts";
import { COPIES_AGAIN } from "./recopy.ts";
import { MirrorSession, type PumpSettings, type PumpStatus, type SessionEvents, SessionRestart } from "./session.ts";
import { loadMirror, loadMirrorTables, type MirrorRow, stopMirrored } from "./state.ts";

export type { PumpSettings, PumpStatus } from "./session.ts";

const IDLE_POLL_MS = 500;
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5_000;
/** Sessions that lived for so long begin anew without a pause. */
const HEALTHY_MS = 10_000;
const ENDS_TERM: ReadonlySet<string> = new Set(["leader_lost", "op_abandoned", "lake_not_ours"]);

export class Pump {
  readonly #ctx: MoverContext;
  readonly #settings: PumpSettings;
  readonly #events: SessionEvents;
  #session: MirrorSession | null = null;
  #lastError: SpillwayError | null = null;

  constructor(ctx: MoverContext, settings: PumpSettings, events: SessionEvents = {}) {
    this.#ctx = ctx;
    this.#settings = settings;
    this.#events = events;
  }

  /** Null while nothing streams. */
  get status(): PumpStatus | null {
    return this.#session?.status ?? null;
  }

  /** Why the last session ended, while no other streams. */
  get lastError(): SpillwayError | null {
    return this.#lastError;
  }

  /** Runs until the signal ends it; throws only what ends the term of the leader. */
  async run(signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#ctx;
    let pauseMs = FIRST_PAUSE_MS;
    while (!signal.aborted) {
      const startMs = clock.monotonicMs();
      try {
        if (!(await this.#once(signal))) {
          await clock.sleep(IDLE_POLL_MS, signal);
          continue;
        }
        pauseMs = FIRST_PAUSE_MS;
      } catch (error) {
        if (error instanceof SessionRestart) continue;
        if (signal.aborted) return;
        const typed = fromPgError(error, "the mirror's stream");
        if (ENDS_TERM.has(typed.code)) throw typed;
        this.#lastError = typed;
        await this.#stopAll(typed);
        if (clock.monotonicMs() - startMs > HEALTHY_MS) pauseMs = FIRST_PAUSE_MS;
        log.warn("mirror.session_ended", { code: typed.code, error: typed, again_in_ms: pauseMs });
        await clock.sleep(pauseMs, signal);
        pauseMs = Math.min(LONGEST_PAUSE_MS, pauseMs * 2);
      } finally {
        this.#session = null;
      }
    }
  }

  /** Resolves when every mirrored table that is not stopped has what is committed now. */
  async caughtUp(signal: AbortSignal): Promise<void> {
    const { pool, clock } = this.#ctx;
    const { rows } = await pool.withClient((c) =>
      c.query<{ lsn: string }>("select pg_logical_emit_message(false, 'spillway.flush', '')::text as lsn"),
    );
    const wanted = parseLsn(rows[0]?.lsn ?? "0/0");
    while (!signal.aborted) {
      const tables = await pool.withClient((c) => loadMirrorTables(c));
      const waits = tables.filter((t) => t.phase !== "needs_copy" || COPIES_AGAIN.has(t.relation.stopCode ?? ""));
      if (waits.every((t) => t.phase === "live" && (t.f ?? 0n) >= wanted)) return;
      await clock.sleep(50, signal);
    }
  }

  /** False when there is nothing to stream. */
  async #once(signal: AbortSignal): Promise<boolean> {
    const { mirror, any } = await this.#ctx.pool.withClient(async (c) => ({
      mirror: await loadMirror(c),
      any: (await loadMirrorTables(c)).length > 0,
    }));
    if (mirror === null || !any) return false;
    this.#session = new MirrorSession(this.#ctx, mirror satisfies MirrorRow, this.#settings, this.#events);
    await this.#session.run(signal);
    return true;
  }

  /** A slot that is lost, or another server, concerns every table. */
  async #stopAll(error: SpillwayError): Promise<void> {
    if (!isSpillwayError(error, "mirror_slot_lost", "mirror_gap")) return;
    await this.#ctx.pool.withClient(async (c) => {
      for (const { relation, phase } of await loadMirrorTables(c)) {
        if (phase !== "needs_copy") await stopMirrored(c, relation.relationId, error.code, error.message);
      }
    });
  }
}
