/**
 * The catalog's consistent views, read by pyiceberg and by DuckDB's Iceberg extension while money moves between the tables: tables that
 * are loaded one after the other add up, which loads of the live tables do not.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { connect, endClient } from "@spillway/pg/connect";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { Foreign } from "@spillway/testkit/interop/foreign";
import { type ProcessResult, runCli, spawnCli, type TestProcess } from "@spillway/testkit/processes";
import { waitFor } from "@spillway/testkit/wait";
import { afterAll, beforeAll, expect, test } from "vitest";

const TABLES = ["cash", "stocks", "bonds"];
const TOTAL = 300_000;
const PAUSE_S = 0.25;

let db: TestDatabase;
let home: string;
let env: Record<string, string>;
let worker: TestProcess;
let server: TestProcess;
let foreign: Foreign;
let uri: string;
let load: { stop(): Promise<number> };

beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "spillway-test-"));
  db = await createTestDatabase();
  foreign = Foreign.start();
  env = {
    SPILLWAY_DATABASE_URL: db.url,
    SPILLWAY_WAREHOUSE: join(home, "lake"),
    SPILLWAY_CACHE_DIR: join(home, "cache"),
    SPILLWAY_LOG_LEVEL: "warn",
    SPILLWAY_METRICS_LISTEN: "off",
    SPILLWAY_MIRROR_FLUSH_INTERVAL: "100ms",
  };
  for (const table of TABLES) {
    await db.client.query(`create table ${table} (id int primary key, amount bigint not null)`);
    await db.client.query(`insert into ${table} select g, 1000 from generate_series(1, 100) g`);
  }
  await db.client.query(`create table tiered (id int, k int, primary key (id, k)) partition by range (k);
    create table tiered_0 partition of tiered for values from (0) to (10)`);
  expect(await spillway(["init"])).toMatchObject({ code: 0 });
  expect(await spillway(["register", "--mode", "mirrored", ...TABLES.flatMap((t) => ["--table", t])])).toMatchObject({
    code: 0,
  });
  expect(await spillway(["register", "--table", "tiered", "--lag", "5"])).toMatchObject({ code: 0 });
  worker = spawnCli(["worker"], { env });
  await waitFor("the tables follow the stream", async () => {
    const { rows } = await db.client.query("select 1 from spillway.mirror_table where phase = 'live'");
    return rows.length === TABLES.length;
  });
  server = spawnCli(["catalog", "--listen", "127.0.0.1:0"], { env });
  uri = must((await server.waitForLine(/catalog at (http:\S+)/))[1], "address");
  load = await startLoad();
}, 180_000);
afterAll(async () => {
  expect(await load.stop()).toBeGreaterThan(100);
  await server.kill("SIGTERM");
  await worker.kill("SIGTERM");
  await foreign.stop();
  await db.drop();
  rmSync(home, { recursive: true, force: true });
});

const spillway = (args: readonly string[]): Promise<ProcessResult> => runCli(args, { env });

async function startLoad(): Promise<{ stop(): Promise<number> }> {
  const client = await connect(db.url);
  const state = { over: false };
  let count = 0;
  const running = (async () => {
    while (!state.over) {
      const [from, to] = [must(TABLES[count % 3], "from"), must(TABLES[(count + 1) % 3], "to")];
      await client.query(`begin; update ${from} set amount = amount - 7 where id = ${1 + (count % 100)};
        update ${to} set amount = amount + 7 where id = ${1 + ((count * 7) % 100)}; commit`);
      count += 1;
    }
  })();
  return {
    stop: async () => {
      state.over = true;
      await running;
      await endClient(client);
      return count;
    },
  };
}

interface Sums {
  readonly prefix?: string;
  readonly sums: readonly string[];
}

const ask = (what: "sums" | "duckdb-sums", warehouse: string): Promise<Sums> =>
  foreign.ask({ op: "rest", uri, do: what, warehouse, tables: TABLES, column: "amount", pause: PAUSE_S });

const total = ({ sums }: Sums): number => sums.reduce((sum, s) => sum + Number(s), 0);

async function databaseName(): Promise<string> {
  return String((await db.client.query<{ d: string }>("select current_database() as d")).rows[0]?.d);
}

test.each(["sums", "duckdb-sums"] as const)(
  "%s of `@latest` add up under load, and of live tables they do not always",
  async (what) => {
    const warehouse = await databaseName();
    for (let i = 0; i < 4; i++) expect(total(await ask(what, `${warehouse}@latest`))).toBe(TOTAL);
    let wrong = 0;
    for (let i = 0; i < 12 && wrong === 0; i++) wrong += total(await ask(what, "")) === TOTAL ? 0 : 1;
    // Else the load would be too small to show anything.
    expect(wrong).toBe(1);
  },
);

test("one position gives the same sums to both readers, as often as they ask", async () => {
  const { rows } = await db.client.query<{ lsn: string }>("select min(f_lsn)::text as lsn from spillway.seam");
  const warehouse = `${await databaseName()}@lsn:${rows[0]?.lsn}`;
  const first = await ask("sums", warehouse);
  expect(total(first)).toBe(TOTAL);
  expect(first.prefix).toMatch(/^lake@lsn:[0-9A-F]{16}$/);
  expect((await ask("duckdb-sums", warehouse)).sums).toEqual(first.sums);
  expect((await ask("sums", warehouse)).sums).toEqual(first.sums);
});

test("a view shows the columns of its moment", async () => {
  const read = (warehouse: string): Promise<{ names: string[] }> =>
    foreign.ask({ op: "rest", uri, do: "read", table: ["public", "cash"], warehouse });
  const { rows } = await db.client.query<{ lsn: string }>(
    "select min(f_lsn)::text as lsn from spillway.seam where f_lsn is not null",
  );
  await db.client.query("alter table cash add column note text");
  await db.client.query("update cash set note = 'new' where id = 1");
  await waitFor("the new column", async () => (await read("@latest")).names.includes("note"));
  expect((await read(`@lsn:${rows[0]?.lsn}`)).names).toEqual(["id", "amount"]);
});

test("a view is read-only, knows mirrored tables only, and refuses what is not there", async () => {
  const warehouse = `${await databaseName()}@latest`;
  const rest = <T>(request: Readonly<Record<string, unknown>>): Promise<T> =>
    foreign.ask<T>({ op: "rest", uri, warehouse, ...request });
  expect(await rest({ do: "names" })).toContainEqual(["public", TABLES.map((t) => `public.${t}`).toSorted()]);
  await expect(rest({ do: "write", what: "append", table: ["public", "cash"] })).rejects.toThrow(
    /ForbiddenError|not support|Cannot write/,
  );
  await expect(rest({ do: "write", what: "drop", table: ["public", "cash"] })).rejects.toThrow(
    /ForbiddenError|not support/,
  );
  await expect(rest({ do: "read", table: ["public", "tiered"] })).rejects.toThrow(/NoSuchTable/);
  await expect(rest({ do: "names", warehouse: "elsewhere@latest" })).rejects.toThrow(/there is no warehouse/);
  await expect(rest({ do: "names", warehouse: "@lsn:FFFF/0" })).rejects.toThrow(/as_of_lsn_ahead/);
  await expect(rest({ do: "read", table: ["public", "cash"], warehouse: "@lsn:0/1" })).rejects.toThrow(
    /as_of_lsn_gone/,
  );
});
