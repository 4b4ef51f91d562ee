/** The API over the real brain and the embedded store: tokens, registration, reports, refusals. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { afterEach, beforeEach, expect, test } from "vitest";
import { DEFAULT_LIMITS, DEFAULT_TIMINGS } from "../fsm/model.ts";
import { NEW_NODE, type KeeperCore } from "../fsm/keeper-core.ts";
import type { StateView } from "../protocol/commands.ts";
import type { NodeReport, NodeResponse, RegisterResponse } from "../protocol/messages.ts";
import { Api, type ApiAnswer } from "./api.ts";
import { Brain } from "./brain.ts";
import { LogStore } from "./log-store.ts";
import { renderMonitorMetrics } from "./metrics.ts";

let dir = "";
let api: Api;
let store: LogStore;
let end: AbortController;
let running: Promise<void>;

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), "spillway-ha-api-"));
  store = await LogStore.open(dir);
  const brain = new Brain({
    store,
    clock: systemClock,
    log: silentLogger,
    timings: DEFAULT_TIMINGS,
    limits: DEFAULT_LIMITS,
  });
  end = new AbortController();
  running = brain.run(end.signal);
  const requests = new Map([[200, 3]]);
  api = new Api({
    brain,
    log: silentLogger,
    adminToken: "admin",
    registrationToken: "register",
    monitorUrls: [],
    renderMetrics: () => renderMonitorMetrics(brain, { requests }),
  });
  await expect.poll(() => brain.leading).toBe(true);
});

afterEach(async () => {
  end.abort();
  await running;
  await store.close();
  rmSync(dir, { recursive: true, force: true });
});

function get(path: string, query: Record<string, string> = {}, token = "admin"): Promise<ApiAnswer> {
  return api.handle({ method: "GET", path, query: new URLSearchParams(query), token, body: "" });
}

function post(path: string, body: unknown, token = "admin"): Promise<ApiAnswer> {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  return api.handle({ method: "POST", path, query: new URLSearchParams(), token, body: text });
}

function codeOf(answer: ApiAnswer): string {
  return (answer.body as { error: { code: string } }).error.code;
}

const REQUEST = {
  protocol: 1,
  formation: "default",
  name: "n1",
  host: "127.0.0.1",
  pgPort: 5432,
  keeperUrl: "http://127.0.0.1:6432",
  keeperFingerprint: null,
  systemIdentifier: null,
  pgVersion: 150018,
};

function reportOf(nodeId: number, core: KeeperCore, seq: number): NodeReport {
  return {
    protocol: 1,
    formation: "default",
    nodeId,
    boot: "b",
    seq,
    sentAtMs: seq,
    reportedState: core.state,
    seenVersion: core.assignment?.version ?? 0,
    appliedVersion: core.appliedVersion,
    pg: {
      isRunning: true,
      restarting: false,
      restartsLeft: 3,
      inRecovery: false,
      tli: 1,
      lsn: "0/100",
      systemIdentifier: "7",
      version: 150018,
      ssn: "",
      diverged: false,
    },
    replication: [],
    upstream: null,
    slots: { ready: true, logical: [], lost: [] },
    promise: { to: null, askedAgeMs: null, remainingMs: 0 },
    lease: null,
    action: null,
  };
}

test("a node registers, reports, and is assigned; the same registration gives the same id", async () => {
  const first = (await post("/v1/register", REQUEST, "register")).body as RegisterResponse;
  const again = (await post("/v1/register", REQUEST, "register")).body as RegisterResponse;
  expect(again.nodeId).toBe(first.nodeId);
  expect(first.assignment.goalState).toBe("single");
  // The first answer was lost, so its token is void.
  expect((await post("/v1/node_active", reportOf(1, NEW_NODE, 1), first.nodeToken)).status).toBe(401);
  const core = { ...NEW_NODE, assignment: again.assignment };
  const answer = (await post("/v1/node_active", reportOf(1, core, 1), again.nodeToken)).body as NodeResponse;
  expect(answer).toMatchObject({ seq: 1, boot: "b", sentAtMs: 1, leaseTtlMs: DEFAULT_TIMINGS.leaseTtlMs });
  // A doubled report gets no second lease.
  const doubled = (await post("/v1/node_active", reportOf(1, core, 1), again.nodeToken)).body as NodeResponse;
  expect(doubled.leaseTtlMs).toBeNull();
  const state = (await get("/v1/state", { formation: "default" })).body as StateView;
  expect(state.nodes).toMatchObject([{ name: "n1", assigned: "single", running: true, tli: 1, lsn: "0/100" }]);
});

test("every call needs its own token", async () => {
  await post("/v1/register", REQUEST, "register");
  for (const token of ["", "register", "wrong"]) {
    expect((await get("/v1/state", { formation: "default" }, token)).status).toBe(401);
    expect((await post("/v1/perform", { formation: "default", kind: "failover", node: null }, token)).status).toBe(401);
    expect((await post("/v1/node_active", reportOf(1, NEW_NODE, 1), token)).status).toBe(401);
  }
  expect((await post("/v1/register", REQUEST, "")).status).toBe(401);
  expect((await get("/health", {}, "")).status).toBe(200);
  expect(String((await get("/metrics", {}, "")).body)).toContain("spillway_ha_node_last_contact");
});

test("bad input is refused with a code and changes nothing", async () => {
  await post("/v1/register", REQUEST, "register");
  const before = (await get("/v1/settings", { formation: "default" })).body;
  const cases: [Promise<ApiAnswer>, number, string][] = [
    [post("/v1/register", "{", "register"), 400, "ha_bad_message"],
    [post("/v1/register", { ...REQUEST, name: "Not a name" }, "register"), 400, "ha_bad_message"],
    [post("/v1/register", { ...REQUEST, protocol: 2 }, "register"), 400, "ha_bad_message"],
    [post("/v1/register", { ...REQUEST, name: "n2" }, "register"), 409, "ha_node_exists"],
    [
      post("/v1/register", { ...REQUEST, name: "n2", pgPort: 1, pgVersion: 180000 }, "register"),
      409,
      "ha_major_mismatch",
    ],
    [post("/v1/perform", { formation: "default", kind: "switchover", node: null }), 409, "ha_refused"],
    [post("/v1/drop", { formation: "default", node: "n9" }), 404, "ha_not_found"],
    [get("/v1/state", { formation: "nope" }), 404, "ha_not_found"],
    [get("/v1/state"), 400, "ha_bad_message"],
    [get("/v1/nothing"), 404, "ha_not_found"],
  ];
  for (const [answer, status, code] of cases) {
    const got = await answer;
    expect([got.status, codeOf(got)]).toEqual([status, code]);
  }
  expect((await get("/v1/settings", { formation: "default" })).body).toEqual(before);
});

test("a system identifier of another cluster is refused", async () => {
  await post("/v1/register", { ...REQUEST, systemIdentifier: "1" }, "register");
  const other = await post("/v1/register", { ...REQUEST, name: "n2", pgPort: 5433, systemIdentifier: "2" }, "register");
  expect([other.status, codeOf(other)]).toEqual([409, "ha_identifier_mismatch"]);
});

test("a report with another cluster's system identifier counts for nothing, and is said", async () => {
  const { nodeToken, assignment } = (await post("/v1/register", REQUEST, "register")).body as RegisterResponse;
  const core = { ...NEW_NODE, assignment };
  const report = (seq: number, systemIdentifier: string): NodeReport => {
    const sent = reportOf(1, core, seq);
    return { ...sent, pg: { ...sent.pg, systemIdentifier } };
  };
  const lease = async (seq: number, id: string): Promise<number | null> =>
    ((await post("/v1/node_active", report(seq, id), nodeToken)).body as NodeResponse).leaseTtlMs;
  expect(await lease(1, "7")).toBe(DEFAULT_TIMINGS.leaseTtlMs);
  expect([await lease(2, "8"), await lease(3, "8")]).toEqual([null, null]);
  const { lines } = (await get("/v1/explain", { formation: "default" })).body as { lines: string[] };
  expect(lines.join()).toContain("the system identifier 8, the formation's is 7");
  const { events } = (await get("/v1/events", { formation: "default" })).body as { events: { reason: string }[] };
  expect(events.filter((e) => e.reason.includes("of another cluster"))).toHaveLength(1);
  expect(await lease(4, "7")).toBe(DEFAULT_TIMINGS.leaseTtlMs);
});

test("watch returns at once when the assignment changes, and at its end otherwise", async () => {
  const first = (await post("/v1/register", REQUEST, "register")).body as RegisterResponse;
  const { version } = first.assignment;
  const query = { formation: "default", node: "1", version: String(version) };
  const start = performance.now();
  expect((await get("/v1/watch", { ...query, timeoutMs: "150" }, first.nodeToken)).body).toEqual({ version });
  expect(performance.now() - start).toBeGreaterThan(140);
  const waiting = get("/v1/watch", { ...query, timeoutMs: "20000" }, first.nodeToken);
  await post("/v1/register", { ...REQUEST, name: "n2", pgPort: 5433 }, "register");
  const changed = (await waiting).body as { version: number };
  expect(changed.version).toBeGreaterThan(version);
  expect(performance.now() - start).toBeLessThan(5000);
});
