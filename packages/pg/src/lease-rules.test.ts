import { expect, test } from "vitest";
import { type LeaderView, missedMs } from "./lease-rules.ts";

const view = (changes: Partial<LeaderView> = {}): LeaderView => ({
  epoch: 1n,
  holder: "a",
  backendPid: 7,
  backendStart: "t",
  intervalMs: 1000,
  heartbeatAt: "h1",
  heartbeatAgeMs: 5000,
  sessionAgeMs: null,
  ...changes,
});

test("the server's clock decides", () => {
  expect(missedMs(view(), null, 0).ms).toBe(5000);
  expect(missedMs(null, null, 0).ms).toBe(0);
});

test("a session that does something is alive, however old the heartbeat", () => {
  expect(missedMs(view({ sessionAgeMs: 20 }), null, 0).ms).toBe(20);
});

test("a heartbeat in the future counts from when it was first seen, and anew when it moves", () => {
  const ahead = view({ heartbeatAgeMs: -60_000 });
  const first = missedMs(ahead, null, 100);
  expect(first.ms).toBe(0);
  const second = missedMs(ahead, first.sighting, 3200);
  expect(second.ms).toBe(3100);
  expect(missedMs(view({ heartbeatAgeMs: -50_000, heartbeatAt: "h2" }), second.sighting, 3300).ms).toBe(0);
});

test("a row without a heartbeat, behind a lock that is held, is waited for too", () => {
  const blank = view({ heartbeatAgeMs: null, heartbeatAt: null });
  const first = missedMs(blank, null, 0);
  expect(missedMs(blank, first.sighting, 4000).ms).toBe(4000);
});
