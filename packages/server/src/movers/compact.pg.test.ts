/** Compaction on real tables: the same rows, fewer files and deletes; corrections at full rate neither starve it nor come back. */
import { must } from "@spillway/base/assert";
import type { LocalCache } from "@spillway/lake/store/cache";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { compact } from "./compact.ts";
import type { MoverContext } from "./context.ts";
import { foldRelation } from "./fold.ts";
import { rewriteManifests } from "./manifests.ts";
import { changePolicy } from "./policy.ts";
import { TestLake } from "./test-runtime.ts";
import { verifyTable, type VerifyReport } from "./verify.ts";

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

const EAGER = ["delete_compaction_min_deletes=1", "delete_compaction_min_ratio=0", "rewrite_min_input_files=2"];

async function make(name: string, formatVersion: 2 | 3 = 3): Promise<void> {
  await lake.makeInts(name, { formatVersion });
  await changePolicy(lake.client, (await lake.relation(name)).relationId, { set: EAGER });
}

async function fold(name: string): Promise<void> {
  await foldRelation(lake.ctx, await lake.relation(name));
}

async function verified(name: string): Promise<VerifyReport> {
  await lake.check(name);
  const report = await verifyTable(lake.ctx, (await lake.relation(name)).relationId);
  expect(report.differences).toEqual([]);
  return report;
}

/** Row ids by "id v", from the files as they are. */
async function rowIds(name: string): Promise<Map<string, bigint>> {
  const ids = new Map<string, bigint>();
  for (const { dataFile } of await lake.tasks(name)) {
    const rows = await lake.runtime.engine.use((s) =>
      s.rows(
        `SELECT id, v, _row_id, file_row_number FROM read_parquet('${dataFile.path.slice(7)}', schema = MAP {
           1: {name: 'id', type: 'INTEGER', default_value: NULL}, 3: {name: 'v', type: 'VARCHAR', default_value: NULL},
           2147483540: {name: '_row_id', type: 'BIGINT', default_value: NULL}})`,
      ),
    );
    for (const [id, v, own, at] of rows as [number, string, bigint | null, bigint][]) {
      ids.set(`${id} ${v}`, own ?? must(dataFile.firstRowId, "row id") + at);
    }
  }
  return ids;
}

/** A context whose engine reads wait, once, for `hook`, before they open files that were written a moment ago. */
function hooked(hook: () => Promise<void>, nth: number): MoverContext {
  const { cache } = lake.ctx;
  let calls = 0;
  const localize: LocalCache["localize"] = async (requests) => {
    if ((calls += 1) === nth) await hook();
    return cache.localize(requests);
  };
  return { ...lake.ctx, cache: { localize } as LocalCache };
}

describe.each([3, 2] as const)("format version %i", (version) => {
  const name = `c${version}`;

  test("deleted rows and small files are rewritten; rows, checksums and row ids stay", async () => {
    await make(name, version);
    for (let round = 0; round < 4; round++) {
      for (let i = 0; i < 20; i++) await lake.upsert(name, (round * 20 + i) * 40 + 1, 1, `round ${round}`);
      await lake.remove(name, 40 * round + 2, 2);
      await fold(name);
    }
    const before = await lake.tasks(name);
    const ids = version === 3 ? await rowIds(name) : null;
    const done = await compact(lake.ctx, await lake.relation(name));
    expect(done).toMatchObject({ superseded: 0 });
    await verified(name);
    const after = await lake.tasks(name);
    expect(after.length).toBeLessThan(before.length);
    expect(after.every((t) => t.deletes.length === 0)).toBe(true);
    expect(after.reduce((sum, t) => sum + t.dataFile.recordCount, 0n)).toBe(1996n);
    if (ids) for (const [row, id] of await rowIds(name)) expect([row, id]).toEqual([row, ids.get(row)]);
    const metadata = await lake.metadata(name);
    expect(metadata.snapshots.at(-1)?.operation).toBe("replace");
    await compact(lake.ctx, await lake.relation(name));
    expect(await compact(lake.ctx, await lake.relation(name))).toMatchObject({ units: 0 });
    await verified(name);
  });

  test("rows that were deleted or replaced after it began stay so", async () => {
    for (let i = 0; i < 30; i++) await lake.upsert(name, i * 40 + 3, 3, "a");
    await fold(name);
    const meanwhile = async (): Promise<void> => {
      for (let i = 0; i < 10; i++) await lake.remove(name, i * 40 + 3, 3);
      for (let i = 10; i < 20; i++) await lake.upsert(name, i * 40 + 3, 3, "b");
      for (let i = 1; i < 9; i++) await lake.remove(name, i * 40 + 4, 4);
      await fold(name);
    };
    // The second read is that of the files just written.
    const done = await compact(hooked(meanwhile, 2), await lake.relation(name));
    expect(done.units).toBeGreaterThan(0);
    expect(
      await lake.count("from spillway.journal where kind = 'compact' and (detail ->> 'carried_deletes')::int > 0"),
    ).toBeGreaterThan(0);
    await verified(name);
    await compact(lake.ctx, await lake.relation(name));
    await verified(name);
  });

  test("a unit whose files are gone by then is given up, and nothing changes", async () => {
    await lake.upsert(name, 8001, 8, "x");
    await fold(name);
    await lake.upsert(name, 8001, 8, "y");
    await lake.upsert(name, 8041, 8, "z");
    await fold(name);
    const other = async (): Promise<void> => {
      await compact(lake.ctx, await lake.relation(name));
    };
    const done = await compact(hooked(other, 2), await lake.relation(name));
    expect(done.superseded).toBeGreaterThan(0);
    await verified(name);
  });
});

test("values of dropped columns go, and the checksums with them, also of rows deleted meanwhile", async () => {
  await make("dropped");
  await lake.both("dropped", "alter table @ drop column v");
  await lake.settled("dropped");
  for (let i = 0; i < 5; i++) {
    await lake.client.query("select spillway.upsert('dropped', $1)", [JSON.stringify({ id: i * 40 + 1, k: 1, w: 5 })]);
    await lake.client.query("update dropped_model set w = 5 where id = $1", [i * 40 + 1]);
  }
  await fold("dropped");
  const meanwhile = async (): Promise<void> => {
    for (let i = 10; i < 20; i++) await lake.remove("dropped", i * 40 + 1, 1);
    await fold("dropped");
  };
  expect((await compact(hooked(meanwhile, 2), await lake.relation("dropped"))).units).toBeGreaterThan(0);
  await verified("dropped");
  await compact(lake.ctx, await lake.relation("dropped"));
  await verified("dropped");
});

test("under corrections and folds at full rate it comes to an end, and no row is lost, doubled or back", async () => {
  await make("busy");
  const run = { stop: false };
  const c = await db.connect();
  const work = (async () => {
    for (let i = 0; !run.stop; i++) {
      const id = ((i * 7) % 300) * 40 + 1;
      await c.query("begin");
      if (i % 4 === 0) {
        await c.query("select spillway.delete('busy', $1)", [JSON.stringify({ id, k: 1 })]);
        await c.query("delete from busy_model where id = $1 and k = 1", [id]);
      } else {
        await c.query("select spillway.upsert('busy', $1)", [JSON.stringify({ id, k: 1, v: `${i}`, w: 1 })]);
        await c.query(
          "insert into busy_model values ($1, 1, $2, 1) on conflict (id, k) do update set v = excluded.v, w = 1",
          [id, `${i}`],
        );
      }
      await c.query("commit");
    }
  })();
  const folds = (async () => {
    while (!run.stop) await foldRelation(lake.ctx, await lake.relation("busy"), { rowsPerPass: 100, maxPasses: 1 });
  })();
  let units = 0;
  for (const end = Date.now() + 4000; Date.now() < end;) {
    units += (await compact(lake.ctx, await lake.relation("busy"))).units;
  }
  run.stop = true;
  await Promise.all([work, folds]);
  expect(units).toBeGreaterThan(3);
  await verified("busy");
  await fold("busy");
  await compact(lake.ctx, await lake.relation("busy"));
  await verified("busy");
});

test("manifests are merged when there are many", async () => {
  await make("manifests");
  await changePolicy(lake.client, (await lake.relation("manifests")).relationId, {
    set: ["manifest_rewrite_min_manifests=5"],
  });
  for (let i = 0; i < 6; i++) {
    await lake.upsert("manifests", i * 40 + 1, 1, "x");
    await fold("manifests");
  }
  const done = await rewriteManifests(lake.ctx, await lake.relation("manifests"));
  expect(done?.before).toBeGreaterThan(5);
  expect(done?.after).toBeLessThanOrEqual(2);
  await verified("manifests");
  expect(await rewriteManifests(lake.ctx, await lake.relation("manifests"))).toBeNull();
});
