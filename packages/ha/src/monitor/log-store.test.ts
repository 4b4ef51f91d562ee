import {
  appendFileSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { LogStore } from "./log-store.ts";
import { eventNumber, formationNamed, STORE_SUITE } from "./store-suite.ts";

const dirs: string[] = [];
function freshDir(): string {
  const dir = mkdtempSync(join(tmpdir(), "spillway-ha-store-"));
  dirs.push(dir);
  return dir;
}
afterAll(() => dirs.forEach((dir) => rmSync(dir, { recursive: true, force: true })));

describe("the embedded store", () => {
  test.each(STORE_SUITE)("$name", async ({ run }) => {
    const dir = freshDir();
    await run(() => LogStore.open(dir));
  });

  async function filled(commits: number): Promise<string> {
    const at = freshDir();
    const store = await LogStore.open(at);
    for (let i = 1; i <= commits; i++)
      await store.commit({ formation: formationNamed("f", i), events: [eventNumber(i)] });
    await store.close();
    return at;
  }

  async function versionIn(at: string): Promise<number> {
    const store = await LogStore.open(at);
    const { formations } = await store.lead();
    await store.close();
    return formations[0]?.version ?? 0;
  }

  test("a tail torn at every byte of the last line loses that line only", async () => {
    const at = await filled(3);
    const path = join(at, "log.0");
    const whole = readFileSync(path);
    const lastLine = whole.subarray(0, -1).lastIndexOf(0x0a) + 1;
    for (let cut = lastLine; cut < whole.length; cut += 37) {
      writeFileSync(path, whole);
      truncateSync(path, cut);
      expect(await versionIn(at)).toBe(2);
      // The torn part is gone: the next commit begins on a clean line.
      expect(statSync(path).size).toBe(lastLine);
    }
    writeFileSync(path, whole);
    expect(await versionIn(at)).toBe(3);
  });

  test("garbage at the end is cut off, damage before good lines is refused", async () => {
    const at = await filled(3);
    const path = join(at, "log.0");
    const whole = readFileSync(path);
    appendFileSync(path, Buffer.from([0, 0, 0, 0, 0x0a]));
    expect(await versionIn(at)).toBe(3);
    const damaged = Buffer.from(whole);
    damaged[40] = (damaged[40] ?? 0) ^ 1;
    writeFileSync(path, damaged);
    await expect(LogStore.open(at)).rejects.toMatchObject({ code: "ha_store" });
    // The refusal leaves the file and takes the lock off.
    expect(readFileSync(path).equals(damaged)).toBe(true);
    expect(readdirSync(at)).not.toContain("lock");
  });

  test("a grown log is replaced by a snapshot; a crash between the two leaves either", async () => {
    const at = freshDir();
    const store = await LogStore.open(at, 4096);
    for (let i = 1; i <= 40; i++) await store.commit({ formation: formationNamed("f", i), events: [eventNumber(i)] });
    await store.close();
    const logs = readdirSync(at).filter((n) => n.startsWith("log."));
    expect(logs).toHaveLength(1);
    expect(Number(logs[0]?.slice(4))).toBeGreaterThan(0);
    writeFileSync(join(at, "log.999.tmp"), "half a snapshot");
    const again = await LogStore.open(at);
    const state = await again.lead();
    expect(state.formations[0]?.version).toBe(40);
    expect(state.events.map((e) => e.seq)).toEqual(Array.from({ length: 40 }, (_, i) => i + 1));
    await again.close();
    expect(readdirSync(at)).not.toContain("log.999.tmp");
  });

  test("one writer: a second one is refused, a dead one's lock is taken over", async () => {
    const at = freshDir();
    const store = await LogStore.open(at);
    await expect(LogStore.open(at)).rejects.toMatchObject({ code: "ha_store_locked" });
    await store.close();
    writeFileSync(join(at, "lock"), "999999 1\n");
    await (await LogStore.open(at)).close();
    // The same pid, but another process: it began at another time.
    writeFileSync(join(at, "lock"), `${process.pid} 1\n`);
    await (await LogStore.open(at)).close();
  });
});
