/**
 * Named situations that broke failover managers before, each played on the real decision code (the list
 * of tests worth replaying, and the seams of our own protocol).
 */
import { describe, expect, test } from "vitest";
import { findNode, perform, setFormation, setMaintenance, setNode, dropNode } from "../fsm/operator.ts";
import { SWITCHOVER, booted, goals, healthyEnd, isolate, primary, statesOf, until } from "./scenario.ts";
import { MONITOR } from "./world.ts";

describe("basic operation", () => {
  test("two nodes become primary and secondary, writes are synchronous", () => {
    const sim = booted(2);
    expect(goals(sim).toSorted()).toEqual(["primary", "secondary"]);
    expect(sim.formation.reign?.ssn).toMatchObject([{ k: 1, members: [2], waits: true }]);
  });

  test("a killed primary: the standby passes the states in order, within six seconds", () => {
    const sim = booted(2);
    sim.node(1).killMachine();
    const outage = until(sim, () => sim.node(2).pg.accepts());
    expect(outage).toBeLessThan(6000);
    expect(statesOf(sim, 2).slice(-3)).toEqual(["prepare_promotion", "stop_replication", "wait_primary"]);
    sim.node(1).startMachine();
    healthyEnd(sim);
    expect(statesOf(sim, 1).slice(-3)).toEqual(["demoted", "catchingup", "secondary"]);
    expect(primary(sim)).toBe(2);
  });

  test("a postmaster killed alone is restarted on the spot: timeline and states unchanged", () => {
    const sim = booted(2);
    const before = goals(sim);
    const trace = sim.world.trace.length;
    sim.node(1).killPostmaster();
    const down = until(sim, () => sim.node(1).pg.accepts());
    expect(down).toBeLessThan(1500);
    sim.advance(10_000);
    expect(goals(sim)).toEqual(before);
    expect(sim.world.trace.slice(trace)).toEqual([]);
    expect(sim.node(1).pg.tli).toBe(1);
  });

  test("restarts used up: the standby takes over without waiting for the lease", () => {
    const sim = booted(2);
    sim.node(1).restartsLeft = 0;
    sim.node(1).killPostmaster();
    expect(until(sim, () => sim.node(2).pg.accepts())).toBeLessThan(3000);
    expect(statesOf(sim, 1)).toContain("demote_timeout");
    healthyEnd(sim);
  });

  test("a killed standby: asynchronous within three seconds, synchronous again when it is back", () => {
    const sim = booted(2);
    sim.node(2).killMachine();
    expect(until(sim, () => sim.node(1).pg.ssn.k === 0)).toBeLessThan(3000);
    const before = sim.acked;
    sim.advance(1000);
    expect(sim.acked).toBeGreaterThan(before);
    sim.node(2).startMachine();
    healthyEnd(sim);
    expect(primary(sim)).toBe(1);
    expect(sim.node(1).pg.tli).toBe(1);
  });

  test("a switchover loses nothing and is over within a second", () => {
    const sim = booted(2);
    sim.command((d) => perform(d, SWITCHOVER));
    expect(until(sim, () => sim.node(2).pg.accepts())).toBeLessThan(2500);
    healthyEnd(sim);
    expect(primary(sim)).toBe(2);
  });
});

describe("the monitor is lost", () => {
  test("alone: nothing changes, however long", () => {
    const sim = booted(3);
    const before = goals(sim);
    sim.stopMonitor();
    const acked = sim.acked;
    sim.advance(60_000);
    expect(sim.acked).toBeGreaterThan(acked + 1000);
    sim.startMonitor();
    sim.advance(5000);
    expect(goals(sim)).toEqual(before);
    healthyEnd(sim);
  });

  test("and the only standby with it: the primary fences itself, and goes on when either is back", () => {
    const sim = booted(2);
    sim.stopMonitor();
    sim.node(2).killMachine();
    expect(until(sim, () => !sim.node(1).pg.running)).toBeLessThan(4000);
    sim.node(2).startMachine();
    until(sim, () => sim.node(1).pg.accepts());
    sim.startMonitor();
    healthyEnd(sim);
    expect(primary(sim)).toBe(1);
  });

  test("after its standby was lost: a primary that nobody could replace goes on", () => {
    const sim = booted(2);
    sim.node(2).killMachine();
    until(sim, () => sim.formation.nodes[0]?.reported.state === "wait_primary");
    sim.advance(2000);
    sim.stopMonitor();
    sim.advance(20_000);
    expect(sim.node(1).pg.accepts()).toBe(true);
  });
});

describe("partitions (multi_ifdown)", () => {
  test("the primary cut off from everyone: out before the new one is in, and back as a standby", () => {
    const sim = booted(2);
    isolate(sim, 1);
    const fenced = until(sim, () => !sim.node(1).pg.running);
    expect(sim.node(2).pg.accepts()).toBe(false);
    expect(fenced).toBeLessThan(3500);
    until(sim, () => sim.node(2).pg.accepts());
    sim.world.healAll();
    healthyEnd(sim);
    expect(primary(sim)).toBe(2);
  });

  test("cut off from the monitor only: it is left alone, a standby hears from it", () => {
    const sim = booted(2);
    sim.world.cut(1, MONITOR);
    sim.advance(30_000);
    expect(primary(sim)).toBe(1);
    expect(sim.node(1).pg.accepts()).toBe(true);
    sim.world.healAll();
    healthyEnd(sim);
  });

  test("the connection between primary and standby is cut, both see the monitor: asynchronous, no failover", () => {
    const sim = booted(2);
    sim.world.cut(1, 2);
    expect(until(sim, () => sim.node(1).pg.ssn.k === 0)).toBeLessThan(8000);
    sim.advance(20_000);
    expect(primary(sim)).toBe(1);
    sim.world.healAll();
    healthyEnd(sim);
  });

  test("a standby cut off in a formation of three: the other one is enough", () => {
    const sim = booted(3);
    isolate(sim, 3);
    until(sim, () => sim.formation.nodes[2]?.goal === "catchingup");
    until(sim, () => sim.node(1).pg.ssn.members.join() === "2");
    const acked = sim.acked;
    sim.advance(2000);
    expect(sim.acked).toBeGreaterThan(acked);
    sim.world.healAll();
    healthyEnd(sim);
  });
});

describe("stalls", () => {
  test("the primary's machine stops for 30 s and wakes up: its late acknowledgements are on the new primary", () => {
    for (let seed = 1; seed <= 10; seed++) {
      const sim = booted(3, seed);
      sim.node(1).stall(30_000);
      sim.advance(40_000);
      expect(primary(sim)).not.toBe(1);
      healthyEnd(sim);
    }
  });
});

describe("guard_data_loss", () => {
  test("no failover while it was asynchronous; the old primary goes on when it is back", () => {
    const sim = booted(2);
    sim.node(2).killMachine();
    until(sim, () => sim.formation.nodes[0]?.reported.state === "wait_primary");
    sim.advance(2000);
    sim.node(1).killMachine();
    sim.node(2).startMachine();
    sim.advance(30_000);
    expect(primary(sim)).toBe(1);
    expect(() => sim.command((d) => perform(d, { ...SWITCHOVER, kind: "failover" }))).toThrow(
      /ha_refused|caught up|lost/,
    );
    sim.node(1).startMachine();
    healthyEnd(sim);
  });

  test("unless the operator accepts the loss and vouches that the old primary is off", () => {
    const sim = booted(2);
    sim.node(2).killMachine();
    until(sim, () => sim.formation.nodes[0]?.reported.state === "wait_primary");
    sim.advance(2000);
    sim.node(1).killMachine();
    sim.node(2).startMachine();
    sim.advance(5000);
    sim.command((d) => perform(d, { kind: "failover", node: null, allowDataLoss: true, primaryIsDown: true }));
    until(sim, () => sim.node(2).pg.accepts());
    sim.node(1).startMachine();
    until(sim, () => sim.isWell());
    expect(primary(sim)).toBe(2);
  });

  test("primary and one of two quorum standbys die: the remaining one may lack commits, so it waits", () => {
    const sim = booted(3);
    sim.node(1).killMachine();
    sim.node(2).killMachine();
    sim.advance(20_000);
    expect(sim.formation.reign?.nodeId).toBe(1);
    sim.node(2).startMachine();
    until(sim, () => sim.node(2).pg.accepts() || sim.node(3).pg.accepts());
    sim.node(1).startMachine();
    healthyEnd(sim);
  });

  test("number-sync-standbys 1: writes wait instead of going asynchronous, and go on when a standby is back", () => {
    const sim = booted(3);
    sim.command((d) => setFormation(d, { numberSync: 1 }));
    sim.advance(2000);
    sim.node(2).killMachine();
    sim.advance(5000);
    const one = sim.acked;
    sim.advance(2000);
    expect(sim.acked).toBeGreaterThan(one);
    sim.node(3).killMachine();
    sim.advance(8000);
    const none = sim.acked;
    sim.advance(5000);
    expect(sim.acked).toBe(none);
    expect(sim.node(1).pg.ssn.k).toBe(1);
    sim.node(3).startMachine();
    until(sim, () => sim.acked > none);
    sim.node(2).startMachine();
    healthyEnd(sim);
  });
});

describe("forks and gaps", () => {
  test("timeline_fork: an old primary with WAL that nobody else has rejoins", () => {
    const sim = booted(2);
    isolate(sim, 1);
    until(sim, () => sim.node(2).pg.accepts());
    expect(sim.node(1).pg.isPrefixOf(sim.node(2).pg)).toBe(false);
    sim.world.healAll();
    healthyEnd(sim);
    expect(sim.node(1).pg.tli).toBe(2);
  });

  test("keeper_fsm_gap: every keeper is killed at every moment of a failover", () => {
    for (let delay = 0; delay < 6000; delay += 300) {
      const sim = booted(3, delay + 1);
      sim.node(1).killMachine();
      sim.advance(delay);
      for (const id of [2, 3]) sim.node(id).killKeeper();
      sim.advance(700);
      for (const id of [2, 3]) sim.node(id).startKeeper();
      sim.node(1).startMachine();
      healthyEnd(sim);
    }
  });

  test("replace_monitor: a monitor that begins with the stored state only", () => {
    for (let delay = 0; delay < 6000; delay += 300) {
      const sim = booted(3, delay + 1);
      sim.node(1).killMachine();
      sim.advance(delay);
      sim.stopMonitor();
      sim.advance(500);
      sim.startMonitor();
      until(sim, () => sim.node(2).pg.accepts() || sim.node(3).pg.accepts());
      sim.node(1).startMachine();
      healthyEnd(sim);
    }
  });
});

describe("operators", () => {
  test("maintenance of the primary hands over first; of the last standby tells the primary first", () => {
    const sim = booted(2);
    expect(() => sim.command((d) => setMaintenance(d, "n1", true, false))).toThrow(/allow-failover/);
    sim.command((d) => setMaintenance(d, "n1", true, true));
    until(sim, () => sim.formation.nodes[0]?.reported.state === "maintenance");
    expect(primary(sim)).toBe(2);
    sim.command((d) => setMaintenance(d, "n1", false, false));
    healthyEnd(sim);
    sim.command((d) => setMaintenance(d, "n1", true, false));
    until(sim, () => sim.formation.nodes[0]?.reported.state === "maintenance");
    expect(sim.node(2).pg.ssn.k).toBe(0);
    expect(statesOf(sim, 1).slice(-2)).toEqual(["wait_maintenance", "maintenance"]);
    sim.command((d) => setMaintenance(d, "n1", false, false));
    healthyEnd(sim);
  });

  test("dropping the primary promotes another; dropping all but one leaves a single", () => {
    const sim = booted(3);
    sim.command((d) => dropNode(d, "n1", false));
    until(sim, () => sim.formation.nodes.length === 2 && sim.isWell());
    const other = sim.formation.nodes.find((n) => n.goal === "secondary")?.name ?? "";
    sim.command((d) => dropNode(d, other, false));
    until(sim, () => goals(sim).join() === "single" && sim.node(primary(sim)).pg.accepts());
    expect(sim.violations).toEqual([]);
  });

  test("a named node is promoted, whatever its priority", () => {
    const sim = booted(3);
    sim.command((d) => setNode(d, "n3", { candidatePriority: 0 }));
    sim.advance(2000);
    sim.command((d) => perform(d, { kind: "promotion", node: "n3", allowDataLoss: false, primaryIsDown: false }));
    until(sim, () => sim.node(3).pg.accepts());
    healthyEnd(sim);
  });

  test("what a rule forbids is refused and changes nothing", () => {
    const sim = booted(2);
    const before = JSON.stringify(sim.formation);
    const refused: [RegExp, () => void][] = [
      [/no node "nope"/, () => sim.command((d) => void findNode(d, "nope"))],
      [/needs 2 standbys/, () => sim.command((d) => setFormation(d, { numberSync: 1 }))],
      [
        /is the primary already/,
        () => sim.command((d) => perform(d, { ...SWITCHOVER, kind: "promotion", node: "n1" })),
      ],
      [/not in maintenance/, () => sim.command((d) => setMaintenance(d, "n2", false, false))],
    ];
    for (const [message, attempt] of refused) expect(attempt).toThrow(message);
    expect(JSON.stringify(sim.formation)).toBe(before);
  });
});
