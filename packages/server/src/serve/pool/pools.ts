/** All pools of this manager, as the control plane wants them, and the sessions over them. */
import type { Clock } from "@spillway/base/clock";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import type { AccessRules, Control, PoolInfo } from "../../control/control.ts";
import type { FoundCommit } from "../../seam/seam.ts";
import { ClientSession } from "../session/client-session.ts";
import type { Guard, StatementObserver } from "../session/session-options.ts";
import type { Principal, ServeSession, SessionOptions, Sessions } from "../session/session.ts";
import type { NodeBackend } from "./backend.ts";
import { Pool, type PoolSpec } from "./pool.ts";
import type { NodeRow, NodeStore } from "./store.ts";

/** A pool and its database, as the control plane has them. */
export interface PoolDescription extends PoolSpec {
  readonly databaseId: string;
  readonly tenantId: string;
  readonly sourceUrl: string;
  readonly warehouse: string | null;
  readonly memoryBytes: number;
  readonly cpus: number;
  readonly spillBytes: number;
  readonly statementTimeoutMs: number;
}

export interface PoolsOptions<Config> {
  readonly control: Control;
  readonly access: {
    rules(principal: Principal, databaseId: string): Promise<AccessRules>;
    pool(rules: AccessRules, name: string | null): PoolInfo;
  };
  readonly databaseIdOf: (principal: Principal, name: string) => Promise<string>;
  readonly guard: Guard;
  readonly store: NodeStore;
  readonly backend: NodeBackend<Config>;
  readonly managerId: string;
  readonly build: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly configOf: (
    pool: PoolDescription,
    node: NodeRow,
    token: string,
    place: { socketPath: string; cacheDir: string },
  ) => Promise<Config>;
  readonly observer?: StatementObserver;
}

const REFRESH_MS = 1000;

export class Pools<Config> implements Sessions {
  readonly #options: PoolsOptions<Config>;
  readonly #pools = new Map<string, { pool: Pool<Config>; description: PoolDescription }>();
  readonly #sessions = new Map<string, ServeSession>();
  readonly #stop = new AbortController();
  #loop: Promise<void> = Promise.resolve();
  #listed = false;

  constructor(options: PoolsOptions<Config>) {
    this.#options = options;
  }

  start(): void {
    this.#loop = this.#follow();
  }

  /** Every pool that should have nodes was looked at once. */
  get isReconciled(): boolean {
    return this.#listed && [...this.#pools.values()].every(({ pool }) => pool.isReconciled);
  }

  get sessions(): readonly ServeSession[] {
    return [...this.#sessions.values()];
  }

  /** For `ps` and metrics. */
  get pools(): readonly { readonly pool: Pool<Config>; readonly description: PoolDescription }[] {
    return [...this.#pools.values()];
  }

  /** `options.parameters.pool` names another pool than the database's first. Throws `access_denied`, `no_pool`. */
  async open(principal: Principal, options: SessionOptions): Promise<ServeSession> {
    if (this.#stop.signal.aborted) {
      throw new SpillwayError("pool_draining", "The manager is being shut down.", { details: { sqlstate: "57P01" } });
    }
    const { access, databaseIdOf, guard, clock, observer } = this.#options;
    const databaseId = await databaseIdOf(principal, options.database);
    const rules = await access.rules(principal, databaseId);
    const info = access.pool(rules, options.parameters?.["spillway.pool"] ?? null);
    const found = this.#pools.get(info.id) ?? (await this.#refreshed(info.id));
    if (!found) {
      throw new SpillwayError("no_pool", `The pool ${info.name} is not running here.`, {
        details: { sqlstate: "57P03" },
      });
    }
    const { pool, description } = found;
    const timeout =
      description.statementTimeoutMs > 0 ? { statement_timeout: String(description.statementTimeoutMs) } : {};
    const session = new ClientSession({
      ...options,
      parameters: { search_path: rules.database.defaultSchema, ...timeout, ...options.parameters },
      principal,
      runner: pool,
      guard,
      clock,
      ...(observer ? { observer } : {}),
      outcome: (id) => this.#outcome(pool, id),
      onClose: (closed) => this.#sessions.delete(closed.id),
    });
    this.#sessions.set(session.id, session);
    return session;
  }

  /** Stops new statements, and waits for those that run. */
  async drain(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
    await Promise.all([...this.#pools.values()].map(({ pool }) => pool.drain()));
  }

  async close(options: { readonly end: boolean }): Promise<void> {
    this.#stop.abort();
    await this.#loop;
    for (const session of this.#sessions.values()) await session.close().catch(() => {});
    await Promise.all([...this.#pools.values()].map(({ pool }) => pool.close(options)));
    this.#pools.clear();
  }

  async #outcome(pool: Pool<Config>, id: string): Promise<FoundCommit> {
    const result = await pool.run(
      { action: "outcome", sql: id, params: [], tables: [], searchPath: [], transaction: null },
      { signal: AbortSignal.timeout(10_000), writes: true },
    );
    return { outcome: result.command === "COMMITTED" ? "committed" : "rolled back", rows: result.stats().rows };
  }

  async #refreshed(id: string): Promise<{ pool: Pool<Config>; description: PoolDescription } | undefined> {
    await this.#refresh().catch(() => {});
    return this.#pools.get(id);
  }

  async #follow(): Promise<void> {
    const { control, clock, log } = this.#options;
    const { signal } = this.#stop;
    let wake: () => void = () => {};
    const unlisten = control.onChange(() => wake());
    while (!signal.aborted) {
      const woken = new Promise<void>((resolve) => (wake = resolve));
      await this.#refresh().catch((error: unknown) => log.warn("pools.refresh_failed", { error: messageOf(error) }));
      await Promise.race([clock.sleep(REFRESH_MS, signal), woken]);
    }
    unlisten();
  }

  async #refresh(): Promise<void> {
    const described = await this.#options.control.read((db) => db.query<DescriptionRow>(SQL));
    for (const row of described.rows) {
      const description = describe(row);
      const known = this.#pools.get(description.id);
      if (known) {
        if (JSON.stringify(known.description) !== JSON.stringify(description)) known.pool.spec = description;
        known.description = description;
      } else this.#add(description);
    }
    for (const [id, { pool, description }] of this.#pools) {
      if (described.rows.some((r) => r.id === id)) continue;
      // Disabled or gone: its nodes end when their work has.
      pool.spec = { ...description, nodes: { READONLY: 0, WRITEONLY: 0, DUAL: 0 } };
    }
    this.#listed = true;
  }

  #add(description: PoolDescription): void {
    const { store, backend, managerId, build, clock, log, configOf } = this.#options;
    const pool = new Pool<Config>({
      spec: description,
      store,
      backend,
      managerId,
      build,
      clock,
      log,
      configOf: (row, token, place) =>
        configOf(this.#pools.get(description.id)?.description ?? description, row, token, place),
    });
    this.#pools.set(description.id, { pool, description });
    pool.start();
  }
}

interface DescriptionRow {
  readonly id: string;
  readonly name: string;
  readonly databaseId: string;
  readonly tenantId: string;
  readonly sourceUrl: string;
  readonly warehouse: string | null;
  readonly readonly_nodes: number;
  readonly writeonly_nodes: number;
  readonly dual_nodes: number;
  readonly memory: string;
  readonly cpus: string;
  readonly spill: string;
  readonly node_concurrency: number;
  readonly queue_limit: number;
  readonly queue_timeout_ms: number;
  readonly statement_timeout_ms: number;
  readonly drain_timeout_ms: number;
}

const SQL = `SELECT p.id::text, p.name, d.id::text AS "databaseId", d.tenant_id::text AS "tenantId", d.source_url AS "sourceUrl",
    d.warehouse, p.readonly_nodes, p.writeonly_nodes, p.dual_nodes, p.node_memory_bytes::text AS memory,
    p.node_cpus::text AS cpus, p.spill_bytes::text AS spill, p.node_concurrency, p.queue_limit, p.queue_timeout_ms,
    p.statement_timeout_ms, p.drain_timeout_ms
  FROM spillway_control.pool p JOIN spillway_control.database d ON d.id = p.database_id
    JOIN spillway_control.tenant t ON t.id = d.tenant_id
  WHERE NOT p.disabled AND NOT d.disabled AND NOT t.disabled AND d.warehouse IS NOT NULL`;

function describe(row: DescriptionRow): PoolDescription {
  return {
    id: row.id,
    name: row.name,
    databaseId: row.databaseId,
    tenantId: row.tenantId,
    sourceUrl: row.sourceUrl,
    warehouse: row.warehouse,
    nodes: { READONLY: row.readonly_nodes, WRITEONLY: row.writeonly_nodes, DUAL: row.dual_nodes },
    concurrency: row.node_concurrency,
    queueLimit: row.queue_limit,
    queueTimeoutMs: row.queue_timeout_ms,
    drainTimeoutMs: row.drain_timeout_ms,
    statementTimeoutMs: row.statement_timeout_ms,
    memoryBytes: Number(row.memory),
    cpus: Number(row.cpus),
    spillBytes: Number(row.spill),
  };
}
