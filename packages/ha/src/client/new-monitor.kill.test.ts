/**
 * TLS between keepers and monitor (a certificate of openssl's for the keepers, the monitor's own), and what happens
 * when the monitor is lost with its disk, and when the only standbys left may not be promoted.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { chownSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { request } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect, type TLSSocket } from "node:tls";
import { postgresUser } from "@spillway/testkit/host";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { detectBinaries } from "../postgres/binaries.ts";
import { checkAcks, readIds, twoWritable } from "./checker.ts";
import { Formation, type FormationNode } from "./formation.ts";
import { haProgram } from "./program.ts";
import { sharedClock as clock } from "./shared-clock.ts";
import { reportedStates } from "./walkthrough.ts";
import { Writer } from "./writer.ts";

let formation: Formation;
let dir = "";

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), "spillway-ha-tls-"));
  const [cert, key] = [join(dir, "tls.crt"), join(dir, "tls.key")];
  const names = ["-subj", "/CN=keeper", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"];
  execFileSync("openssl", ["req", "-x509", "-newkey", "rsa:2048", "-keyout", key, "-out", cert, ...names], {
    stdio: "ignore",
  });
  const { uid, gid } = postgresUser();
  if (uid !== undefined && gid !== undefined) for (const path of [dir, cert, key]) chownSync(path, uid, gid);
  const create = { "tls-cert": cert, "tls-key": key };
  const pgBin = (await detectBinaries()).dir;
  formation = await Formation.start({ clock, nodes: 2, pgBin, namespaces: false, tls: true, create });
}, 120_000);
afterAll(async () => {
  await formation?.destroy();
  rmSync(dir, { recursive: true, force: true });
});
afterEach((context) => {
  if (context.task.result?.state !== "fail") return;
  for (const node of formation?.nodes ?? []) process.stderr.write(`--- ${node.name}\n${node.log().slice(-4000)}\n`);
  process.stderr.write(`--- monitor\n${formation?.monitor.log()}\n`);
});

function status(url: string, path: string): Promise<number> {
  return new Promise((resolve, reject) => {
    const asked = request(`${url}${path}`, { rejectUnauthorized: false }, (r) => {
      r.resume();
      resolve(r.statusCode ?? 0);
    });
    asked.on("error", reject);
    asked.end();
  });
}

test("keepers and monitor speak TLS only, and pin each other's certificate", async () => {
  const primary = await formation.primary();
  const url = `https://127.0.0.1:${primary.keeperPort}`;
  expect([await status(url, "/primary"), await status(url, "/standby")]).toEqual([200, 503]);
  expect(await status(formation.monitor.url, "/v1/state?formation=default")).toBe(401);
  await expect(fetch(url.replace("https", "http"))).rejects.toThrow("fetch failed");
  const socket = connect({ host: "127.0.0.1", port: primary.keeperPort, rejectUnauthorized: false });
  const seen = await new Promise<TLSSocket>((resolve) => socket.once("secureConnect", () => resolve(socket)));
  const fingerprint = seen.getPeerCertificate().fingerprint256.replaceAll(":", "").toLowerCase();
  socket.destroy();
  const standby = formation.nodes.find((n) => n !== primary);
  const core = JSON.parse(readFileSync(join(standby?.stateDir ?? "", "core.json"), "utf8")) as {
    assignment: { primary: { keeperUrl: string; keeperFingerprint: string } };
  };
  expect(core.assignment.primary).toMatchObject({ keeperUrl: url, keeperFingerprint: fingerprint });
  const wrong = formation.monitor.address.replace(/fingerprint=./, (m) =>
    m.endsWith("0") ? "fingerprint=1" : "fingerprint=0",
  );
  const refused = ha(["show", "state", "--monitor", wrong], "any");
  expect(refused.code).toBe(1);
  expect(refused.text).toMatch(/^ha_monitor_unreachable: .*certificate/);
});

test("the promises between keepers go over TLS: the monitor dies, the primary keeps its lease", async () => {
  const primary = await formation.primary();
  await formation.monitor.kill();
  await clock.sleep(5_000);
  expect(await status(`https://127.0.0.1:${primary.keeperPort}`, "/primary")).toBe(200);
  expect(primary.log()).not.toContain("fencing");
  await formation.monitor.run();
  await formation.waitStable();
});

function ha(args: readonly string[], token: string): { code: number | null; text: string } {
  const [program = "", ...first] = haProgram();
  const env = { ...process.env, SPILLWAY_HA_TOKEN: token };
  const done = spawnSync(program, [...first, ...args], { env, encoding: "utf8", cwd: "/" });
  return { code: done.status, text: `${done.stdout}${done.stderr}`.trim() };
}

function replace(node: FormationNode): { code: number | null; text: string } {
  const user = formation.runAs === null ? [] : ["--user", "postgres"];
  const to = ["--monitor", formation.monitor.address, ...user];
  return ha(["replace", "monitor", "--pgdata", node.pgdata, ...to], formation.monitor.registrationToken);
}

test("replace_monitor: the monitor is lost with its disk; the nodes go over to a new one while a client writes", async () => {
  const primary = await formation.primary();
  const standby = formation.nodes.find((n) => n !== primary);
  if (!standby) throw new Error("no standby");
  const pids = [primary.postmasterPid, standby.postmasterPid];
  const writer = new Writer({ uri: formation.uri, clock, everyMs: 20, writer: 1, timeoutMs: 3_000 });
  writer.start();
  try {
    await writer.waitForAck(0, 10_000);
    const at = clock.monotonicMs();
    const old = formation.monitor;
    await formation.startMonitor("monitor2");
    expect(replace(primary)).toMatchObject({ code: 1, text: expect.stringMatching(/^ha_refused: .*still answers/) });
    await old.kill();
    rmSync(join(formation.dir, "monitor"), { recursive: true });
    // A standby that came first would be made the primary.
    expect(replace(standby).text).toMatch(/the primary has to be registered first/);
    expect(replace(primary)).toMatchObject({ code: 0 });
    await formation.waitFor("the primary", async () => (await formation.viewOf(primary)) === "single", 20_000);
    expect(replace(standby)).toMatchObject({ code: 0 });
    await formation.waitStable(30_000);
    await clock.sleep(1_000);
    expect(writer.longestGapMs(at, clock.monotonicMs())).toBeLessThan(2_500);
  } finally {
    await writer.stop();
  }
  expect(await formation.primary()).toBe(primary);
  expect([primary.postmasterPid, standby.postmasterPid]).toEqual(pids);
  expect(standby.log().split("keeper started").at(-1)).not.toContain("base backup begins");
  const check = checkAcks(writer.acks, writer.unknown, await readIds(formation.uri, 1));
  expect(check.lost).toEqual([]);
  expect(twoWritable(writer.acks)).toEqual([]);
  // The new monitor rules: a failover works.
  primary.killNode();
  await formation.waitFor("the takeover", async () => (await formation.primary()) === standby, 30_000);
  primary.startKeeper();
  await formation.waitStable(60_000);
});

test("init_from_standby: the only standby may not be promoted; a new node is copied from it and takes over", async () => {
  const primary = await formation.primary();
  const standby = formation.nodes.find((n) => n !== primary);
  if (!standby) throw new Error("no standby");
  await formation.monitor.set({ node: standby.name, candidatePriority: 0 });
  await formation.waitStable();
  const writer = new Writer({ uri: formation.uri, clock, everyMs: 20, writer: 2, timeoutMs: 3_000 });
  writer.start();
  await writer.waitForAck(0, 10_000);
  await clock.sleep(1_000);
  primary.killNode();
  await clock.sleep(500);
  await writer.stop();
  await clock.sleep(4_000);
  const added = await formation.addNode();
  await formation.waitFor("the new node", async () => (await formation.viewOf(added)) === "wait_standby", 20_000);
  await expect(formation.monitor.perform("failover")).rejects.toThrow(/candidate-priority 0/);
  await formation.monitor.perform("failover", null, true);
  const opened = async (): Promise<boolean> => ["wait_primary", "primary"].includes(await formation.viewOf(added));
  await formation.waitFor("the takeover", opened, 60_000);
  const states = reportedStates(await formation.monitor.events(500), added.name);
  expect(states.slice(0, 5)).toEqual([
    "wait_standby",
    "report_lsn",
    "prepare_promotion",
    "stop_replication",
    "wait_primary",
  ]);
  primary.startKeeper();
  await formation.waitStable(60_000);
  const check = checkAcks(writer.acks, writer.unknown, await readIds(formation.uri, 2));
  expect(check.lost).toEqual([]);
  expect(check.acked).toBeGreaterThan(10);
});
