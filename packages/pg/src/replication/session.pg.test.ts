/** Slots, status, eviction, snapshots and base backups against real servers. */
import { execFileSync } from "node:child_process";
import { createWriteStream, mkdirSync } from "node:fs";
import { join } from "node:path";
import { finished } from "node:stream/promises";
import type pg from "pg";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import { parseLsn, type Lsn } from "@spillway/base/lsn";
import { giveToPostgres, scratchDir } from "@spillway/testkit/host";
import { startPostgres, type PgInstance } from "@spillway/testkit/postgres";
import { startProxy } from "@spillway/testkit/proxy";
import { startStandby } from "@spillway/testkit/standby";
import { sleep, waitFor } from "@spillway/testkit/wait";
import { copyOut } from "../copy/copy-out.ts";
import { planColumn } from "../columns/plan.ts";
import { connectRaw } from "../wire/connect-raw.ts";
import type { RawConnection } from "../wire/connection.ts";
import { baseBackup, type BackupEvent } from "./base-backup.ts";
import { evictSlotHolder, shouldTerminate } from "./evict.ts";
import { createSlot, dropSlot, identifySystem, parseTimelineHistory, readSlot, timelineHistory } from "./session.ts";
import { ReplicationStream, type StreamConsumer, type StreamOptions } from "./stream.ts";

async function codeOf(work: Promise<unknown>): Promise<string> {
  const error: unknown = await work.then(
    () => null,
    (e: unknown) => e,
  );
  return error instanceof SpillwayError ? error.code : String(error);
}

const INT4 = planColumn("id", { oid: 23, typmod: -1, name: "int4", typtype: "b", category: "N", schema: "pg_catalog" });
const nothing: StreamConsumer = { onChange: () => {}, onKeepalive: () => {} };

describe.each([15, 18] as const)("replication sessions of Postgres %i", (major) => {
  let server: PgInstance;
  let client: pg.Client;
  let sql: RawConnection;
  const open: RawConnection[] = [];

  async function replication(settings: Record<string, number> = {}): Promise<RawConnection> {
    const connection = await connectRaw(server.url("life"), { replication: "database", settings });
    open.push(connection);
    return connection;
  }
  async function stream(
    consumer = nothing,
    options: Partial<StreamOptions> = {},
    settings: Record<string, number> = {},
  ): Promise<[ReplicationStream, RawConnection]> {
    const connection = await replication(settings);
    const all = { slot: "s", startLsn: 0n, publications: ["p"], ...options };
    return [await ReplicationStream.start(connection, all, consumer), connection];
  }
  async function confirmedFlush(): Promise<Lsn> {
    return must((await readSlot(sql, "s"))?.confirmedFlushLsn, "confirmed_flush_lsn");
  }

  beforeAll(async () => {
    server = await startPostgres({ major, settings: { wal_sender_timeout: "60s" } });
    await server.createDatabase("life");
    client = await server.connect("life");
    await client.query("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION p FOR TABLE t");
    sql = await connectRaw(server.url("life"));
  });
  beforeEach(async () => {
    await createSlot(await replication(), { name: "s" });
  });
  afterEach(async () => {
    for (const connection of open.splice(0)) connection.destroy();
    const connection = await connectRaw(server.url("life"), { replication: "database" });
    await dropSlot(connection, "s", true);
    await connection.close();
    await client.query("TRUNCATE t");
  });
  afterAll(async () => {
    await sql?.close();
    await client?.end();
    await server?.destroy();
  });

  test("the system is identified, and slots are created, read and dropped", async () => {
    const connection = await replication();
    const system = await identifySystem(connection);
    expect(system).toMatchObject({ timeline: 1, database: "life" });
    expect(BigInt(system.systemId)).toBeGreaterThan(0n);
    const slot = await createSlot(connection, {
      name: "Odd name 2".toLowerCase().replaceAll(" ", "_"),
      failover: true,
    });
    expect(slot.consistentPoint).toBeGreaterThan(0n);
    const state = must(await readSlot(sql, slot.name), "the slot");
    expect(state).toMatchObject({ active: false, temporary: false, walStatus: "reserved", invalidationReason: null });
    expect(state.failover).toBe(major >= 17);
    expect(state.confirmedFlushLsn).toBe(slot.consistentPoint);
    await dropSlot(connection, slot.name);
    await dropSlot(connection, slot.name);
    expect(await readSlot(sql, slot.name)).toBeNull();
    expect(await timelineHistory(connection, 1)).toEqual([]);
  });

  test("an exported snapshot is the slot's starting point: what it shows and what is streamed make the whole", async () => {
    await client.query("INSERT INTO t SELECT g, 'before' FROM generate_series(1, 100) g");
    const connection = await replication();
    const slot = await createSlot(connection, { name: "s2", snapshot: "export" });
    await client.query("INSERT INTO t SELECT g, 'after' FROM generate_series(101, 150) g");
    const copier = await connectRaw(server.url("life"));
    await copier.query(`BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '${slot.snapshotName}'`);
    const ids: number[] = [];
    for await (const batch of copyOut({
      connection: copier,
      source: "(SELECT id FROM t)",
      columns: [INT4],
      batchRows: 30,
    })) {
      ids.push(...(must(batch.columns[0], "ids") as { data: Int32Array }).data);
    }
    await copier.query("COMMIT");
    await copier.close();
    expect(ids.length).toBe(100);
    let inserts = 0;
    const consumer = {
      ...nothing,
      onChange: (buffer: Buffer, start: number): void => void (inserts += buffer[start] === 0x49 ? 1 : 0),
    };
    const [second] = await stream(consumer, { slot: "s2" });
    await waitFor("the streamed rows", () => inserts === 50);
    await second.stop();
    await dropSlot(must(open.at(-1), "a connection"), "s2", true);
  });

  test("only what was confirmed is reported, never what was received", async () => {
    let received = 0n;
    const [changes, connection] = await stream(
      { ...nothing, onKeepalive: (end) => (received = end) },
      { statusIntervalMs: 50 },
    );
    const before = await confirmedFlush();
    await client.query("INSERT INTO t SELECT g FROM generate_series(1, 1000) g");
    await waitFor("a keepalive behind the rows", () => received > before);
    await sleep(300);
    expect(changes.receivedLsn).toBeGreaterThanOrEqual(received);
    expect(await confirmedFlush()).toBe(before);
    changes.confirm(received);
    await waitFor("the confirmed position", async () => (await confirmedFlush()) === received);
    changes.confirm(before);
    expect(changes.confirmedLsn).toBe(received);
    await changes.stop();
    expect(connection.isOpen).toBe(true);
    expect((await identifySystem(connection)).database).toBe("life");
  });

  test("an idle database still moves the slot", async () => {
    const [changes] = await stream(
      { ...nothing, onKeepalive: (end, own) => own.confirm(end) },
      { statusIntervalMs: 50 },
    );
    const before = await confirmedFlush();
    await client.query("CREATE TABLE unpublished AS SELECT generate_series(1, 1000)");
    await client.query("DROP TABLE unpublished");
    const { rows } = await client.query<{ lsn: string }>("SELECT pg_current_wal_lsn() AS lsn");
    await waitFor("the slot to follow", async () => (await confirmedFlush()) >= parseLsn(rows[0]?.lsn ?? ""), {
      timeoutMs: 20_000,
    });
    expect(await confirmedFlush()).toBeGreaterThan(before);
    await changes.stop();
  });

  test("a paused consumer outlives the server's timeout, and gets every row afterwards", async () => {
    let inserts = 0;
    const consumer = {
      ...nothing,
      onChange: (buffer: Buffer, start: number): void => void (inserts += buffer[start] === 0x49 ? 1 : 0),
    };
    const [changes] = await stream(consumer, { statusIntervalMs: 300 }, { wal_sender_timeout: 1500 });
    changes.pause();
    await client.query("INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(1, 100000) g");
    await sleep(4000);
    const paused = inserts;
    expect(paused).toBeLessThan(100_000);
    changes.resume();
    await waitFor("all rows", () => inserts === 100_000, { timeoutMs: 20_000 });
    await changes.stop();
  });

  test("a slot that is in use, missing or dropped has its own code", async () => {
    await stream();
    expect(await codeOf(stream())).toBe("pg_slot_active");
    expect(await codeOf(stream(nothing, { slot: "nowhere" }))).toBe("pg_slot_invalid");
    expect(await codeOf(stream(nothing, { slot: "s", publications: [] }))).toMatch(/pg_/);
  });

  test("what a consumer throws ends the stream with that error", async () => {
    const onChange = (): void => {
      throw new SpillwayError("pg_type_mismatch", "not what was planned");
    };
    const [changes] = await stream({ ...nothing, onChange });
    await client.query("INSERT INTO t VALUES (1)");
    expect(await codeOf(changes.ended)).toBe("pg_type_mismatch");
  });

  test("a walsender that is killed is a lost connection", async () => {
    const [changes] = await stream();
    await client.query("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 's'");
    expect(await codeOf(changes.ended)).toBe("pg_connection_lost");
  });

  test("a slot whose creation has to wait says for whom", async () => {
    const blocker = await server.connect("life");
    await blocker.query("SET application_name = 'the blocker'; BEGIN; INSERT INTO t VALUES (77)");
    const work = createSlot(await replication(), { name: "waits", timeoutMs: 700 });
    const error: unknown = await work.catch((e: unknown) => e);
    expect(String(error)).toMatch(/the blocker/);
    expect(await codeOf(work)).toBe("deadline_exceeded");
    await blocker.end();
    await waitFor("the slot to go", async () => (await readSlot(sql, "waits")) === null);
  });

  test("a server that falls silent is given up, also while status is still being sent", async () => {
    const proxy = await startProxy({ host: server.host, port: server.port });
    const url = server.url("life").replace(`:${server.port}/`, `:${proxy.port}/`);
    const connection = await connectRaw(url, { replication: "database", settings: { wal_sender_timeout: 60_000 } });
    const options = { slot: "s", startLsn: 0n, publications: ["p"], statusIntervalMs: 100, silenceTimeoutMs: 800 };
    const changes = await ReplicationStream.start(connection, options, nothing);
    // Asked for signs of life, a healthy server gives them.
    await sleep(1500);
    expect(connection.isOpen).toBe(true);
    await proxy.setMode("blackhole");
    const start = performance.now();
    expect(await codeOf(changes.ended)).toBe("pg_connection_lost");
    expect(performance.now() - start).toBeLessThan(2500);
    await proxy.close();
  });

  test("after a promotion the timeline's history says where it left the old one", async () => {
    const standby = await startStandby(server);
    await standby.withClient("postgres", (c) => c.query("SELECT pg_promote()"));
    const connection = await connectRaw(standby.url("life"), { replication: "database" });
    const system = await identifySystem(connection);
    expect(system.timeline).toBe(2);
    const [left, ...more] = await timelineHistory(connection, 2);
    expect(more).toEqual([]);
    expect(left?.timeline).toBe(1);
    expect(left?.switchedAt).toBeLessThanOrEqual(system.walPosition);
    await connection.close();
    await standby.destroy();
  });

  test("an idle holder is evicted at once", async () => {
    const [changes] = await stream();
    const tookMs = await evictSlotHolder({ sql, slot: "s", clock: systemClock });
    expect(tookMs).toBeLessThan(2000);
    expect(await codeOf(changes.ended)).toBe("pg_connection_lost");
    const [again] = await stream();
    await again.stop();
    expect(await codeOf(evictSlotHolder({ sql, slot: "nowhere", clock: systemClock }))).toBe("pg_slot_invalid");
  });

  test("a base backup is complete: a server starts from it", async () => {
    await client.query("INSERT INTO t VALUES (1, 'in the backup')");
    const connection = await connectRaw(server.url("life"), { replication: "physical" });
    const dir = scratchDir("backup", { forPostgres: true });
    const data = join(dir, "data");
    mkdirSync(data, { mode: 0o700 });
    const events: BackupEvent["kind"][] = [];
    let out: ReturnType<typeof createWriteStream> | null = null;
    const files: string[] = [];
    const close = async (): Promise<void> => {
      out?.end();
      if (out) await finished(out);
      out = null;
    };
    for await (const event of baseBackup({ connection, label: "it's a test" })) {
      if (event.kind !== "data" && event.kind !== "progress") events.push(event.kind);
      if (event.kind === "archive" || event.kind === "manifest") {
        await close();
        files.push(event.kind === "archive" ? event.name : "backup_manifest");
        out = createWriteStream(join(event.kind === "archive" ? dir : data, must(files.at(-1), "a name")));
      }
      if (event.kind === "data" && !must(out, "an archive").write(event.bytes)) {
        await new Promise<void>((resolve) => out?.once("drain", () => resolve()));
      }
    }
    await close();
    expect(connection.isOpen).toBe(true);
    await connection.close();
    expect(events).toEqual(["start", "archive", "manifest", "end"]);
    execFileSync("tar", ["-xf", join(dir, "base.tar"), "-C", data]);
    giveToPostgres(data);
    execFileSync("chown", ["-R", "--reference", data, data]);
    const restored = await startPostgres({ major, dataDir: data });
    const rows = await restored.withClient("life", (c) => c.query("SELECT v FROM t"));
    expect(rows.rows).toEqual([{ v: "in the backup" }]);
    await restored.destroy();
  });
});

describe("decisions about replication", () => {
  test("timeline history files", () => {
    const text = "1\t0/3000060\tno recovery target specified\n# a comment\n2\t16/B374D848\tafter LSN 16/B374D840\n";
    expect(parseTimelineHistory(text)).toEqual([
      { timeline: 1, switchedAt: 0x3000060n, reason: "no recovery target specified" },
      { timeline: 2, switchedAt: parseLsn("16/B374D848"), reason: "after LSN 16/B374D840" },
    ]);
  });

  test("a holder that is blocked in writing is left to its timeouts first", () => {
    expect(shouldTerminate({ pid: 1, blocked: false }, 0, Infinity, 4500)).toBe(true);
    expect(shouldTerminate({ pid: 1, blocked: true }, 0, Infinity, 4500)).toBe(false);
    expect(shouldTerminate({ pid: 1, blocked: true }, 4600, Infinity, 4500)).toBe(true);
    expect(shouldTerminate({ pid: 1, blocked: false }, 500, 400, 4500)).toBe(false);
  });
});
