/**
 * `demo ha`: both walk-throughs, played on real servers: the standby is killed, then the primary. Prints what
 * the monitor decides and what a client that writes all the while notices.
 */
import { checkAcks, readIds } from "@spillway/ha/client/checker";
import { Formation, type FormationNode } from "@spillway/ha/client/formation";
import { sharedClock as clock } from "@spillway/ha/client/shared-clock";
import { Writer } from "@spillway/ha/client/writer";
import { detectBinaries } from "@spillway/ha/postgres/binaries";
import { SpillwayError } from "@spillway/base/errors";
import type { CommandContext } from "../context.ts";

interface DemoRun {
  readonly say: (text: string) => void;
  readonly signal: AbortSignal;
}

const EVERY_MS = 20;
const WRITER = 1;

/** `spillway demo ha`. Returns the exit code. */
export async function haDemo(run: CommandContext): Promise<number> {
  await play({ say: (text) => run.out.line(text), signal: run.signal });
  return 0;
}

/** Throws `demo_failed` when anything acknowledged is missing at the end. */
async function play(options: DemoRun): Promise<void> {
  const { say } = options;
  const binaries = await detectBinaries();
  say(`Postgres ${binaries.version}: a monitor and two nodes are started on this machine.`);
  const formation = await Formation.start({ clock, nodes: 2, pgBin: binaries.dir, namespaces: false });
  const writer = new Writer({ uri: formation.uri, clock, everyMs: EVERY_MS, writer: WRITER });
  try {
    await showState(formation, say);
    say(`Applications use one URI: ${formation.uri.replace(/:[^:@/]*@/, ":…@")}`);
    writer.start();
    await writer.waitForAck(0, 10_000);
    await act(options, formation, writer, "1. kill -9 of the standby's postmaster", async (_, standby) => {
      standby.killPostmaster();
      await clock.sleep(1_500);
    });
    await act(
      options,
      formation,
      writer,
      "2. the whole node of the standby dies, and comes back",
      async (_, standby) => {
        standby.killNode();
        await seen(formation, "wait_primary");
        await clock.sleep(1_000);
        standby.startKeeper();
      },
    );
    await act(options, formation, writer, "3. kill -9 of the primary's postmaster", async (primary) => {
      primary.killPostmaster();
      await clock.sleep(1_500);
    });
    await act(options, formation, writer, "4. the whole node of the primary dies, and comes back", async (primary) => {
      primary.killNode();
      await writer.waitForAck(clock.monotonicMs(), 30_000);
      primary.startKeeper();
    });
    await act(options, formation, writer, "5. switchover: back to the first one, in order", async (primary) => {
      await formation.monitor.perform("switchover");
      await formation.waitFor("the switchover", async () => (await formation.primary()) !== primary, 20_000);
    });
    await writer.stop();
    const check = checkAcks(writer.acks, writer.unknown, await readIds(formation.uri, WRITER));
    say(
      `${check.acked} rows were acknowledged, ${check.lost.length} of them lost; ${check.unknown} answers never came.`,
    );
    if (check.lost.length > 0) {
      throw new SpillwayError("demo_failed", `acknowledged rows are missing: ${check.lost.slice(0, 10).join(", ")}`);
    }
  } finally {
    await writer.stop();
    await formation.destroy();
  }
}

async function act(
  options: DemoRun,
  formation: Formation,
  writer: Writer,
  title: string,
  what: (primary: FormationNode, standby: FormationNode) => Promise<void>,
): Promise<void> {
  const { say } = options;
  options.signal.throwIfAborted();
  const primary = await formation.primary();
  const standby = formation.nodes.find((n) => n !== primary) ?? primary;
  const seq = (await formation.monitor.events(1)).at(-1)?.seq ?? 0;
  say(`\n=== ${title}`);
  const atMs = clock.monotonicMs();
  await what(primary, standby);
  // What happened is on record before the formation is asked whether it has settled.
  await clock.sleep(500);
  await formation.waitStable(60_000);
  await writer.waitForAck(clock.monotonicMs(), 10_000);
  for (const event of (await formation.monitor.events(200)).filter((e) => e.seq > seq && e.kind === "reported")) {
    const time = new Date(event.atMs).toISOString().slice(11, 23);
    say(`${time} ${event.node}: ${event.from} -> ${event.to}: ${event.reason}`);
  }
  const gapMs = Math.round(writer.longestGapMs(atMs, clock.monotonicMs()));
  say(`The client's longest wait for an acknowledgement: ${gapMs} ms.`);
  await showState(formation, say);
}

async function seen(formation: Formation, state: string): Promise<void> {
  await formation.waitFor(state, async () => (await formation.view()).some((n) => n.reported === state), 30_000);
}

async function showState(formation: Formation, say: (text: string) => void): Promise<void> {
  const { nodes, synchronous } = await formation.monitor.state();
  for (const n of nodes) {
    const lag = n.lagBytes === null ? "" : `, ${n.lagBytes} bytes behind`;
    say(`  ${n.name} ${n.host}:${n.pgPort}  ${n.reported} (assigned ${n.assigned}), timeline ${n.tli}, ${n.lsn}${lag}`);
  }
  say(`  ${synchronous ? "synchronous" : "asynchronous"}`);
}
