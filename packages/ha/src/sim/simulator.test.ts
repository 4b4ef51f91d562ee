/**
 * Random runs of the real decision code, and mutants of it that the checks must catch.
 *
 * A failing seed is printed; `SPILLWAY_SIM_SEED=<seed> npx vitest run --project unit packages/ha/src/sim`
 * runs just that one and prints its trace. `SPILLWAY_SIM_RUNS=20000` runs more of them.
 */
import { expect, test } from "vitest";
import { edgeOf } from "../fsm/table.ts";
import { isState } from "../fsm/states.ts";
import { simulate, type Fault, type Mutant } from "./simulator.ts";

const ONLY = process.env["SPILLWAY_SIM_SEED"];
const RUNS = Number(process.env["SPILLWAY_SIM_RUNS"] ?? 2000);
/** The bound of an ordinary test run; more runs were asked for = more time. */
const TIME_MS = process.env["SPILLWAY_SIM_RUNS"] === undefined ? 25_000 : Number.POSITIVE_INFINITY;
const LEAST_RUNS = 300;

test(
  "no acknowledged commit is lost, no two servers are writable, and everything heals",
  { timeout: 3_600_000 },
  () => {
    const start = performance.now();
    const bad: string[] = [];
    const pairs = new Set<string>();
    let runs = 0;
    let acked = 0;
    let promotions = 0;
    const seeds = ONLY === undefined ? Array.from({ length: RUNS }, (_, i) => i + 1) : [Number(ONLY)];
    for (const seed of seeds) {
      if (runs >= LEAST_RUNS && performance.now() - start > TIME_MS) break;
      const result = simulate({ seed });
      runs++;
      acked += result.ackedSync;
      promotions += result.promotions;
      for (const pair of result.pairs) pairs.add(pair);
      if (result.violations.length > 0) bad.push(`seed ${seed}: ${result.violations.join("; ")}`);
      if (ONLY !== undefined) process.stderr.write(`${result.trace.join("\n")}\n`);
    }
    expect(bad).toEqual([]);
    // The runs did what they are for: commits were acknowledged synchronously, primaries changed.
    expect(acked).toBeGreaterThan(100 * runs);
    if (ONLY === undefined) expect(promotions).toBeGreaterThan(runs);
    for (const pair of pairs) {
      const [from, to] = pair.split(">");
      expect(isState(from) && isState(to) && edgeOf(from, to) !== null, pair).toBe(true);
    }
  },
);

test("a seed gives the same run twice", () => {
  const [a, b] = [simulate({ seed: 77 }), simulate({ seed: 77 })];
  expect(b.trace).toEqual(a.trace);
  expect(b.acked).toBe(a.acked);
});

const MUTANTS: readonly { readonly mutant: Mutant; readonly faults: readonly Fault[]; readonly nodes: number }[] = [
  { mutant: "no fence", faults: ["isolate", "cut"], nodes: 2 },
  { mutant: "always promises", faults: ["cut", "cut one way", "isolate"], nodes: 2 },
  { mutant: "lease longer than the wait", faults: ["isolate", "cut"], nodes: 2 },
  { mutant: "promotes at once", faults: ["isolate"], nodes: 2 },
  { mutant: "promotes without quorum", faults: ["kill machine", "isolate"], nodes: 3 },
  { mutant: "forgets recorded ssn", faults: ["kill machine", "stall", "isolate"], nodes: 3 },
];

test.each(MUTANTS)("the checks catch a build that $mutant", { timeout: 60_000 }, ({ mutant, faults, nodes }) => {
  for (let seed = 1; seed <= 300; seed++) {
    const { violations } = simulate({ seed, mutant, faults, nodes, faultMs: 40_000 });
    if (violations.some((v) => /acknowledges|two writable/.test(v))) return;
  }
  expect.fail("300 runs saw nothing wrong");
});
