/** Real monitor processes, really killed: nothing that was answered is forgotten, and the end is clean. */
import { spawn, type ChildProcess } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { AdminClient } from "../commands/client.ts";
import { monitorAddress, Args, type Io } from "../commands/command.ts";
import { COMMANDS, runHa } from "../commands/cli.ts";
import { formationsView, settingsView, stateView } from "../protocol/commands.ts";
import { registerResponse, type RegisterResponse } from "../protocol/messages.ts";

const MAIN = join(import.meta.dirname, "..", "main.ts");
const children: ChildProcess[] = [];
let root = "";
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), "spillway-ha-kill-"));
});
afterAll(async () => {
  await Promise.all(children.map((c) => end(c, "SIGKILL")));
  rmSync(root, { recursive: true, force: true });
});

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

function io(): Io & { readonly lines: string[] } {
  const lines: string[] = [];
  const signal = new AbortController().signal;
  return { lines, out: (l) => lines.push(l), err: (l) => lines.push(l), env: {}, clock: systemClock, signal };
}

async function ha(...argv: string[]): Promise<{ code: number; text: string }> {
  const at = io();
  const code = await runHa(argv, at);
  return { code, text: at.lines.join("\n") };
}

function startMonitor(dir: string): ChildProcess {
  const child = spawn(process.execPath, ["--import", "tsx", "--conditions=source", MAIN, "run", "--dir", dir], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  child.stderr?.resume();
  children.push(child);
  return child;
}

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<number | null> {
  if (child.exitCode !== null || child.signalCode !== null) return child.exitCode;
  const gone = new Promise<number | null>((resolve) => child.once("exit", (code) => resolve(code)));
  child.kill(signal);
  return gone;
}

function clientOf(dir: string): AdminClient {
  return new AdminClient(monitorAddress(new Args({ dir }), io()), systemClock, 20_000);
}

async function newNode(client: AdminClient, i: number): Promise<RegisterResponse> {
  const request = {
    protocol: 1,
    formation: "default",
    name: `n${i}`,
    host: "127.0.0.1",
    pgPort: 10_000 + i,
    keeperUrl: "http://127.0.0.1:1",
    keeperFingerprint: null,
    systemIdentifier: null,
    pgVersion: 150018,
  };
  return client.post("/v1/register", request, registerResponse);
}

describe("a monitor process", () => {
  test.each([false, true])("kill -9 at any moment loses nothing that was answered (TLS %s)", async (tls) => {
    const dir = join(root, `m-${tls}`);
    const listen = `127.0.0.1:${await freePort()}`;
    const created = await ha("create", "monitor", "--dir", dir, "--listen", listen, ...(tls ? ["--tls"] : []));
    expect(created.code).toBe(0);
    expect(statSync(join(dir, "admin-token")).mode & 0o777).toBe(0o600);
    expect(statSync(dir).mode & 0o777).toBe(0o700);
    const client = clientOf(dir);
    const names: string[] = [];
    for (let round = 0; round < 5; round++) {
      const child = startMonitor(dir);
      const patient = clientOf(dir);
      await patient.get("/v1/formations", {}, formationsView);
      const killed = systemClock.sleep(100 + 60 * round).then(() => end(child, "SIGKILL"));
      // Registers until the kill comes in between: what was answered counts.
      for (let i = 1; i <= 4; i++) {
        const answer = await Promise.race([newNode(patient, 4 * round + i).catch(() => null), killed.then(() => null)]);
        if (answer !== null) names.push(`n${4 * round + i}`);
        await systemClock.sleep(10);
      }
      await killed;
      patient.close();
    }
    const last = startMonitor(dir);
    const state = await client.get("/v1/state", { formation: "default" }, stateView);
    const known = new Set(state.nodes.map((n) => n.name));
    expect(names.filter((n) => !known.has(n))).toEqual([]);
    expect(names.length).toBeGreaterThan(0);
    expect(await end(last, "SIGTERM")).toBe(0);
    client.close();
  });

  test("a second one on the same directory, and one on a taken port, end with one line", async () => {
    const dir = join(root, "twice");
    const port = await freePort();
    await ha("create", "monitor", "--dir", dir, "--listen", `127.0.0.1:${port}`);
    const first = startMonitor(dir);
    const client = clientOf(dir);
    await client.post("/v1/formations", { formation: "default" }, settingsView);
    const second = await ha("run", "--dir", dir);
    expect(second.code).toBe(1);
    expect(second.text).toContain("ha_store_locked");
    const other = join(root, "port");
    await ha("create", "monitor", "--dir", other, "--listen", `127.0.0.1:${port}`);
    const third = await ha("run", "--dir", other);
    expect([third.code, third.text.includes("ha_port_taken")]).toEqual([1, true]);
    expect(await end(first, "SIGTERM")).toBe(0);
    client.close();
  });
});

describe("commands", () => {
  test("every command has help with an example, and usage errors end with 2", async () => {
    for (const command of COMMANDS) {
      const { code, text } = await ha(...command.words.split(" "), "--help");
      expect(code, command.words).toBe(0);
      expect(text).toContain("Examples:");
    }
    expect((await ha()).code).toBe(2);
    expect((await ha("--help")).code).toBe(0);
    expect((await ha("show", "nothing")).code).toBe(2);
    expect((await ha("show", "state", "--nope")).code).toBe(2);
    expect((await ha("show", "state")).text).toMatch(/which monitor/);
    expect((await ha("run")).code).toBe(2);
    expect((await ha("create", "monitor", "--dir", join(root, "x"), "--listen", "nonsense")).code).toBe(2);
  });

  test("timings that do not fit together are refused at the start", async () => {
    const dir = join(root, "timings");
    await ha("create", "monitor", "--dir", dir, "--listen", `127.0.0.1:${await freePort()}`);
    const wrong = await ha("run", "--dir", dir, "--ha-lease-ttl", "4s", "--ha-takeover-wait", "4s");
    expect(wrong).toMatchObject({ code: 2 });
    expect(wrong.text).toMatch(/config_invalid: ha-takeover-wait/);
    expect(readFileSync(join(dir, "monitor.json"), "utf8")).toContain("listen");
  });

  test("show, set and create against a running monitor, as text and as JSON", async () => {
    const dir = join(root, "shown");
    await ha("create", "monitor", "--dir", dir, "--listen", `127.0.0.1:${await freePort()}`);
    const child = startMonitor(dir);
    expect(await ha("create", "formation", "--name", "orders", "--dir", dir)).toMatchObject({ code: 0 });
    expect((await ha("show", "formations", "--dir", dir)).text).toContain("orders");
    const where = ["--dir", dir, "--formation", "orders"];
    const settings = JSON.parse((await ha("show", "settings", ...where, "--json")).text) as Record<string, unknown>;
    expect(settings).toMatchObject({ formation: "orders", numberSyncStandbys: 0, leaseTtlMs: 2500 });
    expect((await ha("set", "failover-when-async", "--value", "on", ...where)).code).toBe(0);
    expect((await ha("show", "settings", ...where)).text).toMatch(/failover-when-async\s+on/);
    const refused = await ha("set", "number-sync-standbys", "--value", "1", ...where, "--json");
    expect(refused.code).toBe(1);
    expect(refused.text).toContain('"code":"ha_refused"');
    expect((await ha("show", "uri", ...where)).text).toContain("target_session_attrs=read-write");
    expect((await ha("explain", ...where)).text).toContain("no nodes");
    expect((await ha("show", "state", "--dir", dir, "--formation", "nope")).code).toBe(2);
    await end(child, "SIGTERM");
  });
});
