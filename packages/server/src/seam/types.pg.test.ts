/** Every kind of type, with its extremes: from Postgres into the lake and back, told by what Postgres prints of it. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { FileStore } from "@spillway/lake/store/file";
import { createTestDatabase } from "@spillway/testkit/database";
import { testMajors } from "@spillway/testkit/binaries";
import { TYPE_SAMPLES, TYPE_SETUP } from "@spillway/testkit/type-samples";
import { expect, test } from "vitest";
import { Engine } from "../engine/engine.ts";
import { createSeam } from "./seam.ts";
import { installCatalog, TieredTable } from "./test-table.ts";

test.each(testMajors())("every type comes back from the lake as it went, on Postgres %s", async (major) => {
  const db = await createTestDatabase({ major });
  const root = mkdtempSync(join(tmpdir(), "spillway-types-"));
  const store = new FileStore({ root, fsync: false });
  const engine = await Engine.open({ memoryBytes: 256 << 20, threads: 2 });
  await installCatalog(db.client);
  await db.client.query(TYPE_SETUP);
  await db.client.query("set timezone = 'UTC'; set intervalstyle = 'postgres'; set datestyle = 'ISO, YMD'");
  const types = Object.keys(TYPE_SAMPLES);
  const table = await TieredTable.create(
    { db: db.client, url: db.url, engine, store },
    {
      name: "every",
      columns: `k int primary key, ${types.map((type, i) => `"C ${i}" ${type}`).join(", ")}`,
      key: "k",
      keyKind: "int",
      pk: ["k"],
      leaves: [{ from: "0", to: "100", hi: 100n }],
    },
  );
  for (const name of [table.sql, table.model]) {
    for (const [i, type] of types.entries()) {
      for (const [row, value] of (TYPE_SAMPLES[type] ?? []).entries()) {
        await db.client.query(
          `insert into ${name} (k, "C ${i}") values ($1, $2) on conflict (k) do update set "C ${i}" = excluded."C ${i}"`,
          [row, value],
        );
      }
    }
  }
  await table.tier(100n);
  const seam = createSeam({ conninfo: db.url, store, engine, clock: systemClock, log: silentLogger, holder: "test" });
  const list = ["k", ...types.map((_, i) => `"C ${i}"`)].map((c) => `${c}::text`).join(", ");
  const model = await db.client.query({ text: `select ${list} from ${table.model} q order by q.k`, rowMode: "array" });
  const lake = await seam.execute(`delete from every returning ${list}`);
  const own = lake.rows.toSorted((a, b) => Number(a[0]) - Number(b[0]));
  for (const [row, expected] of (model.rows as string[][]).entries()) {
    for (const [i, value] of expected.entries()) {
      expect(own[row]?.[i] ?? null, `${i === 0 ? "k" : types[i - 1]} of row ${row}`).toBe(value ?? null);
    }
  }
  expect(own.length).toBe(model.rows.length);
  await seam.close();
  engine.close();
  await db.drop();
  rmSync(root, { recursive: true, force: true });
});
