/**
 * `bench freshness`: from the acknowledgement of a commit until a new read of the lake shows it, while four mirrored tables change at a
 * steady rate and a worker process follows. First reads that take the lake as it is, one after the other, then strict ones,
 * which ask for a flush and wait. A row of a table of its own is committed every now and then, and looked for; an answer counts
 * when it is there, not when it was asked for. Reads are new statements of a process that stays; beside, `spillway sql` as a command.
 */
import { systemClock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import { silentLogger } from "@spillway/base/log";
import { connect, endClient } from "@spillway/pg/connect";
import { valueAt } from "@spillway/server/engine/engine";
import { openRuntime } from "@spillway/server/roles/runtime";
import { createSeam, type QueryOptions, type QueryStats, type Seam } from "@spillway/server/seam/seam";
import { atLeast, atMost, type Bench, median, quantile, report } from "./report.ts";
import { type Client, Scratch } from "./scratch.ts";

const TABLES = ["m0", "m1", "m2", "m3"];
const START_ROWS = 50_000;
const P50_MS = 1200;
const P99_MS = 2500;
const STRICT_P99_MS = 1500;
const PROBE_EVERY_MS = 100;
const READ_EVERY_MS = 50;
const STRICT_EVERY_MS = 300;
const LOAD_TICK_MS = 20;
/** At less the load was not what was asked for. */
const RATE_SHARE = 0.9;
const CLI_READS = 3;
/** Of load before anything is measured: a worker that has just begun is not the subject. */
const WARM_UP_MS = 2_000;

export const run: Bench = async (options) => {
  const rate = options.option("rate", options.quick ? 2000 : 5000);
  const seconds = options.option("seconds", options.quick ? 8 : 60);
  const scratch = await Scratch.open({ postgres: { wal_level: "logical", max_wal_size: "2GB" } });
  const writer = await connect(scratch.url, { applicationName: "spillway bench load" });
  const reads = await openReads(scratch);
  let worker: ReturnType<Scratch["spawn"]> | null = null;
  let load: ReturnType<typeof startLoad> | null = null;
  try {
    await makeTables(scratch.client);
    await scratch.run(["register", "--mode", "mirrored", ...[...TABLES, "probe"].flatMap((t) => ["--table", t])]);
    worker = scratch.spawn(["worker"]);
    await untilLive(scratch.client);
    load = startLoad(writer, rate, options.signal);
    await systemClock.sleep(WARM_UP_MS, options.signal);
    const lake = await visible(scratch.client, reads, seconds * 1000, options.signal);
    options.say(
      `${lake.length} commits: p50 ${Math.round(median(lake))} ms, p99 ${Math.round(quantile(lake, 0.99))} ms`,
    );
    const strict = await strictReads(scratch.client, reads, (seconds * 1000) / 2, options.signal);
    options.say(
      `${strict.ms.length} strict reads: p50 ${Math.round(median(strict.ms))} ms, p99 ${Math.round(quantile(strict.ms, 0.99))} ms`,
    );
    const cli = await commandReads(scratch, CLI_READS);
    const rows = await load.stop();
    return report(
      "freshness",
      {
        p50_ms: atMost(median(lake), P50_MS),
        p99_ms: atMost(quantile(lake, 0.99), P99_MS),
        strict_p99_ms: atMost(quantile(strict.ms, 0.99), STRICT_P99_MS),
        strict_from_lake: atLeast(strict.fromLake, 1),
        rate_share: atLeast(rows / rate, RATE_SHARE),
      },
      {
        rate: Math.round(rows),
        seconds,
        commits: lake.length,
        max_ms: Math.round(Math.max(...lake)),
        strict_reads: strict.ms.length,
        strict_p50_ms: Math.round(median(strict.ms)),
        strict_max_ms: Math.round(Math.max(...strict.ms)),
        cli_strict_ms: Math.round(median(cli)),
        flush_ms: await flushMs(scratch.client),
      },
    );
  } finally {
    await load?.stop().catch(() => {});
    await worker?.end();
    await reads.close();
    await endClient(writer);
    await scratch.close();
  }
};

interface Reads {
  readonly seam: Seam;
  close(): Promise<void>;
}

async function openReads(scratch: Scratch): Promise<Reads> {
  const runtime = await openRuntime({
    databaseUrl: scratch.url,
    warehouse: scratch.env["SPILLWAY_WAREHOUSE"] ?? "",
    s3Endpoint: null,
    s3Region: "us-east-1",
    s3PathStyle: true,
    cacheDir: `${scratch.home}/read-cache`,
    cacheBytes: 1 << 30,
    connectTimeoutMs: 10_000,
    engineMemoryBytes: 512 << 20,
    lockTimeoutMs: 100,
    premake: 2,
    applicationName: "spillway bench reads",
    clock: systemClock,
    log: silentLogger,
  });
  const { conninfo, store, cache, engine } = runtime;
  const seam = createSeam({ conninfo, store, cache, engine, clock: systemClock, log: silentLogger, holder: "bench" });
  return {
    seam,
    close: async () => {
      await seam.close();
      await runtime.close();
    },
  };
}

async function makeTables(client: Client): Promise<void> {
  for (const table of TABLES) {
    await client.query(
      `create table ${table} (id bigint primary key, account int not null, amount numeric(12,2), at timestamptz not null, note text)`,
    );
    await client.query(
      `insert into ${table} select g, g % 1000, g / 7.0, now(), 'note ' || md5(g::text) from generate_series(1, ${START_ROWS}) g`,
    );
    await client.query(`create sequence ${table}_next start ${START_ROWS + 1}`);
  }
  await client.query("create table probe (n bigint primary key)");
  await client.query("insert into probe values (0)");
  // 60 % inserts, 30 % updates, 10 % deletes.
  await client.query(`
    create function change(t text, per int) returns void language plpgsql as $$
    declare total bigint;
    begin
      execute format('insert into %I select nextval(%L), g, g / 3.0, now(), ''new '' || md5(random()::text) from generate_series(1, %s) g',
        t, t || '_next', per * 6 / 10);
      execute format('select last_value from %I', t || '_next') into total;
      execute format('update %I set amount = coalesce(amount, 0) + 1, note = ''changed '' || id where id = any (array(select (random() * %s)::bigint from generate_series(1, %s)))',
        t, total, per * 3 / 10);
      execute format('delete from %I where id = any (array(select (random() * %s)::bigint from generate_series(1, %s)))', t, total, per / 10);
    end $$`);
}

async function untilLive(client: Client): Promise<void> {
  const limitMs = performance.now() + 120_000;
  for (;;) {
    const { rows } = await client.query<{ ok: boolean }>(
      `select count(*) = ${TABLES.length + 1} and bool_and(phase = 'live') as ok from spillway.mirror_table`,
    );
    if (rows[0]?.ok === true) return;
    if (performance.now() > limitMs) throw new SpillwayError("internal", "the tables did not join the stream");
    await systemClock.sleep(50);
  }
}

/** Changes at a steady rate, in transactions of a tick's rows. `stop` gives the rows a second that were reached. */
function startLoad(client: Client, rate: number, signal: AbortSignal): { stop(): Promise<number> } {
  const state = { over: false };
  let rows = 0;
  const startMs = performance.now();
  const running = (async () => {
    for (let i = 0; !state.over && !signal.aborted; i++) {
      const due = ((performance.now() - startMs) / 1000) * rate - rows;
      const per = Math.min(Math.max(0, Math.ceil(due / 10) * 10), rate);
      if (per > 0) await client.query("select change($1, $2)", [TABLES[i % TABLES.length], per]);
      rows += per;
      await systemClock.sleep(LOAD_TICK_MS);
    }
  })();
  running.catch(() => {});
  return {
    stop: async () => {
      state.over = true;
      await running;
      return (rows / (performance.now() - startMs)) * 1000;
    },
  };
}

/** Commits a number every now and then, and reads the lake as it is until each was seen: milliseconds of each. */
async function visible(client: Client, { seam }: Reads, forMs: number, signal: AbortSignal): Promise<number[]> {
  const pending: { n: number; ms: number }[] = [];
  const found: number[] = [];
  const state = { over: false };
  const probing = (async () => {
    const endMs = performance.now() + forMs;
    for (let n = 1; performance.now() < endMs && !signal.aborted; n++) {
      await client.query("insert into probe values ($1)", [n]);
      pending.push({ n, ms: performance.now() });
      await systemClock.sleep(PROBE_EVERY_MS);
    }
    state.over = true;
  })();
  while (!state.over || pending.length > 0) {
    signal.throwIfAborted();
    // As of a time ahead: the newest snapshot there is, from the lake alone.
    const { value } = await readMax(seam, { asOf: { timestampMs: Date.now() + 60_000 } });
    const nowMs = performance.now();
    while (pending[0] && pending[0].n <= value) found.push(nowMs - (pending.shift()?.ms ?? nowMs));
    await systemClock.sleep(READ_EVERY_MS);
  }
  await probing;
  return found;
}

async function strictReads(
  client: Client,
  { seam }: Reads,
  forMs: number,
  signal: AbortSignal,
): Promise<{ ms: number[]; fromLake: number }> {
  const ms: number[] = [];
  let fromLake = 0;
  const endMs = performance.now() + forMs;
  for (let n = 1_000_000; performance.now() < endMs; n++) {
    signal.throwIfAborted();
    await client.query("insert into probe values ($1)", [n]);
    const startMs = performance.now();
    const { value, stats } = await readMax(seam, { freshness: { kind: "strict" } });
    ms.push(performance.now() - startMs);
    if (value !== n) throw new SpillwayError("internal", `a strict read gave ${value} instead of ${n}`);
    fromLake += stats.mirror?.tier === "lake" ? 1 : 0;
    await systemClock.sleep(STRICT_EVERY_MS);
  }
  return { ms, fromLake: fromLake / ms.length };
}

async function readMax(seam: Seam, options: QueryOptions): Promise<{ value: number; stats: QueryStats }> {
  const result = await seam.query("SELECT max(n) AS n FROM probe", options);
  let value = 0;
  for await (const batch of result.batches()) {
    const [column] = batch.columns;
    if (column && batch.length > 0) value = Number(valueAt(column, 0));
  }
  return { value, stats: result.stats };
}

/** The median flush, from its journal entry to its commit. */
async function flushMs(client: Client): Promise<number> {
  const { rows } = await client.query<{ ms: number | null }>(
    `select percentile_cont(0.5) within group (order by extract(epoch from ended_at - started_at) * 1000)::float8 as ms
     from spillway.journal where kind = 'mirror' and phase = 'committed'`,
  );
  return Math.round(rows[0]?.ms ?? 0);
}

/** The same as a command of its own, its start included. */
async function commandReads(scratch: Scratch, times: number): Promise<number[]> {
  const ms: number[] = [];
  for (let i = 0; i < times; i++) {
    await scratch.client.query("insert into probe values ($1)", [2_000_000 + i]);
    const startMs = performance.now();
    const out = await scratch.run(["sql", "--freshness", "strict", "--format", "csv", "SELECT max(n) AS n FROM probe"]);
    ms.push(performance.now() - startMs);
    if (!out.includes(String(2_000_000 + i))) throw new SpillwayError("internal", `a strict command gave ${out}`);
  }
  return ms;
}
