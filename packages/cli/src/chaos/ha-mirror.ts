/**
 * A worker and a mirror on a formation under chaos: the table that the writers fill is mirrored all the time. At the
 * end the lake must have caught up, equal the heap row by row, and have been copied once only.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import type { Formation } from "@spillway/ha/client/formation";
import { WRITES_TABLE } from "@spillway/ha/client/writer";
import { Child, type ChildEnv, runChild } from "../bench/child.ts";

const LIVE_LIMIT_MS = 60_000;
/** A worker looks around for `takeover-watch` after each failover before it goes on. */
const CAUGHT_UP_LIMIT_MS = 120_000;
const POLL_MS = 250;

export interface MirrorVerdict {
  /** Tables that `verify` found to differ from the heap. */
  readonly differ: number;
  /** Copies made after the first one. */
  readonly recopied: number;
  /** From the end of the writes until the lake had everything; null = never. */
  readonly caughtUpS: number | null;
  readonly rows: number;
  readonly workerRestarts: number;
}

interface Copy {
  readonly phase: string;
  readonly op: string;
}

export class ChaosMirror {
  readonly #formation: Formation;
  readonly #clock: Clock;
  readonly #home: string;
  readonly #env: ChildEnv;
  #worker: Child | null = null;
  #first: Copy | null = null;
  #ending = false;
  #restarts = 0;

  private constructor(formation: Formation, clock: Clock) {
    this.#formation = formation;
    this.#clock = clock;
    this.#home = mkdtempSync(join(tmpdir(), "spillway-chaos-"));
    const hosts = formation.nodes.map((n) => `${n.host}:${n.pgPort}`).join(",");
    const login = `postgres:${encodeURIComponent(formation.superuserPassword)}`;
    this.#env = {
      SPILLWAY_DATABASE_URL: `postgres://${login}@${hosts}/postgres?target_session_attrs=read-write&sslmode=disable`,
      SPILLWAY_WAREHOUSE: join(this.#home, "lake"),
      SPILLWAY_CACHE_DIR: join(this.#home, "cache"),
      SPILLWAY_METRICS_LISTEN: "off",
      SPILLWAY_TAKEOVER_WATCH: "11s",
      SPILLWAY_ADOPT_PROMOTION: "true",
    };
  }

  /** Catalog, registration, worker; resolves when the table is live. */
  static async start(formation: Formation, clock: Clock): Promise<ChaosMirror> {
    const mirror = new ChaosMirror(formation, clock);
    try {
      // A promotion that leaves the mirror's slot behind would have to copy the table again.
      await formation.monitor.set({ requireSlots: true });
      await runChild(["init"], mirror.#env);
      await runChild(["register", "--mode", "mirrored", "--table", `public.${WRITES_TABLE}`], mirror.#env);
      mirror.#startWorker();
      mirror.#first = await mirror.#until(LIVE_LIMIT_MS, async () => {
        const copy = await mirror.#copy();
        const ready = (await formation.monitor.nodes()).every((n) => n.slotsReady === true);
        return copy.phase === "live" && ready ? copy : null;
      });
      if (mirror.#first === null) throw new SpillwayError("deadline_exceeded", `no live mirror: ${mirror.said}`);
      return mirror;
    } catch (error) {
      await mirror.close();
      throw error;
    }
  }

  /** The worker's last words. */
  get said(): string {
    return this.#worker?.stderr.slice(-2000) ?? "";
  }

  /** As a service manager would: a worker that ended is started again. */
  #startWorker(): void {
    const worker = new Child(["worker"], this.#env);
    this.#worker = worker;
    void worker.ended.then(async () => {
      if (this.#ending) return;
      this.#restarts += 1;
      await this.#clock.sleep(1_000);
      if (!this.#ending) this.#startWorker();
    });
  }

  async #copy(): Promise<Copy> {
    const primary = await this.#formation.primary();
    const [row] = await primary.sql("SELECT phase, copy_op::text FROM spillway.mirror_table");
    return { phase: row?.[0] ?? "", op: row?.[1] ?? "" };
  }

  async #until<T>(limitMs: number, look: () => Promise<T | null>): Promise<T | null> {
    const deadline = this.#clock.monotonicMs() + limitMs;
    while (this.#clock.monotonicMs() < deadline) {
      const found = await look().catch(() => null);
      if (found !== null) return found;
      await this.#clock.sleep(POLL_MS);
    }
    return null;
  }

  /** When nobody writes any more: waits for the lake, and compares it with the heap. */
  async judge(): Promise<MirrorVerdict> {
    const startMs = this.#clock.monotonicMs();
    const primary = await this.#formation.primary();
    const [end] = await primary.sql("SELECT pg_current_wal_insert_lsn()::text");
    const caught = await this.#until(CAUGHT_UP_LIMIT_MS, async () => {
      const [row] = await primary.sql(
        `SELECT s.f_lsn >= '${end?.[0]}'::pg_lsn FROM spillway.mirror_table m JOIN spillway.seam s USING (relation_id)`,
      );
      return row?.[0] === "t" ? this.#clock.monotonicMs() - startMs : null;
    });
    const after = await this.#copy();
    const [count] = await primary.sql(`SELECT count(*)::text FROM public.${WRITES_TABLE}`);
    return {
      differ: caught === null ? 1 : await this.#differ(),
      recopied: after.phase === "live" && after.op === this.#first?.op ? 0 : 1,
      caughtUpS: caught === null ? null : caught / 1000,
      rows: Number(count?.[0]),
      workerRestarts: this.#restarts,
    };
  }

  /** `verify` reads every row of the lake and of the heap at one position. */
  async #differ(): Promise<number> {
    const child = new Child(["verify", "--all", "--json"], this.#env);
    await child.ended;
    const line = child.stdout.trim().split("\n").at(-1) ?? "";
    const { tables } = JSON.parse(line) as { tables: readonly { ok: boolean }[] };
    return tables.length === 1 ? tables.filter((t) => !t.ok).length : 1;
  }

  async close(): Promise<void> {
    this.#ending = true;
    await this.#worker?.end();
    rmSync(this.#home, { recursive: true, force: true });
  }
}
