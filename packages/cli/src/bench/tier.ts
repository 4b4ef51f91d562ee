/**
 * `bench tier`: rows a second from heap partition to verified commit, by a worker process with default settings, against
 * the ceiling: the same rows by COPY … TO STDOUT thrown away, csv and binary. Both sides take turns, table by table, each with
 * one partition of `--rows` rows; a partition's time is that from the opening of its journal entry to its commit.
 */
import type { Socket } from "node:net";
import { connect, endClient } from "@spillway/pg/connect";
import { SpillwayError } from "@spillway/base/errors";
import { systemClock } from "@spillway/base/clock";
import { atLeast, atMost, median, report, type Bench } from "./report.ts";
import type { Child } from "./child.ts";
import { type Client, Scratch } from "./scratch.ts";

const COPY_RATIO = 0.4;
const PEAK_RSS_MB = 700;
const FORMATS = ["csv", "binary"] as const;
const TIER_TIMEOUT_MS = 900_000;

interface Round {
  readonly seconds: number;
  readonly csv: number;
  readonly binary: number;
  readonly bytes: number;
  readonly files: number;
  /** Of the worker, from registration to commit. */
  readonly cpu: number;
  readonly mainCpu: number;
}

export const run: Bench = async (options) => {
  const rows = options.option("rows", options.quick ? 600_000 : 5_000_000);
  const runs = options.option("runs", rows > 10_000_000 ? 1 : 3);
  const scratch = await Scratch.open();
  let worker: Child | null = null;
  try {
    worker = scratch.spawn(["worker"]);
    const rounds: Round[] = [];
    for (let i = 1; i <= runs; i++) {
      options.signal.throwIfAborted();
      options.say(`loading a partition of ${rows} rows, ${i} of ${runs}`);
      await makeTable(scratch.client, `events${i}`, rows);
      const round = await oneRound(scratch, worker, `events${i}`, rows);
      rounds.push(round);
      options.say(said(round, rows));
    }
    const peakMb = worker.peakMb() ?? Number.NaN;
    await worker.end();
    await scratch.run(["verify", "--all"]);
    return summarize(rounds, rows, peakMb);
  } finally {
    await worker?.end("SIGKILL");
    await scratch.close();
  }
};

/** One partition of so many rows, and one beside it whose row makes it due. */
async function makeTable(client: Client, table: string, rows: number): Promise<void> {
  await client.query(`create table ${table} (id bigint not null, device int, at timestamptz not null,
    amount numeric(18,2), score double precision, kind text, label text, primary key (id, at)) partition by range (at)`);
  await client.query(`create table ${table}_1 (like ${table})`);
  await client.query(
    `insert into ${table}_1 select n, (hashint8(n) & 1048575) % 20000,
       '2024-01-01'::timestamptz + interval '1 day' * ((n - 1)::float8 / $1::float8),
       ((hashint8(n + 7) & 268435455) / 100.0)::numeric(18,2), (hashint8(n + 3) & 16777215) / 1024.0 + n * 0.001,
       (array['view', 'click', 'purchase', 'refund', 'signup', 'login', 'logout', 'error'])[1 + (hashint8(n + 1) & 7)],
       'device-' || lpad(to_hex(hashint8(n + 5) & 2147483647), 8, '0') || '-' || n % 10000
     from generate_series(1, $1::bigint) n`,
    [rows],
  );
  await client.query(`alter table ${table}_1 add primary key (id, at)`);
  await client.query(
    `alter table ${table} attach partition ${table}_1 for values from ('2024-01-01 00:00+00') to ('2024-01-02 00:00+00')`,
  );
  await client.query(
    `create table ${table}_2 partition of ${table} for values from ('2024-01-02 00:00+00') to ('2024-01-09 00:00+00')`,
  );
  await client.query(`insert into ${table} (id, at) values (0, '2024-01-08')`);
  // Hint bits and freezing are paid here, by neither side.
  await client.query(`vacuum (freeze, analyze) ${table}`);
  await client.query("checkpoint");
}

/** The ceiling, then the way to the lake. */
async function oneRound(scratch: Scratch, worker: Child, table: string, rows: number): Promise<Round> {
  await discard(scratch.url, `${table}_1`, "binary");
  const copies: Record<string, number> = {};
  for (const format of FORMATS) copies[format] = await discard(scratch.url, `${table}_1`, format);
  const before = worker.cpuSeconds();
  await scratch.run(["register", "--table", `public.${table}`, "--lag", "1d"]);
  const deadline = systemClock.monotonicMs() + TIER_TIMEOUT_MS;
  for (;;) {
    const done = await scratch.client.query<{ seconds: number; rows: string; files: number; bytes: string }>(
      `select extract(epoch from ended_at - started_at)::float8 as seconds, detail ->> 'rows' as rows,
         (detail ->> 'files')::int as files, detail ->> 'bytes' as bytes
       from spillway.journal where kind = 'tier' and phase = 'committed' and detail ->> 'leaf' = $1`,
      [`${table}_1`],
    );
    const op = done.rows[0];
    if (op) {
      if (Number(op.rows) !== rows)
        throw new SpillwayError("internal", `${op.rows} rows were moved instead of ${rows}`);
      return {
        seconds: op.seconds,
        csv: copies["csv"] ?? 0,
        binary: copies["binary"] ?? 0,
        bytes: Number(op.bytes),
        files: op.files,
        cpu: worker.cpuSeconds().all - before.all,
        mainCpu: worker.cpuSeconds().main - before.main,
      };
    }
    if (worker.isOver || systemClock.monotonicMs() > deadline) {
      throw new SpillwayError("internal", `${table} did not get into the lake: ${worker.stderr.slice(-2000)}`);
    }
    await systemClock.sleep(100);
  }
}

/**
 * Seconds of a COPY TO STDOUT of which nothing is kept: after the start the socket's bytes are not even parsed, except for
 * the end of each read.
 */
async function discard(url: string, leaf: string, format: string): Promise<number> {
  const client = await connect(url, { applicationName: "spillway bench ceiling" });
  try {
    const { stream } = (client as unknown as { connection: { stream: Socket } }).connection;
    stream.removeAllListeners("data");
    const query = Buffer.from(`COPY (SELECT * FROM ONLY ${leaf}) TO STDOUT (FORMAT ${format})\0`);
    const head = Buffer.from([0x51, 0, 0, 0, 0]);
    head.writeInt32BE(query.length + 4, 1);
    const startMs = systemClock.monotonicMs();
    await new Promise<void>((resolve, reject) => {
      stream.on("data", (chunk: Buffer) => {
        if (chunk.length >= 6 && chunk.toString("latin1", chunk.length - 6) === "Z\0\0\0\x05I") resolve();
      });
      stream.once("close", () => reject(new SpillwayError("pg_connection_lost", "the COPY was cut off")));
      stream.write(Buffer.concat([head, query]));
    });
    return (systemClock.monotonicMs() - startMs) / 1000;
  } finally {
    await endClient(client);
  }
}

function said(round: Round, rows: number): string {
  const rate = (seconds: number): string => `${Math.round(rows / seconds / 1000)} k rows/s`;
  return `tiered at ${rate(round.seconds)} (${round.files} files, ${(round.bytes / 1e6).toFixed(0)} MB); COPY csv ${rate(round.csv)}, binary ${rate(round.binary)}`;
}

function summarize(rounds: readonly Round[], rows: number, peakMb: number) {
  const seconds = median(rounds.map((r) => r.seconds));
  const copies = { csv: median(rounds.map((r) => r.csv)), binary: median(rounds.map((r) => r.binary)) };
  // Of each round's own sides: what else the machine does changes from round to round.
  const ratio = median(rounds.map((r) => Math.min(r.csv, r.binary) / r.seconds));
  return report(
    "tier",
    { copy_ratio: atLeast(ratio, COPY_RATIO), peak_rss_mb: atMost(peakMb, PEAK_RSS_MB) },
    {
      rows,
      rows_per_s: Math.round(rows / seconds),
      worker_cpu_s_per_million: perMillion(
        rounds.map((r) => r.cpu),
        rows,
      ),
      worker_main_thread_cpu_s_per_million: perMillion(
        rounds.map((r) => r.mainCpu),
        rows,
      ),
      copy_rows_per_s: { csv: Math.round(rows / copies.csv), binary: Math.round(rows / copies.binary) },
      lake_bytes: rounds[0]?.bytes,
      files: rounds[0]?.files,
      rounds: rounds.map((r) => ({
        tier_s: Number(r.seconds.toFixed(3)),
        csv_s: Number(r.csv.toFixed(3)),
        binary_s: Number(r.binary.toFixed(3)),
      })),
    },
  );
}

function perMillion(seconds: readonly number[], rows: number): number {
  return Number(((median(seconds) / rows) * 1e6).toFixed(3));
}
