import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { storeSuite } from "@spillway/testkit/s3/store-suite";
import { FileStore } from "./file.ts";
import { localPathOf, normalizeLocation } from "./store.ts";

const base = mkdtempSync(join(tmpdir(), "spillway-store-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

storeSuite("FileStore", 1 << 20, async () => ({
  store: new FileStore({ root: join(base, "suite") }),
  close: async () => {},
}));

describe("FileStore only", () => {
  test("refuses links that lead outside, in the middle and at the end", async () => {
    const root = join(base, "links");
    mkdirSync(join(base, "elsewhere"));
    writeFileSync(join(base, "elsewhere", "secret"), "secret");
    mkdirSync(root);
    symlinkSync(join(base, "elsewhere"), join(root, "dir"));
    symlinkSync(join(base, "elsewhere", "secret"), join(root, "file"));
    const store = new FileStore({ root });
    const invalid = { code: "store_path_invalid" };
    await expect(store.get(join(root, "dir/secret"))).rejects.toMatchObject(invalid);
    await expect(store.get(join(root, "file"))).rejects.toMatchObject(invalid);
    await expect(store.put(join(root, "dir/new"), bytes("x"))).rejects.toMatchObject(invalid);
    await expect(store.delete([join(root, "dir/secret")])).rejects.toMatchObject(invalid);
    expect(existsSync(join(base, "elsewhere", "secret"))).toBe(true);
    expect(readdirSync(join(base, "elsewhere"))).toEqual(["secret"]);
  });

  test("a root that is itself a link works", async () => {
    mkdirSync(join(base, "real"));
    symlinkSync(join(base, "real"), join(base, "alias"));
    const store = new FileStore({ root: join(base, "alias") });
    await store.put(`${store.root}/x`, bytes("x"));
    expect((await store.get(`${store.root}/x`)).length).toBe(1);
  });

  test("temporary files are not listed, and swept only when old", async () => {
    const root = join(base, "temp");
    mkdirSync(root);
    const temp = join(root, ".0123456789abcdef.spillway-tmp");
    writeFileSync(temp, "half");
    writeFileSync(join(root, ".hidden"), "kept");
    const store = new FileStore({ root });
    const listed: string[] = [];
    for await (const { path } of store.list(root)) listed.push(path);
    expect(listed).toEqual([`file://${root}/.hidden`]);
    expect(await store.sweepTemporary(60_000, Date.now())).toBe(0);
    utimesSync(temp, 1, 1);
    expect(await store.sweepTemporary(60_000, Date.now())).toBe(1);
    expect(readdirSync(root)).toEqual([".hidden"]);
  });

  test("adopt moves a finished file in, and refuses a taken place", async () => {
    const store = new FileStore({ root: join(base, "adopt") });
    const staged = join(base, "staged.parquet");
    writeFileSync(staged, "rows");
    expect(await store.adopt(staged, `${store.root}/t/data.parquet`, { ifNoneMatch: true })).toEqual({ size: 4 });
    expect(existsSync(staged)).toBe(false);
    writeFileSync(staged, "other");
    const second = store.adopt(staged, `${store.root}/t/data.parquet`, { ifNoneMatch: true });
    await expect(second).rejects.toMatchObject({ code: "store_precondition" });
    expect((await store.head(`${store.root}/t/data.parquet`))?.size).toBe(4);
    expect(existsSync(staged)).toBe(true);
  });

  test("a full disk has its own name, and nothing half-written stays", async (context) => {
    const root = join(base, "full");
    mkdirSync(root);
    const mount = spawnSync("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", root]);
    if (mount.status !== 0) return context.skip("mounting a small file system needs more rights");
    try {
      const store = new FileStore({ root });
      await store.put(`${root}/small`, new Uint8Array(1000));
      const big = store.put(`${root}/t/big`, new Uint8Array(200_000));
      await expect(big).rejects.toMatchObject({ code: "disk_full", kind: "operator" });
      expect(readdirSync(join(root, "t"))).toEqual([]);
      await store.put(`${root}/t/small`, new Uint8Array(1000));
    } finally {
      spawnSync("umount", [root]);
    }
  });
});

describe("locations", () => {
  test.each([
    ["/a/b", "file:///a/b"],
    ["/a//b/./c/", "file:///a/b/c"],
    ["file:/a/b", "file:///a/b"],
    ["file://localhost/a", "file:///a"],
    ["file:///a/b%20c", "file:///a/b%20c"],
    ["s3://bucket", "s3://bucket"],
    ["s3a://bucket/k/", "s3://bucket/k"],
    ["s3://bucket/a b/ü", "s3://bucket/a b/ü"],
  ])("%s", (given, canonical) => {
    expect(normalizeLocation(given)).toBe(canonical);
    expect(normalizeLocation(canonical)).toBe(canonical);
  });

  test.each(["a/b", "", "file://host/a", "/a/../b", "s3://", "s3://b/../c", "gs://b/k", "/a\0b"])(
    "refuses %j",
    (bad) => {
      expect(() => normalizeLocation(bad)).toThrow(expect.objectContaining({ code: "store_path_invalid" }));
    },
  );

  test("local paths", () => {
    expect(localPathOf("file:///a b")).toBe("/a b");
    expect(localPathOf("s3://b/k")).toBeNull();
  });
});
