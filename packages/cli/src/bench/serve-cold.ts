/** From nothing to an answer: a manager with a pool of three nodes; and a node that is killed to its successor's first answer. */
import { atMost, type BenchReport, type BenchRun, median, report } from "./report.ts";
import { ServeScratch, type Served } from "./serve-scratch.ts";
import { waitUntil } from "./wait.ts";

export async function run({ quick, option, say }: BenchRun): Promise<BenchReport> {
  const runs = option("runs", quick ? 2 : 5);
  const bench = await ServeScratch.open(option("rows", 20_000));
  const cold: number[] = [];
  const respawn: number[] = [];
  try {
    say("the first start, not measured");
    const first = await bench.serve();
    await bench.restrict(3);
    await firstAnswer(bench, first);
    await stop(first);
    for (let i = 0; i < runs; i++) {
      say(`cold start ${i + 1}`);
      const served = await bench.serve();
      await firstAnswer(bench, served);
      cold.push((performance.now() - served.startedMs) / 1000);
      if (i < runs - 1) {
        await stop(served);
        continue;
      }
      await bench.control("UPDATE spillway_control.pool SET dual_nodes = 1");
      await waitUntil("one node", 60_000, async () => ((await pids(bench)).length === 1 ? true : null));
      for (let k = 0; k < runs; k++) {
        say(`kill ${k + 1}`);
        const [pid = 0] = await pids(bench);
        const connection = await bench.connect(served);
        await connection.query("SELECT count(*) FROM points");
        const killedMs = performance.now();
        process.kill(pid, "SIGKILL");
        await connection.query("SELECT count(*) FROM points");
        respawn.push((performance.now() - killedMs) / 1000);
        await connection.close();
      }
      await stop(served);
    }
    return report(
      "serve-cold",
      { cold_s: atMost(median(cold), 3), respawn_s: atMost(median(respawn), 1.5) },
      { cold_runs: cold, respawn_runs: respawn },
    );
  } finally {
    await bench.close();
  }
}

async function firstAnswer(bench: ServeScratch, served: Served): Promise<void> {
  const connection = await bench.connect(served);
  await connection.query("SELECT count(*) FROM points");
  await connection.close();
}

async function pids(bench: ServeScratch): Promise<number[]> {
  const rows = await bench.control(
    "SELECT pid FROM spillway_control.node WHERE pid IS NOT NULL AND state <> 'draining'",
  );
  return rows.map((r) => Number(r["pid"]));
}

async function stop(served: Served): Promise<void> {
  await served.child.end();
}
