import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "@spillway/base/clock";
import { S3Server } from "@spillway/testkit/s3/s3-server";
import { storeSuite } from "@spillway/testkit/s3/store-suite";
import { S3Store, type S3StoreOptions } from "./s3.ts";

const PART = 64 << 10;
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

function storeOn(server: S3Server, options: Partial<S3StoreOptions> = {}): S3Store {
  return new S3Store({
    root: "s3://test/lake",
    endpoint: server.endpoint,
    region: "us-east-1",
    pathStyle: true,
    credentials: { accessKeyId: "key", secretAccessKey: "secret" },
    clock: systemClock,
    random: () => 0,
    partBytes: PART,
    retry: { attempts: 4, totalMs: 5_000, firstDelayMs: 1, maxDelayMs: 5 },
    ...options,
  });
}

storeSuite("S3Store", PART * 5, async () => {
  const server = await S3Server.start({ pageSize: 3, minPartBytes: PART });
  const store = storeOn(server);
  return {
    store,
    close: async () => {
      store.close();
      const { openUploads } = server;
      await server.stop();
      expect(openUploads).toBe(0);
    },
  };
});

describe("S3Store under faults", () => {
  let server: S3Server;
  let store: S3Store;
  const key = "s3://test/lake/x";

  beforeEach(async () => {
    server = await S3Server.start({ minPartBytes: PART });
    store = storeOn(server);
  });
  afterEach(async () => {
    store.close();
    await server.stop();
  });

  test("passing failures are retried, within the budget", async () => {
    server.inject({ kind: { status: 503, code: "SlowDown" }, times: 2 });
    await store.put(key, bytes("x"));
    server.inject({ kind: { status: 500 }, times: 3 });
    expect((await store.get(key)).length).toBe(1);
    server.requests.length = 0;
    server.inject({ kind: { status: 503, code: "SlowDown" }, times: 100 });
    await expect(store.get(key)).rejects.toMatchObject({ code: "store_unreachable", kind: "retry" });
    expect(server.requests).toHaveLength(4);
  });

  test("the budget is of time as well", async () => {
    const hasty = storeOn(server, { retry: { attempts: 1000, totalMs: 150, firstDelayMs: 40, maxDelayMs: 40 } });
    server.inject({ kind: { status: 500 }, times: 1000 });
    await expect(hasty.get(key)).rejects.toMatchObject({ code: "store_unreachable" });
    expect(server.requests.length).toBeLessThan(12);
    hasty.close();
  });

  test("a cut connection and a body that breaks off are retried", async () => {
    await store.put(key, bytes("0123456789"));
    server.inject({ kind: "cut", times: 1 });
    expect((await store.get(key)).length).toBe(10);
    server.inject({ kind: "half-body", times: 1 });
    expect(new TextDecoder().decode(await store.get(key))).toBe("0123456789");
  });

  test("a server that never answers costs one timeout an attempt", async () => {
    const hasty = storeOn(server, {
      requestTimeoutMs: 100,
      retry: { attempts: 2, totalMs: 5_000, firstDelayMs: 1, maxDelayMs: 1 },
    });
    server.inject({ kind: { delayMs: 2_000 }, times: 2 });
    const start = performance.now();
    await expect(hasty.get(key)).rejects.toMatchObject({ code: "store_unreachable" });
    expect(performance.now() - start).toBeLessThan(1_500);
    hasty.close();
  });

  test("an answer that stops in the middle costs one timeout, then is asked for again", async () => {
    const hasty = storeOn(server, { requestTimeoutMs: 200 });
    await store.put(key, new Uint8Array(500_000).fill(3));
    server.inject({ kind: "stall", times: 1 });
    const start = performance.now();
    expect((await hasty.get(key)).length).toBe(500_000);
    expect(performance.now() - start).toBeLessThan(3_000);
    hasty.close();
  });

  test("a conditional put whose answer was lost is known to be ours", async () => {
    server.inject({ kind: "lost", times: 1, when: (r) => r.operation === "PutObject" });
    await store.put(key, bytes("mine"), { ifNoneMatch: true });
    expect(server.objects().get("lake/x")?.body.toString()).toBe("mine");
  });

  test("a conditional put that loses to another after a failure is refused", async () => {
    await store.put(key, bytes("theirs"), { ifNoneMatch: true });
    server.inject({ kind: { status: 500 }, times: 1, when: (r) => r.operation === "PutObject" });
    const mine = store.put(key, bytes("mine"), { ifNoneMatch: true });
    await expect(mine).rejects.toMatchObject({ code: "store_precondition" });
    expect(server.objects().get("lake/x")?.body.toString()).toBe("theirs");
  });

  test("a lost answer that cannot be looked up is outcome unknown", async () => {
    server.inject({ kind: "lost", times: 100, when: (r) => r.operation === "PutObject" });
    server.inject({ kind: { status: 500 }, times: 100, when: (r) => r.operation === "HeadObject" });
    const put = store.put(key, bytes("mine"), { ifNoneMatch: true });
    await expect(put).rejects.toMatchObject({ code: "store_outcome_unknown", kind: "unknown" });
  });

  test("multipart: failed parts are sent again, a lost completion is found out", async () => {
    const body = new Uint8Array(PART * 4 + 7).fill(5);
    server.inject({ kind: { status: 500 }, times: 2, when: (r) => r.operation === "UploadPart" });
    server.inject({ kind: "lost", times: 1, when: (r) => r.operation === "CompleteMultipartUpload" });
    expect(await store.put(key, body, { ifNoneMatch: true })).toEqual({ size: body.length });
    expect(server.objects().get("lake/x")?.body.equals(body)).toBe(true);
    expect(server.requests.filter((r) => r.startsWith("UploadPart"))).toHaveLength(7);
  });

  test("multipart: parts that cannot be sent leave no upload behind", async () => {
    server.inject({ kind: { status: 500 }, times: 4, when: (r) => r.operation === "UploadPart" });
    const one = storeOn(server, { parallelParts: 1 });
    await expect(one.put(key, new Uint8Array(PART * 3))).rejects.toMatchObject({ code: "store_unreachable" });
    expect(server.openUploads).toBe(0);
    expect(server.objects().size).toBe(0);
    one.close();
  });

  test("uploads of killed writers are swept: old ones, below the store's own root", async () => {
    server.inject({ kind: { status: 500 }, times: 1000, when: (r) => r.operation === "UploadPart" });
    server.inject({ kind: { status: 500 }, times: 1000, when: (r) => r.operation === "AbortMultipartUpload" });
    const one = storeOn(server, {
      parallelParts: 1,
      retry: { attempts: 1, totalMs: 1, firstDelayMs: 1, maxDelayMs: 1 },
    });
    const elsewhere = storeOn(server, { root: "s3://test/lake2" });
    await expect(one.put(key, new Uint8Array(PART * 3))).rejects.toMatchObject({ code: "store_unreachable" });
    await expect(elsewhere.put("s3://test/lake2/y", new Uint8Array(PART * 3))).rejects.toThrow();
    expect(server.openUploads).toBe(2);
    server.clearFaults();
    expect(await store.sweepTemporary(60_000, Date.now())).toBe(0);
    expect(await store.sweepTemporary(60_000, Date.now() + 61_000)).toBe(1);
    expect(await store.sweepTemporary(60_000, Date.now() + 61_000)).toBe(0);
    expect(server.openUploads).toBe(1);
    one.close();
    elsewhere.close();
  });

  test("denied, a missing bucket and a missing key have their names, at once", async () => {
    server.inject({ kind: { status: 403, code: "AccessDenied" }, times: 1 });
    await expect(store.get(key)).rejects.toMatchObject({ code: "store_denied", kind: "operator" });
    await expect(store.get(key)).rejects.toMatchObject({ code: "store_not_found" });
    expect(server.requests).toHaveLength(2);
    const elsewhere = storeOn(server, { root: "s3://nowhere" });
    await expect(elsewhere.get("s3://nowhere/x")).rejects.toMatchObject({ code: "store_bucket_missing" });
    elsewhere.close();
  });

  test("nobody there", async () => {
    const lonely = storeOn(server, { retry: { attempts: 2, totalMs: 1_000, firstDelayMs: 1, maxDelayMs: 1 } });
    await server.stop();
    await expect(lonely.get(key)).rejects.toMatchObject({ code: "store_unreachable" });
    lonely.close();
  });

  test("deletes more than one batch, and says so when one is denied", async () => {
    const paths = Array.from({ length: 1500 }, (_, i) => `s3://test/lake/${i}`);
    for (const path of paths) {
      server
        .objects()
        .set(path.slice("s3://test/".length), { body: Buffer.of(), etag: '""', modifiedMs: 0, metadata: {} });
    }
    await store.delete(paths);
    expect(server.objects().size).toBe(0);
    expect(server.requests.filter((r) => r.startsWith("DeleteObjects"))).toHaveLength(2);
  });
});
