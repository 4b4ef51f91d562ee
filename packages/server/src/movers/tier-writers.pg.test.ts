/**
 * Tiering, dropping, premaking and folding under writers at full speed, in every isolation level, by plain SQL and by the
 * functions, with savepoints, key changes and TRUNCATE-free deletes. Each change is made to a plain copy of the table in the same
 * transaction; in the end both are the same, row by row.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import type pg from "pg";
import { afterAll, beforeAll, expect, test } from "vitest";
import { init, loadRelationByName } from "../catalog/catalog.ts";
import type { Runtime } from "../roles/runtime.ts";
import { testRuntime } from "./test-runtime.ts";
import { Passes, register } from "./movers.ts";
import { checkWhole } from "./test-whole.ts";

let db: TestDatabase;
let runtime: Runtime;
let home: string;
beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "spillway-test-"));
  db = await createTestDatabase();
  runtime = await testRuntime(db.url, home, { engineMemoryBytes: 128 << 20 });
  await runtime.pool.withClient((c) =>
    init({ client: c, store: runtime.store, warehouse: runtime.warehouse, clock: systemClock, log: silentLogger }),
  );
});
afterAll(async () => {
  await runtime.close();
  await db.drop();
  rmSync(home, { recursive: true, force: true });
});

/** A small generator, so that a seed says what the writers do (their interleaving is the machine's). */
function random(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

const LEVELS = ["read committed", "read committed", "repeatable read", "serializable"];
const PASSING = new Set(["40001", "40P01", "23505", "55P03"]);

interface Shared {
  now: number;
  stop: boolean;
  done: number;
  retried: number;
}

async function writer(client: pg.Client, seed: number, shared: Shared): Promise<void> {
  const below = random(seed);
  for (let i = 0; !shared.stop; i++) {
    shared.now += 0.05;
    try {
      await client.query(`begin isolation level ${LEVELS[below(LEVELS.length)]}`);
      for (let n = 1 + below(4); n > 0; n--)
        await change(client, below, seed * 1_000_000 + i * 10 + n, Math.floor(shared.now));
      await client.query(below(10) === 0 ? "rollback" : "commit");
      shared.done += 1;
    } catch (error) {
      await client.query("rollback");
      if (!PASSING.has((error as { code?: string }).code ?? "")) throw error;
      shared.retried += 1;
    }
  }
}

/** One change of the table and of its model. */
async function change(client: pg.Client, below: (n: number) => number, id: number, now: number): Promise<void> {
  const old = below(400);
  const key = below(2) === 0 ? now + below(15) : below(now + 5);
  switch (below(6)) {
    case 0:
    case 1:
      await client.query("insert into s values ($1, $2, 'new')", [id, key]);
      await client.query("insert into s_model values ($1, $2, 'new')", [id, key]);
      return;
    case 2: {
      const row = JSON.stringify({ id: old, k: old % 40, v: `up ${id}` });
      await client.query("select spillway.upsert('s', $1)", [row]);
      await client.query("insert into s_model values ($1, $2, $3) on conflict (id, k) do update set v = excluded.v", [
        old,
        old % 40,
        `up ${id}`,
      ]);
      return;
    }
    case 3:
      await client.query("select spillway.delete('s', $1)", [JSON.stringify({ id: old, k: old % 40 })]);
      await client.query("delete from s_model where id = $1 and k = $2", [old, old % 40]);
      return;
    case 4:
      // Plain SQL reaches the rows that the heap has; the model follows it.
      await client.query(
        `with u as (update s set v = v || '+' where id = $1 returning id, k, v)
         update s_model m set v = u.v from u where m.id = u.id and m.k = u.k`,
        [old],
      );
      return;
    default:
      await client.query("savepoint one");
      await client.query("insert into s values ($1, $2, 'gone')", [id, below(40)]);
      await client.query("rollback to savepoint one");
      await client.query(
        `with u as (update s set k = $2 where id = $1 and v = 'new' returning id, k, v), d as (delete from s_model where id = $1 and v = 'new' and exists (select from u))
         insert into s_model select * from u`,
        [id - 10, below(2) === 0 ? now + 3 : below(now)],
      );
  }
}

test("writers at full speed lose nothing and see nothing twice", async () => {
  const { client } = db;
  await client.query("create table s (id bigint, k int, v text, primary key (id, k)) partition by range (k)");
  for (let i = 0; i < 5; i++)
    await client.query(`create table s_${i * 10} partition of s for values from (${i * 10}) to (${i * 10 + 10})`);
  await client.query("create table s_model (like s including all)");
  for (const name of ["s", "s_model"])
    await client.query(`insert into ${name} select i, i % 40, 'v' from generate_series(0, 399) i`);
  await register(runtime.mover(null), { table: "s", mode: "tiered", lag: "3" });
  const shared: Shared = { now: 40, stop: false, done: 0, retried: 0 };
  const clients = await Promise.all([1, 2, 3].map(() => db.connect()));
  const faults: unknown[] = [];
  const writers = clients.map((c, i) =>
    writer(c, i + 1, shared).catch((error: unknown) => {
      shared.stop = true;
      faults.push(error);
    }),
  );
  const passes = new Passes();
  const failed: Record<string, string> = {};
  const endMs = performance.now() + 12_000;
  while (performance.now() < endMs && !shared.stop) {
    Object.assign(failed, (await passes.run(runtime.mover(null), { force: true })).failed);
  }
  shared.stop = true;
  await Promise.all(writers);
  expect(faults).toEqual([]);
  const passing = Object.values(failed).filter(
    (code) => !["pg_lock_timeout", "pg_transient", "mover_busy"].includes(code),
  );
  expect(passing).toEqual([]);
  await checkWhole(runtime.mover(null), client, "s");
  for (let i = 0; i < 10; i++) if ((await passes.run(runtime.mover(null), { force: true })).moved === 0) break;
  await checkWhole(runtime.mover(null), client, "s");
  const relation = must(await loadRelationByName(client, "public", "s"), "s");
  // It was a real run: partitions went while the writers wrote.
  expect(shared.done).toBeGreaterThan(200);
  expect(relation.seam.t).toBeGreaterThanOrEqual(50n);
}, 120_000);
