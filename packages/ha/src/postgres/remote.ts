/**
 * What a standby asks the server that it follows, over short connections of the replication role.
 * Source: https://www.postgresql.org/docs/current/protocol-replication.html
 */
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { parseLsn, type Lsn } from "@spillway/base/lsn";
import { RawConnection, type Operation } from "@spillway/pg/wire/connection";
import type { RawTarget, SslMode } from "@spillway/pg/wire/target";
import { queryMessage } from "@spillway/pg/wire/frontend";
import type { Upstream } from "./config-files.ts";
import { Session, type Row } from "./sql.ts";
import { parseHistory, type TimelineSwitch } from "./timeline.ts";

const CONNECT_TIMEOUT_MS = 2_000;
const QUERY_TIMEOUT_MS = 5_000;
const PROBE_MS = 1_500;

export interface Secret {
  readonly password: string;
}

function target(upstream: Upstream, secret: Secret, replication: boolean): RawTarget {
  return {
    host: upstream.host,
    port: upstream.port,
    user: upstream.user,
    password: secret.password,
    database: "postgres",
    ssl: { mode: upstream.sslmode as SslMode },
    connectTimeoutMs: CONNECT_TIMEOUT_MS,
    parameters: { application_name: "spillway-ha-keeper", ...(replication ? { replication: "true" } : {}) },
  };
}

export interface SystemFacts {
  readonly systemId: string;
  readonly timeline: number;
  readonly lsn: Lsn;
  /** Of `timeline`: where each earlier one ended. */
  readonly history: readonly TimelineSwitch[];
}

/** Identity, timeline and history of a server. Throws `ha_unreachable`. */
export async function identifySystem(upstream: Upstream, secret: Secret): Promise<SystemFacts> {
  return withConnection(target(upstream, secret, true), async (connection) => {
    const row = (await connection.query("IDENTIFY_SYSTEM", { timeoutMs: QUERY_TIMEOUT_MS }))[0]?.rows[0];
    const [systemId, timelineText, lsnText] = row ?? [];
    const timeline = Number(timelineText);
    if (!systemId || !lsnText || !Number.isInteger(timeline)) {
      throw new SpillwayError("ha_unreachable", `${upstream.host}:${upstream.port} did not identify itself`);
    }
    let history: TimelineSwitch[] = [];
    if (timeline > 1) {
      const answer = await connection.query(`TIMELINE_HISTORY ${timeline}`, { timeoutMs: QUERY_TIMEOUT_MS });
      history = parseHistory(answer[0]?.rows[0]?.[1] ?? "");
    }
    return { systemId, timeline, lsn: parseLsn(lsnText), history };
  });
}

/** A session in the upstream's database `postgres`. The caller closes it. */
export function upstreamSession(upstream: Upstream, secret: Secret): Session {
  return new Session(target(upstream, secret, false));
}

/** Rows of a query in the upstream's database `postgres`. Throws `ha_sql_failed`. */
export async function queryUpstream(upstream: Upstream, secret: Secret, sql: string): Promise<Row[]> {
  const session = upstreamSession(upstream, secret);
  try {
    return await session.query(sql, QUERY_TIMEOUT_MS);
  } finally {
    session.close();
  }
}

export type StreamProbe = "streams" | "wal_removed" | "forked" | "unknown";

/**
 * Whether the upstream can still send the WAL from `from` on: asks it to, reads the first answer, hangs up.
 * Only for a standby that does not stream: its slot must be free.
 */
export async function probeStream(
  upstream: Upstream,
  secret: Secret,
  from: Lsn,
  timeline: number,
): Promise<StreamProbe> {
  const at = `${(from >> 32n).toString(16)}/${(from & 0xffffffffn).toString(16)}`;
  try {
    return await withConnection(target(upstream, secret, true), async (connection) => {
      const probe = new Probe();
      connection.begin(probe);
      connection.send(queryMessage(`START_REPLICATION PHYSICAL ${at.toUpperCase()} TIMELINE ${timeline}`));
      const timer = setTimeout(() => probe.settle("unknown"), PROBE_MS);
      const result = await probe.done;
      clearTimeout(timer);
      return result;
    });
  } catch {
    return "unknown";
  }
}

class Probe implements Operation {
  readonly done: Promise<StreamProbe>;
  #resolve: (result: StreamProbe) => void = () => {};

  constructor() {
    this.done = new Promise((resolve) => (this.#resolve = resolve));
  }

  settle(result: StreamProbe): void {
    this.#resolve(result);
  }

  message(type: number): void {
    if (String.fromCharCode(type) === "d") this.settle("streams");
  }

  error(error: SpillwayError): void {
    this.settle(wordsOf(error));
  }

  fail(error: SpillwayError): void {
    this.settle(wordsOf(error));
  }
}

function wordsOf(error: SpillwayError): StreamProbe {
  if (/has already been removed/.test(error.message)) return "wal_removed";
  return /not in this server's history|ahead of the WAL flush/.test(error.message) ? "forked" : "unknown";
}

async function withConnection<T>(to: RawTarget, work: (connection: RawConnection) => Promise<T>): Promise<T> {
  let connection: RawConnection | null = null;
  try {
    connection = await RawConnection.open(to);
    return await work(connection);
  } catch (cause) {
    if (cause instanceof SpillwayError && cause.code.startsWith("ha_")) throw cause;
    throw new SpillwayError("ha_unreachable", `Postgres at ${to.host}:${to.port}: ${messageOf(cause)}`, { cause });
  } finally {
    connection?.destroy();
  }
}
