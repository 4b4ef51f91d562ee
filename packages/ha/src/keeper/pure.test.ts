/** The keeper's pure parts: beats of the watchdog, the restart budget, supervision, ssn, superseded actions. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { twoWritable, checkAcks } from "../client/checker.ts";
import { inOrder, reportedStates } from "../client/walkthrough.ts";
import { formatBeat, parseBeat } from "../watchdog/beat.ts";
import { mustFence } from "../watchdog/watchdog.ts";
import { quorumSize } from "./actions/primary.ts";
import { roleOf } from "./hooks.ts";
import { parseListen } from "./http-server.ts";
import { stoppedAs } from "./observe.ts";
import { RestartBudget, Supervisor } from "./restart-budget.ts";

test("a stopped server says where its WAL ends only after an orderly shutdown", () => {
  const control = { systemId: "7", checkpointLsn: 0x3000060n, redoLsn: 0x3000028n, timeline: 2 } as const;
  expect(stoppedAs({ ...control, state: "shut down" })).toMatchObject({ lsn: "0/3000060", tli: 2, isRunning: false });
  for (const state of ["in production", "shutting down", "in crash recovery", "shut down in recovery"] as const) {
    expect(stoppedAs({ ...control, state })).toMatchObject({ lsn: null, tli: 2, systemIdentifier: "7" });
  }
});

describe("the beat", () => {
  test("comes back as it was written; anything torn or changed does not", () => {
    const beat = fc.record({
      bootId: fc.uuid(),
      deadlineNs: fc.option(fc.bigInt({ min: -1n, max: 1n << 62n }), { nil: null }),
      keeperPid: fc.nat(),
    });
    fc.assert(
      fc.property(beat, fc.nat(126), (b, at) => {
        const text = formatBeat(b);
        expect(text).toHaveLength(128);
        expect(parseBeat(text)).toEqual(b);
        const torn = parseBeat(text.slice(0, at));
        // A cut inside the padding harms nothing.
        if (torn !== null) expect(torn).toEqual(b);
      }),
    );
    expect(parseBeat(formatBeat({ bootId: "a", deadlineNs: 5n, keeperPid: 1 }).replace(" 5 ", " 6 "))).toBeNull();
    expect(parseBeat("")).toBeNull();
  });

  test("fences at the deadline of this boot only", () => {
    const beat = { bootId: "a", deadlineNs: 100n, keeperPid: 1 };
    expect(mustFence(beat, "a", 99n)).toBe(false);
    expect(mustFence(beat, "a", 100n)).toBe(true);
    expect(mustFence(beat, "b", 200n)).toBe(false);
    expect(mustFence({ ...beat, deadlineNs: null }, "a", 200n)).toBe(false);
    expect(mustFence(null, "a", 200n)).toBe(false);
  });
});

describe("restarts", () => {
  test("so many in a sliding window", () => {
    const budget = new RestartBudget();
    for (const at of [0, 1000, 2000]) {
      expect(budget.left(at, 3, 20_000)).toBeGreaterThan(0);
      budget.spend(at);
    }
    expect(budget.left(3000, 3, 20_000)).toBe(0);
    expect(budget.left(20_500, 3, 20_000)).toBe(1);
    expect(budget.left(0, 0, 20_000)).toBe(0);
  });

  test("supervision: a hung server is ended; a spent primary that can be replaced is left to the monitor, for a while", () => {
    const s = new Supervisor();
    const base = { nowMs: 0, isRunning: true, answeredMs: 0, restartsLeft: 3, replaceable: true };
    expect(s.decide(base)).toBe("fine");
    expect(s.decide({ ...base, nowMs: 10_001 })).toBe("end");
    expect(s.decide({ ...base, isRunning: false })).toBe("restart");
    const spent = { ...base, isRunning: false, restartsLeft: 0 };
    expect(s.decide({ ...spent, replaceable: false })).toBe("restart");
    expect(s.decide({ ...spent, nowMs: 1000 })).toBe("leave");
    expect(s.decide({ ...spent, nowMs: 15_999 })).toBe("leave");
    expect(s.decide({ ...spent, nowMs: 16_000 })).toBe("restart");
    expect(s.decide({ ...spent, nowMs: 16_001 })).toBe("leave");
  });
});

test("how many standbys must confirm", () => {
  expect(["ANY 2 (a,b,c)", "FIRST 1 (a)", "a, b"].map(quorumSize)).toEqual([2, 1, 1]);
});

test("roles and addresses", () => {
  expect(["single", "primary", "secondary", "demoted", "stop_replication"].map((s) => roleOf(s as "single"))).toEqual([
    "primary",
    "primary",
    "standby",
    "none",
    "none",
  ]);
  expect(parseListen("[::1]:80")).toEqual({ host: "::1", port: 80 });
  expect(() => parseListen("nowhere")).toThrow(/host:port/);
});

describe("the judges", () => {
  const ack = (id: number, sentMs: number, atMs: number, timeline: number) => ({
    id,
    sentMs,
    atMs,
    timeline,
    server: "s",
  });
  test("a missing acknowledged row is lost, a missing unknown one is not", () => {
    const check = checkAcks([ack(1, 0, 1, 1), ack(2, 1, 2, 1)], [3, 4], new Set([1, 3]));
    expect(check).toEqual({ acked: 2, lost: [2], unknown: 2, unknownKept: 1 });
  });
  test("an old timeline's statement sent after a newer one acknowledged is a second primary; one under way is not", () => {
    expect(twoWritable([ack(1, 0, 1, 1), ack(2, 5, 6, 2), ack(3, 4, 7, 1)])).toEqual([]);
    expect(twoWritable([ack(1, 0, 1, 1), ack(2, 5, 6, 2), ack(3, 7, 8, 1)]).map((a) => a.id)).toEqual([3]);
  });
  test("walk-throughs", () => {
    const events = ["a", "b", "b", "c"].map((to) => ({ node: "n", kind: "reported", from: "", to }));
    expect(reportedStates([...events, { node: "m", kind: "reported", from: "", to: "x" }], "n")).toEqual([
      "a",
      "b",
      "c",
    ]);
    expect(inOrder(["a", "x", "b"], ["a", "b"])).toBe(true);
    expect(inOrder(["b", "a"], ["a", "b"])).toBe(false);
  });
});
