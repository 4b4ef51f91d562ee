/** Elections that broke failover managers before, on the real decision code. */
import { describe, expect, test } from "vitest";
import { perform, setNode } from "../fsm/operator.ts";
import { newRecord } from "./postgres-model.ts";
import { SWITCHOVER, booted, healthyEnd, isolate, primary, statesOf, until } from "./scenario.ts";

describe("elections", () => {
  test("fast_forward: the preferred standby fetches from the further one what it lacks", () => {
    const sim = booted(3);
    sim.command((d) => setNode(d, "n3", { candidatePriority: 100 }));
    sim.advance(1000);
    sim.world.cut(3, 1);
    sim.advance(600);
    sim.node(1).killMachine();
    sim.world.healAll();
    until(sim, () => sim.node(3).pg.accepts() || sim.node(2).pg.accepts());
    expect(primary(sim)).toBe(3);
    expect(statesOf(sim, 3)).toContain("fast_forward");
    sim.node(1).startMachine();
    healthyEnd(sim);
  });

  test("a node with candidate-priority 0 helps to prove what was committed and is not promoted", () => {
    const sim = booted(3);
    sim.command((d) => setNode(d, "n2", { candidatePriority: 0 }));
    sim.advance(3000);
    sim.node(1).killMachine();
    until(sim, () => sim.node(3).pg.accepts());
    sim.node(1).startMachine();
    healthyEnd(sim);
  });

  test("init_from_standby: no standby may be promoted, so a new node is made from one and takes over", () => {
    const sim = booted(2);
    sim.command((d) => setNode(d, "n2", { candidatePriority: 0 }));
    sim.advance(3000);
    sim.node(1).killMachine();
    sim.advance(10_000);
    expect(primary(sim)).toBe(1);
    sim.addNode(3);
    until(sim, () => sim.formation.nodes[2]?.reported.state === "wait_standby");
    expect(() => sim.command((d) => perform(d, { ...SWITCHOVER, kind: "failover" }))).toThrow(/candidate-priority 0/);
    sim.command((d) => perform(d, { ...SWITCHOVER, kind: "failover", primaryIsDown: true }));
    until(sim, () => sim.node(3).pg.accepts());
    expect(statesOf(sim, 3)).toEqual([
      "wait_standby",
      "report_lsn",
      "prepare_promotion",
      "stop_replication",
      "wait_primary",
    ]);
    sim.node(1).startMachine();
    healthyEnd(sim);
    expect(primary(sim)).toBe(3);
  });

  test("a standby that was not connected when the primary stopped in order: called off within moments", () => {
    for (let seed = 1; seed <= 20; seed++) {
      const sim = booted(2, seed);
      sim.node(1).killPostmaster();
      until(sim, () => sim.node(1).pg.accepts());
      sim.node(2).pg.disconnect();
      sim.node(1).pg.wal.push(newRecord());
      sim.command((d) => perform(d, { ...SWITCHOVER, kind: "failover" }));
      until(sim, () => !sim.node(1).pg.accepts());
      expect(until(sim, () => sim.node(1).pg.accepts() || sim.node(2).pg.accepts())).toBeLessThan(4000);
      healthyEnd(sim);
    }
  });

  test("the candidate dies in its promotion: another one, or the old primary, and no fork survives", () => {
    for (let seed = 1; seed <= 20; seed++) {
      const sim = booted(3, seed);
      sim.node(1).killMachine();
      const candidate = (): number => sim.formation.nodes.find((n) => n.goal === "stop_replication")?.nodeId ?? 0;
      until(sim, () => candidate() !== 0);
      sim.node(candidate()).killMachine();
      sim.advance(15_000);
      for (const node of sim.nodes.values()) node.startMachine();
      healthyEnd(sim);
    }
  });

  test("wait_primary_draining_deadlock: the only candidate is lost after the old primary was told to drain", () => {
    const sim = booted(2);
    sim.command((d) => perform(d, SWITCHOVER));
    sim.node(2).killMachine();
    until(sim, () => !sim.node(1).pg.accepts());
    until(sim, () => sim.node(1).pg.accepts());
    sim.node(2).startMachine();
    healthyEnd(sim);
    expect(primary(sim)).toBe(1);
  });

  test("demote_timeout_wait_primary_deadlock: the primary fenced itself while both others were away", () => {
    const sim = booted(2);
    sim.stopMonitor();
    isolate(sim, 1);
    until(sim, () => !sim.node(1).pg.running);
    sim.node(2).killMachine();
    sim.world.healAll();
    sim.startMonitor();
    until(sim, () => sim.node(1).pg.accepts());
    sim.node(2).startMachine();
    healthyEnd(sim);
  });
});
