/**
 * Rows by Arrow Flight: from a node through the edge, for a user with policies, and of bytes already made through the edge alone, each
 * against pyarrow's own C++ server that sends batches made before, read by the same client in turns.
 */
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import type { ColumnBatch, ColumnSpec } from "@spillway/base/columns";
import { silentLogger } from "@spillway/base/log";
import { encodeArrowBatch, encodeArrowSchema } from "@spillway/server/engine/engine";
import { loadFlight, type Principal, type ServeSession, type Sessions } from "@spillway/server/serve/serve";
import { FlightPeer } from "./flight-peer.ts";
import { atLeast, atMost, type BenchReport, type BenchRun, median, report } from "./report.ts";
import { PASSWORD, ServeScratch, USER } from "./serve-scratch.ts";

/** 768 KiB a batch. */
const BATCH_ROWS = 24_576;
const STALL_S = 5;
const SPECS: readonly ColumnSpec[] = [
  { name: "a", kind: "int64" },
  { name: "b", kind: "int64" },
  { name: "c", kind: "float64" },
  { name: "d", kind: "int64" },
];

export async function run({ quick, option, say }: BenchRun): Promise<BenchReport> {
  const rows = option("rows", quick ? 2_000_000 : 10_000_000);
  const runs = option("runs", 3);
  const peer = new FlightPeer();
  const bench = await ServeScratch.open(1000);
  const forward = await startForward(Math.floor(rows / BATCH_ROWS));
  try {
    const served = await bench.serve();
    await bench.restrict(1);
    const sql = `SELECT i AS a, i * 2 AS b, i * 1.5::double AS c, i % 97 AS d FROM range(${rows}) r(i)`;
    const node = { port: served.flight, user: USER, password: PASSWORD, sql };
    const edge = { port: forward.port, user: "bench", password: "bench", sql: "SELECT 1" };
    const direct = { port: await peer.serve(rows, BATCH_ROWS) };
    const pids = async (): Promise<number[]> => {
      const nodes = await bench.control("SELECT pid FROM spillway_control.node");
      return [must(served.child.pid, "pid of the manager"), ...nodes.map((n) => Number(n["pid"]))];
    };
    await peer.read({ ...node, sql: "SELECT 1" });
    const watch = await Growth.of(await pids());
    const rates = { node: [] as number[], edge: [] as number[], direct: [] as number[] };
    for (let round = 0; round < runs; round++) {
      for (const [name, from] of Object.entries({ direct, node, edge })) {
        const read = await peer.read(from);
        rates[name as keyof typeof rates].push(read.rows / read.seconds);
      }
      say(
        `round ${round + 1} of ${runs}: ${Object.entries(rates)
          .map(([k, v]) => `${k} ${millions(v.at(-1))}`)
          .join(", ")}`,
      );
    }
    await peer.stall(node, STALL_S);
    const growth = watch.stop();
    await served.child.end();
    return report(
      "serve-throughput",
      {
        flight_ratio: atLeast(median(rates.node) / median(rates.direct), 0.3),
        forward_ratio: atLeast(median(rates.edge) / median(rates.direct), 0.6),
        rss_growth_mb: atMost(growth, 300),
      },
      {
        rows,
        runs,
        rows_per_s: Math.round(median(rates.node)),
        forward_rows_per_s: Math.round(median(rates.edge)),
        pyarrow_rows_per_s: Math.round(median(rates.direct)),
      },
    );
  } finally {
    peer.close();
    await forward.stop(0);
    await bench.close();
  }
}

function millions(rate: number | undefined): string {
  return `${((rate ?? 0) / 1e6).toFixed(2)} M rows/s`;
}

/** The sum of what processes hold beyond what they held at the beginning, at its highest, sampled. */
class Growth {
  readonly #timer: NodeJS.Timeout;
  #most = 0;

  private constructor(pids: readonly number[]) {
    const before = pids.map(residentMb);
    this.#timer = setInterval(() => {
      const grown = pids.reduce((sum, pid, i) => sum + Math.max(0, residentMb(pid) - (before[i] ?? 0)), 0);
      this.#most = Math.max(this.#most, grown);
    }, 100);
  }

  static async of(pids: readonly number[]): Promise<Growth> {
    await systemClock.sleep(500);
    return new Growth(pids);
  }

  stop(): number {
    clearInterval(this.#timer);
    return this.#most;
  }
}

function residentMb(pid: number): number {
  try {
    return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) / 1024;
  } catch {
    return 0;
  }
}

/** The edge over sessions that have their bytes already. */
async function startForward(batches: number) {
  const { startFlightServer } = await loadFlight();
  const principal: Principal = {
    userId: "bench",
    userName: "bench",
    tenantId: "bench",
    tenantName: "bench",
    isAdmin: false,
    roles: [],
    groups: [],
  };
  return startFlightServer({
    sessions: readyMade(principal, batches),
    auth: {
      password: () => Promise.resolve(principal),
      mint: () => Promise.resolve(randomBytes(16).toString("hex")),
      bearer: () => Promise.resolve({ principal, shared: false }),
    },
    secret: randomBytes(32),
    defaultDatabase: () => "bench",
    version: "bench",
    clock: systemClock,
    log: silentLogger,
    host: "127.0.0.1",
    port: 0,
    tls: null,
  });
}

function readyMade(principal: Principal, batches: number): Sessions {
  const message = encodeArrowBatch([batchOf(BATCH_ROWS)]);
  const columns = SPECS.map((spec) => ({ ...spec, nullable: true, typeOid: 20, typmod: -1 }));
  const arrowSchema = encodeArrowSchema(columns);
  async function* messages(): AsyncIterable<Buffer> {
    for (let i = 0; i < batches; i++) yield message;
  }
  const session: ServeSession = {
    id: "bench",
    principal,
    database: "bench",
    status: "idle",
    parameter: () => null,
    split: (sql) => Promise.resolve([sql]),
    prepare: (sql) => Promise.resolve({ sql, kind: "select", writes: false, parameters: [], columns, arrowSchema }),
    run: () =>
      Promise.resolve({
        command: "SELECT",
        columns,
        arrowSchema,
        messages,
        batches: () => {
          throw new Error("rows are not decoded here");
        },
        rowCount: Promise.resolve(batches * BATCH_ROWS),
        close: () => Promise.resolve(),
      }),
    cancel: () => {},
    close: () => Promise.resolve(),
  } as ServeSession;
  return { open: () => Promise.resolve(session) };
}

function batchOf(rows: number): ColumnBatch {
  const integers = BigInt64Array.from({ length: rows }, (_, i) => BigInt(i));
  return {
    length: rows,
    columns: SPECS.map((spec) => ({
      spec,
      validity: null,
      data: spec.kind === "float64" ? Float64Array.from({ length: rows }, (_, i) => i * 1.5) : integers,
    })),
  };
}
