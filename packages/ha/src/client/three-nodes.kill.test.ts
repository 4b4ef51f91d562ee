/**
 * What takes more than two nodes, or a monitor that is not there any more: number-sync-standbys, fast_forward, the guard against
 * data loss, a monitor with a new disk, hooks. Real servers, real signals.
 */
import { chmodSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { detectBinaries } from "../postgres/binaries.ts";
import { checkAcks, readIds, twoWritable } from "./checker.ts";
import { Formation, type FormationNode } from "./formation.ts";
import { sharedClock as clock } from "./shared-clock.ts";
import { inOrder, reportedStates } from "./walkthrough.ts";
import { Writer } from "./writer.ts";

const pgBin = (await detectBinaries()).dir;
let formation: Formation;
let number = 100;

async function whileWriting(work: (writer: Writer) => Promise<void>): Promise<Writer> {
  number += 1;
  const writer = new Writer({ uri: formation.uri, clock, everyMs: 20, writer: number, timeoutMs: 4_000 });
  writer.start();
  try {
    await writer.waitForAck(0, 10_000);
    await clock.sleep(600);
    await work(writer);
    await writer.waitForAck(clock.monotonicMs(), 20_000);
  } finally {
    await writer.stop();
  }
  const check = checkAcks(writer.acks, writer.unknown, await readIds(formation.uri, number));
  expect(check.lost).toEqual([]);
  expect(check.acked).toBeGreaterThan(10);
  expect(twoWritable(writer.acks)).toEqual([]);
  return writer;
}

async function lastSeq(): Promise<number> {
  return (await formation.monitor.events(1)).at(-1)?.seq ?? 0;
}

async function statesSince(seq: number, node: FormationNode): Promise<readonly string[]> {
  return reportedStates(
    (await formation.monitor.events(500)).filter((e) => e.seq > seq),
    node.name,
  );
}

async function metric(name: string): Promise<string> {
  const text = await (await fetch(`${formation.monitor.url}/metrics`)).text();
  return text
    .split("\n")
    .filter((line) => line.startsWith(name))
    .join("\n");
}

afterEach((context) => {
  if (context.task.result?.state !== "fail") return;
  for (const node of formation?.nodes ?? []) process.stderr.write(`--- ${node.name}\n${node.log().slice(-3000)}\n`);
});

describe("three nodes", () => {
  const hooked: string[] = [];
  let hookLog = "";

  beforeAll(async () => {
    formation = await Formation.start({
      clock,
      nodes: 3,
      pgBin,
      namespaces: false,
      hook: (dir) => {
        hookLog = join(dir, "hook.log");
        const program = join(dir, "hook.sh");
        writeFileSync(hookLog, "");
        chmodSync(hookLog, 0o666);
        writeFileSync(program, `#!/bin/sh\necho "$SPILLWAY_NODE $1 $SPILLWAY_ROLE" >> ${hookLog}\n`);
        chmodSync(program, 0o755);
        return program;
      },
    });
  }, 180_000);
  afterAll(() => formation?.destroy());

  test("fast_forward: the preferred standby fetches from the further one what it lacks, and nothing is lost", async () => {
    await formation.waitStable();
    const primary = await formation.primary();
    const [further, preferred] = await formation.standbys();
    if (!further || !preferred) throw new Error("no standbys");
    await formation.monitor.set({ node: preferred.name, candidatePriority: 100 });
    await formation.waitStable();
    const seq = await lastSeq();
    await whileWriting(async (w) => {
      // It streams from nowhere, and would again after a restart only.
      await preferred.sql("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'");
      await preferred.sql("SELECT pg_reload_conf()");
      await preferred.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walreceiver'");
      await preferred.sql("ALTER SYSTEM RESET primary_conninfo");
      await clock.sleep(400);
      const at = clock.monotonicMs();
      primary.killNode();
      await w.waitForAck(at + 1000, 40_000);
      await formation.waitFor("the takeover", async () => (await formation.primary()) === preferred, 30_000);
      primary.startKeeper();
      await formation.waitStable(90_000);
    });
    const states = await statesSince(seq, preferred);
    expect(inOrder([...states], ["report_lsn", "fast_forward", "prepare_promotion", "primary"]), states.join()).toBe(
      true,
    );
    expect(await statesSince(seq, further)).not.toContain("prepare_promotion");
    await formation.monitor.set({ node: preferred.name, candidatePriority: 50 });
    await formation.waitStable();
  }, 180_000);

  test("hooks: every change of role, with what the node is now", () => {
    hooked.push(...readFileSync(hookLog, "utf8").trim().split("\n"));
    const primaries = hooked.filter((line) => line.endsWith(" primary primary"));
    expect(primaries.length).toBeGreaterThanOrEqual(1);
    expect(hooked.some((line) => line.endsWith(" standby standby"))).toBe(true);
    for (const line of hooked) expect(line).toMatch(/^node\d (primary|standby|none) (primary|standby|none)$/);
  });

  test("number-sync-standbys 1: without a standby writes wait, said in explain, state and metrics; one back, they go on", async () => {
    await formation.waitStable();
    await formation.monitor.set({ numberSyncStandbys: 1 });
    await formation.waitStable();
    const primary = await formation.primary();
    const standbys = await formation.standbys();
    const writer = await whileWriting(async (w) => {
      for (const standby of standbys) standby.killNode();
      await clock.sleep(6_000);
      const before = w.acks.length;
      await clock.sleep(3_000);
      // Waiting, not asynchronous.
      expect(w.acks.length).toBe(before);
      expect(await primary.sql("SHOW synchronous_standby_names")).not.toEqual([[""]]);
      expect((await formation.monitor.explain()).join("\n")).toMatch(/writes? wait|block/i);
      const { nodes } = await formation.monitor.state();
      expect(nodes.find((n) => n.name === primary.name)?.reported).toBe("primary");
      expect(await metric("spillway_ha_writes_blocked")).toMatch(/ 1$/m);
      standbys[0]?.startKeeper();
      await w.waitForAck(clock.monotonicMs(), 40_000);
    });
    expect(new Set(writer.acks.map((a) => a.timeline)).size).toBe(1);
    standbys[1]?.startKeeper();
    await formation.waitStable(90_000);
    expect(await metric("spillway_ha_writes_blocked")).toMatch(/ 0$/m);
    await formation.monitor.set({ numberSyncStandbys: 0 });
    await formation.waitStable();
  }, 180_000);

  test("guard_data_loss: nobody is promoted while it was asynchronous; the old primary goes on when it is back", async () => {
    await formation.waitStable();
    const primary = await formation.primary();
    const standbys = await formation.standbys();
    await whileWriting(async (w) => {
      for (const standby of standbys) standby.killNode();
      await formation.waitFor("asynchronous", async () => (await formation.viewOf(primary)) === "wait_primary", 30_000);
      const at = clock.monotonicMs();
      await w.waitForAck(at, 10_000);
      await clock.sleep(500);
      primary.killNode();
      for (const standby of standbys) standby.startKeeper();
      await clock.sleep(12_000);
      const states = (await formation.view()).filter((n) => n.name !== primary.name).map((n) => n.assigned);
      expect(
        states.some((s) => ["prepare_promotion", "wait_primary", "primary", "single"].includes(s)),
        states.join(),
      ).toBe(false);
      expect((await formation.monitor.explain()).join("\n")).toMatch(/asynchronous|may lack|lose/i);
      primary.startKeeper();
      await w.waitForAck(clock.monotonicMs(), 60_000);
      await formation.waitStable(90_000);
    });
    expect(await formation.primary()).toBe(primary);
  }, 180_000);

  test("replace_monitor: a monitor with nothing takes the formation over; every row is there", async () => {
    await formation.waitStable();
    const primary = await formation.primary();
    const standbys = await formation.standbys();
    await primary.sql("CREATE TABLE kept AS SELECT g FROM generate_series(1, 1000) g");
    await formation.replaceMonitor();
    // The one that was the primary first: what it has is what the formation has.
    for (const node of [primary, ...standbys]) {
      await node.registerAgain();
      await formation.waitFor(
        `${node.name} to be in`,
        async () =>
          ["single", "wait_primary", "primary", "catchingup", "secondary"].includes(await formation.viewOf(node)),
        60_000,
      );
    }
    await formation.waitStable(90_000);
    expect(await formation.primary()).toBe(primary);
    for (const node of formation.nodes) expect(await node.sql("SELECT count(*) FROM kept")).toEqual([["1000"]]);
    await whileWriting(async () => clock.sleep(500));
    expect(existsSync(join(primary.stateDir, "rebuild-in-progress"))).toBe(false);
  }, 240_000);
});
