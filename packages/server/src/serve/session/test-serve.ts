/** For tests: a source with a table over both tiers, and what a session answers as plain rows. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@spillway/base/clock";
import type { Column, ColumnBatch } from "@spillway/base/columns";
import { silentLogger } from "@spillway/base/log";
import { FileStore } from "@spillway/lake/store/file";
import { textOf } from "@spillway/pg/columns/text-out";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { Engine } from "../../engine/engine.ts";
import { createSeam, type Seam } from "../../seam/seam.ts";
import { installCatalog, TieredTable } from "../../seam/test-table.ts";
import type { Principal, RunOptions, ServeSession, WireParam } from "./session.ts";

export interface TestSource {
  readonly db: TestDatabase;
  readonly engine: Engine;
  readonly seam: Seam;
  readonly store: FileStore;
  /** `items (id, k, label, price)`: 3000 rows, k below 2000 in the lake. */
  readonly items: TieredTable;
  close(): Promise<void>;
}

export async function testSource(): Promise<TestSource> {
  const db = await createTestDatabase({});
  const root = mkdtempSync(join(tmpdir(), "spillway-serve-"));
  const store = new FileStore({ root, fsync: false });
  const engine = await Engine.open({ memoryBytes: 256 << 20, threads: 2 });
  await installCatalog(db.client);
  const items = await TieredTable.create(
    { db: db.client, url: db.url, engine, store },
    {
      name: "items",
      columns: "id int, k bigint, label text default 'none', price numeric(10,2), day date, primary key (id, k)",
      key: "k",
      keyKind: "int",
      pk: ["id", "k"],
      leaves: [0, 1000, 2000].map((lo) => ({ from: String(lo), to: String(lo + 1000), hi: BigInt(lo + 1000) })),
    },
  );
  await items.both(
    "insert into @ select i, i, 'label ' || i % 7, i / 4.0, date '2024-01-01' + i % 30 from generate_series(0, 2999) i",
  );
  await items.tier(1000n);
  await items.tier(2000n);
  await db.client.query("create table plain (a int primary key, b text)");
  await db.client.query("insert into plain select i, 'b' || i from generate_series(1, 10) i");
  const seam = createSeam({ conninfo: db.url, store, engine, clock: systemClock, log: silentLogger, holder: "test" });
  return {
    db,
    engine,
    seam,
    store,
    items,
    close: async () => {
      await seam.close();
      engine.close();
      await db.drop();
      rmSync(root, { recursive: true, force: true });
    },
  };
}

export function testPrincipal(name = "ann"): Principal {
  return {
    userId: name,
    userName: name,
    tenantId: "t1",
    tenantName: "tenant",
    isAdmin: false,
    roles: [],
    groups: [],
  };
}

/** Rows as Postgres's text. */
export function rowsOf(batch: ColumnBatch): (string | null)[][] {
  return Array.from({ length: batch.length }, (_, i) => batch.columns.map((c: Column) => textOf(c, i)));
}

export async function ask(
  session: ServeSession,
  sql: string,
  params: readonly WireParam[] = [],
  options: RunOptions = {},
): Promise<(string | null)[][]> {
  const result = await session.run(await session.prepare(sql, []), { ...options, params });
  const rows: (string | null)[][] = [];
  for await (const batch of result.batches()) rows.push(...rowsOf(batch));
  await result.rowCount;
  return rows;
}
