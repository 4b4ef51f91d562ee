/** Real clients against the edge: ADBC's Flight SQL driver, pyarrow, pandas and polars; the sessions under it are DuckDB alone. */
import { randomBytes } from "node:crypto";
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { systemClock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import { silentLogger } from "@spillway/base/log";
import { REPO_ROOT } from "@spillway/testkit/host";
import { waitFor } from "@spillway/testkit/wait";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Engine } from "../../../engine/engine.ts";
import type { Principal } from "../../session/session.ts";
import type { FlightAuth } from "./auth.ts";
import { type FlightServer, startFlightServer } from "./flight.ts";
import { TestSessions } from "./test-session.ts";

const PRINCIPAL: Principal = {
  userId: "u1",
  userName: "ann",
  tenantId: "t1",
  tenantName: "acme",
  isAdmin: false,
  roles: [],
  groups: [],
};

let engine: Engine;
let sessions: TestSessions;
let server: FlightServer;
let seen: Map<string, Record<string, unknown>>;

function testAuth(): FlightAuth {
  const tokens = new Set<string>();
  return {
    password: (user, password) =>
      user === "ann" && password === "secret"
        ? Promise.resolve(PRINCIPAL)
        : Promise.reject(new SpillwayError("auth_failed", "wrong user or password")),
    mint: () => {
      const token = randomBytes(16).toString("hex");
      tokens.add(token);
      return Promise.resolve(token);
    },
    bearer: (token) =>
      tokens.has(token)
        ? Promise.resolve({ principal: PRINCIPAL, shared: false })
        : Promise.reject(new SpillwayError("auth_failed", "unknown token")),
  };
}

beforeAll(async () => {
  engine = await Engine.open({ memoryBytes: 512 << 20, threads: 2 });
  sessions = new TestSessions(engine);
  server = await startFlightServer({
    sessions,
    auth: testAuth(),
    secret: randomBytes(32),
    defaultDatabase: () => "lake",
    version: "0.1.0",
    clock: systemClock,
    log: silentLogger,
    host: "127.0.0.1",
    port: 0,
    tls: null,
  });
  const python = process.env["SPILLWAY_INTEROP"] ?? "python3";
  const script = join(REPO_ROOT, "packages/testkit/src/interop/flight_client.py");
  const { stdout } = await promisify(execFile)(python, [script, `grpc://127.0.0.1:${server.port}`, "ann", "secret"], {
    timeout: 120_000,
  });
  const lines = stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as { check: string; seen?: Record<string, unknown>; error?: string });
  seen = new Map(lines.map((l) => [l.check, l.seen ?? { error: l.error }]));
}, 150_000);
afterAll(async () => {
  await server.stop(1000);
  engine.close();
});

test("a query: values, names and NULL", () => {
  expect(seen.get("select")).toEqual({
    rows: [["1", "x", "None", "1.50", "2024-02-29"]],
    names: ["a", "b", "d", "e", "f"],
  });
});

test("many batches", () => {
  expect(seen.get("many_rows")).toEqual({ rows: 300_000, sum: 44_999_850_000, last: "t299999", trues: 100_000 });
});

test("pandas and polars", () => {
  expect(seen.get("pandas_and_polars")).toEqual({ pandas: 749_250, polars: "n9" });
});

test("DDL, INSERT and the count of an UPDATE", () => {
  expect(seen.get("ddl_and_update")).toEqual({ changed: 2, row: [3, "z"] });
});

test("parameters of queries and of executemany", () => {
  expect(seen.get("parameters")).toEqual({ one: "three", nulls: 1 });
});

test("a transaction reads its own writes, nobody else does, and a rollback leaves nothing", () => {
  expect(seen.get("transactions")).toEqual({ own: 1, others: 0, left: [2] });
});

test("ingest in its modes, every type", () => {
  expect(seen.get("ingest")).toEqual({
    create: 3,
    twice: expect.any(String),
    append: 3,
    row: ["6", "12", "a", "-3.50", "4", "4"],
    replace: 1,
    after: [["1", "a", "1.25", "True"]],
    create_append: 3,
    absent: expect.any(String),
    big: 20_000,
    sum: 199_990_000,
  });
  expect([seen.get("ingest")?.["twice"], seen.get("ingest")?.["absent"]]).not.toContain("accepted");
});

test("what there is", () => {
  expect(seen.get("metadata")).toEqual({
    vendor: "Spillway",
    types: ["FOREIGN TABLE", "TABLE", "VIEW"],
    tables: ["meta"],
    columns: ["id", "v"],
    schema: ["id:int32", "v:string"],
  });
});

test("errors have their code, and the connection goes on", () => {
  expect(seen.get("errors")).toMatchObject({
    syntax: ["ProgrammingError", expect.stringContaining("sql_syntax")],
    table: ["ProgrammingError", expect.stringContaining("table_unknown")],
    after: 1,
    password: expect.stringContaining("auth_failed"),
  });
});

test("cancel ends the statement", async () => {
  expect(seen.get("cancel")).toEqual({ outcome: expect.stringMatching(/Error/), seconds_ok: true });
  await waitFor("the engine to be interrupted", () => sessions.interrupted > 0, { timeoutMs: 2000 });
});

test("several results of one connection, read in turns", () => {
  const first = 4_999_950_000;
  expect(seen.get("concurrent")).toEqual({ sums: [0, 1, 2, 3].map((i) => first + i * 100_000) });
});

test("pyarrow: tickets twice, schemas, strangers and nonsense", () => {
  expect(seen.get("pyarrow_flight")).toMatchObject({
    rows: [0, 1, 2, 3, 4],
    again: true,
    same: true,
    schema: true,
    anonymous: "refused",
    nonsense: "invalid",
    actions: expect.arrayContaining(["BeginTransaction", "CancelFlightInfo", "CreatePreparedStatement"]),
  });
});

test("session options", () => {
  expect(seen.get("options")).toEqual({ before: "main", after: expect.stringContaining("other") });
});
