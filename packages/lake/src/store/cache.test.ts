import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "@spillway/base/clock";
import { S3Server } from "@spillway/testkit/s3/s3-server";
import { claimCacheDir } from "./cache-dir.ts";
import { type CacheOptions, LocalCache } from "./cache.ts";
import { FileStore } from "./file.ts";
import { S3Store } from "./s3.ts";

const base = mkdtempSync(join(tmpdir(), "spillway-cache-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));

let server: S3Server;
let store: S3Store;
let dir: string;
let number = 0;
const at = (key: string): string => `s3://test/${key}`;
const make = (options: Partial<CacheOptions> = {}): LocalCache =>
  new LocalCache({ store, dir, maxBytes: 1000, clock: systemClock, waitMs: 200, chunkBytes: 64, ...options });
const fetches = (): string[] => server.requests.filter((r) => r.startsWith("GetObject"));

beforeEach(async () => {
  server = await S3Server.start();
  store = new S3Store({
    root: "s3://test",
    endpoint: server.endpoint,
    region: "us-east-1",
    pathStyle: true,
    credentials: { accessKeyId: "k", secretAccessKey: "s" },
    clock: systemClock,
    random: () => 0,
    retry: { attempts: 2, totalMs: 1_000, firstDelayMs: 1, maxDelayMs: 1 },
  });
  dir = join(base, String(number++));
  for (let i = 0; i < 8; i++) await store.put(at(`f${i}`), new Uint8Array(300).fill(i));
  server.requests.length = 0;
});
afterEach(async () => {
  store.close();
  await server.stop();
});

describe("LocalCache", () => {
  test("files come back in order, with their bytes, fetched once", async () => {
    const cache = make();
    const first = await cache.localize([at("f1"), at("f0"), at("f1")]);
    expect(first.paths.map((path) => readFileSync(path)[0])).toEqual([1, 0, 1]);
    expect(first.paths.map((path) => readFileSync(path).length)).toEqual([300, 300, 300]);
    expect(fetches()).toHaveLength(10);
    const again = await cache.localize([at("f0")]);
    expect(again.paths[0]).toBe(first.paths[1]);
    expect(fetches()).toHaveLength(10);
    expect(cache.stats).toMatchObject({ files: 2, bytes: 600, hits: 1, misses: 2, fetchedBytes: 600 });
  });

  test("concurrent requests share one fetch", async () => {
    const cache = make({ chunkBytes: 1024 });
    const all = await Promise.all(Array.from({ length: 10 }, () => cache.localize([{ path: at("f2"), size: 300 }])));
    expect(new Set(all.flatMap((one) => one.paths)).size).toBe(1);
    expect(fetches()).toHaveLength(1);
  });

  test("the least recently used goes first; what is held stays", async () => {
    const cache = make();
    const held = await cache.localize([at("f0")]);
    for (const key of ["f1", "f2"]) (await cache.localize([at(key)])).release();
    (await cache.localize([at("f1")])).release();
    const next = await cache.localize([at("f3")]);
    expect(cache.stats).toMatchObject({ files: 3, evictions: 1 });
    server.requests.length = 0;
    (await cache.localize([at("f1")])).release();
    expect(existsSync(held.paths[0] ?? "")).toBe(true);
    expect(fetches()).toHaveLength(0);
    next.release();
    held.release();
    held.release();
    (await cache.localize([at("f2")])).release();
    expect(fetches().length).toBeGreaterThan(0);
    expect(cache.stats.bytes).toBeLessThanOrEqual(1000);
  });

  test("what cannot fit is refused; what others hold is waited for", async () => {
    const cache = make();
    await expect(cache.localize([at("f0"), at("f1"), at("f2"), at("f3")])).rejects.toMatchObject({
      code: "cache_full",
    });
    const held = await cache.localize([at("f0"), at("f1"), at("f2")]);
    await expect(cache.localize([at("f3")])).rejects.toMatchObject({ code: "cache_full" });
    const waiting = cache.localize([at("f3")]);
    setTimeout(() => held.release(), 20);
    expect((await waiting).paths).toHaveLength(1);
  });

  test("a failed fetch leaves nothing and can be tried again", async () => {
    const cache = make();
    server.inject({ kind: { status: 500 }, times: 2, when: (r) => r.operation === "GetObject" });
    await expect(cache.localize([{ path: at("f0"), size: 300 }])).rejects.toMatchObject({ code: "store_unreachable" });
    await expect(cache.localize([at("none")])).rejects.toMatchObject({ code: "store_not_found" });
    expect(readdirSync(dir)).toEqual([]);
    expect(cache.stats.bytes).toBe(0);
    expect((await cache.localize([at("f0")])).paths).toHaveLength(1);
  });

  test("an object shorter than announced is corruption, not a short file", async () => {
    const cache = make();
    await expect(cache.localize([{ path: at("f0"), size: 301 }])).rejects.toMatchObject({ code: "store_corrupt" });
    expect(readdirSync(dir)).toEqual([]);
  });

  test("survives a restart, in the order of use, without what is broken", async () => {
    const before = make();
    for (const key of ["f0", "f1", "f2"]) (await before.localize([at(key)])).release();
    const [broken] = readdirSync(dir);
    truncateSync(join(dir, broken ?? ""), 299);
    writeFileSync(join(dir, ".x.spillway-tmp"), "half");
    server.requests.length = 0;
    const after = make();
    expect(after.stats).toMatchObject({ files: 2, bytes: 600 });
    expect(readdirSync(dir)).toHaveLength(2);
    (await after.localize([at("f0"), at("f1"), at("f2")])).release();
    expect(fetches()).toHaveLength(5);
    expect(make({ maxBytes: 300 }).stats).toMatchObject({ files: 1, bytes: 300 });
  });

  test("a file cut or removed while it was cached is fetched anew", async () => {
    const cache = make();
    const { paths, release } = await cache.localize([at("f0"), at("f1")]);
    release();
    truncateSync(paths[0] ?? "", 10);
    rmSync(paths[1] ?? "");
    const again = await cache.localize([at("f0"), at("f1")]);
    expect(again.paths.map((path) => readFileSync(path).length)).toEqual([300, 300]);
    expect(cache.stats.bytes).toBe(600);
  });

  test("of a local store the files themselves", async () => {
    const files = new FileStore({ root: join(base, "files") });
    const cache = make({ store: files });
    expect((await cache.localize([`${files.root}/a`, join(base, "files/b")])).paths).toEqual([
      join(base, "files/a"),
      join(base, "files/b"),
    ]);
  });
});

describe("claimCacheDir", () => {
  test("two live owners get two directories; a dead one's is taken over", () => {
    const root = join(base, "claims");
    const first = claimCacheDir(root, process.pid);
    const second = claimCacheDir(root, process.pid);
    expect([first.dir, second.dir]).toEqual([join(root, "0"), join(root, "1")]);
    first.release();
    const third = claimCacheDir(root, process.pid);
    expect(third.dir).toBe(first.dir);
    third.release();
    second.release();
    writeFileSync(join(root, "0.owner"), "1");
    expect(claimCacheDir(root, process.pid).dir).toBe(join(root, "1"));
    writeFileSync(join(root, "0.owner"), String(2 ** 22 + 12345));
    expect(claimCacheDir(root, process.pid).dir).toBe(join(root, "0"));
  });
});
