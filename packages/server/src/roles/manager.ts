/**
 * The process of `spillway serve`: control state, pools of nodes, and the listeners of both protocols. Any number of managers
 * may share one control database; each adopts the nodes of its host that it finds.
 */
import { readFile } from "node:fs/promises";
import { connect as connectTcp } from "node:net";
import { availableParallelism, hostname } from "node:os";
import { join } from "node:path";
import type { Clock } from "@spillway/base/clock";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { newUuid } from "@spillway/base/ids";
import type { Logger } from "@spillway/base/log";
import { Metrics } from "@spillway/base/metrics";
import { normalizeLocation } from "@spillway/lake/store/store";
import { type AuditLog, Control } from "../control/control.ts";
import { Engine } from "../engine/engine.ts";
import {
  AccessControl,
  Authenticator,
  controlNodeStore,
  createGuard,
  loadFlight,
  OidcVerifier,
  parseIssuers,
  type PoolDescription,
  Pools,
  SourceFacts,
} from "../serve/serve.ts";
import { createAuditor } from "./auditor.ts";
import { isLoopback, parseListen } from "./http-server.ts";
import { localNodes, processStart } from "./local-nodes.ts";
import type { NodeConfig } from "./node.ts";
import { type PgWireListener, startPgWire } from "./pgwire.ts";
import { type ServeHttp, startServeHttp } from "./serve-http.ts";

export interface ManagerOptions {
  readonly controlUrl: string;
  /** host:port, or off. */
  readonly pgwireListen: string;
  readonly flightListen: string;
  readonly httpListen: string;
  readonly tls: { readonly certFile: string; readonly keyFile: string } | null;
  readonly stateDir: string;
  /** The program that is started for a node, with `node` behind it. */
  readonly nodeCommand: readonly string[];
  readonly build: string;
  readonly stalenessMs: number;
  readonly sessionTtlMs: number;
  readonly lockout: { readonly failures: number; readonly lockMs: number };
  readonly apiKey: string | null;
  /** `issuer|audience, …`; null: none. */
  readonly oidcIssuers: string | null;
  readonly connectTimeoutMs: number;
  readonly cacheBytes: number;
  readonly s3: { readonly endpoint: string | null; readonly region: string; readonly pathStyle: boolean };
  /** For env:NAME. */
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly clock: Clock;
  readonly log: Logger;
  readonly signal: AbortSignal;
  readonly onListening?: (ports: ManagerPorts) => void;
}

export interface ManagerPorts {
  readonly pgwire: number | null;
  readonly flight: number | null;
  readonly http: number | null;
}

const LEASE_MS = 3000;
const BEAT_MS = 1000;
const PROBE_MS = 2000;

/** Runs until the signal; then drains. Throws what a listener died of. */
export async function runManager(options: ManagerOptions): Promise<void> {
  const { clock, log, signal } = options;
  checkListeners(options);
  const managerId = newUuid();
  const host = hostname();
  const control = await Control.open({
    conninfo: options.controlUrl,
    clock,
    log,
    stalenessMs: options.stalenessMs,
    poolSize: 6,
  });
  // It parses; it runs nothing of a client.
  const engine = await Engine.open({ memoryBytes: 128 << 20, threads: 1, lockdown: { directories: [] } });
  const stop = new AbortController();
  const beating = beat(options, control, managerId, host, stop.signal);
  const access = new AccessControl({ control, engine, log });
  const metrics = new Metrics();
  const auditor = createAuditor({ control, clock, log, managerId, stateDir: options.stateDir, metrics });
  const issuers = parseIssuers(options.oidcIssuers);
  const auth = new Authenticator({
    control,
    clock,
    log,
    sessionTtlMs: options.sessionTtlMs,
    lockout: options.lockout,
    apiKey: options.apiKey,
    onLogin: auditor.onLogin,
    ...(issuers.length > 0 ? { oidc: new OidcVerifier({ issuers, clock, log, fetch }) } : {}),
  });
  const secret = (text: string): Promise<string> => resolveSecret(text, options.env);
  const pools = new Pools<NodeConfig>({
    control,
    access,
    databaseIdOf: (principal, name) => auth.requireDatabase(principal, name),
    guard: createGuard({ control, access, onDecision: auditor.onDecision }),
    store: controlNodeStore({ control, host, managerId, leaseMs: LEASE_MS }),
    backend: localNodes({ directory: join(options.stateDir, "nodes"), command: options.nodeCommand, log }),
    managerId,
    build: options.build,
    clock,
    log,
    configOf: async (pool, node, token, place) =>
      nodeConfig(options, pool, node, token, place, await secret(pool.sourceUrl)),
  });
  const source = new SourceFacts({
    access,
    databaseId: (principal, name) => auth.requireDatabase(principal, name),
    secret,
    clock,
    log,
  });
  const listeners: Listeners = { pgwire: null, flight: null, http: null };
  let end = true;
  try {
    pools.start();
    await startListeners(options, listeners, { control, auth, access, audit: auditor.audit, pools, source, metrics });
    options.onListening?.({
      pgwire: listeners.pgwire?.port ?? null,
      flight: listeners.flight?.port ?? null,
      http: listeners.http?.port ?? null,
    });
    const died = await Promise.race([
      aborted(signal),
      ...(listeners.pgwire ? [listeners.pgwire.died] : []),
      ...(listeners.http ? [listeners.http.died] : []),
    ]);
    if (died) throw died;
    // Others go on with the nodes; the last one takes them along.
    end = !(await hasOthers(control, managerId, host));
  } catch (error) {
    end = false;
    throw error;
  } finally {
    log.info("manager.stopping", { end });
    const draining = pools.drain();
    await Promise.all([listeners.pgwire?.stop(DRAIN_MS), listeners.flight?.stop(DRAIN_MS), draining]);
    await pools.close({ end });
    await listeners.http?.stop();
    await source.close();
    await auditor.audit.close();
    access.close();
    stop.abort();
    await beating;
    await control
      .change((tx) => tx.query("DELETE FROM spillway_control.manager WHERE id = $1", [managerId]))
      .catch(() => {});
    await control.close();
    engine.close();
  }
}

const DRAIN_MS = 30_000;

interface Listeners {
  pgwire: PgWireListener | null;
  flight: { readonly port: number; stop(graceMs: number): Promise<void> } | null;
  http: ServeHttp | null;
}

interface Parts {
  readonly control: Control;
  readonly auth: Authenticator;
  readonly access: AccessControl;
  readonly audit: AuditLog;
  readonly pools: Pools<NodeConfig>;
  readonly source: SourceFacts;
  readonly metrics: Metrics;
}

async function startListeners(options: ManagerOptions, listeners: Listeners, parts: Parts): Promise<void> {
  const { clock, log, tls } = options;
  const { control, auth, access, audit, pools, source, metrics } = parts;
  const pgwire = listenOf("pgwire-listen", options.pgwireListen);
  if (pgwire) {
    const shared = { sessions: pools, auth, source, secret: await auth.scramSecret(), clock, log, metrics };
    listeners.pgwire = await startPgWire({ ...pgwire, ...shared, tls });
  }
  const flight = listenOf("flight-listen", options.flightListen);
  if (flight) {
    const { startFlightServer } = await loadFlight();
    listeners.flight = await startFlightServer({
      ...flight,
      tls,
      sessions: pools,
      auth,
      secret: await control.secret("ticket"),
      defaultDatabase: ({ principal }) => defaultDatabase(control, principal.tenantId),
      version: options.build,
      clock,
      log,
    });
  }
  const http = listenOf("http-listen", options.httpListen);
  if (!http) return;
  const probe = async (): Promise<readonly string[]> => {
    const wrong: string[] = [];
    if (listeners.pgwire && !(await answers(pgwire?.host ?? "", listeners.pgwire.port))) wrong.push("pgwire listener");
    if (listeners.flight && !(await answers(flight?.host ?? "", listeners.flight.port))) wrong.push("flight listener");
    return wrong;
  };
  listeners.http = await startServeHttp({
    ...http,
    tls,
    control,
    auth,
    access,
    audit,
    version: options.build,
    clock,
    log,
    health: probe,
    ready: async () => {
      const wrong = [...(await probe())];
      if (!pools.isReconciled) wrong.push("first reconcile");
      if (control.isAway) wrong.push("control database");
      return wrong;
    },
    metrics: () => {
      observe(metrics, pools);
      return metrics.render();
    },
  });
}

/** Gauges of what is at this moment. */
function observe(metrics: Metrics, pools: Pools<NodeConfig>): void {
  const nodes = metrics.gauge("spillway_pool_nodes", "Nodes of a pool that this manager can use.");
  const queued = metrics.gauge("spillway_pool_queued", "Statements that wait for a node.");
  const flying = metrics.gauge("spillway_node_in_flight", "Statements on a node until their last byte.");
  const rss = metrics.gauge("spillway_node_resident_bytes", "Memory of a node's process.");
  const ewma = metrics.gauge("spillway_node_ewma_latency_seconds", "Of a node's statements.");
  metrics.gauge("spillway_sessions_active", "Sessions of this manager.").set(pools.sessions.length);
  for (const { pool, description } of pools.pools) {
    const of = { pool: description.name, database: description.databaseId };
    nodes.set(pool.members.filter((m) => m.isReady).length, of);
    queued.set(pool.queued, of);
    for (const member of pool.members) {
      const labels = { ...of, node: member.id };
      flying.set(member.inFlight, labels);
      rss.set(member.health?.rss ?? 0, labels);
      ewma.set(member.ewmaMs / 1000, labels);
    }
  }
}

/** A handshake of TCP, as a client makes it. */
function answers(host: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connectTcp({ host: host === "0.0.0.0" || host === "::" ? "127.0.0.1" : host, port });
    const done = (ok: boolean): void => {
      socket.destroy();
      resolve(ok);
    };
    socket.setTimeout(PROBE_MS, () => done(false));
    socket.once("connect", () => done(true));
    socket.once("error", () => done(false));
  });
}

/** This manager's row, by which the others know that it lives. */
async function beat(
  { build, clock, log }: ManagerOptions,
  control: Control,
  id: string,
  host: string,
  signal: AbortSignal,
): Promise<void> {
  const sql = `INSERT INTO spillway_control.manager (id, host, pid, pid_start, build, expires_at)
    VALUES ($1, $2, $3, $4, $5, clock_timestamp() + $6 * interval '1 ms')
    ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at`;
  while (!signal.aborted) {
    await control
      .change((tx) => tx.query(sql, [id, host, process.pid, processStart(process.pid) ?? "", build, LEASE_MS]))
      .catch((error: unknown) => log.warn("manager.beat_failed", { error: messageOf(error) }));
    await clock.sleep(BEAT_MS, signal);
  }
}

async function hasOthers(control: Control, id: string, host: string): Promise<boolean> {
  try {
    const sql =
      "SELECT FROM spillway_control.manager WHERE id <> $1 AND host = $2 AND expires_at > clock_timestamp() LIMIT 1";
    return (await control.read((db) => db.query(sql, [id, host]))).rows.length > 0;
  } catch {
    // Not known: the nodes are left for whoever comes.
    return true;
  }
}

async function defaultDatabase(control: Control, tenantId: string): Promise<string> {
  const sql = `SELECT d.name FROM spillway_control.database d WHERE ($1 = '' OR d.tenant_id::text = $1) AND NOT d.disabled
    ORDER BY d.created_at LIMIT 1`;
  const { rows } = await control.read((db) => db.query<{ name: string }>(sql, [tenantId]));
  if (rows[0]) return rows[0].name;
  throw new SpillwayError("access_denied", "there is no database", { details: { sqlstate: "3D000" } });
}

function nodeConfig(
  options: ManagerOptions,
  pool: PoolDescription,
  node: { readonly id: string; readonly generation: string },
  token: string,
  place: { readonly socketPath: string; readonly cacheDir: string },
  databaseUrl: string,
): NodeConfig {
  const fault = options.env["SPILLWAY_NODE_FAULT"];
  return {
    nodeId: node.id,
    generation: node.generation,
    token,
    build: options.build,
    ...place,
    databaseUrl,
    warehouse: normalizeLocation(pool.warehouse ?? ""),
    s3Endpoint: options.s3.endpoint,
    s3Region: options.s3.region,
    s3PathStyle: options.s3.pathStyle,
    cacheBytes: options.cacheBytes,
    memoryBytes: pool.memoryBytes,
    threads: Math.max(1, Math.min(availableParallelism(), Math.ceil(pool.cpus))),
    spillBytes: pool.spillBytes,
    connectTimeoutMs: options.connectTimeoutMs,
    concurrency: pool.concurrency,
    ...(fault === undefined ? {} : { fault }),
  };
}

/** A connection string, or env:NAME or file:PATH that holds one. Throws `config_invalid`. */
async function resolveSecret(text: string, env: ManagerOptions["env"]): Promise<string> {
  if (text.startsWith("env:")) {
    const value = env[text.slice(4)];
    if (value === undefined) throw new SpillwayError("config_invalid", `the environment has no ${text.slice(4)}`);
    return value;
  }
  if (!text.startsWith("file:")) return text;
  try {
    return (await readFile(text.slice(5), "utf8")).trim();
  } catch (error) {
    throw new SpillwayError("config_invalid", `${text.slice(5)} cannot be read: ${messageOf(error)}`, { cause: error });
  }
}

/** Null: off. Throws `config_invalid`. */
function listenOf(name: string, text: string): { readonly host: string; readonly port: number } | null {
  if (text === "off") return null;
  try {
    return parseListen(text);
  } catch (error) {
    throw new SpillwayError("config_invalid", `${name} is ${JSON.stringify(text)}: expected host:port or off`, {
      cause: error,
    });
  }
}

/**
 * What can be said of the listeners before anything is started or set up: they can be understood, and none is open to others
 * without a certificate. Throws `config_invalid`, `serve_exposed`.
 */
export function checkListeners(
  options: Pick<ManagerOptions, "pgwireListen" | "flightListen" | "httpListen" | "tls">,
): void {
  const listeners = {
    "pgwire-listen": options.pgwireListen,
    "flight-listen": options.flightListen,
    "http-listen": options.httpListen,
  };
  for (const [name, text] of Object.entries(listeners)) {
    const found = listenOf(name, text);
    if (found === null || options.tls !== null || isLoopback(found.host)) continue;
    throw new SpillwayError("serve_exposed", `${name} ${found.host} is not loopback, and there is no certificate`);
  }
}

function aborted(signal: AbortSignal): Promise<null> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve(null);
    else signal.addEventListener("abort", () => resolve(null), { once: true });
  });
}
