import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { isWholeObject, STORE_WRITER } from "@spillway/testkit/children/store-writer";
import { spawnScript } from "@spillway/testkit/processes";
import { FileStore } from "./file.ts";

const base = mkdtempSync(join(tmpdir(), "spillway-store-kill-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));

test("a writer killed at any moment leaves whole objects only; readers meanwhile see none torn", async () => {
  let swept = 0;
  let reads = 0;
  for (let round = 0; round < 6; round++) {
    const store = new FileStore({ root: join(base, String(round)) });
    const writer = spawnScript(STORE_WRITER, [join(base, String(round))]);
    const ended = new AbortController();
    const reading = (async () => {
      while (!ended.signal.aborted) {
        const found = await store.head(`${store.root}/current`);
        if (found === null) continue;
        expect(isWholeObject(await store.get(`${store.root}/current`))).toBe(true);
        reads++;
      }
    })();
    await writer.waitForLine(/wrote 2/);
    await new Promise((resolve) => setTimeout(resolve, round * 3));
    const { stdout } = await writer.kill();
    ended.abort();
    await reading;

    const listed = new Set<string>();
    for await (const { path, size } of store.list(store.root)) {
      const bytes = await store.get(path);
      expect(bytes.length).toBe(size);
      expect(isWholeObject(bytes), path).toBe(true);
      listed.add(path);
    }
    for (const [, n] of stdout.matchAll(/wrote (\d+)\n/g)) expect(listed).toContain(`${store.root}/deep/${n}`);
    swept += await store.sweepTemporary(0, Date.now() + 1000);
    expect(await store.sweepTemporary(0, Date.now() + 1000)).toBe(0);
  }
  expect(reads).toBeGreaterThan(20);
  // Most kills hit a write: what it left was found by its name.
  expect(swept).toBeGreaterThan(0);
});
