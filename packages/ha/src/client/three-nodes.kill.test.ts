/**
 * Three real nodes: elections that need the others' WAL, writes that wait, commits that nobody else may have, and
 * copies that are killed half-way. One formation for all tests, in the order in which they are written.
 */
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { detectBinaries } from "../postgres/binaries.ts";
import { isAlive, rebuildPrograms, sendSignal } from "../postgres/processes.ts";
import { rebuildMarker } from "../postgres/rejoin.ts";
import { Formation, type FormationNode } from "./formation.ts";
import { canMakeNamespaces } from "./netns.ts";
import { sharedClock as clock } from "./shared-clock.ts";
import { reportedStates } from "./walkthrough.ts";
import type { Writer } from "./writer.ts";
import { showLogs, writeWhile } from "./test-writing.ts";

const namespaces = canMakeNamespaces();
let formation: Formation;
let dir = "";

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), "spillway-ha-hook-"));
  chmodSync(dir, 0o777);
  const hook = join(dir, "hook.sh");
  writeFileSync(hook, `#!/bin/sh\necho "$@" "$SPILLWAY_ROLE" >> ${join(dir, "roles")}\n`);
  chmodSync(hook, 0o755);
  const pgBin = (await detectBinaries()).dir;
  formation = await Formation.start({ clock, nodes: 3, pgBin, namespaces, create: { "on-role-change": hook } });
}, 120_000);
afterAll(async () => {
  await formation?.destroy();
  rmSync(dir, { recursive: true, force: true });
});
afterEach((context) => {
  if (context.task.result?.state !== "fail") return;
  showLogs(formation);
});

function whileWriting(work: (writer: Writer) => Promise<void>): Promise<Writer> {
  return writeWhile(formation, { timeoutMs: 3_000, stableMs: 60_000 }, work);
}

async function roles(): Promise<[FormationNode, FormationNode, FormationNode]> {
  await formation.waitStable();
  const primary = await formation.primary();
  const [a, b] = formation.nodes.filter((n) => n !== primary);
  if (!a || !b) throw new Error("fewer than two standbys");
  return [primary, a, b];
}

const shown = async (): Promise<string> => (await formation.monitor.explain()).join("\n");
const blockedMetric = async (): Promise<string | undefined> =>
  /^spillway_ha_writes_blocked\{[^}]*\} (\d)/m.exec(await formation.monitor.metrics())?.[1];

describe("number-sync-standbys 1", () => {
  test("writes wait when the last standby goes, everybody says so, and they go on when one is back", async () => {
    const [primary, a, b] = await roles();
    await formation.monitor.set({ numberSyncStandbys: 1 });
    await whileWriting(async (writer) => {
      a.killNode();
      expect(await writer.waitForAck(clock.monotonicMs() + 500, 10_000)).not.toBeNull();
      expect(await blockedMetric()).toBe("0");
      b.killNode();
      await clock.sleep(4_000);
      const stopped = writer.lastAckMs ?? 0;
      await clock.sleep(2_000);
      expect(writer.lastAckMs).toBe(stopped);
      expect((await primary.sql("SHOW synchronous_standby_names"))[0]?.[0]).toContain("ANY 1");
      expect((await formation.monitor.state()).writesBlocked).toBe(true);
      expect(await blockedMetric()).toBe("1");
      expect(await shown()).toMatch(/Writes wait.*number-sync-standbys/);
      b.startKeeper();
      expect(await writer.waitForAck(clock.monotonicMs(), 30_000)).not.toBeNull();
      a.startKeeper();
    });
    expect(await formation.primary()).toBe(primary);
    expect(await blockedMetric()).toBe("0");
    await formation.monitor.set({ numberSyncStandbys: 0 });
  });
});

test("guard_data_loss: nobody is promoted while commits may be on the old primary only", async () => {
  const [primary, a, b] = await roles();
  await whileWriting(async (writer) => {
    a.killNode();
    b.killNode();
    await formation.waitFor("async", async () => (await formation.viewOf(primary)) === "wait_primary", 20_000);
    await writer.waitForAck(clock.monotonicMs() + 300, 10_000);
    primary.killNode();
    a.startKeeper();
    b.startKeeper();
    await clock.sleep(10_000);
    expect(await formation.primary()).toBe(primary);
    for (const standby of [a, b]) expect(await standby.sql("SELECT pg_is_in_recovery()")).toEqual([["t"]]);
    expect(await shown()).toMatch(/no failover: .*(asynchronous|no standby had caught up)/);
    await expect(formation.monitor.perform("failover")).rejects.toMatchObject({ code: "ha_refused" });
    primary.startKeeper();
  });
  expect(await formation.primary()).toBe(primary);
});

test.skipIf(!namespaces)(
  "fast_forward: the preferred standby fetches from the furthest one before it is promoted",
  async () => {
    const [primary, a, b] = await roles();
    await formation.monitor.set({ node: b.name, candidatePriority: 100 });
    const before = (await formation.monitor.events(1)).at(-1)?.seq ?? 0;
    await whileWriting(async (writer) => {
      b.cut();
      // Acknowledged by the other one alone; `b` has none of it.
      await writer.waitForAck(clock.monotonicMs() + 600, 10_000);
      primary.cut();
      primary.killNode();
      b.heal();
      await formation.waitFor("the takeover", async () => (await formation.primary()) === b, 30_000);
      await writer.waitForAck(clock.monotonicMs(), 30_000);
      primary.heal();
      primary.startKeeper();
    });
    expect(await formation.primary()).toBe(b);
    const events = (await formation.monitor.events(500)).filter((e) => e.seq > before);
    expect(reportedStates(events, b.name)).toContain("fast_forward");
    expect(reportedStates(events, a.name)).not.toContain("stop_replication");
    await formation.monitor.set({ node: b.name, candidatePriority: 50 });
  },
);

test("hooks are run with the new role, in order", async () => {
  const [primary, a] = await roles();
  rmSync(join(dir, "roles"), { force: true });
  await formation.monitor.perform("promotion", a.name);
  await formation.waitStable();
  const lines = (): string[] =>
    existsSync(join(dir, "roles")) ? readFileSync(join(dir, "roles"), "utf8").trim().split("\n") : [];
  const of = (node: FormationNode): string[] =>
    lines()
      .filter((l) => l.includes(` ${node.name} `))
      .map((l) => l.split(" ")[0] ?? "");
  await formation.waitFor(
    "the hooks",
    async () => of(a).includes("primary") && of(primary).at(-1) === "standby",
    10_000,
  );
  // Roles that were passed through quickly may be left out; the last one never is.
  expect(of(a).at(-1)).toBe("primary");
  expect(lines().find((l) => l.startsWith("primary"))).toBe(
    `primary wait_primary default ${a.name} ${a.host}:${a.pgPort} primary`,
  );
});

/** Stops the program that rebuilds the node's directory as soon as it is seen, and kills the keeper. */
async function killInRebuild(node: FormationNode, kind: "rewind" | "base_backup"): Promise<number[]> {
  const deadline = clock.monotonicMs() + 30_000;
  for (;;) {
    const pids = rebuildPrograms(node.pgdata);
    if (rebuildMarker(node.stateDir) === kind && pids.length > 0) {
      for (const pid of pids) sendSignal(pid, "SIGSTOP");
      node.killKeeper();
      return pids;
    }
    if (clock.monotonicMs() > deadline) throw new Error(`no ${kind} was seen`);
    await clock.sleep(1);
  }
}

/** The new keeper's words: a base backup, and no start before it. */
function expectFreshCopy(node: FormationNode): void {
  const said = node.log().split("keeper started").at(-1) ?? "";
  expect(said).toContain("base backup done");
  expect(said).not.toContain("rewound");
  expect(rebuildMarker(node.stateDir)).toBeNull();
}

test("a base backup killed half-way: its programs are ended, and a fresh one follows", async () => {
  const [, standby] = await roles();
  await whileWriting(async () => {
    standby.killNode();
    rmSync(standby.pgdata, { recursive: true });
    standby.startKeeper();
    const pids = await killInRebuild(standby, "base_backup");
    expect(standby.postmasterPid).toBeNull();
    standby.startKeeper();
    await formation.waitFor("the copy", async () => (await formation.viewOf(standby)) === "secondary", 60_000);
    expect(pids.filter(isAlive)).toEqual([]);
  });
  expectFreshCopy(standby);
});

test("a rewind killed half-way: the half directory is never started, a base backup follows", async () => {
  const [primary] = await roles();
  await whileWriting(async (writer) => {
    primary.killNode();
    await formation.waitFor("the takeover", async () => (await formation.primary()) !== primary, 30_000);
    await writer.waitForAck(clock.monotonicMs(), 20_000);
    primary.startKeeper();
    const pids = await killInRebuild(primary, "rewind");
    expect(primary.postmasterPid).toBeNull();
    primary.startKeeper();
    await formation.waitFor("the copy", async () => (await formation.viewOf(primary)) === "secondary", 60_000);
    expect(pids.filter(isAlive)).toEqual([]);
  });
  expectFreshCopy(primary);
});

test("postmasters killed three times in a row: restarted each time, no failover, no stall", async () => {
  const [primary] = await roles();
  await clock.sleep(20_000);
  const before = (await formation.monitor.events(1)).at(-1)?.seq ?? 0;
  await whileWriting(async (writer) => {
    const at = clock.monotonicMs();
    for (let i = 0; i < 3; i++) {
      primary.killPostmaster();
      await writer.waitForAck(clock.monotonicMs() + 300, 20_000);
    }
    await clock.sleep(2_000);
    expect(writer.longestGapMs(at, clock.monotonicMs())).toBeLessThan(4_000);
  });
  expect(await formation.primary()).toBe(primary);
  const events = (await formation.monitor.events(200)).filter((e) => e.seq > before);
  expect(reportedStates(events, primary.name)).toEqual([]);
});
