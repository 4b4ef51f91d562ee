/**
 * The replication commands: who the server is, slots, timelines. On a connection opened for replication.
 * Source: https://www.postgresql.org/docs/current/protocol-replication.html
 */
import { must } from "@spillway/base/assert";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { parseLsn, type Lsn } from "@spillway/base/lsn";
import { sqlstateOf } from "../pg-error.ts";
import { quoteIdent, quoteLiteral } from "../quote.ts";
import { RawConnection } from "../wire/connection.ts";
import type { QueryOptions, TextResult } from "../wire/query.ts";
import { serverOptions, type RawTarget } from "../wire/target.ts";

export interface ReplicationTimeouts {
  /** The server ends the session when it hears nothing for so long, also when it is blocked in writing to us. */
  readonly walSenderTimeoutMs: number;
  /** The server's kernel drops the connection when what it sends is not acknowledged for so long. */
  readonly tcpUserTimeoutMs: number;
}

/**
 * Both timeouts are needed for a takeover within seconds: a sender that is blocked in writing to a stopped client
 * does not notice that it was told to end, and holds its slot until one of them fires.
 */
export const DEFAULT_REPLICATION_TIMEOUTS: ReplicationTimeouts = { walSenderTimeoutMs: 3_000, tcpUserTimeoutMs: 3_000 };

/** The same target for replication: `database` for logical slots and SQL, `physical` for base backups. */
export function replicationTarget(
  target: RawTarget,
  kind: "database" | "physical",
  timeouts: ReplicationTimeouts = DEFAULT_REPLICATION_TIMEOUTS,
): RawTarget {
  const settings = { wal_sender_timeout: timeouts.walSenderTimeoutMs, tcp_user_timeout: timeouts.tcpUserTimeoutMs };
  const given = target.parameters?.["options"];
  const options = [given, serverOptions(settings)].filter(Boolean).join(" ");
  const replication = kind === "database" ? "database" : "true";
  return { ...target, parameters: { ...target.parameters, options, replication } };
}

/** A target for SQL beside a replication connection. */
function sqlTarget(target: RawTarget): RawTarget {
  const parameters = Object.entries(target.parameters ?? {}).filter(([name]) => name !== "replication");
  return { ...target, parameters: Object.fromEntries(parameters) };
}

export interface SystemIdentity {
  /** A 64-bit number, as text: unique to the cluster since initdb. */
  readonly systemId: string;
  readonly timeline: number;
  /** The flushed WAL position; on a standby the replayed one. */
  readonly walPosition: Lsn;
  readonly database: string | null;
}

export async function identifySystem(connection: RawConnection, options?: QueryOptions): Promise<SystemIdentity> {
  const [result] = await connection.query("IDENTIFY_SYSTEM", options);
  const [systemId, timeline, position, database] = must(result?.rows[0], "the answer to IDENTIFY_SYSTEM");
  return {
    systemId: must(systemId, "systemid"),
    timeline: Number(timeline),
    walPosition: parseLsn(must(position, "xlogpos")),
    database: database ?? null,
  };
}

export interface CreateSlotOptions extends QueryOptions {
  readonly name: string;
  readonly temporary?: boolean;
  /** Survives a failover to a synchronized standby; ignored before Postgres 17, which has no such slots. */
  readonly failover?: boolean;
  /**
   * `export` gives a snapshot to other sessions until the next command on this connection; `use` makes it this
   * session's own (inside BEGIN ISOLATION LEVEL REPEATABLE READ).
   */
  readonly snapshot?: "export" | "use" | "none";
}

export interface CreatedSlot {
  readonly name: string;
  /** Every transaction that commits after this point is in the slot, every earlier one in the snapshot. */
  readonly consistentPoint: Lsn;
  readonly snapshotName: string | null;
}

/**
 * Creates a logical slot for pgoutput. It waits for every transaction that runs at that moment; with a timeout the
 * error names the sessions that it waited for.
 */
export async function createSlot(connection: RawConnection, options: CreateSlotOptions): Promise<CreatedSlot> {
  const sql = createSlotSql(connection.serverVersion, options);
  try {
    const [result] = await connection.query(sql, options);
    const [name, point, snapshot] = must(result?.rows[0], "the answer to CREATE_REPLICATION_SLOT");
    return {
      name: must(name, "slot_name"),
      consistentPoint: parseLsn(must(point, "consistent_point")),
      snapshotName: snapshot ?? null,
    };
  } catch (error) {
    if (isSpillwayError(error, "deadline_exceeded")) throw await blockedSlot(connection, options, error);
    throw error;
  }
}

function createSlotSql(serverVersion: number, options: CreateSlotOptions): string {
  const { name, temporary, snapshot = "none", failover } = options;
  const head = `CREATE_REPLICATION_SLOT ${quoteIdent(name)}${temporary ? " TEMPORARY" : ""} LOGICAL pgoutput`;
  if (serverVersion < 150_000) {
    return `${head} ${{ export: "EXPORT_SNAPSHOT", use: "USE_SNAPSHOT", none: "NOEXPORT_SNAPSHOT" }[snapshot]}`;
  }
  const list = [`SNAPSHOT '${snapshot === "none" ? "nothing" : snapshot}'`];
  if (failover && serverVersion >= 170_000) list.push("FAILOVER true");
  return `${head} (${list.join(", ")})`;
}

async function blockedSlot(
  connection: RawConnection,
  options: CreateSlotOptions,
  cause: SpillwayError,
): Promise<SpillwayError> {
  const sql = `SELECT string_agg(pid || ' (' || coalesce(nullif(application_name, ''), usename, '?') || ')', ', ' ORDER BY pid)
      FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() AND pid <> ${connection.processId}
    UNION ALL SELECT string_agg('prepared transaction ' || gid, ', ') FROM pg_prepared_xacts`;
  const results = await withSql(connection.target, (c) => c.query(sql, { timeoutMs: 2_000 })).catch(() => []);
  const who = (results[0]?.rows ?? []).flatMap((row) => row[0] ?? []).join(", ");
  const text = `the slot ${quoteIdent(options.name)} waited ${options.timeoutMs} ms for transactions that run: ${who || "unknown"}`;
  return new SpillwayError("deadline_exceeded", text, {
    cause,
    remedy: "Let these transactions end, or end them, then try again.",
    details: { slot: options.name, blockers: who },
  });
}

async function withSql<T>(target: RawTarget, work: (connection: RawConnection) => Promise<T>): Promise<T> {
  const connection = await RawConnection.open(sqlTarget(target));
  try {
    return await work(connection);
  } finally {
    await connection.close();
  }
}

/** Drops a slot. A missing one is no error. One in use is pg_slot_active, unless `wait` is set. */
export async function dropSlot(connection: RawConnection, name: string, wait = false): Promise<void> {
  try {
    await connection.query(`DROP_REPLICATION_SLOT ${quoteIdent(name)}${wait ? " WAIT" : ""}`);
  } catch (error) {
    if (sqlstateOf(error) !== "42704") throw error;
  }
}

/** What runs SQL and answers in text: a raw connection, or anything that looks like one. */
export interface TextRunner {
  query(sql: string, options?: QueryOptions): Promise<TextResult[]>;
}

export interface SlotState {
  readonly name: string;
  readonly active: boolean;
  readonly activePid: number | null;
  readonly temporary: boolean;
  readonly restartLsn: Lsn | null;
  readonly confirmedFlushLsn: Lsn | null;
  /** reserved, extended, unreserved, lost; null when the slot has reserved nothing. */
  readonly walStatus: string | null;
  readonly safeWalSize: bigint | null;
  /** From 17 on. */
  readonly failover: boolean;
  readonly synced: boolean;
  readonly invalidationReason: string | null;
  /** WAL that the slot keeps, in bytes. */
  readonly retainedBytes: bigint | null;
}

/** The slot as the server sees it, or null when there is none. */
export async function readSlot(sql: TextRunner, name: string): Promise<SlotState | null> {
  // Through JSON, because the view's columns differ from version to version.
  const [result] = await sql.query(`SELECT pg_catalog.to_jsonb(s)::text, pg_catalog.pg_wal_lsn_diff(
      CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
           ELSE pg_catalog.pg_current_wal_lsn() END, s.restart_lsn)::text, s.safe_wal_size::text
    FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = ${quoteLiteral(name)}`);
  const row = result?.rows[0];
  if (!row) return null;
  const slot = JSON.parse(must(row[0], "a slot")) as Record<string, string | number | boolean | null | undefined>;
  const lsn = (value: unknown): Lsn | null => (typeof value === "string" ? parseLsn(value) : null);
  const text = (value: unknown): string | null => (typeof value === "string" ? value : null);
  return {
    name,
    active: slot["active"] === true,
    activePid: typeof slot["active_pid"] === "number" ? slot["active_pid"] : null,
    temporary: slot["temporary"] === true,
    restartLsn: lsn(slot["restart_lsn"]),
    confirmedFlushLsn: lsn(slot["confirmed_flush_lsn"]),
    walStatus: text(slot["wal_status"]),
    safeWalSize: bigintOrNull(row[2]),
    failover: slot["failover"] === true,
    synced: slot["synced"] === true,
    invalidationReason: text(slot["invalidation_reason"]) ?? (slot["wal_status"] === "lost" ? "wal_removed" : null),
    retainedBytes: bigintOrNull(row[1]),
  };
}

function bigintOrNull(text: string | null | undefined): bigint | null {
  return typeof text === "string" ? BigInt(text) : null;
}

export interface TimelineSwitch {
  readonly timeline: number;
  /** Where this timeline was left. */
  readonly switchedAt: Lsn;
  readonly reason: string;
}

/** The timelines before `timeline`, oldest first; empty for the first one, which has no history. */
export async function timelineHistory(connection: RawConnection, timeline: number): Promise<TimelineSwitch[]> {
  if (timeline <= 1) return [];
  const [result] = await connection.query(`TIMELINE_HISTORY ${timeline}`);
  return parseTimelineHistory(result?.rows[0]?.[1] ?? "");
}

/** Lines of `timeline <tab> position <tab> reason`; `#` begins a comment. */
export function parseTimelineHistory(content: string): TimelineSwitch[] {
  return content
    .split("\n")
    .map((line) => line.replace(/#.*/, "").trim())
    .filter((line) => line !== "")
    .map((line) => {
      const [timeline = "", position = "", ...reason] = line.split(/\s+/);
      return { timeline: Number(timeline), switchedAt: parseLsn(position), reason: reason.join(" ") };
    });
}
