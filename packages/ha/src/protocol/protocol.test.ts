import { isSpillwayError } from "@spillway/base/errors";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { DEFAULT_TIMINGS } from "../fsm/model.ts";
import { neededFrozen, renderSsn } from "../fsm/quorum.ts";
import { PROMISING, PROMOTING, STATES } from "../fsm/states.ts";
import { PrimaryLease, StandbyPromise } from "./lease.ts";
import { applicationName, nodeIdOf, nodeReport, nodeResponse, registerRequest, type Assignment } from "./messages.ts";
import { parseMessage } from "./validate.ts";

describe("messages", () => {
  test("whatever comes in is a message or ha_bad_message, nothing else", () => {
    const bodies = fc.oneof(
      fc.string(),
      fc.json(),
      fc.json().map((j) => `{"protocol":1,"formation":"f","nodeId":1,"pg":${j}}`),
    );
    fc.assert(
      fc.property(bodies, fc.constantFrom(nodeReport, nodeResponse, registerRequest), (body, validator) => {
        try {
          parseMessage<unknown>(validator, body, "message");
        } catch (error) {
          expect(isSpillwayError(error, "ha_bad_message")).toBe(true);
        }
      }),
    );
  });

  test("the path of what is wrong is named", () => {
    expect(() => parseMessage(registerRequest, '{"protocol":2}', "registration")).toThrow(/registration.protocol/);
  });

  test("application names give the node id back, and nothing else does", () => {
    expect(nodeIdOf(applicationName(17))).toBe(17);
    for (const name of ["spillway_node_", "spillway_node_1x", "walreceiver", "Spillway_node_1"])
      expect(nodeIdOf(name)).toBeNull();
  });
});

describe("quorums", () => {
  test("any N-k+1 standbys include one of any k: R + W > N", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 9 }), fc.gen(), (n, k, g) => {
        const members = Array.from({ length: n }, (_, i) => i + 1);
        const q = { k: Math.min(k, n), members };
        const confirmed = g(fc.shuffledSubarray, members, { minLength: q.k, maxLength: q.k });
        const frozen = g(fc.shuffledSubarray, members, { minLength: neededFrozen(q), maxLength: neededFrozen(q) });
        expect(frozen.some((m) => confirmed.includes(m))).toBe(true);
      }),
    );
  });

  test("the text is what Postgres takes", () => {
    expect(renderSsn({ k: 1, members: [2, 3] })).toBe("ANY 1 (spillway_node_2, spillway_node_3)");
    expect(renderSsn({ k: 0, members: [] })).toBe("");
  });
});

describe("the primary's lease", () => {
  const answer = (to: number, granted = true) =>
    ({ protocol: 1, from: 1, to, seq: 1, granted, ttlMs: granted ? 2500 : 0, reason: "" }) as const;

  test("a late answer is worth less, never more", () => {
    const lease = new PrimaryLease();
    lease.onGrant(1000, 2500);
    lease.onGrant(500, 2500);
    expect(lease.expiresAtMs()).toBe(3500);
    expect([lease.held(3499), lease.held(3500)]).toEqual([true, false]);
  });

  test("from peers it takes every voter, and the earliest counts", () => {
    const lease = new PrimaryLease();
    lease.setTerms({ required: true, voters: [2, 3] });
    lease.onPromise(answer(2), 1000);
    expect(lease.held(1001)).toBe(false);
    lease.onPromise(answer(3, false), 1200);
    expect(lease.held(1201)).toBe(false);
    lease.onPromise(answer(3), 1300);
    expect([lease.expiresAtMs(), lease.source()]).toEqual([3500, "peers"]);
    lease.setTerms({ required: true, voters: [2, 3, 4] });
    expect(lease.held(1301)).toBe(false);
    lease.setTerms({ required: true, voters: [] });
    expect(lease.held(1301)).toBe(false);
    lease.setTerms({ required: false, voters: [] });
    expect(lease.held(1e12)).toBe(true);
  });
});

describe("a standby's promise", () => {
  const assignment = (goalState: (typeof STATES)[number], primary: number): Assignment => ({
    version: 1,
    goalState,
    reason: "",
    ssn: "",
    primary: { nodeId: primary, name: "p", host: "h", pgPort: 1, keeperUrl: "", keeperFingerprint: null },
    source: null,
    targetLsn: null,
    lease: { required: true, voters: [], promisesVoid: false },
    peers: [],
    candidatePriority: 50,
    replicationQuorum: true,
    timings: DEFAULT_TIMINGS,
  });
  const ask = { protocol: 1, formation: "f", from: 1, to: 2, seq: 9, holding: true } as const;

  test("is given only to the primary that it knows, and in no state or goal of a promotion", () => {
    for (const goal of STATES) {
      for (const state of STATES) {
        const promise = new StandbyPromise(0, 0);
        const own = { nodeId: 2, state, assignment: assignment(goal, 1) };
        const may =
          (PROMISING as readonly string[]).includes(goal) && !(PROMOTING as readonly string[]).includes(state);
        expect(promise.answer(ask, own, 100).granted, `${state} > ${goal}`).toBe(may);
        expect(promise.binds(101)).toBe(may);
        expect(promise.answer({ ...ask, from: 7 }, own, 100).granted).toBe(false);
      }
    }
    const promise = new StandbyPromise(0, 0);
    expect(promise.answer(ask, { nodeId: 2, state: "secondary", assignment: null }, 1).granted).toBe(false);
  });

  test("binds for its whole time, and after a restart as if one had just been given", () => {
    const promise = new StandbyPromise(0, 2500);
    expect(promise.report(0)).toMatchObject({ remainingMs: 2500, askedAgeMs: null });
    promise.answer(ask, { nodeId: 2, state: "secondary", assignment: assignment("secondary", 1) }, 1000);
    expect(promise.report(1500)).toEqual({ to: 1, askedAgeMs: 500, remainingMs: 2000 });
    expect([promise.binds(3499), promise.binds(3500)]).toEqual([true, false]);
  });

  test("a question of a primary without its lease is no evidence that it lives", () => {
    const promise = new StandbyPromise(0, 0);
    const own = { nodeId: 2, state: "secondary" as const, assignment: assignment("secondary", 1) };
    promise.answer({ ...ask, holding: false }, own, 1000);
    expect(promise.report(1500).askedAgeMs).toBeNull();
  });
});
