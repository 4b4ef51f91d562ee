/** Pins: visible at once, shared, renewed, rotated, given up; and lost when they could not be renewed. */
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { PinKeeper, Source } from "./seam.ts";
import { installCatalog } from "./test-table.ts";

const TTL_MS = 1200;

describe("pins", () => {
  let db: TestDatabase;
  let source: Source;
  let pins: PinKeeper;

  beforeAll(async () => {
    db = await createTestDatabase();
    await installCatalog(db.client);
    source = new Source({ conninfo: db.url });
  });
  afterEach(() => pins.close());
  afterAll(async () => {
    source.close();
    await db.drop();
  });

  function keeper(ttlMs = TTL_MS): PinKeeper {
    pins = new PinKeeper({ source, clock: systemClock, log: silentLogger, ttlMs, holder: "test" });
    return pins;
  }

  async function rows(): Promise<{ pin_id: string; floor: string; live: boolean }[]> {
    const { rows } = await db.client.query(
      "select pin_id, floor::text, expires_at > now() as live from spillway.pin order by pin_id",
    );
    return rows as { pin_id: string; floor: string; live: boolean }[];
  }

  test("are committed before the statement goes on, and shared", async () => {
    const k = keeper();
    const taken = await Promise.all([k.take(), k.take(), k.take()]);
    expect(new Set(taken.map((p) => p.id)).size).toBe(1);
    expect((await rows()).map((r) => r.pin_id)).toEqual([String(taken[0]?.id)]);
    for (const pin of taken) {
      pin.check();
      pin.release();
    }
  });

  test("floor: no transaction that was running when it was made is below it", async () => {
    const other = await db.connect();
    await other.query("begin");
    const running = (await other.query("select pg_current_xact_id()::text as x")).rows[0].x as string;
    const pin = await keeper().take();
    const [row] = await rows();
    expect(BigInt(row?.floor ?? 0)).toBeLessThanOrEqual(BigInt(running));
    await other.query("commit");
    pin.release();
  });

  test("live as long as they are used, and end after", async () => {
    const k = keeper();
    const pin = await k.take();
    await systemClock.sleep(TTL_MS * 2);
    pin.check();
    const before = await rows();
    expect(before.find((r) => r.pin_id === String(pin.id))?.live).toBe(true);
    pin.release();
    await systemClock.sleep(TTL_MS);
    expect(await rows()).toEqual([]);
  });

  test("rotate: a statement that begins later does not hold an old floor", async () => {
    const k = keeper();
    const old = await k.take();
    await systemClock.sleep(TTL_MS * 0.6);
    const fresh = await k.take();
    expect(fresh.id).not.toBe(old.id);
    old.release();
    await systemClock.sleep(TTL_MS * 0.5);
    expect((await rows()).map((r) => r.pin_id)).toEqual([String(fresh.id)]);
    fresh.release();
  });

  test("that were swept are lost, and the next statement gets a new one", async () => {
    const k = keeper();
    const pin = await k.take();
    await db.client.query("delete from spillway.pin");
    await systemClock.sleep(TTL_MS * 0.5);
    expect(() => pin.check()).toThrow(/could not be renewed/);
    const next = await k.take();
    next.check();
    expect(next.id).not.toBe(pin.id);
    next.release();
  });

  test("that Postgres did not renew in time are lost by the local clock alone", async () => {
    const k = keeper();
    const pin = await k.take();
    const blocker = await db.connect();
    await blocker.query("begin; lock table spillway.pin in access exclusive mode");
    await systemClock.sleep(TTL_MS * 1.2);
    expect(() => pin.check()).toThrow(expect.objectContaining({ code: "pin_lost" }));
    await blocker.query("rollback");
    pin.release();
  });
});
