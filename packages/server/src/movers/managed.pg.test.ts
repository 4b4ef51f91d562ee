/** Everything as a role that is no superuser and only owns its tables, as on a managed Postgres; clients are other roles still. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { afterAll, beforeAll, expect, test } from "vitest";
import { init, loadRelationByName, readStatus } from "../catalog/catalog.ts";
import { openRuntime, type Runtime } from "../roles/runtime.ts";
import { Passes, register, unregister } from "./movers.ts";

let db: TestDatabase;
let runtime: Runtime;
let home: string;
beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "spillway-test-"));
  db = await createTestDatabase();
  await db.client.query(
    `create role ${db.name}_owner login; create role ${db.name}_app login;
     grant create, connect on database ${db.name} to ${db.name}_owner; create schema app authorization ${db.name}_owner;
     grant usage on schema app to ${db.name}_app`,
  );
  runtime = await openRuntime({
    databaseUrl: db.server.url(db.name, { user: `${db.name}_owner` }),
    warehouse: join(home, "lake"),
    s3Endpoint: null,
    s3Region: "us-east-1",
    s3PathStyle: true,
    cacheDir: join(home, "cache"),
    cacheBytes: 1 << 30,
    connectTimeoutMs: 5000,
    engineMemoryBytes: 128 << 20,
    lockTimeoutMs: 100,
    premake: 1,
    applicationName: "test",
    clock: systemClock,
    log: silentLogger,
  });
});
afterAll(async () => {
  await runtime.close();
  const { name, server } = db;
  await db.drop();
  await server.withClient("postgres", (c) => c.query(`drop role if exists ${name}_owner, ${name}_app`));
  rmSync(home, { recursive: true, force: true });
});

test("init, register, tier, corrections by an application's role, unregister", async () => {
  const { store, warehouse } = runtime;
  const again = { store, warehouse, clock: systemClock, log: silentLogger };
  expect(await runtime.pool.withClient((c) => init({ client: c, ...again }))).toMatchObject({ created: true });
  expect(await runtime.pool.withClient((c) => init({ client: c, ...again }))).toMatchObject({
    created: false,
    applied: [],
  });
  await runtime.pool.withClient(async (c) => {
    await c.query(`create table app.m (id bigint generated always as identity, at date, v text, u text generated always as (upper(v)) stored,
      primary key (id, at)) partition by range (at)`);
    for (const [i, month] of ["01", "02", "03"].entries()) {
      await c.query(
        `create table app.m_2024${month} partition of app.m for values from ('2024-${month}-01') to ('2024-0${i + 2}-01')`,
      );
    }
    await c.query(
      "insert into app.m (at, v) select '2024-01-01'::date + i % 90, 'v' || i from generate_series(1, 900) i",
    );
    await c.query(`grant select, insert, update, delete on app.m to ${db.name}_app`);
  });
  const ctx = runtime.mover(null);
  expect(await register(ctx, { table: "app.m", mode: "tiered", lag: "10d" })).toMatchObject({ outcome: "registered" });
  expect((await new Passes().run(ctx, { force: true })).failed).toEqual({});
  expect(await loadRelationByName(db.client, "app", "m")).toMatchObject({ seam: { t: 19783n } });

  const app = await db.server.connect(db.name, { user: `${db.name}_app` });
  try {
    const inserted = await app.query(
      "insert into app.m (at, v) values ('2024-01-05', 'late'), ('2024-03-05', 'hot') returning id, u",
    );
    expect(inserted.rows).toEqual([expect.objectContaining({ u: "LATE" }), expect.objectContaining({ u: "HOT" })]);
    await app.query('select spillway.upsert(\'app.m\', \'{"id": 7, "at": "2024-01-08", "v": "seven"}\')');
    await app.query('select spillway.delete(\'app.m\', \'{"id": 8, "at": "2024-01-09"}\')');
    await expect(app.query("select * from spillway.journal")).rejects.toMatchObject({ code: "42501" });
  } finally {
    await app.end();
  }
  const { rows } = await db.client.query(
    "select op, c1::int, c3, c4 from spillway.delta_1 where key < 19783 order by c1",
  );
  expect(rows).toEqual([
    { op: "U", c1: 7, c3: "seven", c4: "SEVEN" },
    { op: "D", c1: 8, c3: null, c4: null },
    { op: "U", c1: 901, c3: "late", c4: "LATE" },
  ]);
  expect((await new Passes().run(ctx, { force: true })).failed).toEqual({});
  const status = await readStatus(db.client);
  expect(status.tables).toMatchObject([{ table: "app.m", state: "active", deltaRows: 0, waiting: null }]);
  expect(await unregister(ctx, { table: "app.m" })).toMatchObject({ outcome: "unregistered" });
});

test("partitions that a superuser's worker makes belong to the table's owner, and are stored as the others", async () => {
  const { client } = db;
  const superuser = await openRuntime({
    databaseUrl: db.url,
    warehouse: runtime.warehouse,
    s3Endpoint: null,
    s3Region: "us-east-1",
    s3PathStyle: true,
    cacheDir: join(home, "cache"),
    cacheBytes: 1 << 30,
    connectTimeoutMs: 5000,
    engineMemoryBytes: 128 << 20,
    lockTimeoutMs: 100,
    premake: 1,
    applicationName: "test",
    clock: systemClock,
    log: silentLogger,
  });
  try {
    await runtime.pool.withClient((c) =>
      c.query(`create table app.o (k int primary key) partition by range (k);
        create table app.o_0 partition of app.o for values from (0) to (10) with (fillfactor = 50, autovacuum_enabled = false);
        insert into app.o values (1)`),
    );
    await register(superuser.mover(null), { table: "app.o", mode: "tiered" });
    expect((await new Passes().run(superuser.mover(null), { force: true })).failed).toEqual({});
    const { rows } = await client.query(
      "select relname, pg_get_userbyid(relowner) = $1 as own, reloptions from pg_class where relname like 'o\\_%' and relkind = 'r' order by 1",
      [`${db.name}_owner`],
    );
    const reloptions = ["fillfactor=50", "autovacuum_enabled=false"];
    expect(rows).toEqual([
      { relname: "o_0", own: true, reloptions },
      { relname: "o_10", own: true, reloptions },
      { relname: "o_landing", own: true, reloptions },
    ]);
    await runtime.pool.withClient((c) => c.query("alter table app.o add column extra int"));
    await unregister(superuser.mover(null), { table: "app.o" });
  } finally {
    await superuser.close();
  }
});

test("a warehouse that another database owns is refused, and a clone of this one may not touch it", async () => {
  const other = await createTestDatabase();
  try {
    const again = { store: runtime.store, warehouse: runtime.warehouse, clock: systemClock, log: silentLogger };
    await expect(init({ client: other.client, ...again })).rejects.toMatchObject({ code: "warehouse_taken" });
    const { rows } = await other.client.query("select count(*)::int as n from spillway.warehouse");
    expect(rows).toEqual([{ n: 0 }]);
  } finally {
    await other.drop();
  }
  const clone = `${db.name}_clone`;
  await db.server.withClient("postgres", (c) =>
    c.query(`select pg_terminate_backend(pid) from pg_stat_activity where datname = '${db.name}'`),
  );
  await db.server.createDatabase(clone, db.name);
  const client = await db.server.connect(clone);
  try {
    const again = { store: runtime.store, warehouse: runtime.warehouse, clock: systemClock, log: silentLogger };
    await expect(init({ client, ...again })).rejects.toMatchObject({ code: "lake_not_ours" });
  } finally {
    await client.end();
    await db.server.dropDatabase(clone);
  }
});
