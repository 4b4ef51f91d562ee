/** The lease against processes that are killed, stopped, and cut off: one leader at a time, and the old one commits nothing. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "@spillway/base/clock";
import { randomHex } from "@spillway/base/ids";
import { silentLogger } from "@spillway/base/log";
import { testMajors } from "@spillway/testkit/binaries";
import { LEASE_HOLDER } from "@spillway/testkit/children/lease-holder";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { spawnScript, type TestProcess } from "@spillway/testkit/processes";
import { type Proxy, startProxy } from "@spillway/testkit/proxy";
import { sleep, waitFor } from "@spillway/testkit/wait";
import { assertEpoch, campaign, type CampaignOptions, type Lease } from "./lease.ts";

const KEY = 42n;
const INTERVAL_MS = 500;
const TABLES = `CREATE SCHEMA spillway;
  CREATE TABLE spillway.leader (id bool PRIMARY KEY DEFAULT true CHECK (id), epoch bigint NOT NULL DEFAULT 0, holder text,
    backend_pid int, backend_start timestamptz, heartbeat_at timestamptz, interval_ms int);
  INSERT INTO spillway.leader DEFAULT VALUES;
  CREATE TABLE work (n int GENERATED ALWAYS AS IDENTITY, epoch bigint NOT NULL, at timestamptz DEFAULT clock_timestamp());`;

describe.each(testMajors())("the lease on Postgres %i", (major) => {
  let db: TestDatabase;
  let proxy: Proxy;
  const leases: Lease[] = [];
  const children: TestProcess[] = [];
  let ended = new AbortController();
  beforeAll(async () => {
    proxy = await startProxy((await createTestDatabase({ major })).server);
  });
  afterAll(() => proxy.close());
  beforeEach(async () => {
    const template = { name: "lease", setup: async (c: TestDatabase["client"]) => void (await c.query(TABLES)) };
    db = await createTestDatabase({ major, template });
    await proxy.setMode("pass");
    ended = new AbortController();
  });
  afterEach(async () => {
    ended.abort();
    await Promise.all(children.splice(0).map((c) => c.killGroup()));
    await Promise.all(leases.splice(0).map((l) => l.release()));
    proxy.cut();
    await db.drop();
  });

  async function startChild(how = "work", url = db.url): Promise<{ child: TestProcess; epoch: bigint }> {
    const child = spawnScript(LEASE_HOLDER, [url, String(KEY), String(INTERVAL_MS), how]);
    children.push(child);
    const [, epoch = ""] = await child.waitForLine(/^leading (\d+)$/);
    await child.waitForLine(how === "work" ? /^committed$/ : /^fenced$/);
    return { child, epoch: BigInt(epoch) };
  }
  function candidate(extra: Partial<CampaignOptions> = {}): CampaignOptions {
    const holder = `test:${randomHex(8)}`;
    const options = {
      conninfo: db.url,
      key: KEY,
      holder,
      intervalMs: INTERVAL_MS,
      clock: systemClock,
      log: silentLogger,
    };
    return { ...options, ...extra };
  }
  async function stand(extra: Partial<CampaignOptions> = {}): Promise<Lease> {
    // What a failed test left campaigning ends with it.
    const lease = await campaign(candidate({ signal: ended.signal, ...extra }));
    leases.push(lease);
    return lease;
  }
  async function rowsOf(epoch: bigint): Promise<number> {
    const { rows } = await db.client.query<{ n: number }>("SELECT count(*)::int AS n FROM work WHERE epoch = $1", [
      epoch.toString(),
    ]);
    return rows[0]?.n ?? 0;
  }
  /** From the moment that the fault is there to the new leader's first committed row. */
  async function takeOver(standby: Promise<Lease>): Promise<{ lease: Lease; ms: number }> {
    const start = performance.now();
    const lease = await standby;
    return { lease, ms: performance.now() - start };
  }

  test("kill -9: a standby leads within the campaign interval", async () => {
    const { child, epoch } = await startChild();
    const standby = stand();
    await sleep(INTERVAL_MS * 2);
    await child.kill("SIGKILL");
    const { lease, ms } = await takeOver(standby);
    expect(ms).toBeLessThan(INTERVAL_MS);
    expect(lease.epoch).toBeGreaterThan(epoch);
  });

  test("SIGSTOP: a standby leads within four intervals; awake again, the old leader commits nothing", async () => {
    const { child, epoch } = await startChild();
    const standby = stand();
    await sleep(INTERVAL_MS * 4);
    expect(leases).toEqual([]);
    child.stop();
    const { lease, ms } = await takeOver(standby);
    expect(ms).toBeGreaterThan(INTERVAL_MS * 1.5);
    expect(ms).toBeLessThan(INTERVAL_MS * 4.5);
    await expect(assertEpoch(db.client, { epoch })).rejects.toMatchObject({ code: "leader_lost" });
    const before = await rowsOf(epoch);
    child.cont();
    await child.waitForLine(/^lost: /);
    await child.waitForLine(/^refused: epoch \d+ is over/);
    await sleep(INTERVAL_MS);
    expect(await rowsOf(epoch)).toBe(before);
    expect(before).toBeGreaterThan(0);
    expect(lease.isHeld()).toBe(true);
  });

  test("stopped between the fence and COMMIT: it blocks nobody for long, and its commit fails", async () => {
    const { child, epoch } = await startChild("stop-in-commit");
    const { lease, ms } = await takeOver(stand());
    expect(ms).toBeLessThan(INTERVAL_MS * 5.5);
    child.cont();
    await child.waitForLine(/^refused: /);
    expect(await rowsOf(epoch)).toBe(0);
    expect(lease.isHeld()).toBe(true);
  });

  test.each(["blackhole", "hold"] as const)("cut off (%s): both sides agree that its term is over", async (mode) => {
    const { child, epoch } = await startChild("work", proxy.through(db.url));
    const standby = stand();
    await sleep(INTERVAL_MS * 2);
    await proxy.setMode(mode);
    const { lease, ms } = await takeOver(standby);
    expect(ms).toBeLessThan(INTERVAL_MS * 4.5);
    await child.waitForLine(/^lost: /, INTERVAL_MS * 4);
    const before = await rowsOf(epoch);
    await proxy.setMode("pass");
    await sleep(INTERVAL_MS * 2);
    expect(await rowsOf(epoch)).toBe(before);
    expect(lease.isHeld()).toBe(true);
  });

  test("its session ended by the server: it hears of it at once", async () => {
    let reason = "";
    const lease = await stand({ onLost: (error) => (reason = error.code) });
    await db.client.query("SELECT pg_terminate_backend(backend_pid) FROM spillway.leader");
    await waitFor("the loss", () => !lease.isHeld());
    expect(lease.signal.aborted).toBe(true);
    expect(reason).toBe("leader_lost");
  });

  test("a release is followed at once; each term has a higher epoch", async () => {
    const first = await stand();
    const standby = stand();
    await sleep(INTERVAL_MS);
    await first.release();
    const { lease, ms } = await takeOver(standby);
    expect(ms).toBeLessThan(INTERVAL_MS);
    expect(lease.epoch).toBeGreaterThan(first.epoch);
    expect(first.isHeld()).toBe(false);
    await assertEpoch(db.client, lease);
  });

  test("of many candidates exactly one leads, until it goes", async () => {
    const ends = new AbortController();
    const all = Array.from({ length: 5 }, () => stand({ signal: ends.signal }).catch((error: unknown) => error));
    await waitFor("a leader", () => leases.length > 0);
    await sleep(INTERVAL_MS * 4);
    expect(leases).toHaveLength(1);
    ends.abort();
    const refused = (await Promise.all(all)).filter((one) => one !== leases[0]);
    expect(refused).toHaveLength(4);
    for (const one of refused) expect(one).toMatchObject({ code: "interrupted" });
  });

  test("a commit that hangs under the fence costs a living leader nothing", async () => {
    const lease = await stand();
    const ends = new AbortController();
    const standby = stand({ signal: ends.signal }).catch(() => null);
    const hanging = await db.connect();
    await hanging.query("BEGIN");
    await assertEpoch(hanging, lease);
    await sleep(INTERVAL_MS * 6);
    expect(lease.isHeld()).toBe(true);
    await hanging.query("COMMIT");
    await sleep(INTERVAL_MS);
    expect(lease.isHeld()).toBe(true);
    ends.abort();
    expect(await standby).toBeNull();
  });

  test("an epoch that was lost with a failover is not given out twice", async () => {
    const first = await stand();
    await first.release();
    await db.client.query("UPDATE spillway.leader SET epoch = 0");
    const second = await stand();
    expect(second.epoch).toBeGreaterThan(first.epoch);
  });

  test("the server restarts: the lease is lost, and won again by campaigning", async () => {
    const lease = await stand();
    const again = stand();
    await db.server.restart("immediate");
    await waitFor("the loss", () => lease.signal.aborted);
    expect((await again).isHeld()).toBe(true);
    db = await createTestDatabase({ major });
  });
});
