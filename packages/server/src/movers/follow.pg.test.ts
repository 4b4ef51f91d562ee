/** What old rows read in a new column: taken from Postgres while it knows, and never guessed when it has forgotten. */
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createSeam } from "../seam/seam.ts";
import { Passes } from "./movers.ts";
import { TestLake } from "./test-runtime.ts";

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

async function readsColumn(name: string): Promise<void> {
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
    const result = await seam.query(`select d from ${name}`);
    for await (const _batch of result.batches());
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
  // An empty lake and delta: nothing is old.
  await lake.both("kept", "alter table @ add column g text");
  expect(await failures("kept")).toEqual({});
  await db.client.query("vacuum full kept");
  await lake.settled("kept");
  await lake.check("kept");
});
