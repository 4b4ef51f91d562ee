/** Exhaustive walks: every reachable pair has an edge, nobody is stuck, one writer at most. */
import { expect, test } from "vitest";
import { healthyRound, isSettled, keyOf, start, steps, writers, type Config } from "./explore.ts";
import { seededRandom } from "../sim/world.ts";
import { edgeOf } from "./table.ts";

const ROUNDS = 60;
/** Configurations per walk; SPILLWAY_EXPLORE=100000 goes further than an ordinary test run does. */
const LIMIT = Number(process.env["SPILLWAY_EXPLORE"] ?? 2000);

interface Walk {
  readonly configs: ReadonlyMap<string, Config>;
  readonly complete: boolean;
  readonly problems: readonly string[];
  readonly pairs: ReadonlySet<string>;
}

/**
 * From a formation at rest, up to `limit` configurations: half of the steps breadth first, half from
 * anywhere (seeded), so that a small limit goes both wide and deep.
 */
function walk(first: Config, limit: number): Walk {
  const configs = new Map<string, Config>([[keyOf(first), first]]);
  const trails = new Map<string, string>([[keyOf(first), ""]]);
  const pairs = new Set<string>();
  const problems: string[] = [];
  const open = [keyOf(first)];
  const random = seededRandom(limit);
  for (let turn = 0; open.length > 0 && configs.size < limit && problems.length < 5; turn++) {
    const at = turn % 2 === 0 ? 0 : Math.floor(random() * open.length);
    const key = open.splice(at, 1)[0] ?? "";
    const config = configs.get(key);
    if (config === undefined) break;
    const trail = trails.get(key) ?? "";
    try {
      for (const step of steps(config)) {
        const nextKey = keyOf(step.next);
        if (configs.has(nextKey)) continue;
        configs.set(nextKey, step.next);
        trails.set(nextKey, `${trail}, ${step.name}`);
        open.push(nextKey);
        if (writers(step.next) > 1) problems.push(`two writers after${trail}, ${step.name}`);
        for (const node of step.next.f.nodes) {
          const core = step.next.nodes[node.nodeId - 1]?.core;
          if (core === undefined) continue;
          pairs.add(`${core.state}>${node.goal}`);
          if (edgeOf(core.state, node.goal) === null)
            problems.push(`no edge ${core.state} > ${node.goal} after${trail}, ${step.name}`);
        }
      }
    } catch (error) {
      problems.push(`${String(error)} after${trail}`);
    }
  }
  return { configs, complete: configs.size < limit, problems, pairs };
}

/** From every configuration, rounds without a failure end with one primary and all others secondary. */
function stuck(configs: ReadonlyMap<string, Config>): string[] {
  const good = new Set<string>();
  const bad: string[] = [];
  for (const [key, config] of configs) {
    let at = config;
    const path = [key];
    let ok = good.has(key);
    for (let round = 0; !ok && round < ROUNDS; round++) {
      at = healthyRound(at);
      ok = isSettled(at) || good.has(keyOf(at));
      path.push(keyOf(at));
    }
    if (ok) for (const k of path) good.add(k);
    else if (bad.length < 5)
      bad.push(`${at.f.nodes.map((n) => `${n.name} ${n.reported.state}/${n.goal}`).join(", ")} from ${key}`);
  }
  return bad;
}

function rested(count: number): Config {
  let config = start(count);
  for (let round = 0; round < 20 && !isSettled(config); round++) config = healthyRound(config);
  expect(isSettled(config)).toBe(true);
  return config;
}

test.each([
  [2, LIMIT],
  [3, LIMIT],
])(
  "%i nodes: every reachable pair has an edge, at most one writer, and nobody is stuck",
  { timeout: 3_600_000 },
  (count, limit) => {
    const found = walk(rested(count), limit);
    expect(found.problems).toEqual([]);
    expect(stuck(found.configs)).toEqual([]);
    // The walk met failovers, calls-off, maintenance and fences, not just the way in.
    expect(found.pairs.size).toBeGreaterThan(30);
  },
);

test("from the very first report on", { timeout: 3_600_000 }, () => {
  const found = walk(start(2), LIMIT);
  expect(found.problems).toEqual([]);
  expect(stuck(found.configs)).toEqual([]);
});
