/**
 * Logical slots survive the death of the primary's node: on 17 and 18 as failover slots, on 16 as slots of the standby's
 * own; a lost one is loud. These server packages have neither pg_basebackup nor pg_rewind: standbys are made, and
 * old primaries rejoin, by the keeper's own base backup.
 */
import { pgBinaries } from "@spillway/testkit/binaries";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Formation, type FormationNode } from "./formation.ts";
import { sharedClock as clock } from "./shared-clock.ts";

const SLOT = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'cdc'";
const CREATE = {
  16: "SELECT pg_create_logical_replication_slot('cdc', 'pgoutput')",
  17: "SELECT pg_create_logical_replication_slot('cdc', 'pgoutput', false, false, true)",
  18: "SELECT pg_create_logical_replication_slot('cdc', 'pgoutput', false, false, true)",
} as const;

describe.each([16, 17, 18] as const)("Postgres %i", (major) => {
  let formation: Formation;
  let id = 0;
  beforeAll(async () => {
    formation = await Formation.start({ clock, nodes: 2, pgBin: pgBinaries(major).binDir, namespaces: false });
  }, 120_000);
  afterAll(() => formation?.destroy());

  const other = (node: FormationNode): FormationNode => {
    const found = formation.nodes.find((n) => n !== node);
    if (!found) throw new Error("no other node");
    return found;
  };
  const slotsReady = async (node: FormationNode): Promise<boolean> =>
    (await formation.monitor.nodes()).find((n) => n.name === node.name)?.slotsReady === true;

  /** The consumer confirms as it goes, until the standby's copy of the slot can be used. */
  async function consumeUntilReady(primary: FormationNode): Promise<void> {
    const standby = other(primary);
    // The standby's keeper looks once a second; until then it cannot know of a slot made just now.
    await clock.sleep(2_500);
    const usable = major >= 17 ? `${SLOT} AND synced AND NOT temporary` : SLOT;
    await formation.waitFor(
      "the standby's slot",
      async () => {
        await primary.sql(`INSERT INTO t VALUES (${-++id})`);
        await primary.sql("SELECT pg_replication_slot_advance('cdc', pg_current_wal_flush_lsn())");
        await clock.sleep(700);
        return (await standby.sql(usable)).length === 1 && (await slotsReady(standby)) && (await slotsReady(primary));
      },
      60_000,
    );
  }

  test("a slot survives the failover, and goes on where its consumer was", async () => {
    const primary = await formation.primary();
    const standby = other(primary);
    await primary.sql("CREATE TABLE t (id int PRIMARY KEY)");
    await primary.sql("CREATE PUBLICATION p FOR TABLE t");
    await primary.sql(CREATE[major]);
    await consumeUntilReady(primary);
    if (major >= 17) {
      expect(await primary.sql("SHOW synchronized_standby_slots")).toEqual([
        [expect.stringMatching(/^spillway_node_\d+$/)],
      ]);
    }
    const confirmed = (await primary.sql(SLOT))[0]?.[0];
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
    const after = (await standby.sql(SLOT))[0]?.[0];
    // Never past the consumer: nothing is skipped, at worst something comes twice.
    expect(await standby.sql(`SELECT '${after}'::pg_lsn <= '${confirmed}'::pg_lsn`)).toEqual([["t"]]);
    // Insert messages of pgoutput begin with the letter I.
    const inserts = await standby.sql(
      `SELECT count(*) >= 51 FROM pg_logical_slot_peek_binary_changes('cdc', NULL, NULL, 'proto_version', '1', 'publication_names', 'p')
       WHERE get_byte(data, 0) = 73`,
    );
    expect(inserts).toEqual([["t"]]);
    primary.startKeeper();
    await formation.waitFor("the rejoin", async () => (await formation.viewOf(primary)) === "secondary", 40_000);
    await formation.waitStable();
    await consumeUntilReady(standby);
  });

  test.runIf(major === 18)("a slot that is no failover slot is lost, and it is an event", async () => {
    const primary = await formation.primary();
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
    expect(await formation.primary()).toBe(other(primary));
  });
});
