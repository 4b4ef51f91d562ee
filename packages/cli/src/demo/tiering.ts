/** Watching the real worker: how far it is, from what it leaves in Postgres. */
import { SpillwayError } from "@spillway/base/errors";
import type pg from "pg";
import { formatCount } from "../output.ts";
import type { RunningChild } from "./children.ts";

export interface TieringWatch {
  readonly client: pg.Client;
  readonly worker: RunningChild;
  /** Partitions that are due. */
  readonly partitions: number;
  readonly signal: AbortSignal;
  readonly onProgress: (text: string) => void;
}

export interface TieringResult {
  readonly rows: number;
  readonly seconds: number;
}

const POLL_MS = 250;
const LONGEST_MS = 300_000;

/** Until every due partition is in the lake and dropped. Throws `demo_failed` when the worker ends or stops the table. */
export async function watchTiering(watch: TieringWatch): Promise<TieringResult> {
  const started = performance.now();
  let ended = false;
  void watch.worker.done.finally(() => (ended = true)).catch(() => {});
  for (;;) {
    const state = await readState(watch.client);
    const seconds = (performance.now() - started) / 1000;
    const rate = seconds > 0 ? Math.round((state.rows + state.copying) / seconds) : 0;
    const current = Math.min(state.moved + 1, watch.partitions);
    watch.onProgress(
      `partition ${current} of ${watch.partitions}, ${formatCount(state.rows + state.copying)} rows, ${formatCount(rate)} rows/s`,
    );
    if (state.dropped >= watch.partitions) return { rows: state.rows, seconds };
    if (watch.signal.aborted) throw new SpillwayError("interrupted", "the demo was ended");
    if (state.stopped !== null)
      throw new SpillwayError("demo_failed", `the worker stopped the table: ${state.stopped}`);
    if (ended || seconds * 1000 > LONGEST_MS) {
      const why = ended ? "the worker ended" : "tiering did not come to an end";
      throw new SpillwayError("demo_failed", `${why}${state.waits === null ? "" : `; it waited for: ${state.waits}`}`);
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

async function readState(client: pg.Client): Promise<{
  rows: number;
  copying: number;
  moved: number;
  dropped: number;
  stopped: string | null;
  waits: string | null;
}> {
  const { rows } = await client.query(`select
    (select coalesce(sum(rows), 0)::float8 from spillway.band where state in ('lake', 'dropped')) as rows,
    (select count(*)::int from spillway.band where state in ('lake', 'dropped')) as moved,
    (select count(*)::int from spillway.band where state = 'dropped') as dropped,
    (select coalesce(max(tuples_processed), 0)::float8 from pg_stat_progress_copy where command = 'COPY TO') as copying,
    (select stop_code || ' ' || stop_reason from spillway.relation where state = 'stopped' limit 1) as stopped,
    (select step || ': ' || reason from spillway.relation_wait limit 1) as waits`);
  return rows[0] as Awaited<ReturnType<typeof readState>>;
}

/** Bytes of a partitioned table in Postgres, its indexes included. */
export async function heapBytes(client: pg.Client, table: string): Promise<number> {
  const { rows } = await client.query<{ bytes: number }>(
    "select coalesce(sum(pg_total_relation_size(relid)), 0)::float8 as bytes from pg_partition_tree($1::regclass) where isleaf",
    [table],
  );
  return rows[0]?.bytes ?? 0;
}
