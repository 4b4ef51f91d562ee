/**
 * `chaos ha`: three nodes, and at random moments something dies, stands still or is cut off, and comes back. A
 * writer goes through the multi-host URI, another one sits beside each primary that is about to be hit. At the
 * end of each round the formation must be synchronous again within 30 s of the heal; at the end of all, every
 * acknowledged row must be there, and no two servers may have acknowledged on diverging timelines. With `--mirror`
 * (on, unless quick; Postgres 18) a worker mirrors the table all the while.
 */
import { checkAcks, readIds, twoWritable } from "@spillway/ha/client/checker";
import { Formation, type FormationNode } from "@spillway/ha/client/formation";
import { InsideWriter } from "@spillway/ha/client/inside-writer";
import { canMakeNamespaces } from "@spillway/ha/client/netns";
import { sharedClock } from "@spillway/ha/client/shared-clock";
import { Writer } from "@spillway/ha/client/writer";
import { detectBinaries } from "@spillway/ha/postgres/binaries";
import { atMost, report, type Bench, type BenchRun } from "../bench/report.ts";
import { embeddedBinDir, runAsPostgres } from "../embedded/binaries.ts";
import { ChaosMirror, type MirrorVerdict } from "./ha-mirror.ts";

const EVERY_MS = 20;
const SYNC_LIMIT_S = 30;
const MAIN_WRITER = 1;
const CLIENT_TIMEOUT_MS = 3_000;

/** What can be done to a node, and how it is undone. */
const BLOWS = [
  "postmaster",
  "node",
  "keeper",
  "keeper_stop",
  "stall",
  "stall_all",
  "cut",
  "monitor",
  "monitor_stop",
  "switchover",
  "pair",
] as const;
type Blow = (typeof BLOWS)[number];

interface Round {
  readonly blow: Blow;
  readonly target: string;
  readonly holdMs: number;
  readonly syncS: number | null;
}

interface Judged {
  acked: number;
  lost: number;
  twoWritable: number;
}

/** A small generator (mulberry32): the same seed gives the same sequence of blows. */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
}

export const run: Bench = async (options) => {
  const seconds = options.option("seconds", options.quick ? 25 : 600);
  const seed = options.option("seed", 1);
  const namespaces = canMakeNamespaces();
  const mirrored = options.option("mirror", options.quick ? 0 : 1) !== 0;
  const binaries = await detectBinaries(mirrored ? { pgBin: embeddedBinDir(runAsPostgres()) } : {});
  const formation = await Formation.start({
    clock: sharedClock,
    nodes: 3,
    pgBin: binaries.dir,
    namespaces,
    say: options.say,
  });
  const raw = { seconds, seed, namespaces, postgres: binaries.version };
  let mirror: ChaosMirror | null = null;
  try {
    if (mirrored) {
      mirror = await ChaosMirror.start(formation, sharedClock);
      options.say("a worker mirrors the table that is written");
    }
    return await storm(formation, options, seconds, seeded(seed), raw, mirror);
  } finally {
    await mirror?.close();
    await formation.destroy();
  }
};

async function storm(
  formation: Formation,
  options: BenchRun,
  seconds: number,
  random: () => number,
  raw: Record<string, unknown>,
  mirror: ChaosMirror | null,
) {
  const clock = sharedClock;
  const { uri } = formation;
  const writer = new Writer({ uri, clock, everyMs: EVERY_MS, writer: MAIN_WRITER, timeoutMs: CLIENT_TIMEOUT_MS });
  const rounds: Round[] = [];
  const beside: { number: number; writer: InsideWriter }[] = [];
  const endMs = clock.monotonicMs() + seconds * 1000;
  let judged: Judged = { acked: 0, lost: 0, twoWritable: 0 };
  let lake: MirrorVerdict | null = null;
  writer.start();
  try {
    while (clock.monotonicMs() < endMs && !options.signal.aborted) {
      const round = await oneRound(formation, random, beside);
      rounds.push(round);
      const sync =
        round.syncS === null ? "NOT synchronous again" : `synchronous again after ${round.syncS.toFixed(1)} s`;
      options.say(`${round.blow} ${round.target} for ${round.holdMs} ms: ${sync}`);
      if (round.syncS === null) {
        options.say(await diagnosis(formation));
        break;
      }
    }
    await writer.stop();
    await Promise.all(beside.map((b) => b.writer.stop()));
    judged = await judge(uri, writer, beside);
    lake = (await mirror?.judge()) ?? null;
    if (lake !== null && (lake.differ > 0 || lake.recopied > 0)) options.say(mirror?.said ?? "");
  } finally {
    await writer.stop();
    await Promise.all(beside.map((b) => b.writer.stop()));
  }
  const stuck = rounds.filter((r) => r.syncS === null).length;
  const slowest = Math.max(0, ...rounds.map((r) => r.syncS ?? SYNC_LIMIT_S + 1));
  const bars = {
    lost_acked: atMost(judged.lost, 0),
    two_writable: atMost(judged.twoWritable, 0),
    sync_again_s: atMost(slowest, SYNC_LIMIT_S),
    ...(lake === null ? {} : { lake_differs: atMost(lake.differ, 0), lake_recopied: atMost(lake.recopied, 0) }),
  };
  const counts = Object.fromEntries(BLOWS.map((b) => [b, rounds.filter((r) => r.blow === b).length]));
  return report("chaos-ha", bars, {
    ...raw,
    rounds: rounds.length,
    stuck,
    acked: judged.acked,
    blows: counts,
    mirror: lake,
  });
}

async function judge(
  uri: string,
  writer: Writer,
  beside: readonly { number: number; writer: InsideWriter }[],
): Promise<Judged> {
  const main = checkAcks(writer.acks, writer.unknown, await readIds(uri, MAIN_WRITER));
  const all = [...writer.acks];
  let { acked } = main;
  let lost = main.lost.length;
  for (const { number, writer: other } of beside) {
    const check = checkAcks(other.acks, [], await readIds(uri, number));
    acked += check.acked;
    lost += check.lost.length;
    all.push(...other.acks);
  }
  return { acked, lost, twoWritable: twoWritable(all).length };
}

async function oneRound(
  formation: Formation,
  random: () => number,
  beside: { number: number; writer: InsideWriter }[],
): Promise<Round> {
  const clock = sharedClock;
  const choices = BLOWS.filter((b) => b !== "cut" || formation.lab !== null);
  const blow = choices[Math.floor(random() * choices.length)] ?? "postmaster";
  const primary = await formation.primary();
  // Two blows in three hit the primary.
  const any = formation.nodes[Math.floor(random() * formation.nodes.length)] ?? primary;
  const target = random() < 0.66 ? primary : any;
  const holdMs = Math.round(300 + random() * (random() < 0.3 ? 12_000 : 5_000));
  await clock.sleep(300 + random() * 1_500);
  const hurtsOnlyHere = blow === "cut" || blow === "stall" || blow === "keeper_stop";
  const inside = target === primary && hurtsOnlyHere ? placeBeside(primary, formation, beside.length + 2) : null;
  if (inside !== null) {
    beside.push(inside);
    await clock.sleep(400);
  }
  const undo = await strike(blow, formation, target);
  await clock.sleep(holdMs);
  await undo();
  const syncS = await formation.waitStable(SYNC_LIMIT_S * 1000).then(
    (ms) => ms / 1000,
    () => null,
  );
  await inside?.writer.stop();
  return { blow, target: blow.startsWith("monitor") ? "monitor" : target.name, holdMs, syncS };
}

function placeBeside(
  primary: FormationNode,
  formation: Formation,
  number: number,
): { number: number; writer: InsideWriter } {
  const uri = formation.uri.replace(/@[^/]*\//, `@${primary.host}:${primary.pgPort}/`);
  return { number, writer: new InsideWriter(primary.net, uri, number, EVERY_MS) };
}

type Undo = () => Promise<void> | void;

async function strike(blow: Blow, formation: Formation, target: FormationNode): Promise<Undo> {
  const { monitor } = formation;
  switch (blow) {
    case "postmaster":
      target.killPostmaster();
      return () => {};
    case "node":
      target.killNode();
      return () => target.startKeeper();
    case "keeper":
      target.killKeeper();
      return () => target.startKeeper();
    case "keeper_stop":
      target.killKeeper("SIGSTOP");
      return () => target.killKeeper("SIGCONT");
    case "stall":
      target.stall();
      return () => target.resume();
    case "stall_all":
      target.stall(true);
      return () => target.resume();
    case "cut":
      target.cut();
      return () => target.heal();
    case "monitor":
      await monitor.kill();
      return () => monitor.run();
    case "monitor_stop":
      monitor.signal("SIGSTOP");
      return () => monitor.signal("SIGCONT");
    case "switchover":
      // Refused when something is under way already: then nothing happens, which is right as well.
      await monitor.perform("switchover").catch(() => {});
      return () => {};
    case "pair": {
      // The monitor and a node at once: nobody can decide, nobody may do wrong.
      await monitor.kill();
      target.killNode();
      return async () => {
        await monitor.run();
        target.startKeeper();
      };
    }
  }
}

async function diagnosis(formation: Formation): Promise<string> {
  const lines = await formation.monitor.explain().catch((error: unknown) => [String(error)]);
  const logs = formation.nodes.map((n) => `--- ${n.name}\n${n.log().split("\n").slice(-15).join("\n")}`);
  return [...lines, ...logs].join("\n");
}
