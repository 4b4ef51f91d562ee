/** Postgres 18: logical failover slots survive the death of the primary's node; a lost one is loud. */
import { pgBinaries } from "@spillway/testkit/binaries";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Formation, type FormationNode } from "./formation.ts";
import { sharedClock as clock } from "./shared-clock.ts";

let formation: Formation;

describe("Postgres 18, with nothing but initdb, pg_ctl and postgres", () => {
  beforeAll(async () => {
    formation = await Formation.start({ clock, nodes: 2, pgBin: pgBinaries(18).binDir, namespaces: false });
  }, 120_000);
  afterAll(() => formation?.destroy());

  const slotsReady = async (node: FormationNode): Promise<boolean> =>
    (await formation.monitor.nodes()).find((n) => n.name === node.name)?.slotsReady === true;
  const names = async (node: FormationNode): Promise<unknown> =>
    (await node.sql("SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'logical' ORDER BY 1")).flat();

  test("a failover slot is synchronized, survives the failover, and goes on where its consumer was", async () => {
    const primary = await formation.primary();
    const standby = formation.nodes.find((n) => n !== primary);
    if (!standby) throw new Error("no standby");
    await primary
      .sql("SELECT pg_create_logical_replication_slot('cdc', 'test_decoding', false, false, true)")
      .catch(() => primary.sql("SELECT pg_create_logical_replication_slot('cdc', 'pgoutput', false, false, true)"));
    await primary.sql("CREATE TABLE t (id int PRIMARY KEY)");
    const plugin = (await primary.sql("SELECT plugin FROM pg_replication_slots WHERE slot_name = 'cdc'"))[0]?.[0];
    // The synchronized copy becomes persistent once the consumer has passed the standby's own beginning.
    let id = 0;
    const synced = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'cdc' AND synced AND NOT temporary";
    await formation.waitFor(
      "the synchronized slot",
      async () => {
        await primary.sql(`INSERT INTO t VALUES (${-++id})`);
        await primary.sql("SELECT pg_replication_slot_advance('cdc', pg_current_wal_flush_lsn())");
        await clock.sleep(500);
        return (await standby.sql(synced)).length === 1;
      },
      60_000,
    );
    expect(await primary.sql("SHOW synchronized_standby_slots")).toEqual([
      [expect.stringMatching(/^spillway_node_\d+$/)],
    ]);
    await formation.waitFor(
      "slots ready",
      async () => (await slotsReady(standby)) && (await slotsReady(primary)),
      60_000,
    );
    expect(await names(standby)).toEqual(["cdc"]);
    const confirmed = (
      await primary.sql("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'cdc'")
    )[0]?.[0];

    await primary.sql("INSERT INTO t SELECT generate_series(100, 149)");
    primary.killNode();
    await formation.waitFor("the takeover", async () => (await formation.primary()) === standby, 30_000);
    await formation.waitFor(
      "writes",
      async () => {
        await standby.sql("INSERT INTO t VALUES (200)");
        return true;
      },
      30_000,
    );
    const after = (
      await standby.sql("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'cdc'")
    )[0]?.[0];
    // Never past the consumer: nothing is skipped, at worst something comes twice.
    expect(await standby.sql(`SELECT '${after}'::pg_lsn <= '${confirmed}'::pg_lsn`)).toEqual([["t"]]);
    if (plugin === "test_decoding") {
      const rows = await standby.sql("SELECT data FROM pg_logical_slot_get_changes('cdc', NULL, NULL)");
      const inserts = new Set(rows.flat().filter((r) => r?.includes("INSERT")));
      expect(inserts.size).toBeGreaterThanOrEqual(51);
    } else {
      const options = "'proto_version', '1', 'publication_names', 'none'";
      await standby.sql("CREATE PUBLICATION none FOR TABLE t");
      expect(
        (
          await standby.sql(
            `SELECT count(*) > 0 FROM pg_logical_slot_peek_binary_changes('cdc', NULL, NULL, ${options})`,
          )
        )[0],
      ).toEqual(["t"]);
    }
    primary.startKeeper();
    await formation.waitFor("the rejoin", async () => (await formation.viewOf(primary)) === "secondary", 40_000);
    await formation.waitStable();
    await formation.waitFor(
      "slots ready again",
      async () => {
        await standby.sql(`INSERT INTO t VALUES (${-++id})`);
        await standby.sql("SELECT pg_replication_slot_advance('cdc', pg_current_wal_flush_lsn())");
        await clock.sleep(500);
        return (await primary.sql(synced)).length === 1 && slotsReady(primary);
      },
      60_000,
    );
    expect(await names(primary)).toEqual(["cdc"]);
  });

  test("a slot that is no failover slot is lost, and it is an event", async () => {
    const primary = await formation.primary();
    const standby = formation.nodes.find((n) => n !== primary);
    await primary.sql("SELECT pg_create_logical_replication_slot('plain', 'pgoutput')");
    await clock.sleep(2_500);
    primary.killNode();
    await formation.waitFor(
      "the event",
      async () => (await formation.monitor.events(50)).some((e) => e.reason.includes("plain is lost")),
      30_000,
    );
    primary.startKeeper();
    await formation.waitFor("the rejoin", async () => (await formation.viewOf(primary)) === "secondary", 40_000);
    expect(await formation.primary()).toBe(standby);
  });
});
