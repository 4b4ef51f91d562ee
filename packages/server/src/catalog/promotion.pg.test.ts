import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { connect } from "@spillway/pg/connect";
import { FileStore } from "@spillway/lake/store/file";
import { normalizeLocation } from "@spillway/lake/store/store";
import { scratchDir } from "@spillway/testkit/host";
import { startPostgres } from "@spillway/testkit/postgres";
import { startStandby } from "@spillway/testkit/standby";
import type pg from "pg";
import { expect, test } from "vitest";
import { claimLake, init, renewOwnership, requireClaim, requireOwnership } from "./catalog.ts";

const nothing = async (): Promise<void> => {};

test("a promoted standby takes the lake along once nobody else shows; the former primary does not get it back", async () => {
  const primary = await startPostgres();
  const warehouse = normalizeLocation(scratchDir("promotion"));
  const store = new FileStore({ root: warehouse });
  const before = await connect(primary.url());
  await init({ client: before, store, warehouse, clock: systemClock, log: silentLogger });
  const claim = (client: pg.Client, watchMs: number, options = {}): Promise<string> =>
    claimLake({
      lend: (work) => work(client),
      store,
      warehouse,
      clock: systemClock,
      watchMs,
      adoptPromotion: true,
      ...options,
    });
  const renew = (client: pg.Client): Promise<void> => renewOwnership(client, store, warehouse, systemClock, nothing);
  expect(await claim(before, 60_000)).toBe("held");
  await renew(before);
  const standby = await startStandby(primary);
  const { rows } = await before.query("select pg_current_wal_flush_lsn()::text as lsn");
  const after = await connect(standby.url());
  for (let done = false; !done;) {
    const replayed = await after.query("select pg_last_wal_replay_lsn() >= $1::pg_lsn as done", [rows[0].lsn]);
    done = replayed.rows[0].done;
  }
  await after.query("select pg_promote(true, 30)");

  // No checkpoint: the control file may not know the timeline yet.
  await expect(requireOwnership(after, store, warehouse)).rejects.toMatchObject({ code: "lake_not_ours" });
  // Unless somebody has said that newer timelines are failovers, it is refused however quiet the lake is.
  await expect(claim(after, 10, { adoptPromotion: false })).rejects.toMatchObject({ code: "lake_not_ours" });
  const unsaid = claimLake({ lend: (work) => work(after), store, warehouse, clock: systemClock, watchMs: 10 });
  await expect(unsaid).rejects.toMatchObject({ code: "lake_not_ours" });
  await expect(claim(after, 10, { also: () => Promise.reject(new Error("no leader")) })).rejects.toThrow("no leader");
  // A standby that is promoted beside its living primary is a copy.
  const watching = claim(after, 3000);
  watching.catch(() => {});
  await renew(before);
  await expect(watching).rejects.toMatchObject({ code: "lake_not_ours" });
  await expect(claim(after, 10)).rejects.toMatchObject({ code: "lake_not_ours" });
  await expect(requireClaim(after, store, warehouse)).rejects.toMatchObject({ code: "lake_not_ours" });
  await requireClaim(before, store, warehouse);

  // A failover: the next standby has all of it, and the primary is gone.
  const second = await startStandby(primary);
  const gone = await before.query("select pg_current_wal_flush_lsn()::text as lsn");
  const next = await connect(second.url());
  for (let done = false; !done;) {
    const replayed = await next.query("select pg_last_wal_replay_lsn() >= $1::pg_lsn as done", [gone.rows[0].lsn]);
    done = replayed.rows[0].done;
  }
  await next.query("select pg_promote(true, 30)");
  expect(await claim(next, 1500)).toBe("claimed");
  await requireClaim(next, store, warehouse);
  await renew(next);
  expect(await claim(next, 60_000)).toBe("held");

  await expect(requireOwnership(before, store, warehouse)).rejects.toMatchObject({ code: "lake_not_ours" });
  await expect(renew(before)).rejects.toMatchObject({ code: "lake_not_ours" });
  await expect(claim(before, 10)).rejects.toMatchObject({ code: "lake_not_ours" });
  await Promise.all([before.end(), after.end(), next.end()]);
  await second.stop();
  await standby.stop();
  await primary.stop();
});
