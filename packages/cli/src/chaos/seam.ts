/**
 * `chaos seam`: random kills of workers, Postgres and readers while several clients write by every way there is and a
 * reading process reads through the seam; every read and the end are compared with what was committed. The seed
 * determines what every actor does and what goes wrong when; the threads of the machine remain its own.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { sharedClock as clock } from "@spillway/ha/client/shared-clock";
import { connect, endClient } from "@spillway/pg/connect";
import { runChild } from "../bench/child.ts";
import { atMost, report, type Bench, type BenchRun } from "../bench/report.ts";
import type { Client } from "../bench/scratch.ts";
import { reachableTemp, runAsPostgres } from "../embedded/binaries.ts";
import { ChaosClient } from "./seam-client.ts";
import { schedule, Victims } from "./seam-faults.ts";
import { type Fault, type FaultKind, Model } from "./seam-model.ts";
import { openChaosSeam, type OpenSeam } from "./seam-open.ts";
import { type ReadLine, seenRow } from "./seam-reader.ts";
import { settle } from "./seam-settle.ts";
import { type ChaosTable, createTable, FIRST_HEAD, POLICY, registerArgs, TABLES } from "./seam-tables.ts";

const CLIENTS = 6;
const READERS = 2;
const PAUSE_MS = 10;
/** Keys by which the newest grows in a second. */
const PACE = 25;
/** A planted fault, to see that this program finds one: the captures of the tables record nothing. */
const PLANT = "SPILLWAY_CHAOS_PLANT";

export const run: Bench = async (options) => {
  const seconds = options.option("seconds", options.quick ? 20 : 300);
  const seed = options.option("seed", Math.floor(clock.wallMs()) % 100_000);
  const home = mkdtempSync(join(tmpdir(), "spillway-chaos-"));
  const logFile = join(home, "reads.ndjson");
  const env = (url: string): Record<string, string> => ({
    SPILLWAY_DATABASE_URL: url,
    SPILLWAY_WAREHOUSE: join(home, "lake"),
    SPILLWAY_CACHE_DIR: join(home, "cache"),
    SPILLWAY_METRICS_LISTEN: "off",
    SPILLWAY_CAMPAIGN_INTERVAL: "500ms",
    SPILLWAY_CYCLE_INTERVAL: "200ms",
    SPILLWAY_RESTORE_WINDOW: "1s",
  });
  options.say(`seed ${seed}, ${seconds} s`);
  const victims = await Victims.open(reachableTemp(runAsPostgres()), env, seed, logFile);
  let kept = false;
  try {
    const chaos = await prepare(victims, seed);
    await storm(chaos, victims, options, seed, seconds * 1000);
    const reads = readLog(logFile);
    const found = checkReads(chaos.models, reads);
    options.say(`${reads.length} reads checked, ${found.length} faults; coming to rest`);
    const client = await connect(victims.url, { applicationName: "chaos" });
    const inStorm = await movements(client);
    const settled = await settle(client, victims.env, chaos.models);
    const moved = await movements(client);
    await endClient(client);
    const faults = [...found, ...settled.faults];
    for (const fault of faults.slice(0, 20)) options.say(`${fault.kind}: ${fault.detail}`);
    for (const leftover of settled.leftovers.slice(0, 20)) options.say(leftover);
    kept = faults.length > 0 || settled.leftovers.length > 0;
    return summarize(seed, seconds, faults, settled.leftovers, reads, {
      transactions: sorted(chaos.counts),
      moved,
      moved_in_storm: inStorm,
    });
  } finally {
    await victims.close();
    if (kept || process.env["SPILLWAY_CHAOS_KEEP"]) options.say(`kept: ${home}`);
    else rmSync(home, { recursive: true, force: true });
  }
};

interface Chaos {
  readonly models: ReadonlyMap<ChaosTable, Model>;
  readonly counts: Map<string, number>;
  readonly clients: readonly ChaosClient[];
  readonly opened: OpenSeam;
  begin: () => void;
}

async function prepare(victims: Victims, seed: number): Promise<Chaos> {
  await runChild(["init"], victims.env);
  const client = await connect(victims.url, { applicationName: "chaos" });
  await client.query("create table chaos_tx (n bigint primary key)");
  for (const table of TABLES) {
    await createTable(client, table);
    await runChild(registerArgs(table), victims.env);
  }
  await client.query("update spillway.relation set policy = $1", [JSON.stringify(POLICY)]);
  await endClient(client);
  const models = new Map(TABLES.map((table) => [table, new Model()]));
  const counts = new Map<string, number>();
  let startMs = clock.monotonicMs();
  const opened = await openChaosSeam(victims.env, "chaos statements");
  const clients = Array.from(
    { length: CLIENTS },
    (_, i) =>
      new ChaosClient({
        number: i + 1,
        seed,
        url: victims.url,
        seam: opened.seam,
        models,
        head: () => FIRST_HEAD + ((clock.monotonicMs() - startMs) / 1000) * PACE,
        count: (what) => void counts.set(what, (counts.get(what) ?? 0) + 1),
        pauseMs: PAUSE_MS,
      }),
  );
  return { models, counts, clients, opened, begin: () => (startMs = clock.monotonicMs()) };
}

/** The time of the faults. Returns when clients, workers and readers have ended. */
async function storm(chaos: Chaos, victims: Victims, options: BenchRun, seed: number, totalMs: number): Promise<void> {
  const over = new AbortController();
  const signal = AbortSignal.any([over.signal, options.signal]);
  chaos.begin();
  const startMs = clock.monotonicMs();
  const alive = victims.keepAlive(2, READERS, signal);
  const clients = chaos.clients.map((client) => client.run(signal));
  const planted = process.env[PLANT] ? plant(victims.url, signal) : Promise.resolve();
  for (const fault of schedule(seed, totalMs)) {
    await clock.sleep(Math.max(0, startMs + fault.atMs - clock.monotonicMs()), signal).catch(() => {});
    if (signal.aborted) break;
    await victims.strike(fault);
    chaos.counts.set(`fault ${fault.name}`, (chaos.counts.get(`fault ${fault.name}`) ?? 0) + 1);
  }
  await clock.sleep(Math.max(0, startMs + totalMs - clock.monotonicMs()), signal).catch(() => {});
  over.abort();
  await Promise.all([alive, planted, ...clients]);
  await victims.stopAll();
  for (const client of chaos.clients) await client.close();
  await chaos.opened.close();
  options.signal.throwIfAborted();
}

/** Empties the capture functions again and again, behind the worker's back. */
async function plant(url: string, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    try {
      const client = await connect(url, { applicationName: "chaos plant", connectTimeoutMs: 1000 });
      await client.query(`do $do$ declare f record; begin
        for f in select p.oid::regprocedure as name from pg_proc p where p.pronamespace = 'spillway'::regnamespace
          and p.proname ~ '^capture_[0-9]+_[0-9]+$' and p.prosrc <> 'begin return null; end' loop
          execute format('create or replace function %s returns trigger language plpgsql as $f$begin return null; end$f$', f.name);
        end loop; end $do$`);
      await endClient(client);
    } catch {
      // Postgres is down for the moment.
    }
    await clock.sleep(50, signal).catch(() => {});
  }
}

function readLog(path: string): ReadLine[] {
  if (!existsSync(path)) return [];
  const lines = readFileSync(path, "utf8").split("\n");
  return lines.flatMap((line) => {
    try {
      return line === "" ? [] : [JSON.parse(line) as ReadLine];
    } catch {
      // The reader was killed in the middle of it.
      return [];
    }
  });
}

export function checkReads(models: ReadonlyMap<ChaosTable, Model>, reads: readonly ReadLine[]): Fault[] {
  const byName = new Map([...models].map(([table, model]) => [table.name, model]));
  return reads.flatMap((read): Fault[] => {
    if (read.kind === "error") return [];
    if (read.kind === "rows") {
      const model = must(byName.get(read.table), "model");
      const faults = model.check({ ...read, rows: read.rows.map(seenRow) });
      return faults.map(({ kind, detail }) => ({ kind, detail: `${read.table}: ${detail}` }));
    }
    if (read.fault === null) return [];
    const kind = (["torn", "doubled"] as const).find((k) => read.fault?.startsWith(k)) ?? "lost";
    return [{ kind, detail: `${read.table}, ${read.kind}: ${read.fault}` }];
  });
}

/** Errors that a reader may meet while things die: it is told, and reads again. */
const PASSING = /^(08...|57...|40...|55P03|25P0.|pg_.*|pin_lost|seam_moving|seam_columns_changed|interrupted)$/;

function summarize(
  seed: number,
  seconds: number,
  faults: readonly Fault[],
  leftovers: readonly string[],
  reads: readonly ReadLine[],
  raw: Record<string, unknown>,
) {
  const count = (kind: FaultKind): number => faults.filter((fault) => fault.kind === kind).length;
  const errors = new Map<string, number>();
  for (const read of reads) if (read.kind === "error") errors.set(read.reason, (errors.get(read.reason) ?? 0) + 1);
  const wrong = [...errors].filter(([reason]) => !PASSING.test(reason));
  const bars = {
    lost: atMost(count("lost"), 0),
    doubled: atMost(count("doubled"), 0),
    torn: atMost(count("torn"), 0),
    leftovers: atMost(leftovers.length, 0),
    read_errors: atMost(
      wrong.reduce((sum, [, n]) => sum + n, 0),
      0,
    ),
  };
  const kinds = countKinds(reads);
  return report("chaos_seam", bars, {
    seed,
    seconds,
    reads: kinds,
    errors: sorted(errors),
    ...raw,
    faults: faults.slice(0, 20),
    left: leftovers.slice(0, 20),
  });
}

async function movements(client: Client): Promise<Record<string, number>> {
  const { rows } = await client.query<{ what: string; n: number }>(
    "select kind || ' ' || phase as what, count(*)::int as n from spillway.journal group by 1 order by 1",
  );
  return Object.fromEntries(rows.map((row) => [row.what, row.n]));
}

function sorted(counts: ReadonlyMap<string, number>): Record<string, number> {
  return Object.fromEntries([...counts].toSorted(([a], [b]) => a.localeCompare(b)));
}

function countKinds(reads: readonly ReadLine[]): Record<string, number> {
  const counts = new Map<string, number>();
  for (const read of reads) counts.set(read.kind, (counts.get(read.kind) ?? 0) + 1);
  return sorted(counts);
}
