/**
 * The process of `spillway node`: one tenant's DuckDB behind a Unix socket. It is started by a manager, gets its
 * configuration on its standard input, and outlives the manager; the next one finds it by its row in the control database.
 */
import { mkdirSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import type { Clock } from "@spillway/base/clock";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { armFault } from "@spillway/base/fault";
import type { Logger } from "@spillway/base/log";
import { localPathOf } from "@spillway/lake/store/store";
import { createSeam } from "../seam/seam.ts";
import { NodeExecutor, NodeServer } from "../serve/serve.ts";
import { openRuntime } from "./runtime.ts";

/** What a manager writes to the standard input of a node, as JSON. */
export interface NodeConfig {
  readonly nodeId: string;
  readonly generation: string;
  readonly token: string;
  readonly build: string;
  readonly socketPath: string;
  readonly databaseUrl: string;
  readonly warehouse: string;
  readonly s3Endpoint: string | null;
  readonly s3Region: string;
  readonly s3PathStyle: boolean;
  readonly cacheDir: string;
  readonly cacheBytes: number;
  /** Of the whole process. The engine's own buffers get a part of it. */
  readonly memoryBytes: number;
  readonly threads: number;
  readonly spillBytes: number;
  readonly connectTimeoutMs: number;
  readonly concurrency: number;
  readonly fault?: string;
}

export interface NodeOptions {
  readonly config: NodeConfig;
  readonly clock: Clock;
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/** The engine's share; the rest is for results on their way, strings of functions, and the process itself. */
const ENGINE_SHARE = 0.6;
const WATCH_MS = 250;
/** Seconds between two removals of the ids of old commits, which nobody asks for any more. */
const PRUNE_EVERY = 600;

/** Runs until the signal. Throws `node_refused` when the engine cannot be locked down. */
export async function runNode({ config, clock, log, signal }: NodeOptions): Promise<void> {
  armFault(config.fault);
  process.title = `spillway node ${config.nodeId}`;
  mkdirSync(config.cacheDir, { recursive: true, mode: 0o700 });
  const directory = localPathOf(config.warehouse);
  const runtime = await openRuntime({
    databaseUrl: config.databaseUrl,
    warehouse: config.warehouse,
    s3Endpoint: config.s3Endpoint,
    s3Region: config.s3Region,
    s3PathStyle: config.s3PathStyle,
    cacheDir: config.cacheDir,
    cacheBytes: config.cacheBytes,
    connectTimeoutMs: config.connectTimeoutMs,
    engineMemoryBytes: Math.floor(config.memoryBytes * ENGINE_SHARE),
    engineThreads: config.threads,
    maxTempBytes: config.spillBytes,
    lockdown: { directories: [...(directory === null ? [] : [directory]), config.cacheDir] },
    lockTimeoutMs: 1000,
    premake: 1,
    applicationName: `spillway node ${config.nodeId.slice(0, 8)}`,
    poolSize: 2,
    clock,
    log,
  });
  const seam = createSeam({
    conninfo: runtime.conninfo,
    store: runtime.store,
    cache: runtime.cache,
    engine: runtime.engine,
    clock,
    log,
    holder: `node ${config.nodeId} ${process.pid}`,
    connections: Math.max(2, config.concurrency),
    transactions: Math.max(4, config.concurrency * 2),
    connectTimeoutMs: config.connectTimeoutMs,
    // Loaded when the first direct table is changed: a node is started when somebody waits for it.
    direct: async (request) => {
      const { directCommit } = await import("../movers/movers.ts");
      return directCommit(runtime.mover(null, signal))(request);
    },
  });
  const executor = new NodeExecutor({ seam, clock });
  let sampled = { memoryBytes: 0, tempBytes: 0 };
  const server = await NodeServer.listen({
    server: createServer(),
    socketPath: config.socketPath,
    nodeId: config.nodeId,
    generation: config.generation,
    token: config.token,
    build: config.build,
    executor,
    log,
    health: () => Promise.resolve({ ...sampled, rss: process.memoryUsage.rss() }),
  });
  log.info("node.ready", { node: config.nodeId, generation: config.generation, pid: process.pid });
  const watch = watchMemory(config, server, log);
  const sample = async (): Promise<void> => {
    const sql =
      "SELECT coalesce(sum(memory_usage_bytes), 0), coalesce(sum(temporary_storage_bytes), 0) FROM duckdb_memory()";
    const [row] = await runtime.engine.use((session) => session.rows(sql));
    sampled = { memoryBytes: Number(row?.[0]), tempBytes: Number(row?.[1]) };
  };
  const prune = async (): Promise<void> => {
    await seam.source("DELETE FROM spillway.client_commit WHERE at < now() - interval '1 day'");
  };
  try {
    for (let pass = 1; !signal.aborted; pass++) {
      if (pass % PRUNE_EVERY === 0) {
        await prune().catch((error: unknown) => log.debug("node.prune_failed", { error: messageOf(error) }));
      }
      await sample().catch((error: unknown) => log.debug("node.sample_failed", { error: messageOf(error) }));
      await clock.sleep(1000, signal);
    }
  } finally {
    clearInterval(watch);
    await server.close();
    await executor.close();
    await seam.close();
    await runtime.close();
    rmSync(config.socketPath, { force: true });
    rmSync(join(dirname(config.socketPath), `${config.nodeId}.json`), { force: true });
  }
}

/**
 * The engine accounts for its buffers only: a function that builds a huge string is not among them. Beyond the limit
 * whatever runs is ended; a process that grows on all the same ends itself, before the machine does it to others.
 */
function watchMemory({ memoryBytes }: NodeConfig, server: NodeServer, log: Logger): NodeJS.Timeout {
  return setInterval(() => {
    const rss = process.memoryUsage.rss();
    if (rss <= memoryBytes + BASE_BYTES) return;
    log.warn("node.memory_exceeded", { rss, limit: memoryBytes });
    if (rss > memoryBytes * 2 + BASE_BYTES) process.exit(EXIT_MEMORY);
    server.interruptAll(
      new SpillwayError("engine_out_of_memory", `The node reached its limit of ${memoryBytes} bytes.`, {
        details: { sqlstate: "53200" },
      }),
    );
  }, WATCH_MS);
}

/** What a node without any statement takes. */
const BASE_BYTES = 160 << 20;
const EXIT_MEMORY = 70;
