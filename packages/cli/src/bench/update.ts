/**
 * `bench update`: uniformly random updates of a big table at a flush a second: rows a second that are sustained, and how the cost of a
 * flush grows with the table: processor seconds of the worker for each thousand updates, of a table ten times as large over the small one.
 */
import { atMost, type Bench, type BenchRun, report } from "./report.ts";
import { Scratch } from "./scratch.ts";

const GROWTH = 2.5;
const PER_STATEMENT = 500;
const TIMEOUT_MS = 1_800_000;

interface Measured {
  readonly rowsPerSecond: number;
  readonly cpuPerThousand: number;
  readonly flushes: number;
}

export const run: Bench = async (options) => {
  const large = options.option("table-rows", options.quick ? 1_000_000 : 20_000_000);
  const updates = options.option("updates", options.quick ? 40_000 : 1_000_000);
  const small = await measure(options, Math.max(1000, Math.round(large / 10)), updates);
  const big = await measure(options, large, updates);
  return report(
    "update",
    { growth: atMost(big.cpuPerThousand / small.cpuPerThousand, GROWTH) },
    { table_rows: large, updates, small, big },
  );
};

async function measure(options: BenchRun, rows: number, updates: number): Promise<Measured> {
  const scratch = await Scratch.open({
    postgres: { wal_level: "logical", max_wal_size: "8GB" },
    env: { SPILLWAY_MIRROR_INDEX_MEMORY: "2GiB" },
  });
  try {
    const { client } = scratch;
    await client.query("create table t (id bigint primary key, v int not null, note text) with (fillfactor = 80)");
    await client.query("insert into t select g, 0, md5(g::text) from generate_series(1, $1::int) g", [rows]);
    await scratch.run(["register", "--mode", "mirrored", "--table", "t"]);
    const worker = scratch.spawn(["worker"]);
    try {
      const passed = async (): Promise<void> => {
        const found = await client.query<{ lsn: string }>(
          "select pg_logical_emit_message(false, 'spillway.flush', '')::text as lsn",
        );
        const lsn = found.rows[0]?.lsn ?? "0/0";
        const endMs = performance.now() + TIMEOUT_MS;
        for (;;) {
          const f = await client.query<{ ok: boolean }>("select bool_and(f_lsn >= $1) as ok from spillway.seam", [lsn]);
          if (f.rows[0]?.ok === true) return;
          if (worker.isOver || performance.now() > endMs)
            throw new Error(`the worker did not come so far: ${worker.stderr}`);
          options.signal.throwIfAborted();
          await new Promise((resolve) => setTimeout(resolve, 20));
        }
      };
      // The first update makes the key index: that is paid once.
      await client.query("update t set v = v + 1 where id = 1");
      await passed();
      const before = worker.cpuSeconds().all;
      const flushes = await count(client);
      const startMs = performance.now();
      for (let done = 0; done < updates; done += PER_STATEMENT) {
        await client.query(
          "update t set v = v + 1 where id = any (array(select 1 + (random() * $1)::bigint from generate_series(1, $2::int)))",
          [rows - 1, PER_STATEMENT],
        );
      }
      await passed();
      const seconds = (performance.now() - startMs) / 1000;
      const measured = {
        rowsPerSecond: Math.round(updates / seconds),
        cpuPerThousand: Number(((worker.cpuSeconds().all - before) / (updates / 1000)).toPrecision(4)),
        flushes: (await count(client)) - flushes,
      };
      options.say(
        `${rows} rows: ${measured.rowsPerSecond} updates/s, ${measured.cpuPerThousand} s of processor for 1000`,
      );
      return measured;
    } finally {
      await worker.end();
    }
  } finally {
    await scratch.close();
  }
}

async function count(client: Scratch["client"]): Promise<number> {
  const { rows } = await client.query<{ n: number }>(
    "select count(*)::int as n from spillway.journal where kind = 'mirror' and phase = 'committed'",
  );
  return rows[0]?.n ?? 0;
}
