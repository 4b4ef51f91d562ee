import { expect, test } from "vitest";
import { faultEnv, faultPointsOf } from "./faults.ts";
import { rssPeakMb, TestProcess } from "./processes.ts";
import { isAlive } from "./reaper.ts";
import { sleep } from "./wait.ts";

const node = (code: string): TestProcess => new TestProcess(process.execPath, ["-e", code]);

test("collects output and the exit code", async () => {
  const child = node(
    "process.stdin.on('data', (d) => { console.log('got ' + d); console.error('done'); process.exit(3) })",
  );
  child.write("it\n");
  expect((await child.waitForLine(/^got (\w+)/))[1]).toBe("it");
  expect(await child.done).toMatchObject({ code: 3, signal: null, stderr: "done\n" });
});

test("a line that never comes fails with the output", async () => {
  const child = node("console.log('something else')");
  await expect(child.waitForLine(/hello/)).rejects.toThrow(/ended before .*something else/s);
});

test("stops, continues, kills", async () => {
  const child = node("let n = 0; setInterval(() => console.log(++n), 5)");
  await child.waitForLine(/^3$/);
  child.stop();
  await sleep(50);
  const before = child.stdout;
  await sleep(50);
  expect(child.stdout).toBe(before);
  child.cont();
  await sleep(100);
  expect(child.stdout.length).toBeGreaterThan(before.length);
  expect(rssPeakMb(child.pid)).toBeGreaterThan(20);
  expect(await child.kill()).toMatchObject({ code: null, signal: "SIGKILL" });
  expect(child.isRunning).toBe(false);
});

test("kills what the process started as well", async () => {
  const child = node("const c = require('child_process').spawn('sleep', ['60']); console.log(c.pid)");
  const grandchild = Number((await child.waitForLine(/^\d+$/))[0]);
  await child.killGroup();
  await sleep(20);
  expect(isAlive(grandchild)).toBe(false);
});

test("names fault points by prefix", () => {
  expect(faultPointsOf("tier.")).toContain("tier.before_commit");
  expect(() => faultPointsOf("nothing.")).toThrow(/no fault point/);
  expect(faultEnv({ point: "tier.verified", action: "kill" })).toEqual({ SPILLWAY_FAULT: "tier.verified:kill:1" });
});
