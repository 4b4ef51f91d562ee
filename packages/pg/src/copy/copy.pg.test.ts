/** COPY against real servers: exact at the edges of batches, and never a partial result that looks whole. */
import type pg from "pg";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { estimateBytes } from "@spillway/base/batch";
import type { ColumnBatch } from "@spillway/base/columns";
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { sleep } from "@spillway/testkit/wait";
import { planColumn, type PgColumnPlan } from "../columns/plan.ts";
import { connectRaw } from "../wire/connect-raw.ts";
import type { RawConnection } from "../wire/connection.ts";
import { copyIn } from "./copy-in.ts";
import { copyOut } from "./copy-out.ts";

const plan = (name: string, oid: number): PgColumnPlan =>
  planColumn(name, { oid, typmod: -1, name: "x", typtype: "b", category: "X", schema: "pg_catalog" });
const COLUMNS = [plan("id", 20), plan("v", 25)];
const rows = (count: number, width = 10): string =>
  `(SELECT g::int8, repeat('x', ${width}) FROM generate_series(1, ${count}) g)`;

async function errorOf(work: Promise<unknown>): Promise<SpillwayError> {
  const error: unknown = await work.then(
    () => null,
    (e: unknown) => e,
  );
  if (!(error instanceof SpillwayError)) throw new Error(`not a typed error: ${String(error)}`);
  return error;
}

function idsOf(batch: ColumnBatch): bigint[] {
  return [...(must(batch.columns[0], "ids") as { data: BigInt64Array }).data];
}

describe.each([15, 18] as const)("COPY with Postgres %i", (major) => {
  let db: TestDatabase;
  let client: pg.Client;
  let connection: RawConnection;

  beforeAll(async () => {
    db = await createTestDatabase({ major });
    client = db.client;
  });
  afterAll(() => db?.drop());
  beforeEach(async () => {
    connection = await connectRaw(db.url);
  });
  afterEach(async () => {
    await connection.close();
  });

  async function drain(
    source: string,
    columns = COLUMNS,
    more: { batchRows?: number; batchBytes?: number; signal?: AbortSignal } = {},
  ): Promise<ColumnBatch[]> {
    const batches: ColumnBatch[] = [];
    for await (const batch of copyOut({ connection, source, columns, ...more })) batches.push(batch);
    return batches;
  }
  async function isUsable(): Promise<void> {
    expect((await connection.query("SELECT 1"))[0]?.rows).toEqual([["1"]]);
  }

  test.each([0, 1, 99, 100, 101, 1000])("%i rows in batches of 100", async (count) => {
    const batches = await drain(rows(count), COLUMNS, { batchRows: 100 });
    expect(batches.flatMap(idsOf)).toEqual(Array.from({ length: count }, (_, i) => BigInt(i + 1)));
    expect(batches.every((batch, i) => batch.length === Math.min(100, count - i * 100))).toBe(true);
    await isUsable();
  });

  test("batches are cut by size too, and a value may be larger than that", async () => {
    const batches = await drain(rows(2000, 5000), COLUMNS, { batchBytes: 1_000_000 });
    expect(batches.flatMap(idsOf).length).toBe(2000);
    for (const batch of batches) expect(estimateBytes(batch)).toBeLessThan(1_300_000);
    expect((await drain(rows(3, 20_000_000), COLUMNS, { batchBytes: 1000 })).map((b) => b.length)).toEqual([1, 1, 1]);
  });

  test("a slow consumer holds the server back, and memory stays flat", async () => {
    let seen = 0;
    for await (const batch of copyOut({ connection, source: rows(60_000, 1000), columns: COLUMNS, batchRows: 2000 })) {
      seen += batch.length;
      if (seen > 6000) continue;
      await sleep(300);
      // The server has long been ready to send all 60 MB.
      const { rows: state } = await client.query("SELECT wait_event FROM pg_stat_activity WHERE pid = $1", [
        connection.processId,
      ]);
      expect(state).toEqual([{ wait_event: "ClientWrite" }]);
    }
    expect(seen).toBe(60_000);
  });

  test("a consumer that stops early leaves a usable connection", async () => {
    for await (const batch of copyOut({ connection, source: rows(10_000_000), columns: COLUMNS, batchRows: 100 })) {
      expect(batch.length).toBe(100);
      break;
    }
    await isUsable();
    for (let i = 0; i < 5; i++) expect((await drain(rows(10))).length).toBe(1);
  });

  test("an error in the middle is the server's own, and no end", async () => {
    const source = "(SELECT g::int8, (1 / (50000 - g))::text FROM generate_series(1, 100000) g)";
    const seen: number[] = [];
    const work = (async (): Promise<void> => {
      for await (const batch of copyOut({ connection, source, columns: COLUMNS, batchRows: 1000 }))
        seen.push(batch.length);
    })();
    expect((await errorOf(work)).details["sqlstate"]).toBe("22012");
    expect(seen.length).toBeLessThan(51);
    await isUsable();
    expect((await errorOf(drain("nowhere"))).details["sqlstate"]).toBe("42P01");
    await isUsable();
  });

  test("an abort is told apart from the server's cancel", async () => {
    const abort = new AbortController();
    setTimeout(() => abort.abort(), 100);
    const error = await errorOf(
      drain("(SELECT g::int8, pg_sleep(0.01)::text FROM generate_series(1, 10000) g)", COLUMNS, {
        signal: abort.signal,
      }),
    );
    expect(error).toMatchObject({ code: "pg_canceled", details: {} });
    await isUsable();
    const canceled = errorOf(drain("(SELECT 1::int8, pg_sleep(30)::text)"));
    await sleep(100);
    await client.query("SELECT pg_cancel_backend($1)", [connection.processId]);
    expect((await canceled).details["sqlstate"]).toBe("57014");
  });

  test("a lost connection is an error, whether or not all rows of a batch had come", async () => {
    let seen = 0;
    const work = (async (): Promise<void> => {
      for await (const batch of copyOut({ connection, source: rows(10_000_000), columns: COLUMNS, batchRows: 1000 })) {
        seen += batch.length;
        if (seen === 3000) await client.query("SELECT pg_terminate_backend($1)", [connection.processId]);
      }
    })();
    expect((await errorOf(work)).code).toBe("pg_connection_lost");
  });

  test("columns that are not as planned are refused", async () => {
    expect((await errorOf(drain(rows(5), [plan("id", 20)]))).code).toBe("pg_type_mismatch");
    expect((await errorOf(drain("(SELECT 1::int4, 'x')"))).toLine()).toMatch(/pg_type_mismatch: column "id"/);
    await isUsable();
    expect(
      (await errorOf(copyOut({ connection, source: "x", columns: COLUMNS, signal: AbortSignal.abort() }).next())).code,
    ).toBe("pg_canceled");
    await isUsable();
  });

  test("a snapshot of the caller's transaction is what is read", async () => {
    await client.query("CREATE TABLE s (id int8, v text); INSERT INTO s VALUES (1, 'a')");
    await connection.query("BEGIN ISOLATION LEVEL REPEATABLE READ");
    await connection.query("SELECT 1");
    await client.query("INSERT INTO s VALUES (2, 'b')");
    expect((await drain("s")).flatMap(idsOf)).toEqual([1n]);
    await connection.query("COMMIT");
    expect((await drain("(SELECT * FROM s ORDER BY id)")).flatMap(idsOf)).toEqual([1n, 2n]);
    await client.query("DROP TABLE s");
  });

  test("COPY in is all or nothing", async () => {
    await client.query("CREATE TABLE target (id int8 PRIMARY KEY, v text)");
    const good = await drain(rows(50_000, 100), COLUMNS, { batchRows: 7000 });
    expect(await copyIn({ connection, into: "target", batches: good })).toBe(50_000);
    const count = async (): Promise<string> =>
      (await client.query("SELECT count(*) FROM target")).rows[0]?.count as string;
    expect(await count()).toBe("50000");
    expect((await errorOf(copyIn({ connection, into: "target", batches: good }))).details["sqlstate"]).toBe("23505");
    await isUsable();
    await client.query("TRUNCATE target");
    async function* failing(): AsyncGenerator<ColumnBatch> {
      yield must(good[0], "a batch");
      await sleep(10);
      throw new SpillwayError("disk_full", "no batches any more");
    }
    expect((await errorOf(copyIn({ connection, into: "target", batches: failing() }))).code).toBe("disk_full");
    expect(await count()).toBe("0");
    expect((await errorOf(copyIn({ connection, into: "nowhere", batches: good }))).details["sqlstate"]).toBe("42P01");
    await isUsable();
    expect(await copyIn({ connection, into: "target", batches: [] })).toBe(0);
    await client.query("DROP TABLE target");
  });
});
