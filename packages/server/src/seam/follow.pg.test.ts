/** Columns that were changed and that the worker has not followed yet: reads are exact meanwhile. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { FileStore } from "@spillway/lake/store/file";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { testMajors } from "@spillway/testkit/binaries";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Engine, valueAt } from "../engine/engine.ts";
import { createSeam, type Seam } from "./seam.ts";
import { installCatalog, TieredTable } from "./test-table.ts";

describe.each(testMajors())("on Postgres %s", (major) => {
  let db: TestDatabase;
  let engine: Engine;
  let root: string;
  let seam: Seam;
  let table: TieredTable;

  beforeAll(async () => {
    db = await createTestDatabase({ major });
    root = mkdtempSync(join(tmpdir(), "spillway-follow-"));
    const store = new FileStore({ root, fsync: false });
    engine = await Engine.open({ memoryBytes: 256 << 20, threads: 2 });
    await installCatalog(db.client);
    table = await TieredTable.create(
      { db: db.client, url: db.url, engine, store },
      {
        name: "f",
        columns: "k int primary key, a int, b text, c numeric(6,2)",
        key: "k",
        keyKind: "int",
        pk: ["k"],
        leaves: [0, 10].map((lo) => ({ from: String(lo), to: String(lo + 10), hi: BigInt(lo + 10) })),
      },
    );
    await table.both("insert into @ select i, i, 'b' || i, i from generate_series(0, 19) i");
    await table.tier(10n);
    seam = createSeam({ conninfo: db.url, store, engine, clock: systemClock, log: silentLogger, holder: "test" });
  });
  afterAll(async () => {
    await seam.close();
    engine.close();
    await db.drop();
    rmSync(root, { recursive: true, force: true });
  });

  async function same(): Promise<void> {
    const result = await seam.query("select * from f order by k");
    const own: string[] = [];
    for await (const batch of result.batches()) {
      for (let i = 0; i < batch.length; i++) own.push(batch.columns.map((c) => String(valueAt(c, i))).join("|"));
    }
    const model = await db.client.query({ text: `select * from ${table.model} order by k`, rowMode: "array" });
    const unscaled = (v: unknown): string =>
      typeof v === "string" && /^-?\d+\.\d\d$/.test(v) ? v.replace(".", "").replace(/^0+(?=\d)/, "") : String(v);
    expect(own).toEqual(model.rows.map((r: unknown[]) => r.map(unscaled).join("|")));
  }

  test("added with a default, renamed, widened, dropped", async () => {
    await same();
    await table.both('alter table @ rename column a to "A b"');
    await same();
    await table.both('alter table @ alter column "A b" type bigint');
    await same();
    await table.both("alter table @ add column d text default 'it''s new'");
    await same();
    await table.both("alter table @ drop column b");
    await same();
    await table.both("alter table @ add column e int");
    await same();
  });

  test("corrections keep the new columns' values, before they are followed", async () => {
    const own = await seam.execute("update f set d = 'corrected', e = 5, \"A b\" = 77 where k in (3, 13)");
    expect(own.rowCount).toBe(2);
    await db.client.query(`update ${table.model} set d = 'corrected', e = 5, "A b" = 77 where k in (3, 13)`);
    await same();
  });

  test("a default that differs from row to row, or whose old value is not kept any more, is not made up", async () => {
    await db.client.query("alter table f add column r float8 default random()");
    await expect(seam.query("select r from f")).rejects.toMatchObject({ code: "seam_columns_changed" });
    await db.client.query("alter table f drop column r");
  });

  test("a change that the files cannot be read as is a typed error", async () => {
    await db.client.query("alter table f alter column c type text");
    await expect(seam.query("select c from f")).rejects.toMatchObject({ code: "seam_columns_changed" });
    const fine = await seam.query("select k, e from f");
    await fine.close();
  });
});
