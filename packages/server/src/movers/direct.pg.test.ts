/** Corrections of a direct table: one COMMIT is the client's and the lake's; compared with a plain copy, and verified. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { armFault } from "@spillway/base/fault";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { testMajors } from "@spillway/testkit/binaries";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { init, loadRelationByName } from "../catalog/catalog.ts";
import type { Runtime } from "../roles/runtime.ts";
import { testRuntime } from "./test-runtime.ts";
import { createSeam, type Seam } from "../seam/seam.ts";
import { asTiered, directCommit, Passes, register, verifyTable } from "./movers.ts";
import { TABLE_STEPS } from "./steps.ts";
import { checkWhole } from "./test-whole.ts";

describe.each(testMajors())("on Postgres %s", (major) => {
  let db: TestDatabase;
  let runtime: Runtime;
  let home: string;
  let seam: Seam;

  beforeAll(async () => {
    home = mkdtempSync(join(tmpdir(), "spillway-direct-"));
    db = await createTestDatabase({ major });
    runtime = await testRuntime(db.url, home);
    const { pool, store, warehouse } = runtime;
    await pool.withClient((c) => init({ client: c, store, warehouse, clock: systemClock, log: silentLogger }));
    await db.client.query(
      "create table d (id int, k int, v text, w numeric(10,2), primary key (id, k)) partition by range (k)",
    );
    for (let i = 0; i < 40; i += 10) {
      await db.client.query(`create table d_${i} partition of d for values from (${i}) to (${i + 10})`);
    }
    await db.client.query("create table d_model (like d including all)");
    for (const name of ["d", "d_model"]) {
      await db.client.query(`insert into ${name} select i, i % 40, 'v' || i, i / 3.0 from generate_series(1, 4000) i`);
    }
    await register(runtime.mover(null), { table: "public.d", mode: "direct", lag: "10" });
    const steps = TABLE_STEPS.filter((s) => ["follow", "premake", "sweep", "tier", "drop"].includes(s.name));
    for (let i = 0; i < 5; i++) {
      const done = await new Passes().run(runtime.mover(null), { force: true, steps });
      expect(done.failed).toEqual({});
      if (done.moved === 0) break;
    }
    seam = createSeam({
      conninfo: runtime.conninfo,
      store,
      engine: runtime.engine,
      clock: systemClock,
      log: silentLogger,
      holder: "test",
      direct: directCommit(runtime.mover(null)),
    });
  });
  afterAll(async () => {
    armFault(undefined);
    await seam.close();
    await runtime.close();
    await db.drop();
    rmSync(home, { recursive: true, force: true });
  });

  async function check(): Promise<void> {
    const { rows } = await db.client.query("select count(*)::int n from spillway.delta_1");
    expect(rows).toEqual([{ n: 0 }]);
    await checkWhole(runtime.mover(null), db.client, "d");
    const open = await db.client.query("select kind, phase from spillway.journal where phase = 'open'");
    expect(open.rows).toEqual([]);
  }

  test("part of the table is in the lake", async () => {
    const relation = must(asTiered(must(await loadRelationByName(db.client, "public", "d"), "d")), "tiered");
    expect(relation.seam.t).toBeGreaterThan(10n);
  });

  test.each([
    "update @ set v = 'changed', w = w + 1 where id in (1, 2, 41, 39)",
    "delete from @ where k = 3 and id < 2000",
    "insert into @ values (9001, 5, 'new', 1.5), (9002, 39, 'hot', 2)",
    "insert into @ values (1, 1, 'again', 7) on conflict (id, k) do update set v = excluded.v || @.v",
    "update @ set k = 38 where id = 44 and k = 4",
    "update @ set k = k + 1 where k = 0 and id < 200",
  ])("%s", async (sql) => {
    const own = await seam.execute(sql.replaceAll("@.v", "d.v").replaceAll("@", "d"));
    const model = await db.client.query(sql.replaceAll("@.v", "d_model.v").replaceAll("@", "d_model"));
    expect(own.rowCount).toBe(model.rowCount);
    await check();
  });

  test("corrections at the same time all count", async () => {
    const work = Array.from({ length: 5 }, () => seam.execute("update d set w = w + 1 where id = 81 and k = 1"));
    await Promise.all(work);
    await db.client.query("update d_model set w = w + 5 where id = 81");
    await check();
  });

  test("the checksums are exact, and nothing staged is forgotten", async () => {
    const relation = must(asTiered(must(await loadRelationByName(db.client, "public", "d"), "d")), "tiered");
    const report = await verifyTable(runtime.mover(null), relation.relationId);
    expect(report).toMatchObject({ ok: true });
    const staged = await db.client.query("select count(*)::int n from spillway.staged_file");
    expect(staged.rows).toEqual([{ n: 0 }]);
  });

  test("a failure before the commit changes nothing, and gives up what was staged", async () => {
    armFault("direct.before_commit:fail");
    await expect(seam.execute("delete from d where id = 121")).rejects.toThrow(/fault injected/);
    await check();
    const last = await db.client.query("select kind, phase from spillway.journal order by op_id desc limit 1");
    expect(last.rows).toEqual([{ kind: "direct", phase: "abandoned" }]);
  });
});
