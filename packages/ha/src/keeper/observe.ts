/**
 * What Postgres is right now, in one round trip, in the words of the report. A server that does not answer
 * in time counts as not running; a stopped one is described by its control file.
 */
import { formatLsn, parseLsn } from "@spillway/base/lsn";
import { readControlData, type ControlData } from "../postgres/control-file.ts";
import { nodeIdOf, type NodeReport, type Peer, type ReplicationRow } from "../protocol/messages.ts";
import { object, parseMessage, type Validator } from "../protocol/validate.ts";
import type { PgNode } from "./node.ts";

export interface Observation {
  readonly isRunning: boolean;
  /** The server answered a query (as opposed to: its process is there). */
  readonly answers: boolean;
  readonly inRecovery: boolean | null;
  readonly tli: number | null;
  readonly lsn: string | null;
  readonly systemIdentifier: string | null;
  readonly version: number | null;
  readonly ssn: string | null;
  readonly replication: readonly ReplicationRow[];
  readonly upstream: NodeReport["upstream"];
  /** Names of the physical slots that exist here. */
  readonly physicalSlots: readonly string[];
  /** Persistent logical slots: those that a failover should keep. */
  readonly logicalSlots: readonly LogicalSlotFacts[];
}

export interface LogicalSlotFacts {
  readonly name: string;
  readonly plugin: string;
  readonly database: string;
  readonly temporary: boolean;
  readonly active: boolean;
  /** 17 and later; false before. */
  readonly failover: boolean;
  readonly synced: boolean;
  /** Why Postgres gave the slot up, or null. */
  readonly lostReason: string | null;
  readonly confirmedLsn: string | null;
  readonly catalogXmin: string | null;
  readonly restartLsn: string | null;
}

const QUERY_TIMEOUT_MS = 1_000;

export const NOTHING: Observation = {
  isRunning: false,
  answers: false,
  inRecovery: null,
  tli: null,
  lsn: null,
  systemIdentifier: null,
  version: null,
  ssn: null,
  replication: [],
  upstream: null,
  physicalSlots: [],
  logicalSlots: [],
};

/** pg_replication_slots with the columns that only newer versions have, or what stands for them before. */
function slotsSql(major: number): string {
  const removed = "CASE WHEN wal_status = 'lost' THEN 'wal_removed' END";
  const conflict = major === 16 ? "CASE WHEN conflicting THEN 'conflicting' END" : "NULL::text";
  const newer =
    major >= 17
      ? `failover, synced, coalesce(invalidation_reason, ${removed}) AS lost`
      : `false AS failover, false AS synced, coalesce(${conflict}, ${removed}) AS lost`;
  return `SELECT slot_name, slot_type, plugin, database, temporary, active, confirmed_flush_lsn, catalog_xmin, restart_lsn,
    ${newer} FROM pg_replication_slots`;
}

function observationSql(major: number): string {
  return `SELECT json_build_object(
  'recovery', pg_is_in_recovery(),
  'lsn', CASE WHEN pg_is_in_recovery()
    THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) ELSE pg_current_wal_flush_lsn() END,
  'wal_file', CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_insert_lsn()) END,
  'checkpoint_tli', (SELECT timeline_id FROM pg_control_checkpoint()),
  'recovery_tli', (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
  'system', (SELECT system_identifier::text FROM pg_control_system()),
  'version', current_setting('server_version_num')::int,
  'ssn', current_setting('synchronous_standby_names'),
  'receiver', (SELECT json_build_object('status', status, 'tli', received_tli, 'host', sender_host, 'port', sender_port,
     'age', extract(epoch FROM clock_timestamp() - last_msg_receipt_time) * 1000) FROM pg_stat_wal_receiver LIMIT 1),
  'senders', (SELECT json_agg(json_build_object('name', application_name, 'state', state, 'sync', sync_state,
     'flush', flush_lsn, 'replay', replay_lsn, 'reply', reply_time)) FROM pg_stat_replication),
  'slots', (SELECT json_agg(json_build_object('name', slot_name, 'type', slot_type, 'plugin', plugin, 'database', database,
     'temporary', temporary, 'active', active, 'failover', failover, 'synced', synced, 'lost', lost,
     'confirmed', confirmed_flush_lsn, 'catalog_xmin', catalog_xmin::text, 'restart', restart_lsn))
     FROM (${slotsSql(major)}) s)
)::text AS facts`;
}

interface RawFacts {
  recovery: boolean;
  lsn: string | null;
  wal_file: string | null;
  checkpoint_tli: number;
  recovery_tli: number | null;
  system: string;
  version: number;
  ssn: string;
  receiver: { status: string; tli: number | null; host: string | null; port: number | null; age: number | null } | null;
  senders:
    | { name: string; state: string; sync: string; flush: string | null; replay: string | null; reply: string | null }[]
    | null;
  slots:
    | {
        name: string;
        type: string;
        plugin: string | null;
        database: string | null;
        temporary: boolean;
        active: boolean;
        failover: boolean;
        synced: boolean;
        lost: string | null;
        confirmed: string | null;
        catalog_xmin: string | null;
        restart: string | null;
      }[]
    | null;
}

const anything: Validator<object> = object({});

/** Remembers what one observation alone cannot tell: since when a standby is silent, how far a timeline went. */
export class Observer {
  readonly #node: PgNode;
  readonly #seen = new Map<number, { key: string; sinceMs: number }>();
  /** The newest timeline that this server's walreceiver wrote, for as long as the server runs. */
  #received: { pid: number; tli: number } | null = null;

  constructor(node: PgNode) {
    this.#node = node;
  }

  async observe(): Promise<Observation> {
    const { postmaster } = this.#node;
    const status = postmaster.status();
    if (status === "stopped") return this.#stopped();
    if (status === "starting" || status === "stopping") return NOTHING;
    try {
      const rows = await this.#node.sql(observationSql(this.#node.binaries.major), QUERY_TIMEOUT_MS);
      const text = rows[0]?.["facts"] ?? "{}";
      parseMessage(anything, text, "pg facts");
      return this.#running(JSON.parse(text) as RawFacts, postmaster.pid() ?? 0);
    } catch (error) {
      this.#node.log.debug("Postgres does not answer", { error });
      return NOTHING;
    }
  }

  async #stopped(): Promise<Observation> {
    try {
      return stoppedAs(await readControlData(this.#node.pgdata));
    } catch {
      return NOTHING;
    }
  }

  #running(facts: RawFacts, pid: number): Observation {
    return {
      isRunning: true,
      answers: true,
      inRecovery: facts.recovery,
      tli: this.#timeline(facts, pid),
      lsn: facts.lsn,
      systemIdentifier: facts.system,
      version: facts.version,
      ssn: facts.recovery ? null : facts.ssn,
      replication: facts.recovery ? [] : this.#replication(facts),
      upstream: facts.recovery ? this.#upstream(facts) : null,
      physicalSlots: (facts.slots ?? []).filter((s) => s.type === "physical").map((s) => s.name),
      logicalSlots: (facts.slots ?? [])
        .filter((s) => s.type === "logical")
        .map((s) => ({
          name: s.name,
          plugin: s.plugin ?? "",
          database: s.database ?? "",
          temporary: s.temporary,
          active: s.active,
          failover: s.failover,
          synced: s.synced,
          lostReason: s.lost,
          confirmedLsn: s.confirmed,
          catalogXmin: s.catalog_xmin,
          restartLsn: s.restart,
        })),
    };
  }

  #timeline(facts: RawFacts, pid: number): number {
    if (facts.wal_file !== null) return Number.parseInt(facts.wal_file.slice(0, 8), 16);
    const received = facts.receiver?.tli ?? 0;
    const before = this.#received?.pid === pid ? this.#received.tli : 0;
    const tli = Math.max(received, before, facts.checkpoint_tli, facts.recovery_tli ?? 0);
    this.#received = { pid, tli };
    return tli;
  }

  #replication(facts: RawFacts): ReplicationRow[] {
    const nowMs = this.#node.clock.monotonicMs();
    return (facts.senders ?? []).flatMap((row) => {
      const nodeId = nodeIdOf(row.name);
      if (nodeId === null) return [];
      const key = `${row.reply} ${row.flush} ${row.replay}`;
      const seen = this.#seen.get(nodeId);
      const sinceMs = seen?.key === key ? seen.sinceMs : nowMs;
      this.#seen.set(nodeId, { key, sinceMs });
      return [
        {
          nodeId,
          state: row.state,
          syncState: row.sync,
          flushLsn: row.flush,
          replayLsn: row.replay,
          replyAgeMs: nowMs - sinceMs,
        },
      ];
    });
  }

  #upstream(facts: RawFacts): NodeReport["upstream"] {
    const { receiver } = facts;
    if (receiver === null) return null;
    const from = this.#node.peers.find((p) => samePlace(p, receiver));
    return {
      nodeId: from?.nodeId ?? this.#node.conf.upstream?.nodeId ?? null,
      streaming: receiver.status === "streaming",
      lastMessageAgeMs: Math.max(0, receiver.age ?? 0),
    };
  }
}

/** A server that does not run, from its control file. */
export function stoppedAs(control: ControlData): Observation {
  return {
    ...NOTHING,
    tli: control.timeline,
    // Only an orderly shutdown says where the WAL ends; an older checkpoint says nothing about what came after it.
    lsn: control.state === "shut down" ? formatLsn(control.checkpointLsn) : null,
    systemIdentifier: control.systemId,
  };
}

function samePlace(peer: Peer, receiver: { host: string | null; port: number | null }): boolean {
  return peer.host === receiver.host && peer.pgPort === receiver.port;
}

/** The later of two positions in text form. */
export function laterLsn(a: string | null, b: string | null): string | null {
  if (a === null || b === null) return a ?? b;
  return parseLsn(a) >= parseLsn(b) ? a : b;
}
