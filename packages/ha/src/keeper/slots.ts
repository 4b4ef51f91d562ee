/**
 * Replication slots. Physical: one for each peer, on the primary. Logical: kept so that a failover does not
 * lose them, as far as the server's version allows:
 * - 17 and later: failover slots, synchronized by Postgres itself; the primary's keeper maintains
 *   synchronized_standby_slots so that a dead standby never blocks the consumers.
 * - 16: a standby can hold a logical slot of its own; the keeper makes one for each of the primary's and
 *   moves it along behind the consumer, never past it.
 * - 14 and 15: a standby cannot; the slots of the old primary are reported as lost, loudly.
 * Source: https://www.postgresql.org/docs/17/logical-replication-failover.html
 */
import { readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { messageOf } from "@spillway/base/errors";
import { parseLsn } from "@spillway/base/lsn";
import { quoteLiteral } from "@spillway/pg/quote";
import { upstreamSession } from "../postgres/remote.ts";
import { sendSignal } from "../postgres/processes.ts";
import type { Sql } from "../postgres/sql.ts";
import { applicationName, nodeIdOf, type NodeReport } from "../protocol/messages.ts";
import type { DesiredConf } from "./files.ts";
import type { PgNode } from "./node.ts";
import type { LogicalSlotFacts, Observation } from "./observe.ts";

/** Makes the physical slots of all peers, and drops those of nodes that are gone. Primary only. */
export async function ensurePeerSlots(node: PgNode): Promise<void> {
  const wanted = new Set(node.peers.map((p) => applicationName(p.nodeId)));
  const rows = await node.sql(
    "SELECT slot_name, active, coalesce(wal_status, '') AS wal_status FROM pg_replication_slots WHERE slot_type = 'physical'",
  );
  const present = new Set(rows.map((r) => r["slot_name"] ?? ""));
  for (const name of wanted) {
    const lost = rows.some((r) => r["slot_name"] === name && r["wal_status"] === "lost" && r["active"] === "f");
    if (lost) await node.sql(`SELECT pg_drop_replication_slot(${quoteLiteral(name)})`);
    if (!present.has(name) || lost) {
      await node.sql(`SELECT pg_create_physical_replication_slot(${quoteLiteral(name)}, true)`);
    }
  }
  for (const row of rows) {
    const name = row["slot_name"] ?? "";
    if (nodeIdOf(name) === null || wanted.has(name) || row["active"] === "t") continue;
    await node.sql(`SELECT pg_drop_replication_slot(${quoteLiteral(name)})`);
  }
}

/**
 * Empties pg_replslot of a stopped directory that is about to be a standby: a former primary's slots would hold
 * back WAL for ever, and its failover slots, which are not marked as synced, would stop the synchronization.
 */
export function dropForeignLogicalSlots(node: PgNode): void {
  if (node.postmaster.pid() !== null) return;
  const folder = join(node.pgdata, "pg_replslot");
  for (const name of listFolder(folder)) rmSync(join(folder, name), { recursive: true, force: true });
}

function listFolder(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}

/** What the standby knows of the primary's logical slots. */
interface PrimarySlot {
  readonly name: string;
  readonly plugin: string;
  readonly database: string;
  readonly confirmedLsn: string | null;
  readonly failover: boolean;
}

const LOOK_EVERY_MS = 1_000;
const SNAPSHOT_EVERY_MS = 5_000;
const CREATE_TIMEOUT_MS = 20_000;

/** Keeps the logical slots of one node, and says how they are. Its work never blocks a beat. */
export class SlotKeeper {
  readonly #node: PgNode;
  #primarySlots: readonly PrimarySlot[] = [];
  #known = false;
  #remote: { readonly key: string; readonly session: Sql } | null = null;
  #lastLookMs = Number.NEGATIVE_INFINITY;
  #lastSnapshotMs = Number.NEGATIVE_INFINITY;
  #busy = false;
  /** Names already reported as lost in this process, so that each is an event once. */
  readonly #reported = new Set<string>();
  #lost: string[] = [];

  constructor(node: PgNode) {
    this.#node = node;
  }

  /** Called at every beat with what was observed. */
  maintain(observed: Observation, voters: readonly number[]): void {
    if (!observed.answers || this.#busy) return;
    const nowMs = this.#node.clock.monotonicMs();
    if (nowMs - this.#lastLookMs < LOOK_EVERY_MS) return;
    this.#lastLookMs = nowMs;
    this.#busy = true;
    const work = observed.inRecovery === true ? this.#asStandby(observed) : this.#asPrimary(observed, voters);
    work
      .catch((error: unknown) => this.#node.log.debug("slots", { error: messageOf(error) }))
      .finally(() => (this.#busy = false));
  }

  /** The `slots` section of the report. `lost` is handed out once. */
  report(observed: Observation): NodeReport["slots"] {
    const local = new Map(observed.logicalSlots.filter((s) => !s.temporary || s.synced).map((s) => [s.name, s]));
    const lost = this.#newlyLost(observed, local);
    const logical =
      observed.inRecovery === true
        ? this.#primarySlots.filter((p) => this.#isKept(p)).map((p) => this.#standbySlot(p, local.get(p.name)))
        : [...local.values()].map((s) => ({ name: s.name, ready: s.lostReason === null, reason: s.lostReason ?? "" }));
    const physical = observed.inRecovery !== false || this.#peerSlotsThere(observed);
    // A standby that could not look at its primary yet knows nothing, and promises nothing.
    const looked = observed.inRecovery !== true || this.#known;
    const ready = observed.answers && physical && looked && logical.every((s) => s.ready);
    return { ready, logical: logical.slice(0, 256), lost };
  }

  #isKept(slot: PrimarySlot): boolean {
    return this.#node.binaries.major < 17 || slot.failover;
  }

  #peerSlotsThere(observed: Observation): boolean {
    return this.#node.peers.every((p) => observed.physicalSlots.includes(applicationName(p.nodeId)));
  }

  #standbySlot(
    primary: PrimarySlot,
    local: LogicalSlotFacts | undefined,
  ): { name: string; ready: boolean; reason: string } {
    const { major } = this.#node.binaries;
    const no = (reason: string): { name: string; ready: boolean; reason: string } => ({
      name: primary.name,
      ready: false,
      reason,
    });
    if (major < 16) return no(`Postgres ${major} cannot hold a logical slot on a standby`);
    if (!local) return no("not here yet");
    if (local.lostReason !== null) return no(local.lostReason);
    if (major >= 17 && (!local.synced || local.temporary)) return no("not synchronized yet");
    if (major === 16 && !behind(local.confirmedLsn, primary.confirmedLsn)) {
      return no("younger than its consumer's position; ready when the consumer has confirmed more");
    }
    return { name: primary.name, ready: true, reason: "" };
  }

  /** A node that takes writes now and misses a slot that the primary had, or whose slot Postgres gave up. */
  #newlyLost(observed: Observation, local: ReadonlyMap<string, LogicalSlotFacts>): string[] {
    if (!observed.answers) return this.#lost;
    const gone = [...local.values()].filter((s) => s.lostReason !== null && !s.synced).map((s) => s.name);
    if (observed.inRecovery === false && this.#known) {
      gone.push(...this.#primarySlots.filter((p) => !local.has(p.name)).map((p) => p.name));
      this.#primarySlots = [];
      this.#known = false;
    }
    for (const name of gone) {
      if (this.#reported.has(name)) continue;
      this.#reported.add(name);
      this.#lost.push(name);
      this.#node.log.error("a logical slot is lost: its consumer has to be set up anew", { slot: name });
    }
    return this.#lost.slice(0, 256);
  }

  /** The monitor has the report that named them. */
  delivered(lost: readonly string[]): void {
    this.#lost = this.#lost.filter((name) => !lost.includes(name));
  }

  async #asPrimary(observed: Observation, voters: readonly number[]): Promise<void> {
    const node = this.#node;
    this.#reported.forEach((name) => {
      if (observed.logicalSlots.some((s) => s.name === name && s.lostReason === null)) this.#reported.delete(name);
    });
    await ensurePeerSlots(node);
    if (node.binaries.major >= 17) {
      const names = voters.map(applicationName).filter((name) => observed.physicalSlots.includes(name));
      node.configure({ syncSlots: names.toSorted() });
    }
    const nowMs = node.clock.monotonicMs();
    const due = nowMs - this.#lastSnapshotMs >= SNAPSHOT_EVERY_MS;
    if (node.binaries.major >= 16 && due && observed.logicalSlots.length > 0 && node.peers.length > 0) {
      // A slot on a standby becomes consistent, and usable, at a record of the running transactions.
      this.#lastSnapshotMs = nowMs;
      await node.sql("SELECT pg_log_standby_snapshot()");
    }
  }

  async #asStandby(observed: Observation): Promise<void> {
    const node = this.#node;
    const upstream = node.conf.upstream;
    if (upstream === null) return;
    const failover = node.binaries.major >= 17 ? "failover" : "true";
    const rows = await this.#upstreamSession(upstream).query(
      `SELECT slot_name, plugin, database, confirmed_flush_lsn::text AS confirmed, ${failover} AS failover
       FROM pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary AND wal_status IS DISTINCT FROM 'lost'`,
    );
    this.#primarySlots = rows.map((r) => ({
      name: r["slot_name"] ?? "",
      plugin: r["plugin"] ?? "",
      database: r["database"] ?? "",
      confirmedLsn: r["confirmed"] ?? null,
      failover: r["failover"] === "t",
    }));
    this.#known = true;
    if (node.binaries.major === 16) await this.#followSlots(observed);
    if (node.binaries.major >= 17) await this.#hurryWorker(observed);
  }

  /**
   * Postgres's own worker looks less and less often, up to every 30 s, while nothing changes. As long as a slot is
   * missing here it is woken at each look; a reload that changes nothing is all that the signal means to it.
   */
  async #hurryWorker(observed: Observation): Promise<void> {
    const usable = new Set(observed.logicalSlots.filter((s) => s.synced && !s.temporary).map((s) => s.name));
    if (this.#primarySlots.every((s) => !s.failover || usable.has(s.name))) return;
    const rows = await this.#node.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'slotsync worker'");
    for (const row of rows) sendSignal(Number(row["pid"]), "SIGHUP");
  }

  /** One connection to the primary, kept; another one when it moved. */
  #upstreamSession(upstream: NonNullable<DesiredConf["upstream"]>): Sql {
    const key = JSON.stringify(upstream);
    if (this.#remote?.key !== key) {
      this.#remote?.session.close();
      const node = this.#node;
      const to = node.upstreamOf({ host: upstream.host, pgPort: upstream.port }, false);
      this.#remote = { key, session: upstreamSession(to, { password: node.config.replicationPassword }) };
    }
    return this.#remote.session;
  }

  close(): void {
    this.#remote?.session.close();
    this.#remote = null;
  }

  /** 16: makes missing slots, moves the others up to their consumers, drops those that the primary has no more. */
  async #followSlots(observed: Observation): Promise<void> {
    const node = this.#node;
    const here = new Map(observed.logicalSlots.map((s) => [s.name, s]));
    for (const slot of this.#primarySlots) {
      const local = here.get(slot.name);
      const session = node.sessionIn(slot.database);
      try {
        if (local && local.lostReason !== null) {
          await session.query(`SELECT pg_drop_replication_slot(${quoteLiteral(slot.name)})`);
        } else if (!local) {
          const args = [slot.name, slot.plugin].map(quoteLiteral).join(", ");
          await session.query(`SELECT pg_create_logical_replication_slot(${args})`, CREATE_TIMEOUT_MS);
        } else if (slot.confirmedLsn !== null && local.confirmedLsn !== null && !local.active) {
          if (parseLsn(local.confirmedLsn) >= parseLsn(slot.confirmedLsn)) continue;
          const to = `least(${quoteLiteral(slot.confirmedLsn)}::pg_lsn, pg_last_wal_replay_lsn())`;
          await session.query(`SELECT pg_replication_slot_advance(${quoteLiteral(slot.name)}, ${to})`, 10_000);
        }
      } finally {
        session.close();
      }
    }
    const wanted = new Set(this.#primarySlots.map((s) => s.name));
    for (const local of observed.logicalSlots) {
      if (wanted.has(local.name) || local.active || local.temporary) continue;
      await node.sql(`SELECT pg_drop_replication_slot(${quoteLiteral(local.name)})`);
    }
  }
}

function behind(own: string | null, consumer: string | null): boolean {
  return own !== null && consumer !== null && parseLsn(own) <= parseLsn(consumer);
}
