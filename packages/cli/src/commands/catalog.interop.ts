/** `spillway catalog` as pyiceberg and DuckDB's Iceberg extension use it, over HTTP with the token. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { init, loadRelationByName } from "@spillway/server/catalog/catalog";
import { Passes, register } from "@spillway/server/movers/movers";
import { openRuntime, type Runtime } from "@spillway/server/roles/runtime";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { Foreign, type Canonical, type ForeignRows } from "@spillway/testkit/interop/foreign";
import { runCli, spawnCli, type TestProcess } from "@spillway/testkit/processes";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const TOKEN = "interop-token";
let db: TestDatabase;
let runtime: Runtime;
let home: string;
let server: TestProcess;
let foreign: Foreign;
let uri: string;
let env: Record<string, string>;

beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "spillway-test-"));
  db = await createTestDatabase();
  foreign = Foreign.start();
  runtime = await openRuntime({
    databaseUrl: db.url,
    warehouse: join(home, "lake"),
    s3Endpoint: null,
    s3Region: "us-east-1",
    s3PathStyle: true,
    cacheDir: join(home, "cache"),
    cacheBytes: 1 << 30,
    connectTimeoutMs: 5000,
    engineMemoryBytes: 256 << 20,
    lockTimeoutMs: 100,
    premake: 1,
    applicationName: "test",
    clock: systemClock,
    log: silentLogger,
  });
  const { store, warehouse } = runtime;
  await runtime.pool.withClient((client) => init({ client, store, warehouse, clock: systemClock, log: silentLogger }));
  writeFileSync(join(home, "token"), `${TOKEN}\n`);
  env = { SPILLWAY_DATABASE_URL: db.url, SPILLWAY_WAREHOUSE: join(home, "lake") };
  server = spawnCli(["catalog", "--listen", "127.0.0.1:0", "--token-file", join(home, "token")], { env });
  uri = must((await server.waitForLine(/catalog at (http:\S+)/))[1], "address");
});
afterAll(async () => {
  const ended = await server.kill("SIGTERM");
  await foreign.stop();
  await runtime.close();
  await db.drop();
  rmSync(home, { recursive: true, force: true });
  expect([ended.code, ended.signal]).toEqual([0, null]);
});

const COLUMNS: readonly (readonly [string, string, string])[] = [
  ["id", "bigint", "id::text"],
  ["k", "int", "k::text"],
  ["small", "smallint", "small::text"],
  ["ok", "boolean", "ok::text"],
  ["f", "double precision", "encode(float8send(f), 'hex')"],
  ["n", "numeric(20,3)", "(n * 1000)::numeric(30,0)::text"],
  ["d", "date", "(d - date '1970-01-01')::text"],
  ["ts", "timestamp", "(extract(epoch from ts) * 1000000)::bigint::text"],
  ["tz", "timestamptz", "(extract(epoch from tz) * 1000000)::bigint::text"],
  ["u", "uuid", "replace(u::text, '-', '')"],
  ["b", "bytea", "encode(b, 'hex')"],
  ["j", "jsonb", "j::text"],
  ["Mixed name", "text", '"Mixed name"'],
];

async function makeTable(name: string, formatVersion: 2 | 3): Promise<void> {
  const { client } = db;
  const columns = COLUMNS.map(([column, type]) => `"${column}" ${type}`).join(", ");
  await client.query(`create table ${name} (${columns}, primary key (id, k)) partition by range (k)`);
  for (const lo of [0, 10, 20]) {
    await client.query(`create table ${name}_${lo} partition of ${name} for values from (${lo}) to (${lo + 10})`);
  }
  await client.query(`insert into ${name} select 9007199254740000 + i, i % 30, i % 100, i % 2 = 0,
    case when i % 10 = 0 then 'NaN' else i / 3.0 end, i / 7.0 - 50, date '1960-01-01' + i, timestamp '1969-12-31' + i * interval '1.000001 s',
    now() - i * interval '1 hour', md5(i::text)::uuid, decode(md5(i::text), 'hex'), jsonb_build_object('i', i),
    case when i % 5 = 0 then null else 'ünï ' || i end from generate_series(1, 900) i`);
  await client.query(`create table ${name}_plain as select * from ${name}`);
  await register(runtime.mover(null), { table: `public.${name}`, mode: "tiered", lag: "5", formatVersion });
  const relation = must(await loadRelationByName(client, "public", name), name);
  await new Passes().run(runtime.mover(null), { force: true, only: [relation.relationId] });
}

/** What Postgres held of the rows below the cut-line, in the foreign readers' form. */
async function held(name: string): Promise<string[]> {
  const list = COLUMNS.map(([, , sql]) => sql).join(", ");
  const { rows } = await db.client.query<{ r: Canonical[] }>(
    `select json_build_array(${list}) as r from ${name}_plain where k < 20`,
  );
  expect(rows.length).toBe(600);
  return rows.map(({ r }) => JSON.stringify(r)).toSorted();
}

const uuidAt = COLUMNS.findIndex(([, type]) => type === "uuid");

function received({ rows }: ForeignRows): string[] {
  const plain = (value: Canonical, i: number): Canonical =>
    i === uuidAt && typeof value === "string" ? value.replaceAll("-", "") : value;
  return rows.map((row) => JSON.stringify(row.map(plain))).toSorted();
}

const ask = <T>(request: Readonly<Record<string, unknown>>): Promise<T> =>
  foreign.ask<T>({ op: "rest", uri, token: TOKEN, ...request });

describe.each([2, 3] as const)("a table of format version %i", (version) => {
  const table = `t${version}`;
  beforeAll(() => makeTable(table, version));

  test("is listed and read by pyiceberg, value by value as Postgres held it", async () => {
    expect(await ask<[string, string[]][]>({ do: "names" })).toContainEqual([
      "public",
      expect.arrayContaining([`public.${table}`]),
    ]);
    const rows = await ask<ForeignRows>({ do: "read", table: ["public", table] });
    expect(rows.names).toEqual(COLUMNS.map(([name]) => name));
    expect(received(rows)).toEqual(await held(table));
    const few = await ask<ForeignRows>({ do: "read", table: ["public", table], where: "k = 7" });
    expect(few.rows.length).toBe(30);
  });

  test("is attached and read by DuckDB, value by value as Postgres held it", async () => {
    expect(received(await ask<ForeignRows>({ do: "duckdb", table: ["public", table] }))).toEqual(await held(table));
    const sql = `insert into @.public.${table} (id, k) values (1, 1)`;
    await expect(ask({ do: "duckdb-write", table: ["public", table], sql })).rejects.toThrow(
      /Forbidden|403|only writer/,
    );
  });

  test.each([
    "append",
    "overwrite",
    "delete",
    "add-column",
    "property",
    "expire",
    "tag",
    "drop",
    "purge",
    "rename",
    "create",
    "create-namespace",
    "drop-namespace",
  ])("pyiceberg's %s is refused, and changes nothing", async (what) => {
    const pointer = async (): Promise<unknown> =>
      (await db.client.query("select metadata_location from spillway.lake_table order by 1")).rows;
    const before = await pointer();
    const work = ask({ do: "write", what, table: ["public", table], where: "k = 7" });
    await expect(work).rejects.toThrow(
      /ForbiddenError.*only writer|not support|Cannot write manifest for table version: 3/s,
    );
    expect(await pointer()).toEqual(before);
  });
});

test("without the token nothing is answered", async () => {
  await expect(ask({ do: "names", token: "other-token" })).rejects.toThrow(/Unauthorized/);
});

test("a compaction by pyiceberg passes where it is allowed and exact, and is refused otherwise", async () => {
  const table = ["public", "t2"];
  await expect(ask({ do: "replace", table })).rejects.toThrow(/ForbiddenError.*does not allow/s);
  const allow = ["policy", "--table", "t2", "--set", "allow_foreign_replace=true"];
  expect(await runCli(allow, { env })).toMatchObject({ code: 0 });
  await expect(ask({ do: "replace", table, skip: 1 })).rejects.toThrow(
    /ForbiddenError.*600 rows were replaced by 599/s,
  );
  expect(await ask({ do: "replace", table })).toEqual({ files: 1 });
  expect(received(await ask<ForeignRows>({ do: "read", table }))).toEqual(await held("t2"));
  expect(received(await ask<ForeignRows>({ do: "duckdb", table }))).toEqual(await held("t2"));
});

test("an unregistered table stays readable", async () => {
  expect(await runCli(["unregister", "--table", "t3"], { env })).toMatchObject({ code: 0 });
  const table = ["public", "t3"];
  expect(received(await ask<ForeignRows>({ do: "read", table }))).toEqual(await held("t3"));
  expect(received(await ask<ForeignRows>({ do: "duckdb", table }))).toEqual(await held("t3"));
});
