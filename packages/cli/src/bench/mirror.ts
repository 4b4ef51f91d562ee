/**
 * `bench mirror`: rows a second from the change stream to visible in the lake, by a worker process, against the ceiling in
 * the same run: the same WAL by our own raw reader, thrown away. Four tables, first a mix of 60 % inserts, 30 % updates and
 * 10 % deletes, then inserts alone. The changes are written first, then read: by the raw reader from a slot of its own, and by
 * the mirror from its slot; each side's time runs from the moment it has its slot.
 */
import { parseLsn } from "@spillway/base/lsn";
import { must } from "@spillway/base/assert";
import { createSlot, dropSlot } from "@spillway/pg/replication/session";
import { ReplicationStream } from "@spillway/pg/replication/stream";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import { atLeast, type Bench, median, report } from "./report.ts";
import { type Client, Scratch } from "./scratch.ts";

const TABLES = ["m0", "m1", "m2", "m3"];
const WAL_RATIO = 0.6;
const INSERT_RATIO = 0.75;
const ROWS_PER_TRANSACTION = 200;
const TIMEOUT_MS = 900_000;

interface Round {
  readonly rows: number;
  readonly rawSeconds: number;
  readonly mirrorSeconds: number;
  readonly bytes: number;
}

export const run: Bench = async (options) => {
  const rows = options.option("rows", options.quick ? 300_000 : 1_000_000);
  const runs = options.option("runs", options.quick ? 1 : 3);
  const scratch = await Scratch.open({ postgres: { wal_level: "logical", max_wal_size: "4GB" } });
  try {
    await makeTables(scratch.client, Math.max(10_000, Math.round(rows / 8)));
    await scratch.run(["register", "--mode", "mirrored", ...TABLES.flatMap((t) => ["--table", t])]);
    await scratch.run(["worker", "--once"]);
    const mixes: Round[] = [];
    const inserts: Round[] = [];
    for (let i = 1; i <= runs; i++) {
      options.signal.throwIfAborted();
      mixes.push(await round(scratch, rows, "mix"));
      inserts.push(await round(scratch, rows, "insert"));
      for (const [what, list] of [
        ["mix", mixes],
        ["insert", inserts],
      ] as const) {
        const last = must(list.at(-1), "round");
        options.say(
          `${what} ${i}: ${Math.round(last.rows / last.mirrorSeconds)} rows/s mirrored, ${Math.round(last.rows / last.rawSeconds)} received`,
        );
      }
    }
    const ratio = (list: readonly Round[]): number => median(list.map((r) => r.rawSeconds / r.mirrorSeconds));
    const rate = (list: readonly Round[]): number => Math.round(median(list.map((r) => r.rows / r.mirrorSeconds)));
    return report(
      "mirror",
      { wal_ratio: atLeast(ratio(mixes), WAL_RATIO), insert_ratio: atLeast(ratio(inserts), INSERT_RATIO) },
      {
        rows,
        runs,
        mix_rows_per_s: rate(mixes),
        insert_rows_per_s: rate(inserts),
        raw_mix_rows_per_s: Math.round(median(mixes.map((r) => r.rows / r.rawSeconds))),
        raw_insert_rows_per_s: Math.round(median(inserts.map((r) => r.rows / r.rawSeconds))),
        mb: Math.round(median(mixes.map((r) => r.bytes)) / 1e6),
      },
    );
  } finally {
    await scratch.close();
  }
};

async function makeTables(client: Client, rows: number): Promise<void> {
  for (const table of TABLES) {
    await client.query(
      `create table ${table} (id bigint primary key, account int not null, amount numeric(12,2), at timestamptz not null, note text)`,
    );
    await client.query(
      `insert into ${table} select g, g % 1000, g / 7.0, '2024-01-01'::timestamptz + g * interval '1 second', 'note ' || md5(g::text)
       from generate_series(1, $1::int) g`,
      [rows],
    );
    await client.query(`create sequence ${table}_next start ${rows + 1}`);
  }
  // One procedure: so many transactions of so many changed rows, over the four tables.
  await client.query(`
    create procedure change(transactions int, per int, inserts int, updates int) language plpgsql as $$
    declare t text; total bigint;
    begin
      for i in 1 .. transactions loop
        t := 'm' || (i % 4);
        execute format('insert into %I select nextval(%L), g, g / 3.0, now(), ''new '' || md5(g::text || %s) from generate_series(1, %s) g',
          t, t || '_next', i, per * inserts / 100);
        if updates > 0 then
          execute format('select last_value from %I', t || '_next') into total;
          execute format('update %I set amount = coalesce(amount, 0) + 1, note = ''changed %s'' where id = any (select (random() * %s)::bigint from generate_series(1, %s))',
            t, i, total, per * updates / 100);
          execute format('delete from %I where id = any (select (random() * %s)::bigint from generate_series(1, %s))',
            t, total, per * (100 - inserts - updates) / 100);
        end if;
        commit;
      end loop;
    end $$`);
}

async function round(scratch: Scratch, rows: number, kind: "mix" | "insert"): Promise<Round> {
  const { client, url } = scratch;
  const control = await connectRaw(url, { replication: "database" });
  await createSlot(control, { name: "bench_raw" });
  try {
    const before = await changed(client);
    const [inserts, updates] = kind === "mix" ? [60, 30] : [100, 0];
    await client.query(
      `call change(${Math.ceil(rows / ROWS_PER_TRANSACTION)}, ${ROWS_PER_TRANSACTION}, ${inserts}, ${updates})`,
    );
    const { rows: end } = await client.query<{ lsn: string }>(
      "select pg_logical_emit_message(true, 'bench', 'end')::text as lsn",
    );
    const lsn = parseLsn(end[0]?.lsn ?? "0/0");
    await client.query("checkpoint");
    const written = (await changed(client)) - before;
    const raw = await receive(url, lsn);
    const mirrorSeconds = await mirror(scratch, end[0]?.lsn ?? "0/0");
    return { rows: written, rawSeconds: raw.seconds, bytes: raw.bytes, mirrorSeconds };
  } finally {
    await dropSlot(control, "bench_raw", true);
    await control.close();
  }
}

/** Rows changed since ever, as the server counts them. */
async function changed(client: Client): Promise<number> {
  await client.query("select pg_stat_force_next_flush()").catch(() => {});
  await client.query("select pg_stat_clear_snapshot()");
  const { rows } = await client.query<{ n: string }>(
    "select sum(n_tup_ins + n_tup_upd + n_tup_del)::text as n from pg_stat_user_tables where relname = any ($1::text[])",
    [TABLES],
  );
  return Number(rows[0]?.n ?? 0);
}

/** Receives everything up to the position and throws it away. */
async function receive(url: string, end: bigint): Promise<{ seconds: number; bytes: number }> {
  const connection = await connectRaw(url, { replication: "database" });
  const startMs = performance.now();
  let over: () => void = () => {};
  const done = new Promise<void>((resolve) => (over = resolve));
  const stream = await ReplicationStream.start(
    connection,
    { slot: "bench_raw", startLsn: 0n, publications: ["spillway"], binary: true },
    {
      onChange: (buffer, start) => {
        // The message that ends the run is the last thing of the load.
        if (buffer[start] === 0x4d && stream.receivedLsn >= end) over();
      },
      onKeepalive: (walEnd) => {
        if (walEnd >= end) over();
      },
    },
  );
  await Promise.race([done, stream.ended]);
  const seconds = (performance.now() - startMs) / 1000;
  const bytes = stream.receivedBytes;
  await stream.stop();
  await connection.close();
  return { seconds, bytes };
}

/** From the moment that the worker has the slot until F has passed the end. */
async function mirror(scratch: Scratch, end: string): Promise<number> {
  const { client } = scratch;
  const worker = scratch.spawn(["worker"]);
  try {
    const poll = async (sql: string, everyMs: number): Promise<number> => {
      const limitMs = performance.now() + TIMEOUT_MS;
      for (;;) {
        const { rows } = await client.query<{ ok: boolean }>(sql);
        if (rows[0]?.ok === true) return performance.now();
        if (performance.now() > limitMs || worker.isOver)
          throw new Error(`the worker did not come so far: ${worker.stderr}`);
        await new Promise((resolve) => setTimeout(resolve, everyMs));
      }
    };
    const startMs = await poll(
      "select bool_or(active) as ok from pg_replication_slots where slot_name like 'spillway%'",
      5,
    );
    const endMs = await poll(`select bool_and(f_lsn >= '${end}') as ok from spillway.seam`, 20);
    return (endMs - startMs) / 1000;
  } finally {
    await worker.end();
  }
}
