/** Capture against a model (test-model.ts): plain DML, advances under open transactions, TRUNCATE, keep-heap. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { CATALOG_MIGRATIONS } from "./catalog.ts";
import { makeTable, type ModelOptions, type ModelTable } from "./test-model.ts";

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
  await db.client.query("create schema spillway");
  for (const migration of CATALOG_MIGRATIONS) await db.client.query(migration.sql);
});
afterAll(() => db.drop());

/** An int key with leaves [0,10) [10,20) [20,30), filled, the first one tiered. */
async function tieredInts(options: ModelOptions = {}): Promise<ModelTable> {
  const t = await makeTable(
    await db.connect(),
    "k",
    "id int, k int, v text, primary key (id, k)",
    ["0", "10", "20", "30"],
    options,
  );
  await t.both("insert into @ select i, i % 30, 'v' || i from generate_series(1, 90) i");
  if (options.keepHeap) {
    await t.capture(`${t.name}_0`);
    await t.advance(`${t.name}_0`, false);
  } else {
    await t.tier(`${t.name}_0`);
  }
  return t;
}

async function stateOf(work: Promise<unknown>): Promise<string> {
  return work.then(
    () => "ok",
    (error: { code?: string }) => error.code ?? String(error),
  );
}

describe("plain DML below the cut-line", () => {
  test("an INSERT has the right tag and RETURNING, and leaves the landing empty", async () => {
    const t = await tieredInts();
    const result = await t.both("insert into @ values (1000, 3, 'late'), (1001, 25, 'hot') returning id, v");
    expect(result.rowCount).toBe(2);
    expect(await t.landingCount()).toBe(0);
    expect(await t.delta()).toEqual([{ op: "U", key: "3" }]);
    await t.check();
  });

  test("COPY, ON CONFLICT and a key that the lake has", async () => {
    const t = await tieredInts();
    for (const name of [t.sql, t.model]) {
      const tag = await t.client.query(`copy ${name} from program 'printf "2000\\t4\\ta\\n2001\\t24\\tb\\n"'`);
      expect(tag.rowCount).toBe(2);
    }
    await t.client.query(`insert into ${t.sql} values (31, 1, 'again')`);
    await t.client.query(`update ${t.model} set v = 'again' where id = 31`);
    await t.both("insert into @ values (2002, 5, 'x') on conflict (id, k) do update set v = excluded.v");
    await t.check();
    expect(await t.landingCount()).toBe(0);
  });

  test("a tier key that changes by UPDATE moves the row, exactly once, both ways", async () => {
    const t = await tieredInts();
    await t.both("update @ set k = 7 where id in (15, 25)");
    await t.check();
    expect(await t.landingCount()).toBe(0);
    await t.both("insert into @ values (3000, 99, 'beyond')");
    await t.both("update @ set k = 8 where id = 3000");
    await t.both("update @ set id = 3001 where id = 45");
    await t.check();
  });

  test("rows at or above T in the landing, changed and deleted there", async () => {
    const t = await tieredInts();
    await t.both("insert into @ select i, 50 + i % 3, 'far' from generate_series(4000, 4010) i");
    await t.both("update @ set v = 'farther', k = k + 1 where id < 4005 and id >= 4000");
    await t.both("delete from @ where id = 4010");
    await t.check();
    expect(await t.landingCount()).toBe(10);
  });
});

describe("an advance in the middle of a client's transaction", () => {
  for (const level of ["repeatable read", "serializable"]) {
    test(`${level}: an INSERT routed by an old T is lost by nobody`, async () => {
      const t = await tieredInts();
      const client = await db.connect();
      await client.query(`begin isolation level ${level}`);
      await client.query(`select count(*) from spillway.seam_guard`).catch(() => {});
      await client.query(`select count(*) from ${t.sql}`);
      await client.query("rollback");
      await client.query(`begin isolation level ${level}`);
      await client.query("select 1 as snapshot from pg_class limit 1");
      await t.tier(`${t.name}_1`);
      await client.query(`insert into ${t.sql} values (5000, 15, 'stale')`);
      await client.query("commit");
      await t.client.query(`insert into ${t.model} values (5000, 15, 'stale')`);
      await t.check();
      // The leftover in the landing is a row like any other to plain SQL.
      expect(await t.landingCount()).toBe(1);
      await t.both("update @ set v = 'fresh' where id = 5000");
      await t.check();
      expect(await t.landingCount()).toBe(0);
    });

    test(`${level}: upsert and delete with an old snapshot get 40001`, async () => {
      for (const call of [`upsert`, `delete`, `insert_if_absent`]) {
        const t = await tieredInts();
        const client = await db.connect();
        await client.query(`begin isolation level ${level}`);
        await client.query("select 1 as snapshot from pg_class limit 1");
        await t.tier(`${t.name}_1`);
        const row = JSON.stringify({ id: 6000, k: 25 });
        expect(await stateOf(client.query(`select spillway.${call}($1, $2)`, [t.sql, row]))).toBe("40001");
        await client.query("rollback");
      }
    });
  }

  test("changes to a leaf between the capture and the advance, also a key that leaves it", async () => {
    const t = await tieredInts();
    await t.capture(`${t.name}_1`);
    await t.both("update @ set v = 'changed' where k = 12");
    await t.both("delete from @ where k = 13");
    await t.both("insert into @ values (7000, 14, 'new')");
    await t.both("update @ set k = 22 where k = 15");
    await t.both("update @ set k = 16 where id = 25");
    await t.check();
    await t.advance(`${t.name}_1`);
    await t.check();
  });

  test("a prepared transaction holds the capture back until it ends", async () => {
    const t = await tieredInts();
    const client = await db.connect();
    await client.query("begin");
    await client.query(`insert into ${t.sql} values (8000, 14, 'prepared')`);
    await client.query(`prepare transaction '${t.name}'`);
    await t.client.query("set lock_timeout = '50ms'");
    await expect(t.capture(`${t.name}_1`)).rejects.toMatchObject({ code: "55P03" });
    await t.client.query("rollback");
    await client.query(`commit prepared '${t.name}'`);
    await t.client.query(`insert into ${t.model} values (8000, 14, 'prepared')`);
    await t.tier(`${t.name}_1`);
    await t.check();
  });

  test("rows of an apply worker (session_replication_role = replica) are captured", async () => {
    const t = await tieredInts();
    await t.capture(`${t.name}_1`);
    const client = await db.connect();
    await client.query("set session_replication_role = replica");
    await t.both("insert into @ values (9000, 2, 'historical'), (9001, 12, 'copied')", client);
    await t.both("update @ set v = 'applied' where k = 17", client);
    await t.advance(`${t.name}_1`);
    await t.check();
  });

  test("a trigger of the user's that changes the row again", async () => {
    const t = await tieredInts();
    for (const name of [t.name, `${t.name}_model`]) {
      await t.client.query(`create function "${name}_again"() returns trigger language plpgsql as $f$ begin
        if new.v not like '%!' then update "${name}" set v = new.v || '!' where k between 10 and 19 and v not like '%!'; end if;
        return null; end $f$`);
      await t.client.query(
        `create trigger aaa after insert or update on "${name}" for each row execute function "${name}_again"()`,
      );
    }
    await t.capture(`${t.name}_1`);
    await t.both("insert into @ values (9100, 11, 'a'), (9101, 12, 'b'), (9102, 13, 'c')");
    await t.advance(`${t.name}_1`);
    await t.check();
  });
});

describe("TRUNCATE", () => {
  test("of a captured leaf and of the landing; of the parent it is refused", async () => {
    const t = await tieredInts();
    await t.capture(`${t.name}_1`);
    await t.both("insert into @ values (9200, 14, 'x'), (9201, 99, 'beyond')");
    await t.client.query(`truncate "${t.name}_1"`);
    await t.client.query(`truncate "${t.name}_landing"`);
    await t.client.query(`delete from ${t.model} where k between 10 and 19 or k > 30`);
    await t.both("insert into @ values (9202, 14, 'after')");
    await t.check();
    await t.advance(`${t.name}_1`);
    await t.check();
    expect(await stateOf(t.client.query(`truncate ${t.sql}`))).toBe("SPW04");
    await t.client.query("begin isolation level repeatable read");
    expect(await stateOf(t.client.query(`truncate "${t.name}_landing"`))).toBe("SPW04");
    await t.client.query("rollback");
  });

  test("of a whole keep-heap table", async () => {
    const t = await tieredInts({ keepHeap: true });
    await t.both("truncate @");
    await t.both("insert into @ values (1, 1, 'one')");
    await t.check();
  });
});

test("keep-heap: plain DML reaches the lake through the delta, and the heap keeps every row", async () => {
  const t = await tieredInts({ keepHeap: true });
  await t.both("update @ set v = 'kept' where k < 5");
  await t.both("delete from @ where k = 6");
  await t.both("insert into @ values (1000, 2, 'more'), (1001, -5, 'older')");
  await t.check();
  const { rows } = await t.client.query(
    `(table ${t.sql} except all table ${t.model}) union all (table ${t.model} except all table ${t.sql})`,
  );
  expect(rows).toEqual([]);
});
