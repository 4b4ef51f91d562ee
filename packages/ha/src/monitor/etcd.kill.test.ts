/** The store over a real etcd cluster of three: leadership, fencing, loss of a member, loss of a monitor. */
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock, type Clock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { AdminClient } from "../commands/client.ts";
import { Args, monitorAddress, type Io } from "../commands/command.ts";
import { runHa } from "../commands/cli.ts";
import { stateView } from "../protocol/commands.ts";
import { registerResponse } from "../protocol/messages.ts";
import { EtcdStore } from "./etcd-store.ts";
import { eventNumber, formationNamed, STORE_SUITE } from "./store-suite.ts";

const HAVE = spawnSync("etcd", ["--version"]).status === 0;
const never = new AbortController().signal;
const MAIN = join(import.meta.dirname, "..", "main.ts");

let root = "";
let endpoints: string[] = [];
const members: ChildProcess[] = [];
const children: ChildProcess[] = [];

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer());
  await Promise.all(servers.map((s) => new Promise<void>((resolve) => s.listen(0, "127.0.0.1", resolve))));
  const ports = servers.map((s) => (s.address() as AddressInfo).port);
  await Promise.all(servers.map((s) => new Promise((resolve) => s.close(resolve))));
  return ports;
}

function startMember(i: number, client: readonly string[], peer: readonly string[]): ChildProcess {
  const cluster = peer.map((url, j) => `e${j}=${url}`).join(",");
  const urls = ["--listen-client-urls", client[i] ?? "", "--advertise-client-urls", client[i] ?? ""];
  const peers = ["--listen-peer-urls", peer[i] ?? "", "--initial-advertise-peer-urls", peer[i] ?? ""];
  const rest = ["--initial-cluster", cluster, "--initial-cluster-state", "new", "--log-level", "error"];
  return spawn("etcd", ["--name", `e${i}`, "--data-dir", join(root, `e${i}`), ...urls, ...peers, ...rest], {
    stdio: "ignore",
    env: { ...process.env, ETCD_UNSUPPORTED_ARCH: process.arch },
  });
}

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise((resolve) => child.once("exit", resolve));
  child.kill(signal);
  await gone;
}

describe.skipIf(!HAVE)("monitors over etcd", () => {
  beforeAll(async () => {
    root = mkdtempSync(join(tmpdir(), "spillway-ha-etcd-"));
    const ports = await freePorts(6);
    endpoints = ports.slice(0, 3).map((p) => `http://127.0.0.1:${p}`);
    const peers = ports.slice(3).map((p) => `http://127.0.0.1:${p}`);
    for (let i = 0; i < 3; i++) members.push(startMember(i, endpoints, peers));
    const healthy = (): Promise<boolean> =>
      fetch(`${endpoints[0]}/health`).then(
        (r) => r.ok,
        () => false,
      );
    for (let i = 0; i < 300 && !(await healthy()); i++) await systemClock.sleep(100);
  });
  afterAll(async () => {
    await Promise.all([...children, ...members].map((c) => end(c, "SIGKILL")));
    rmSync(root, { recursive: true, force: true });
  });

  function storeOf(cluster: string, url = "http://m", clock: Clock = systemClock, ttlSeconds = 2): EtcdStore {
    return new EtcdStore({ endpoints, cluster, url, clock, log: silentLogger, ttlSeconds });
  }

  test.each(STORE_SUITE)("$name", async ({ name, run }) => {
    const cluster = name.slice(0, 4);
    await run(() => Promise.resolve(storeOf(cluster)));
  });

  test("one leads; the other waits, names the leader, and takes over when it ends", async () => {
    const [a, b] = [storeOf("two", "http://a"), storeOf("two", "http://b")];
    await a.lead(never);
    let second = false;
    const waiting = b.lead(never).then((state) => {
      second = true;
      return state;
    });
    await systemClock.sleep(3000);
    expect([a.leads(), b.leads(), second]).toEqual([true, false, false]);
    expect(b.leaderUrl()).toBe("http://a");
    await a.commit({ formation: formationNamed("f", 5), events: [eventNumber(1)] });
    await a.close();
    const state = await waiting;
    expect(state.formations.map((f) => f.version)).toEqual([5]);
    expect([a.leads(), b.leads()]).toEqual([false, true]);
    await b.close();
  });

  test("a leader whose time stood still is replaced, knows it by its clock, and can write nothing", async () => {
    const clock = new PausableClock();
    const [a, b] = [storeOf("pause", "http://a", clock), storeOf("pause", "http://b")];
    await a.lead(never);
    await a.commit({ formation: formationNamed("f", 1), events: [] });
    clock.pause();
    const state = await b.lead(never);
    expect(state.formations[0]?.version).toBe(1);
    await b.commit({ formation: formationNamed("f", 2), events: [] });
    // Its own clock has not moved, so it still believes that it leads: the condition must stop it.
    expect(a.leads()).toBe(true);
    await expect(a.commit({ formation: formationNamed("f", 99), events: [] })).rejects.toMatchObject({
      code: "ha_not_leader",
    });
    expect(a.leads()).toBe(false);
    clock.resume();
    await b.close();
    const c = storeOf("pause");
    expect((await c.lead(never)).formations[0]?.version).toBe(2);
    await c.close();
    await a.close();
  });

  test("the lead ends by the own clock before etcd's lease can", async () => {
    const clock = new PausableClock();
    const a = storeOf("clock", "http://a", clock, 3);
    await a.lead(never);
    clock.stopSleepers();
    clock.advance(2300);
    expect(a.leads()).toBe(false);
    await expect(a.commit({ formation: formationNamed("f", 1), events: [] })).rejects.toMatchObject({
      code: "ha_not_leader",
    });
    await a.close();
  });

  test("a member of etcd is killed: commits go on", async () => {
    const a = storeOf("member");
    await a.lead(never);
    for (let i = 1; i <= 30; i++) {
      if (i === 10) await end(members[0] as ChildProcess, "SIGKILL");
      await a.commit({ formation: formationNamed("f", i), events: [eventNumber(i)] }).catch(async () => {
        // etcd itself elects: the lead may be lost with it, and is won again.
        await a.lead(never);
        await a.commit({ formation: formationNamed("f", i), events: [eventNumber(i)] });
      });
    }
    await a.close();
    const b = storeOf("member");
    expect((await b.lead(never)).formations[0]?.version).toBe(30);
    await b.close();
  });

  test("with a user and a password; a login that etcd forgot is made again", async () => {
    const call = async (path: string, body: unknown, token = ""): Promise<Record<string, unknown>> => {
      const headers = token === "" ? {} : { authorization: token };
      const answer = await fetch(`${endpoints[1]}${path}`, { method: "POST", body: JSON.stringify(body), headers });
      expect(answer.status, path).toBe(200);
      return (await answer.json()) as Record<string, unknown>;
    };
    await call("/v3/auth/user/add", { name: "root", password: "pw" });
    await call("/v3/auth/user/grant", { user: "root", role: "root" });
    await call("/v3/auth/enable", {});
    const login = { user: "root", password: "pw" };
    try {
      const make = (with_: typeof login | null): EtcdStore =>
        new EtcdStore({
          endpoints,
          cluster: "auth",
          url: "http://m",
          clock: systemClock,
          log: silentLogger,
          login: with_,
        });
      const [none, wrong] = [make(null), make({ user: "root", password: "wrong" })];
      await expect(none.shared("x", "1")).rejects.toMatchObject({ code: "ha_store" });
      await expect(wrong.shared("x", "1")).rejects.toThrow(/refuses the login of root/);
      const store = make(login);
      await store.lead(never);
      await store.commit({ formation: formationNamed("f", 1), events: [] });
      // Any change of the users makes etcd refuse what was handed out before.
      const { token } = await call("/v3/auth/authenticate", { name: "root", password: "pw" });
      await call("/v3/auth/user/add", { name: "other", password: "pw" }, String(token));
      await store.commit({ formation: formationNamed("f", 2), events: [] });
      await store.close();
      const next = make(login);
      expect((await next.lead(never)).formations[0]?.version).toBe(2);
      await next.close();
    } finally {
      const { token } = await call("/v3/auth/authenticate", { name: "root", password: "pw" });
      await call("/v3/auth/disable", {}, String(token));
    }
  });

  test("three monitor processes: the leader is killed again and again, nothing that was answered is lost", async () => {
    const quiet: Io = { out: () => {}, err: () => {}, env: {}, clock: systemClock, signal: never };
    const ports = await freePorts(3);
    const dirs = ports.map((_, i) => join(root, `m${i}`));
    for (const [i, dir] of dirs.entries()) {
      const etcd = ["--etcd", endpoints.join(","), "--cluster", "procs"];
      expect(
        await runHa(["create", "monitor", "--dir", dir, "--listen", `127.0.0.1:${ports[i]}`, ...etcd], quiet),
      ).toBe(0);
    }
    const start = (i: number): ChildProcess => {
      const child = spawn(
        process.execPath,
        ["--import", "tsx", "--conditions=source", MAIN, "run", "--dir", dirs[i] ?? ""],
        { stdio: "ignore" },
      );
      children.push(child);
      return child;
    };
    const monitors = [0, 1, 2].map(start);
    const urls = ports.map((p) => `http://127.0.0.1:${p}`);
    const roleOf = async (url: string): Promise<string> => {
      const answer = await fetch(`${url}/health`, { signal: AbortSignal.timeout(1000) }).catch(() => null);
      return answer === null ? "gone" : ((await answer.json()) as { role: string }).role;
    };
    const leader = async (): Promise<number> => (await Promise.all(urls.map(roleOf))).indexOf("leader");
    await expect.poll(leader, { timeout: 30_000 }).toBeGreaterThanOrEqual(0);
    const { token } = monitorAddress(new Args({ dir: dirs[await leader()] }), quiet);
    const client = new AdminClient({ urls, token, fingerprint: null }, systemClock, 30_000);
    const names: string[] = [];
    for (let round = 0; round < 3; round++) {
      const i = await leader();
      const name = `n${round}`;
      const request = {
        protocol: 1,
        formation: "default",
        name,
        host: "127.0.0.1",
        pgPort: 7000 + round,
        keeperUrl: "http://127.0.0.1:1",
      };
      const rest = { keeperFingerprint: null, systemIdentifier: null, pgVersion: 150018 };
      await client.post("/v1/register", { ...request, ...rest }, registerResponse);
      names.push(name);
      await end(monitors[i] as ChildProcess, "SIGKILL");
      const state = await client.get("/v1/state", { formation: "default" }, stateView);
      expect(state.nodes.map((n) => n.name)).toEqual(names);
      monitors[i] = start(i);
    }
    client.close();
  });
});

/** The system's clock, which can stand still for its owner. */
class PausableClock implements Clock {
  #offsetMs = 0;
  #pausedAtMs: number | null = null;
  #sleepersStopped = false;

  monotonicMs(): number {
    return (this.#pausedAtMs ?? systemClock.monotonicMs()) + this.#offsetMs;
  }

  wallMs(): number {
    return systemClock.wallMs();
  }

  async sleep(ms: number, signal?: AbortSignal): Promise<void> {
    await systemClock.sleep(ms, signal);
    while (this.#pausedAtMs !== null || this.#sleepersStopped) await systemClock.sleep(50, signal);
  }

  pause(): void {
    this.#pausedAtMs = systemClock.monotonicMs();
  }

  resume(): void {
    this.#pausedAtMs = null;
  }

  stopSleepers(): void {
    this.#sleepersStopped = true;
    // Ends with the test: nobody may hang on it.
    setTimeout(() => (this.#sleepersStopped = false), 5000).unref();
  }

  advance(ms: number): void {
    this.#offsetMs += ms;
  }
}
