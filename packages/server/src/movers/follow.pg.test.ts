/** What old rows read in a new column: taken from Postgres while it knows, and never guessed when it has forgotten. */
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { afterAll, beforeAll, expect, test } from "vitest";
import { valueAt } from "../engine/engine.ts";
import { createSeam, type Seam } from "../seam/seam.ts";
import { foldRelation } from "./fold.ts";
import { Passes } from "./movers.ts";
import { TestLake } from "./test-runtime.ts";
import { verifyTable } from "./verify.ts";

let db: TestDatabase;
let lake: TestLake;
beforeAll(async () => {
  db = await createTestDatabase();
  lake = await TestLake.open(db);
});
afterAll(async () => {
  await lake.close();
  await db.drop();
});

async function failures(name: string): Promise<Readonly<Record<string, string>>> {
  const { relationId } = await lake.relation(name);
  return (await new Passes().run(lake.ctx, { force: true, only: [relationId] })).failed;
}

function readsColumn(name: string): Promise<void> {
  return withSeam(async (seam) => {
    for await (const _batch of (await seam.query(`select d from ${name}`)).batches());
  });
}

async function countWhere(name: string, condition: string): Promise<number> {
  let found = -1;
  await withSeam(async (seam) => {
    for await (const { columns } of (await seam.query(`select count(*) from ${name} where ${condition}`)).batches()) {
      if (columns[0]) found = Number(valueAt(columns[0], 0));
    }
  });
  return found;
}

async function withSeam(work: (seam: Seam) => Promise<void>): Promise<void> {
  const { store, engine } = lake.runtime;
  const seam = createSeam({
    conninfo: db.url,
    store,
    engine,
    clock: systemClock,
    log: silentLogger,
    holder: "test",
  });
  try {
    await work(seam);
  } finally {
    await seam.close();
  }
}

const REWRITES: readonly [label: string, sql: readonly string[]][] = [
  ["a rewriting ALTER", ["alter table @ add column d int default 5", "alter table @ alter column v type varchar(80)", "alter table @ alter column v type text using v || ''"]],
  ["the same ALTER TABLE", ["alter table @ add column d int default 5, alter column v type text using v || ''"]],
  ["VACUUM FULL", ["alter table @ add column d int default 5", "vacuum full @"]],
  ["a rewrite after which the default goes", ["alter table @ add column d int default 5", "vacuum full @", "alter table @ alter column d drop default"]],
  ["a default of each row", ["alter table @ add column d int default (random() * 10)::int"]],
]; // prettier-ignore

test.each(REWRITES)("%s before the worker saw the new column stops the table", async (label, sql) => {
  const name = `f${REWRITES.findIndex(([l]) => l === label)}`;
  await lake.makeInts(name);
  for (const statement of sql) await db.client.query(statement.replaceAll("@", name));
  await expect(readsColumn(name)).rejects.toMatchObject({ code: "seam_columns_changed" });
  expect(await failures(name)).toEqual({ [`public.${name}`]: "schema_change_unsupported" });
  const { rows } = await db.client.query("select stop_reason from spillway.relation where table_name = $1", [name]);
  expect(rows[0].stop_reason).toMatch(/column d .*(not known|generated)/);
  // The way out that it names.
  await db.client.query(`alter table ${name} drop column d`);
  expect(await failures(name)).toEqual({});
  await lake.both(name, "alter table @ add column d int default 6");
  await readsColumn(name);
  expect(await failures(name)).toEqual({});
  await lake.check(name);
});

test("a rewrite before the column is added, and defaults that are set or dropped later, lose nothing", async () => {
  await lake.makeInts("kept");
  await db.client.query("vacuum full kept");
  expect(await failures("kept")).toEqual({});
  await lake.both("kept", "alter table @ add column d inet default '10.0.0.1'");
  await lake.both("kept", "alter table @ alter column d drop default");
  await lake.both("kept", "alter table @ add column e timestamptz");
  await db.client.query("alter table kept alter column e set default now()");
  await lake.both("kept", "insert into @ (id, k, e) values (9001, 3, '2024-01-01')");
  expect(await failures("kept")).toEqual({});
  await lake.check("kept");
  await lake.both(
    "kept",
    "alter table @ add column bc date default '0044-03-15 BC', add column tz timestamptz default '0044-03-15 12:00+00 BC'",
  );
  await lake.both(
    "kept",
    "alter table @ add column era text default '44 BC', add column raw bytea default '\\x00ff41'",
  );
  expect(await failures("kept")).toEqual({});
  await db.client.query("alter table kept alter column e drop default");
  await lake.upsert("kept", 1, 1, "folded over the defaults");
  await lake.client.query(
    "update kept_model set bc = default, tz = default, era = default, raw = default, d = null where id = 1",
  );
  const { relationId } = await lake.relation("kept");
  await foldRelation(lake.ctx, await lake.relation("kept"));
  expect((await verifyTable(lake.ctx, relationId)).differences).toEqual([]);
  const { rows } = await lake.client.query("select count(*)::int as n from kept_model where bc = '0044-03-15 BC'");
  expect(rows[0].n).toBeGreaterThan(1000);
  for (const [condition, wanted] of [
    ["bc = DATE '0044-03-15 (BC)'", rows[0].n],
    ["era = '44 BC'", rows[0].n],
    ["raw = '\\x00\\xFF\\x41'::BLOB", rows[0].n],
  ] as const)
    expect(await countWhere("kept", condition)).toBe(wanted);
  // The check below reads the lake by DuckDB's CSV, which does not write these as Postgres reads them.
  await lake.both("kept", "alter table @ drop column bc, drop column tz, drop column raw");
  // An empty lake and delta: nothing is old.
  await lake.both("kept", "alter table @ add column g text");
  expect(await failures("kept")).toEqual({});
  await db.client.query("vacuum full kept");
  await lake.settled("kept");
  await lake.check("kept");
});
