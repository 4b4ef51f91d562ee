/**
 * `bench failover`: how long a client is without writes when something dies, and whether it loses any.
 * A real formation (monitor, keepers, watchdogs, Postgres) with default settings and one synchronous standby; a
 * client writes a row every 20 ms through the multi-host URI. Everything dies by real signals; where the rights
 * suffice each node is in a network namespace of its own, so that the partition is a pulled cable.
 */
import { checkAcks, readIds, twoWritable } from "@spillway/ha/client/checker";
import { Formation, type FormationNode } from "@spillway/ha/client/formation";
import { InsideWriter } from "@spillway/ha/client/inside-writer";
import { canMakeNamespaces } from "@spillway/ha/client/netns";
import { sharedClock } from "@spillway/ha/client/shared-clock";
import { Writer, type Ack } from "@spillway/ha/client/writer";
import { detectBinaries } from "@spillway/ha/postgres/binaries";
import { atMost, median, report, type Bar, type Bench, type BenchRun } from "./report.ts";

const EVERY_MS = 20;
/** No failed statement and no pause longer than this: nothing that the formation did (its own waits are of a second). */
const NOISE_S = 0.25;
const LIMITS = { postmaster: 1.5, node: 6, switchover: 1, standby: 3, monitor: 0, partition: 10, stall: 10 } as const;
type Event = keyof typeof LIMITS;
const EVENTS = Object.keys(LIMITS) as Event[];
const WRITER_TIMEOUT_MS = 5_000;
/** In a partition the client has nothing but its own patience. */
const CUT_TIMEOUT_MS = 2_000;

interface Outcome {
  readonly outageS: number;
  readonly lost: number;
  readonly unknown: number;
  readonly acked: number;
  readonly twoWritable: number;
  readonly stableS: number;
  readonly timelineKept: boolean;
  readonly errors: number;
}

export const run: Bench = async (options) => {
  const namespaces = canMakeNamespaces();
  const runs = options.option("runs", options.quick ? 1 : 5);
  const binaries = await detectBinaries();
  const formation = await Formation.start({
    clock: sharedClock,
    nodes: 2,
    pgBin: binaries.dir,
    namespaces,
    say: options.say,
  });
  try {
    const outcomes = await measure(formation, options, runs, namespaces);
    return summarize(outcomes, { runs, namespaces, postgres: binaries.version, standbys: 1 });
  } finally {
    await formation.destroy();
  }
};

async function measure(
  formation: Formation,
  options: BenchRun,
  runs: number,
  namespaces: boolean,
): Promise<Map<Event, Outcome[]>> {
  const outcomes = new Map<Event, Outcome[]>(EVENTS.map((event) => [event, []]));
  let writer = 0;
  for (let i = 0; i < runs; i++) {
    for (const event of EVENTS) {
      if (event === "partition" && !namespaces) continue;
      options.signal.throwIfAborted();
      writer += 2;
      const outcome = await once(formation, event, writer, options.quick);
      outcomes.get(event)?.push(outcome);
      options.say(
        `${event}: ${outcome.outageS.toFixed(2)} s without writes, ${outcome.acked} acknowledged, ${outcome.lost} lost, stable ${outcome.stableS.toFixed(1)} s after`,
      );
    }
  }
  return outcomes;
}

/** One event: before, during, after; then everything is compared with what the table holds. */
async function once(formation: Formation, event: Event, number: number, quick: boolean): Promise<Outcome> {
  const clock = sharedClock;
  const uri = formation.uri;
  const timeoutMs = event === "partition" || event === "stall" ? CUT_TIMEOUT_MS : WRITER_TIMEOUT_MS;
  const writer = new Writer({ uri, clock, everyMs: EVERY_MS, writer: number, timeoutMs });
  const primary = await formation.primary();
  const standby = formation.nodes.find((n) => n !== primary) ?? primary;
  // The client beside the primary, which is cut off, or stands still, with it.
  const beside = event === "partition" || event === "stall" ? besideWriter(primary, formation, number + 1) : null;
  writer.start();
  try {
    await writer.waitForAck(0, 10_000);
    await clock.sleep(quick ? 500 : 1_500);
    const timeline = writer.acks.at(-1)?.timeline;
    const atMs = clock.monotonicMs();
    await cause(event, formation, primary, standby, quick);
    await writer.waitForAck(clock.monotonicMs(), 60_000);
    const until = clock.monotonicMs() + (quick ? 300 : 1_500);
    await clock.sleep(until - clock.monotonicMs());
    const outageS = (writer.longestGapMs(atMs, clock.monotonicMs()) - EVERY_MS) / 1000;
    await heal(event, formation, primary, standby);
    const stableS = (await formation.waitStable(60_000)) / 1000;
    await writer.stop();
    await beside?.stop();
    return await judge(uri, writer, beside, number, outageS, stableS, writer.acks.at(-1)?.timeline === timeline);
  } finally {
    await writer.stop();
    await beside?.stop();
  }
}

function besideWriter(primary: FormationNode, formation: Formation, number: number): InsideWriter {
  const uri = formation.uri.replace(/@[^/]*\//, `@${primary.host}:${primary.pgPort}/`);
  return new InsideWriter(primary.net, uri, number, EVERY_MS);
}

async function judge(
  uri: string,
  writer: Writer,
  beside: InsideWriter | null,
  number: number,
  outageS: number,
  stableS: number,
  timelineKept: boolean,
): Promise<Outcome> {
  const check = checkAcks(writer.acks, writer.unknown, await readIds(uri, number));
  const other = beside ? checkAcks(beside.acks, [], await readIds(uri, number + 1)) : null;
  const all: Ack[] = [...writer.acks, ...(beside?.acks ?? [])];
  return {
    outageS,
    stableS,
    timelineKept,
    errors: writer.errors,
    acked: check.acked + (other?.acked ?? 0),
    lost: check.lost.length + (other?.lost.length ?? 0),
    unknown: check.unknown,
    twoWritable: twoWritable(all).length,
  };
}

async function cause(
  event: Event,
  formation: Formation,
  primary: FormationNode,
  standby: FormationNode,
  quick: boolean,
): Promise<void> {
  switch (event) {
    case "postmaster":
      return primary.killPostmaster();
    case "node":
      return primary.killNode();
    case "switchover":
      await formation.monitor.perform("switchover");
      return formation.waitFor("the switchover", async () => (await formation.primary()) !== primary, 20_000);
    case "standby":
      return standby.killNode();
    case "monitor":
      await formation.monitor.kill();
      // Longer than any lease: the standby's keeper has to do.
      return sharedClock.sleep(quick ? 3_500 : 6_000);
    case "partition":
      return primary.cut();
    case "stall":
      primary.stall();
      return sharedClock.sleep(quick ? 6_000 : 30_000);
  }
}

async function heal(event: Event, formation: Formation, primary: FormationNode, standby: FormationNode): Promise<void> {
  if (event === "node") primary.startKeeper();
  if (event === "standby") standby.startKeeper();
  if (event === "monitor") await formation.monitor.run();
  if (event === "partition") primary.heal();
  if (event === "stall") {
    primary.resume();
    // What the revived one might still say has its chance now.
    await sharedClock.sleep(1_000);
  }
}

function summarize(outcomes: Map<Event, Outcome[]>, raw: Record<string, unknown>) {
  const bars: Record<string, Bar> = {};
  const events: Record<string, unknown> = {};
  const all = [...outcomes.values()].flat();
  for (const [event, list] of outcomes) {
    if (list.length === 0) continue;
    const seconds = list.map((o) => (event === "monitor" && o.errors === 0 && o.outageS < NOISE_S ? 0 : o.outageS));
    const worst = Math.max(...seconds);
    // The worst run has to pass, not the median.
    bars[`${event}_s`] = atMost(worst, LIMITS[event]);
    events[event] = {
      median_s: round(median(seconds)),
      worst_s: round(worst),
      runs_s: seconds.map(round),
      stable_after_s: list.map((o) => round(o.stableS)),
    };
  }
  const kept = outcomes.get("postmaster")?.every((o) => o.timelineKept) ?? false;
  bars["postmaster_timeline_changed"] = atMost(kept ? 0 : 1, 0);
  bars["lost_acked"] = atMost(sum(all.map((o) => o.lost)), 0);
  bars["two_writable"] = atMost(sum(all.map((o) => o.twoWritable)), 0);
  return report("failover", bars, {
    ...raw,
    acked: sum(all.map((o) => o.acked)),
    unknown: sum(all.map((o) => o.unknown)),
    events,
  });
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

function round(value: number): number {
  return Number(value.toFixed(3));
}
