import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { systemClock } from "@spillway/base/clock";
import { S3Server } from "@spillway/testkit/s3/s3-server";
import { FileStore } from "./file.ts";
import { openStore, putFile } from "./open.ts";
import { S3Store } from "./s3.ts";

const base = mkdtempSync(join(tmpdir(), "spillway-open-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));
const common = { region: "us-east-1", clock: systemClock, random: () => 0 };

test("the location decides the store", () => {
  expect(openStore({ ...common, root: join(base, "lake") })).toBeInstanceOf(FileStore);
  const s3 = openStore({ ...common, root: "s3a://bucket/lake/" });
  expect(s3).toBeInstanceOf(S3Store);
  expect(s3.root).toBe("s3://bucket/lake");
  expect(() => openStore({ ...common, root: "relative" })).toThrow(
    expect.objectContaining({ code: "store_path_invalid" }),
  );
});

test("a staged file becomes an object of either store, once", async () => {
  const server = await S3Server.start();
  const credentials = { accessKeyId: "k", secretAccessKey: "s" };
  const s3 = new S3Store({ ...common, root: "s3://test", endpoint: server.endpoint, pathStyle: true, credentials });
  for (const store of [new FileStore({ root: join(base, "files") }), s3]) {
    const staged = join(base, "staged");
    writeFileSync(staged, "rows");
    expect(await putFile(store, staged, `${store.root}/t/a.parquet`, { ifNoneMatch: true })).toEqual({ size: 4 });
    expect(existsSync(staged)).toBe(false);
    expect(new TextDecoder().decode(await store.get(`${store.root}/t/a.parquet`))).toBe("rows");
    writeFileSync(staged, "other");
    const again = putFile(store, staged, `${store.root}/t/a.parquet`, { ifNoneMatch: true });
    await expect(again).rejects.toMatchObject({ code: "store_precondition" });
    expect(existsSync(staged)).toBe(true);
  }
  s3.close();
  await server.stop();
});

const shm = "/dev/shm";
const apart = existsSync(shm) && statSync(shm).dev !== statSync(tmpdir()).dev;

test.runIf(apart)("a file staged on another file system is copied", async () => {
  const store = new FileStore({ root: join(base, "apart") });
  const staged = join(mkdtempSync(join(shm, "spillway-open-")), "staged");
  for (const options of [{}, { ifNoneMatch: true }]) {
    writeFileSync(staged, "rows");
    const path = `${store.root}/t/${Object.keys(options).length}`;
    expect(await putFile(store, staged, path, options)).toEqual({ size: 4 });
    expect(existsSync(staged)).toBe(false);
    expect((await store.get(path)).length).toBe(4);
  }
  rmSync(join(staged, ".."), { recursive: true });
});
