import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { connect } from "@spillway/pg/connect";
import { FileStore } from "@spillway/lake/store/file";
import { normalizeLocation } from "@spillway/lake/store/store";
import { scratchDir } from "@spillway/testkit/host";
import { startPostgres } from "@spillway/testkit/postgres";
import { startStandby } from "@spillway/testkit/standby";
import { expect, test } from "vitest";
import { followPromotion, init, requireOwnership } from "./catalog.ts";

const nothing = async (): Promise<void> => {};

test("a promoted standby takes the warehouse along, once told that it may; the former primary does not get it back", async () => {
  const primary = await startPostgres();
  const warehouse = normalizeLocation(scratchDir("promotion"));
  const store = new FileStore({ root: warehouse });
  const before = await connect(primary.url());
  await init({ client: before, store, warehouse, clock: systemClock, log: silentLogger });
  const standby = await startStandby(primary);
  const { rows } = await before.query("select pg_current_wal_flush_lsn()::text as lsn");
  const after = await connect(standby.url());
  for (let done = false; !done;) {
    const replayed = await after.query("select pg_last_wal_replay_lsn() >= $1::pg_lsn as done", [rows[0].lsn]);
    done = replayed.rows[0].done;
  }
  expect(await followPromotion(after, store, warehouse, systemClock, nothing)).toBe(false);
  await after.query("select pg_promote(true, 30)");
  await after.query("checkpoint");

  await expect(requireOwnership(after, store, warehouse)).rejects.toMatchObject({ code: "lake_not_ours" });
  const refused = followPromotion(after, store, warehouse, systemClock, () => Promise.reject(new Error("no leader")));
  await expect(refused).rejects.toThrow("no leader");
  expect(await followPromotion(after, store, warehouse, systemClock, nothing)).toBe(true);
  expect((await requireOwnership(after, store, warehouse)).generation).toBe(2n);

  await expect(requireOwnership(before, store, warehouse)).rejects.toMatchObject({ code: "lake_not_ours" });
  expect(await followPromotion(before, store, warehouse, systemClock, nothing)).toBe(false);
  await before.end();
  await after.end();
  await standby.stop();
  await primary.stop();
});
