/** What the named situations are told with. Test support. */
import { expect } from "vitest";
import { Simulation } from "./simulator.ts";
import { MONITOR } from "./world.ts";

export const SWITCHOVER = { kind: "switchover", node: null, allowDataLoss: false, primaryIsDown: false } as const;

export function booted(nodes: number, seed = 1): Simulation {
  const sim = new Simulation({ seed });
  sim.boot(nodes);
  expect(sim.isWell()).toBe(true);
  return sim;
}

export function primary(sim: Simulation): number {
  return sim.formation.reign?.nodeId ?? 0;
}

export function goals(sim: Simulation): string[] {
  return sim.formation.nodes.map((n) => n.goal);
}

/** Advances until it holds. Returns the ms that it took. */
export function until(sim: Simulation, done: () => boolean, limitMs = 30_000): number {
  const start = sim.world.nowMs;
  while (!done()) {
    if (sim.world.nowMs - start > limitMs) throw new Error(`not within ${limitMs} ms: ${goals(sim).join(", ")}`);
    sim.advance(50);
  }
  return sim.world.nowMs - start;
}

export function isolate(sim: Simulation, id: number): void {
  for (const other of [MONITOR, ...sim.nodes.keys()]) if (other !== id) sim.world.cut(id, other);
}

/** The states that a node reported, in order. */
export function statesOf(sim: Simulation, id: number): string[] {
  const marks = sim.world.trace.map((line) => /^\s*\d+ node (\d+) \S+ -> (\S+)/.exec(line));
  return marks.filter((m) => m?.[1] === String(id)).map((m) => m?.[2] ?? "");
}

export function healthyEnd(sim: Simulation): void {
  until(sim, () => sim.isWell());
  expect(sim.violations).toEqual([]);
}
