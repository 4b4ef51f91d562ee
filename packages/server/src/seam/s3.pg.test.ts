/** A lake in an S3-compatible store: written through local staging, read through the bounded local cache. */
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { LocalCache } from "@spillway/lake/store/cache";
import { openStore } from "@spillway/lake/store/open";
import { createTestDatabase } from "@spillway/testkit/database";
import { S3Server } from "@spillway/testkit/s3/s3-server";
import { expect, test } from "vitest";
import { Engine, valueAt } from "../engine/engine.ts";
import { createSeam } from "./seam.ts";
import { installCatalog, TieredTable } from "./test-table.ts";

test("reads and corrections over a lake in S3, within the cache's bound", async () => {
  const db = await createTestDatabase();
  const server = await S3Server.start();
  const root = mkdtempSync(join(tmpdir(), "spillway-s3-"));
  process.env["AWS_ACCESS_KEY_ID"] ??= "test";
  process.env["AWS_SECRET_ACCESS_KEY"] ??= "test";
  const store = openStore({
    root: "s3://test/db",
    endpoint: server.endpoint,
    region: "us-east-1",
    pathStyle: true,
    clock: systemClock,
    random: Math.random,
  });
  const engine = await Engine.open({ memoryBytes: 256 << 20, threads: 2 });
  await installCatalog(db.client);
  const table = await TieredTable.create(
    { db: db.client, url: db.url, engine, store },
    {
      name: "remote",
      columns: "k int primary key, v text",
      key: "k",
      keyKind: "int",
      pk: ["k"],
      leaves: [0, 1000].map((lo) => ({ from: String(lo), to: String(lo + 1000), hi: BigInt(lo + 1000) })),
    },
  );
  await table.both("insert into @ select i, 'v' || i from generate_series(0, 1999) i");
  await table.tier(1000n, 500);
  const cache = new LocalCache({ store, dir: join(root, "cache"), maxBytes: 1 << 20, clock: systemClock });
  const seam = createSeam({
    conninfo: db.url,
    store,
    cache,
    engine,
    clock: systemClock,
    log: silentLogger,
    holder: "test",
  });
  const sum = async (sql: string): Promise<unknown> => {
    const result = await seam.query(sql);
    for await (const batch of result.batches()) {
      const column = batch.columns[0];
      if (column) return valueAt(column, 0);
    }
    return null;
  };
  expect(await sum("select count(*) from remote")).toBe(2000n);
  expect(await sum("select sum(k) from remote")).toBe(1999000n);
  await seam.execute("delete from remote where k in (3, 999, 1500)");
  expect(await sum("select count(*) from remote")).toBe(1997n);
  expect(readdirSync(join(root, "cache")).length).toBeGreaterThan(0);
  expect(cache.stats.hits).toBeGreaterThan(0);
  await seam.close();
  engine.close();
  await server.stop();
  await db.drop();
  rmSync(root, { recursive: true, force: true });
});
