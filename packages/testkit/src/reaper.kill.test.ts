/** Whatever way a test process dies, its servers, processes and directories go with it. */
import { existsSync } from "node:fs";
import { expect, test } from "vitest";
import { HOLD_SERVER } from "./children/hold-server.ts";
import { spawnScript } from "./processes.ts";
import { isAlive } from "./reaper.ts";
import { sleep, waitFor } from "./wait.ts";

interface Held {
  readonly pid: number;
  readonly dir: string;
  readonly sleeper: number;
}

async function hold(how: string): Promise<{ held: Held; end: (signal: NodeJS.Signals) => Promise<unknown> }> {
  const child = spawnScript(HOLD_SERVER, [how]);
  const line = await child.waitForLine(/^\{"pid".*\}$/);
  return { held: JSON.parse(line[0]) as Held, end: (signal) => child.kill(signal) };
}

async function expectGone(held: Held, timeoutMs: number): Promise<void> {
  await waitFor(`postmaster ${held.pid} to be gone`, () => !isAlive(held.pid), { timeoutMs });
  await waitFor(`${held.dir} to be gone`, () => !existsSync(held.dir), { timeoutMs });
  expect(isAlive(held.sleeper)).toBe(false);
}

test.each(["SIGKILL", "SIGTERM", "SIGINT"] as const)("a parent ended by %s leaves nothing", async (signal) => {
  const { held, end } = await hold("wait");
  await sleep(50);
  expect(isAlive(held.pid) && isAlive(held.sleeper) && existsSync(held.dir)).toBe(true);
  await end(signal);
  await expectGone(held, 3000);
});

test.each(["exit", "throw"])("a parent that ends by %s leaves nothing", async (how) => {
  const { held } = await hold(how);
  await expectGone(held, 3000);
});

test("a server that hangs is ended too", async () => {
  const { held, end } = await hold("hang-server");
  await sleep(100);
  await end("SIGKILL");
  await expectGone(held, 5000);
});
