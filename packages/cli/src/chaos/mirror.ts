/**
 * `chaos mirror`: random transactions over several tables, with sums that hold across them, DDL in between, kills of workers,
 * Postgres and walsenders, and lost acknowledgements of commits. In the end every published snapshot, read by a
 * reader that shares no code with the product, is compared row by row with what Postgres held at its LSN.
 */
import { appendFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FAULT_POINTS } from "@spillway/base/fault";
import { parseLsn } from "@spillway/base/lsn";
import { sharedClock as clock } from "@spillway/ha/client/shared-clock";
import { connect, endClient } from "@spillway/pg/connect";
import { Child, type ChildEnv, runChild } from "../bench/child.ts";
import { atLeast, atMost, type Bench, type BenchRun, report } from "../bench/report.ts";
import type { Client } from "../bench/scratch.ts";
import { reachableTemp, runAsPostgres } from "../embedded/binaries.ts";
import { type EmbeddedPostgres, startEmbedded } from "../embedded/server.ts";
import { fillMirrorTables, makeMirrorTables, MIRROR_TABLES, MirrorClient } from "./mirror-client.ts";
import { ForeignReader, type ForeignRow, readForeignMetadata } from "./mirror-foreign.ts";
import { type HeldRow, HistoryModel, makeHistory, readHistory, watchTable } from "./mirror-history.ts";
import { Random } from "./random.ts";

const CLIENTS = 3;
const SETTLE_MS = 120_000;
const FAULTS = { kill_worker: 4, stop_worker: 2, terminate: 5, kill_backend: 0.4, restart: 0.4 } as const;
const SETTINGS = { logical_decoding_work_mem: "64kB", wal_sender_timeout: "3s", max_wal_size: "1GB" };
/** A planted fault, to see that this program finds one: rows that change behind the stream's back. */
const PLANT = "SPILLWAY_CHAOS_PLANT";

interface Storm {
  postgres: EmbeddedPostgres;
  readonly dir: string;
  readonly env: ChildEnv;
  /** What the workers had to say. */
  readonly log: string;
  readonly workers: Child[];
  readonly counts: Map<string, number>;
  readonly random: Random;
}

export const run: Bench = async (options) => {
  const seconds = options.option("seconds", options.quick ? 20 : 300);
  const seed = options.option("seed", Math.floor(clock.wallMs()) % 100_000);
  const home = mkdtempSync(join(tmpdir(), "spillway-chaos-"));
  const dir = mkdtempSync(join(reachableTemp(runAsPostgres()), "spillway-chaos-pg-"));
  const postgres = await startEmbedded({ dir, settings: SETTINGS });
  options.say(`seed ${seed}, ${seconds} s`);
  const env = {
    SPILLWAY_DATABASE_URL: postgres.url(),
    SPILLWAY_WAREHOUSE: join(home, "lake"),
    SPILLWAY_CACHE_DIR: join(home, "cache"),
    SPILLWAY_METRICS_LISTEN: "off",
    SPILLWAY_CAMPAIGN_INTERVAL: "500ms",
    SPILLWAY_CYCLE_INTERVAL: "500ms",
    SPILLWAY_MIRROR_FLUSH_INTERVAL: "200ms",
    SPILLWAY_MAX_BUFFERED_ROWS: "1000",
    SPILLWAY_TAKEOVER_WATCH: "1s",
  };
  const storm: Storm = {
    postgres,
    dir,
    env,
    log: join(home, "workers.log"),
    workers: [],
    counts: new Map(),
    random: new Random(seed, "faults"),
  };
  let kept = process.env["SPILLWAY_CHAOS_KEEP"] !== undefined;
  try {
    await prepare(storm);
    await rage(storm, options, seed, seconds * 1000);
    await settle(storm);
    const found = await compare(storm, options);
    kept ||= found.differences.length > 0;
    for (const difference of found.differences.slice(0, 20)) options.say(difference);
    return report(
      "chaos_mirror",
      { differences: atMost(found.differences.length, 0), snapshots: atLeast(found.snapshots, 3) },
      {
        seed,
        seconds,
        commits: found.commits,
        stopped: found.stopped,
        counts: Object.fromEntries([...storm.counts].toSorted(([a], [b]) => a.localeCompare(b))),
        first: found.differences.slice(0, 20),
      },
    );
  } finally {
    for (const worker of storm.workers) await worker.end("SIGKILL");
    await storm.postgres.stop();
    if (kept) options.say(`kept: ${home}, ${dir}`);
    else for (const path of [home, dir]) rmSync(path, { recursive: true, force: true });
  }
};

async function prepare(storm: Storm): Promise<void> {
  await runChild(["init"], storm.env);
  await withClient(storm, async (client) => {
    await makeHistory(client);
    await makeMirrorTables(client);
    for (const table of MIRROR_TABLES) await watchTable(client, table);
    await fillMirrorTables(client);
  });
  // Both formats: deletion vectors, and position deletes.
  await runChild(["register", "--mode", "mirrored", "--table", "acct_a,things"], storm.env);
  await runChild(["register", "--mode", "mirrored", "--format-version", "2", "--table", "acct_b"], storm.env);
}

async function withClient<T>(storm: Storm, work: (client: Client) => Promise<T>): Promise<T> {
  const client = await connect(storm.postgres.url(), { applicationName: "chaos" });
  try {
    return await work(client);
  } finally {
    await endClient(client);
  }
}

async function rage(storm: Storm, options: BenchRun, seed: number, totalMs: number): Promise<void> {
  const over = new AbortController();
  const signal = AbortSignal.any([over.signal, options.signal]);
  const { random, counts } = storm;
  const count = (what: string): void => void counts.set(what, (counts.get(what) ?? 0) + 1);
  const url = storm.postgres.url();
  const clients = Array.from({ length: CLIENTS }, (_, i) =>
    new MirrorClient({ number: i + 1, seed, url, count }).run(signal),
  );
  const alive = keepAlive(storm, signal);
  const endMs = clock.monotonicMs() + totalMs;
  await clock.sleep(6000, signal).catch(() => {});
  while (clock.monotonicMs() < endMs && !signal.aborted) {
    const fault = random.weighted(FAULTS);
    count(`fault ${fault}`);
    await strike(storm, fault, random);
    if (process.env[PLANT]) await plant(storm);
    const restMs = Math.min(1500 + random.next() * 5000, endMs - clock.monotonicMs());
    await clock.sleep(Math.max(0, restMs), signal).catch(() => {});
  }
  over.abort();
  await Promise.all([alive, ...clients]);
  options.signal.throwIfAborted();
}

async function keepAlive(storm: Storm, signal: AbortSignal): Promise<void> {
  const points = FAULT_POINTS.filter((p) => p.startsWith("mirror."));
  while (!signal.aborted) {
    for (let i = storm.workers.length - 1; i >= 0; i--) if (storm.workers[i]?.isOver) storm.workers.splice(i, 1);
    while (storm.workers.length < 2) {
      const fault = storm.random.chance(0.3) ? `${storm.random.pick(points)}:kill:${storm.random.int(1, 6)}` : null;
      const child = new Child(["worker"], { ...storm.env, ...(fault === null ? {} : { SPILLWAY_FAULT: fault }) });
      void child.ended.then((how) =>
        appendFileSync(storm.log, `== worker (${fault ?? "no fault"}): ${how}\n${child.stderr}`),
      );
      storm.workers.push(child);
    }
    await clock.sleep(50, signal).catch(() => {});
  }
}

async function strike(storm: Storm, fault: keyof typeof FAULTS, random: Random): Promise<void> {
  const worker = storm.workers[random.int(0, Math.max(1, storm.workers.length))];
  if (fault === "kill_worker") worker?.signal("SIGKILL");
  else if (fault === "stop_worker") {
    worker?.signal("SIGSTOP");
    void clock.sleep(random.int(200, 4000)).then(() => worker?.signal("SIGCONT"));
  } else if (fault === "restart") {
    const old = storm.postgres;
    process.kill(old.pid, "SIGQUIT");
    await old.stop();
    storm.postgres = await startEmbedded({ dir: storm.dir, port: old.port, settings: SETTINGS });
  } else await backend(storm, random, fault === "kill_backend");
}

/** A session of a worker: ended, in the middle of a commit perhaps; or its process killed, upon which Postgres restarts all. */
async function backend(storm: Storm, random: Random, kill: boolean): Promise<void> {
  await withClient(storm, async (client) => {
    const { rows } = await client.query<{ pid: number }>(
      `select pid from pg_stat_activity where backend_type in ('client backend', 'walsender') and application_name <> 'chaos' order by pid`,
    );
    const victim = rows[random.int(0, Math.max(1, rows.length))];
    if (!victim) return;
    if (kill) process.kill(victim.pid, "SIGKILL");
    else await client.query("select pg_terminate_backend($1)", [victim.pid]);
  }).catch(() => {});
}

async function plant(storm: Storm): Promise<void> {
  await withClient(storm, (client) =>
    client.query(
      "begin; alter table acct_a disable trigger note; update acct_a set v = v + 7 where id = 5; alter table acct_a enable trigger note; commit",
    ),
  ).catch(() => {});
}

/** Ends what runs, and lets one worker bring everything up to now. */
async function settle(storm: Storm): Promise<void> {
  for (const worker of storm.workers.splice(0)) {
    worker.signal("SIGCONT");
    await worker.end("SIGKILL");
  }
  const last = new Child(["worker", "--once"], storm.env);
  const over = await Promise.race([last.ended, clock.sleep(SETTLE_MS)]);
  if (over === undefined) await last.end("SIGKILL");
  appendFileSync(storm.log, `== the last: ${over}\n${last.stderr}`);
}

interface Found {
  readonly differences: readonly string[];
  readonly snapshots: number;
  readonly commits: number;
  readonly stopped: readonly string[];
}

async function compare(storm: Storm, options: BenchRun): Promise<Found> {
  const { commits, tables, stopped, f } = await withClient(storm, async (client) => ({
    commits: await readHistory(client),
    tables: (
      await client.query<{ name: string; location: string }>(
        "select name, metadata_location as location from spillway.lake_table order by name",
      )
    ).rows,
    stopped: (
      await client.query<{ name: string }>(
        "select table_name || ': ' || stop_code as name from spillway.relation where state <> 'active'",
      )
    ).rows.map((r) => r.name),
    f: (await client.query<{ f: string }>("select min(f_lsn)::text as f from spillway.seam")).rows[0]?.f ?? "0/0",
  }));
  const reader = new ForeignReader();
  const published = tables
    .flatMap(({ name, location }) => {
      const metadata = readForeignMetadata(location);
      return metadata.snapshots.flatMap((snapshot) => {
        const lsn = snapshot.summary["spillway.lsn"];
        return lsn === undefined ? [] : { name, metadata, snapshot, lsn: parseLsn(lsn) };
      });
    })
    .toSorted((a, b) => (a.lsn < b.lsn ? -1 : a.lsn > b.lsn ? 1 : 0));
  options.say(`${commits.length} commits, ${published.length} snapshots; comparing`);
  const model = new HistoryModel();
  const differences = stopped.map((s) => `stopped in the end: ${s}`);
  let at = 0;
  const goTo = (lsn: bigint): void => {
    for (; at < commits.length && (commits[at]?.end ?? 0n) <= lsn; at++)
      for (const event of commits[at]?.events ?? []) model.apply(event);
  };
  for (const { name, metadata, snapshot, lsn } of published) {
    goTo(lsn);
    const rows = await reader.rows(metadata, snapshot).catch((error: unknown) => String(error));
    const text = typeof rows === "string" ? rows : differenceOf(rows, model.rows(name));
    if (text !== null) differences.push(`${name} at ${snapshot.summary["spillway.lsn"]}: ${text}`);
  }
  if ((commits.at(-1)?.end ?? 0n) > parseLsn(f)) differences.push("the end was not reached");
  return { differences, snapshots: published.length, commits: commits.length, stopped };
}

/** Null when both are the same multiset. */
export function differenceOf(lake: readonly ForeignRow[], heap: readonly HeldRow[]): string | null {
  const counts = new Map<string, number>();
  const text = (row: HeldRow): string => JSON.stringify(Object.entries(row).toSorted(([a], [b]) => a.localeCompare(b)));
  for (const row of heap) counts.set(text(row), (counts.get(text(row)) ?? 0) + 1);
  for (const row of lake) counts.set(text(row), (counts.get(text(row)) ?? 0) - 1);
  const wrong = [...counts].filter(([, n]) => n !== 0);
  if (wrong.length === 0) return null;
  const some = wrong.slice(0, 2).map(([row, n]) => `${n > 0 ? "missing" : "extra"} ${row.slice(0, 120)}`);
  return `${lake.length} rows for ${heap.length}, ${wrong.length} differ: ${some.join("; ")}`;
}
