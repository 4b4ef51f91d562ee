/**
 * The seed's two walk-throughs and the failures around them, on real servers with real signals. One formation
 * of two nodes for all tests of a block, in the order in which they are written.
 */
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { detectBinaries } from "../postgres/binaries.ts";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { Formation, type FormationNode } from "./formation.ts";
import { canMakeNamespaces } from "./netns.ts";
import { sharedClock as clock } from "./shared-clock.ts";
import type { Writer } from "./writer.ts";
import { showLogs, writeWhile } from "./test-writing.ts";
import { inOrder, reportedStates } from "./walkthrough.ts";

const pgBin = (await detectBinaries()).dir;
let formation: Formation;

function whileWriting(work: (writer: Writer) => Promise<void>): Promise<Writer> {
  return writeWhile(formation, { timeoutMs: 4_000, stableMs: 40_000 }, work);
}

async function roles(): Promise<[FormationNode, FormationNode]> {
  await formation.waitStable();
  const primary = await formation.primary();
  const standby = formation.nodes.find((n) => n !== primary);
  if (!standby) throw new Error("no standby");
  return [primary, standby];
}

/** Events since `seq`, and the seq before. */
async function eventsSince(seq: number): ReturnType<Formation["monitor"]["events"]> {
  return (await formation.monitor.events(500)).filter((e) => e.seq > seq);
}

async function lastSeq(): Promise<number> {
  return (await formation.monitor.events(1)).at(-1)?.seq ?? 0;
}

afterEach((context) => {
  if (context.task.result?.state !== "fail") return;
  showLogs(formation);
});

describe("two nodes", () => {
  beforeAll(async () => {
    formation = await Formation.start({ clock, nodes: 2, pgBin, namespaces: canMakeNamespaces() });
  }, 120_000);
  afterAll(() => formation?.destroy());

  test("what is private is private, and only the formation's nodes get in for replication", async () => {
    const [primary] = await roles();
    for (const name of ["keeper.json", "core.json", "pgpass", "conf.json"]) {
      expect(statSync(join(primary.stateDir, name)).mode & 0o777, name).toBe(0o600);
    }
    expect(statSync(primary.stateDir).mode & 0o777).toBe(0o700);
    const hba = readFileSync(join(primary.pgdata, "pg_hba.conf"), "utf8");
    for (const node of formation.nodes)
      expect(hba).toContain(`host replication "spillway_replicator" ${node.host}/32 scram-sha-256`);
    expect(hba).toContain('host replication "spillway_replicator" all reject');
    const hashed = await primary.sql(
      "SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = 'spillway_replicator'",
    );
    expect(hashed).toEqual([["t"]]);
  });

  test("the role endpoints say who is who", async () => {
    const [primary, standby] = await roles();
    const ask = async (node: FormationNode, path: string): Promise<number> =>
      (await fetch(`http://${node.host}:${node.keeperPort}${path}`)).status;
    expect([await ask(primary, "/primary"), await ask(primary, "/standby"), await ask(primary, "/health")]).toEqual([
      200, 503, 200,
    ]);
    expect([await ask(standby, "/primary"), await ask(standby, "/standby"), await ask(standby, "/health")]).toEqual([
      503, 200, 200,
    ]);
    expect(await ask(primary, "/v1/promise")).toBe(404);
    const metrics = await (await fetch(`http://${primary.host}:${primary.keeperPort}/metrics`)).text();
    expect(metrics).toMatch(/spillway_ha_node_state\{[^}]*state="primary"[^}]*\} 1/);
  });

  test("a killed postmaster is restarted on the spot: no failover, same timeline", async () => {
    const [primary, standby] = await roles();
    const seq = await lastSeq();
    const writer = await whileWriting(async (w) => {
      primary.killPostmaster();
      await w.waitForAck(clock.monotonicMs(), 20_000);
      await clock.sleep(500);
      standby.killPostmaster();
      await clock.sleep(1_500);
    });
    expect(await formation.primary()).toBe(primary);
    expect(new Set(writer.acks.map((a) => a.timeline)).size).toBe(1);
    expect(reportedStates(await eventsSince(seq), primary.name)).toEqual([]);
  });

  test("walk-through 1, the standby's node dies: asynchronous, caught up, synchronous again", async () => {
    const [primary, standby] = await roles();
    const seq = await lastSeq();
    const writer = await whileWriting(async (w) => {
      const at = clock.monotonicMs();
      standby.killNode();
      await w.waitForAck(at, 20_000);
      expect(w.longestGapMs(at, clock.monotonicMs())).toBeLessThan(5_000);
      await formation.waitFor("async", async () => (await formation.view()).some((n) => n.reported === "wait_primary"));
      expect(await primary.sql("SHOW synchronous_standby_names")).toEqual([[""]]);
      standby.startKeeper();
    });
    const events = await eventsSince(seq);
    expect(reportedStates(events, primary.name)).toEqual(["wait_primary", "primary"]);
    expect(reportedStates(events, standby.name)).toEqual(["catchingup", "secondary"]);
    expect(new Set(writer.acks.map((a) => a.timeline)).size).toBe(1);
    expect(await primary.sql("SHOW synchronous_standby_names")).not.toEqual([[""]]);
  });

  test("walk-through 2, the primary's node dies: the standby takes over, the old one rejoins", async () => {
    const [primary, standby] = await roles();
    const seq = await lastSeq();
    const writer = await whileWriting(async (w) => {
      const at = clock.monotonicMs();
      primary.killNode();
      const ack = await w.waitForAck(at, 30_000);
      expect(ack?.server).toContain(standby.host);
      expect(w.longestGapMs(at, clock.monotonicMs())).toBeLessThan(10_000);
      primary.startKeeper();
    });
    const events = await eventsSince(seq);
    const taken = reportedStates(events, standby.name);
    expect(inOrder(taken, ["prepare_promotion", "stop_replication", "wait_primary", "primary"]), taken.join()).toBe(
      true,
    );
    const rejoined = reportedStates(events, primary.name);
    expect(inOrder(rejoined, ["demoted", "catchingup", "secondary"]), rejoined.join()).toBe(true);
    expect(await formation.primary()).toBe(standby);
    expect(Math.max(...writer.acks.map((a) => a.timeline))).toBe(Math.min(...writer.acks.map((a) => a.timeline)) + 1);
  });

  test("switchover: in order, in a moment", async () => {
    const [primary, standby] = await roles();
    const writer = await whileWriting(async (w) => {
      const at = clock.monotonicMs();
      await formation.monitor.perform("switchover");
      await formation.waitFor("the switchover", async () => (await formation.primary()) === standby, 20_000);
      await w.waitForAck(clock.monotonicMs(), 20_000);
      expect(w.longestGapMs(at, clock.monotonicMs())).toBeLessThan(3_000);
    });
    expect(writer.acks.at(-1)?.server).toContain(standby.host);
    // In order means: the old primary follows without a rewind.
    expect(primary.log().split("\n").slice(-12).join("\n")).not.toContain("rewound");
  });

  test("the monitor dies: nothing happens; it comes back: nothing happens", async () => {
    const [primary] = await roles();
    const writer = await whileWriting(async (w) => {
      const at = clock.monotonicMs();
      await formation.monitor.kill();
      await clock.sleep(4_000);
      await formation.monitor.run();
      await clock.sleep(1_000);
      expect(w.longestGapMs(at, clock.monotonicMs())).toBeLessThan(1_000);
    });
    expect(writer.errors).toBe(0);
    expect(await formation.primary()).toBe(primary);
  });

  test("a keeper that dies and comes back within its lease leaves Postgres alone", async () => {
    const [primary] = await roles();
    const pid = primary.postmasterPid;
    const writer = await whileWriting(async () => {
      primary.killKeeper();
      primary.startKeeper();
      await clock.sleep(1_500);
    });
    expect(primary.postmasterPid).toBe(pid);
    expect(new Set(writer.acks.map((a) => a.timeline)).size).toBe(1);
  });

  test("a keeper that dies for good, or hangs: the watchdog stops Postgres, the standby takes over", async () => {
    const [primary] = await roles();
    const postmaster = primary.postmasterPid;
    await whileWriting(async (w) => {
      const at = clock.monotonicMs();
      primary.killKeeper("SIGSTOP");
      await w.waitForAck(at + 3_000, 30_000);
      expect(primary.postmasterPid).not.toBe(postmaster);
      primary.killKeeper("SIGCONT");
    });
    expect(await formation.primary()).not.toBe(primary);
    expect(readFileSync(join(primary.stateDir, "watchdog.log"), "utf8")).toContain("the lease ran out");
  });

  test.skipIf(!canMakeNamespaces())(
    "the primary is cut off from everybody: it fences itself before another one opens",
    async () => {
      const [primary, standby] = await roles();
      await whileWriting(async (w) => {
        const at = clock.monotonicMs();
        primary.cut();
        const ack = await w.waitForAck(at, 30_000);
        expect(ack?.server).toContain(standby.host);
        expect(primary.postmasterPid).toBeNull();
        primary.heal();
      });
      expect(primary.log()).toContain("fencing");
    },
  );

  test("a rewind or base backup that was cut short is never started: a fresh base backup follows", async () => {
    const [, standby] = await roles();
    await whileWriting(async () => {
      standby.killNode();
      writeFileSync(join(standby.stateDir, "rebuild-in-progress"), "rewind\n");
      standby.startKeeper();
      await formation.waitFor(
        "the copy",
        async () => !existsSync(join(standby.stateDir, "rebuild-in-progress")),
        30_000,
      );
    });
    expect(standby.log().split("keeper started").at(-1)).toContain("base backup done");
    expect(existsSync(join(standby.stateDir, "rebuild-in-progress"))).toBe(false);
  });

  test("a keeper that is told to end stops Postgres in order, and the standby takes over at once", async () => {
    const [primary, standby] = await roles();
    const writer = await whileWriting(async (w) => {
      const at = clock.monotonicMs();
      primary.killKeeper("SIGTERM");
      const ack = await w.waitForAck(at + 300, 30_000);
      expect(ack).not.toBeNull();
      await formation.waitFor("the takeover", async () => (await formation.primary()) === standby, 20_000);
      expect(w.longestGapMs(at, clock.monotonicMs())).toBeLessThan(8_000);
      expect(primary.postmasterPid).toBeNull();
      expect(primary.watchdogPid).toBeNull();
      primary.startKeeper();
    });
    expect(writer.acks.at(-1)?.server).toContain(standby.host);
  });

  test("maintenance takes the standby out and back", async () => {
    const [primary, standby] = await roles();
    await whileWriting(async () => {
      await formation.monitor.maintenance(standby.name, true);
      await formation.waitFor("maintenance", async () => (await formation.viewOf(standby)) === "maintenance", 20_000);
      standby.killPostmaster();
      await clock.sleep(700);
      expect(standby.postmasterPid).toBeNull();
      await formation.monitor.maintenance(standby.name, false);
    });
    expect(await formation.primary()).toBe(primary);
  });
});

describe("restart budget spent", () => {
  beforeAll(async () => {
    const settings = { "ha-restart-tries": "0" };
    formation = await Formation.start({ clock, nodes: 2, pgBin, namespaces: false, settings });
  }, 120_000);
  afterAll(() => formation?.destroy());

  test("the seed's sequence when only the postmaster dies", async () => {
    const [primary, standby] = await roles();
    const seq = await lastSeq();
    await whileWriting(async (w) => {
      primary.killPostmaster();
      // A killed postmaster's sessions live on until they notice, and may acknowledge one more.
      for (let server = ""; !server.includes(String(standby.pgPort));) {
        const ack = await w.waitForAck(clock.monotonicMs(), 20_000);
        expect(ack).not.toBeNull();
        server = String(ack?.server);
      }
    });
    const events = await eventsSince(seq);
    const taken = reportedStates(events, standby.name);
    expect(inOrder(taken, ["prepare_promotion", "stop_replication", "wait_primary", "primary"]), taken.join()).toBe(
      true,
    );
    const out = reportedStates(events, primary.name);
    expect(inOrder(out, ["demote_timeout", "demoted", "catchingup", "secondary"]), out.join()).toBe(true);
  });
});
