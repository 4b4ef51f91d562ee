/** Counters of the catalog go on after a restart, and the lake's shape is shown for each table. */
import { Metrics } from "@spillway/base/metrics";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { afterAll, beforeAll, expect, test } from "vitest";
import { TestLake } from "../movers/test-runtime.ts";
import { foldRelation } from "../movers/movers.ts";
import { LakeMetrics } from "./lake-metrics.ts";

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

test("true counters and the lake's shape", async () => {
  await lake.makeInts("m");
  await lake.upsert("m", 41, 1, "x");
  await foldRelation(lake.ctx, await lake.relation("m"));
  const [first, second] = [new Metrics(), new Metrics()];
  const metrics = new LakeMetrics(first);
  await metrics.refresh(lake.ctx);
  expect(first.render()).toContain('spillway_fold_upserts_total{table="public.m"} 1\n');
  await lake.upsert("m", 81, 1, "y");
  await foldRelation(lake.ctx, await lake.relation("m"));
  await metrics.refresh(lake.ctx);
  await metrics.refresh(lake.ctx);
  expect(first.render()).toContain('spillway_fold_upserts_total{table="public.m"} 2\n');
  expect(first.render()).toContain("# TYPE spillway_fold_upserts_total counter");
  await new LakeMetrics(second).refresh(lake.ctx);
  expect(second.render()).toContain('spillway_fold_upserts_total{table="public.m"} 2\n');
  expect(second.render()).toContain('spillway_lake_delete_files{table="public.m"} 1\n');
  expect(second.render()).toContain('spillway_lake_warnings{table="public.m"} 0\n');
});
