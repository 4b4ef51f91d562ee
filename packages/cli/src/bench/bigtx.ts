/**
 * `bench bigtx`: one transaction that updates every row of a table: peak memory of the worker while it receives, stages and publishes it,
 * and whether a foreign reader that looks all the time ever sees a part of it.
 */
import { connect, endClient } from "@spillway/pg/connect";
import type { ForeignMetadata } from "../chaos/mirror-foreign.ts";
import { watchLake } from "./lake-watch.ts";
import { atMost, type Bench, report } from "./report.ts";
import { Scratch } from "./scratch.ts";

const PEAK_RSS_MB = 700;
const TIMEOUT_MS = 3_600_000;

export const run: Bench = async (options) => {
  const rows = options.option("rows", options.quick ? 300_000 : 10_000_000);
  const scratch = await Scratch.open({ postgres: { wal_level: "logical", max_wal_size: "16GB" } });
  try {
    const { client } = scratch;
    await client.query("create table big (id bigint primary key, v int not null, note text)");
    await client.query("insert into big select g, 0, md5(g::text) from generate_series(1, $1::int) g", [rows]);
    await scratch.run(["register", "--mode", "mirrored", "--table", "big"]);
    const worker = scratch.spawn(["worker"]);
    const watcher = await connect(scratch.url, { applicationName: "spillway bench watch" });
    try {
      const poll = async (sql: string): Promise<void> => {
        const endMs = performance.now() + TIMEOUT_MS;
        for (;;) {
          const found = await client.query<{ ok: boolean }>(sql);
          if (found.rows[0]?.ok === true) return;
          if (worker.isOver || performance.now() > endMs)
            throw new Error(`the worker did not come so far: ${worker.stderr}`);
          options.signal.throwIfAborted();
          await new Promise((resolve) => setTimeout(resolve, 100));
        }
      };
      await poll("select bool_and(phase = 'live') as ok from spillway.mirror_table");
      const watch = watchLake(watcher, "big", 50, (_, metadata) => Promise.resolve(stateOf(metadata, rows)));
      const startMs = performance.now();
      await client.query("update big set v = v + 1");
      const updatedMs = performance.now();
      const { rows: end } = await client.query<{ lsn: string }>("select pg_current_wal_insert_lsn()::text as lsn");
      await poll(`select bool_and(f_lsn >= '${end[0]?.lsn}') as ok from spillway.seam`);
      const doneMs = performance.now();
      await watch.stop();
      const peak = worker.peakMb() ?? Number.NaN;
      const partial = watch.seen.filter((s) => s.startsWith("partial"));
      return report(
        "bigtx",
        { peak_rss_mb: atMost(peak, PEAK_RSS_MB), partial_seen: atMost(partial.length, 0) },
        {
          rows,
          looks: watch.seen.length,
          seen: [...new Set(watch.seen)],
          update_s: Math.round((updatedMs - startMs) / 100) / 10,
          visible_after_s: Math.round((doneMs - updatedMs) / 100) / 10,
        },
      );
    } finally {
      await worker.end();
      await endClient(watcher);
    }
  } finally {
    await scratch.close();
  }
};

/** By the counts that every reader goes by: live rows are those of data files less those of deletes. */
function stateOf(metadata: ForeignMetadata, rows: number): string {
  const summary = metadata.snapshots.at(-1)?.summary;
  const live = Number(summary?.["total-records"] ?? 0) - Number(summary?.["total-position-deletes"] ?? 0);
  return live === rows ? "whole" : `partial ${live}`;
}
