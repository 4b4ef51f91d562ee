/**
 * What the way through edge, manager and node adds to a statement, for a user with policies: `SELECT 1` against DuckDB in this
 * process, side by side; a point read of the lake beside; and statements per second of 32 clients.
 */
import { Engine } from "@spillway/server/engine/engine";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { atMost, type BenchReport, type BenchRun, quantile, report } from "./report.ts";
import { ServeScratch } from "./serve-scratch.ts";

const CLIENTS = 32;

export async function run({ quick, option, say }: BenchRun): Promise<BenchReport> {
  const rows = option("rows", quick ? 20_000 : 500_000);
  const runs = option("runs", quick ? 300 : 3000);
  const seconds = option("seconds", quick ? 3 : 15);
  say(`a lake of ${rows} rows`);
  const bench = await ServeScratch.open(rows);
  const engine = await Engine.open({ memoryBytes: 256 << 20, threads: 1 });
  try {
    const served = await bench.serve();
    await bench.restrict(2);
    const connection = await bench.connect(served);
    say("one client");
    const one = "SELECT 1";
    const point = (i: number): string => `SELECT amount FROM points WHERE id = ${(i * 7919) % Math.floor(rows * 0.4)}`;
    await times(50, () => connection.query(one));
    await times(20, (i) => connection.query(point(i)));
    const direct: number[] = [];
    const through: number[] = [];
    const reads: number[] = [];
    await engine.use(async (session) => {
      await times(50, () => session.rows(one));
      // In turns, so that both meet the same noise.
      for (let round = 0; round < 10; round++) {
        direct.push(...(await times(runs / 10, () => session.rows(one))));
        through.push(...(await times(runs / 10, () => connection.query(one))));
        reads.push(...(await times(runs / 30, (i) => connection.query(point(i)))));
      }
    });
    say(`${CLIENTS} clients`);
    const many = await Promise.all(Array.from({ length: CLIENTS }, () => bench.connect(served)));
    const perSecond = await rate(many, seconds, () => one);
    const pointsPerSecond = await rate(many, seconds, point);
    for (const c of [...many, connection]) await c.close();
    await served.child.end();
    const at = (values: readonly number[], q: number): number => quantile(values, q);
    return report(
      "serve-latency",
      {
        overhead_p50_ms: atMost(at(through, 0.5) - at(direct, 0.5), 1.5),
        overhead_p99_ms: atMost(at(through, 0.99) - at(direct, 0.99), 6),
      },
      {
        protocol: "pgwire",
        rows,
        runs,
        duckdb_p50_ms: at(direct, 0.5),
        duckdb_p99_ms: at(direct, 0.99),
        serve_p50_ms: at(through, 0.5),
        serve_p99_ms: at(through, 0.99),
        seam_point_p50_ms: at(reads, 0.5),
        seam_point_p99_ms: at(reads, 0.99),
        statements_per_s_32: perSecond,
        seam_points_per_s_32: pointsPerSecond,
      },
    );
  } finally {
    engine.close();
    await bench.close();
  }
}

/** Milliseconds of each run. */
async function times(count: number, work: (i: number) => Promise<unknown>): Promise<number[]> {
  const out: number[] = [];
  for (let i = 0; i < count; i++) {
    const startMs = performance.now();
    await work(i);
    out.push(performance.now() - startMs);
  }
  return out;
}

async function rate(clients: readonly RawConnection[], seconds: number, sqlOf: (i: number) => string): Promise<number> {
  const endMs = performance.now() + seconds * 1000;
  let done = 0;
  await Promise.all(
    clients.map(async (client, c) => {
      for (let i = c; performance.now() < endMs; i += clients.length) {
        await client.query(sqlOf(i));
        done += 1;
      }
    }),
  );
  return Math.round(done / seconds);
}
