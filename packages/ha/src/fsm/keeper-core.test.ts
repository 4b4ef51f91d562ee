import { expect, test } from "vitest";
import type { Assignment } from "../protocol/messages.ts";
import { accept, complete, decideStep, fence, NEW_NODE, type KeeperCore } from "./keeper-core.ts";
import { DEFAULT_TIMINGS } from "./model.ts";
import type { State } from "./states.ts";

function assignment(version: number, goalState: State, promisesVoid = false): Assignment {
  return {
    version,
    goalState,
    reason: "",
    ssn: "",
    primary: null,
    source: null,
    targetLsn: null,
    lease: { required: true, voters: [], promisesVoid },
    peers: [],
    candidatePriority: 50,
    replicationQuorum: true,
    timings: DEFAULT_TIMINGS,
  };
}

function at(state: State, goal: State, version = 2, appliedVersion = 1): KeeperCore {
  return { state, assignment: assignment(version, goal), appliedVersion };
}

const FREE = { leaseHeld: true, promiseBinds: false, mayWrite: false };

test("an older or the same assignment changes nothing", () => {
  const core = accept(NEW_NODE, assignment(5, "secondary"));
  expect(accept(core, assignment(4, "primary"))).toBe(core);
  expect(accept(core, assignment(5, "primary"))).toBe(core);
  expect(accept(core, assignment(6, "primary")).assignment?.goalState).toBe("primary");
});

test("without its lease a writable node fences, whatever its goal; with it, it goes on", () => {
  for (const goal of ["primary", "draining", "dropped"] as const) {
    expect(decideStep(at("primary", goal), { ...FREE, leaseHeld: false }).kind).toBe("fence");
  }
  expect(decideStep(at("primary", "draining"), FREE).kind).toBe("act");
  expect(fence(at("primary", "primary")).state).toBe("demote_timeout");
  expect(fence(at("secondary", "secondary")).state).toBe("secondary");
});

test("a Postgres that an unfinished action started is fenced too", () => {
  const half = at("demote_timeout", "primary");
  expect(decideStep(half, { ...FREE, leaseHeld: false }).kind).toBe("wait_lease");
  expect(decideStep(half, { ...FREE, leaseHeld: false, mayWrite: true }).kind).toBe("fence");
});

test("no promotion while an own promise binds, unless the old primary confirmed that it is out", () => {
  const elected = at("prepare_promotion", "stop_replication");
  expect(decideStep(elected, { ...FREE, promiseBinds: true }).kind).toBe("wait_lease");
  const confirmed = { ...elected, assignment: assignment(2, "stop_replication", true) };
  expect(decideStep(confirmed, { ...FREE, promiseBinds: true }).kind).toBe("act");
});

test("parameters alone are applied once, a missing edge is said", () => {
  const fresh = at("primary", "primary");
  const step = decideStep(fresh, FREE);
  expect(step).toMatchObject({ kind: "act", edge: { action: "set_ssn_and_wait" } });
  expect(decideStep(complete(fresh, assignment(2, "primary")), FREE).kind).toBe("idle");
  expect(decideStep(at("init", "primary"), FREE).kind).toBe("no_edge");
});
