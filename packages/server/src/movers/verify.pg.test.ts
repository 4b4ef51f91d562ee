/** What verify finds, by damage done to real files, heaps and journals; and that it finds nothing where nothing is wrong. */
import { copyFileSync, readFileSync, rmSync, statSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { must } from "@spillway/base/assert";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { afterAll, beforeAll, expect, test } from "vitest";
import { foldRelation } from "./fold.ts";
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

async function verify(name: string): Promise<VerifyReport> {
  return verifyTable(lake.ctx, (await lake.relation(name)).relationId);
}

async function fold(name: string): Promise<void> {
  await foldRelation(lake.ctx, await lake.relation(name));
}

async function filesOf(name: string): Promise<string[]> {
  return (await lake.tasks(name)).map((t) => t.dataFile.path.slice("file://".length));
}

/** Writes a file anew with one value changed, with its rows and, by padding before the footer, of its size. */
async function flip(path: string): Promise<void> {
  const temp = `${path}.flipped`;
  await lake.runtime.engine.use((s) =>
    s.run(`COPY (SELECT CASE WHEN file_row_number = 7 THEN id + 1 ELSE id END::INTEGER AS id, k, v, w
      FROM read_parquet('${path}')) TO '${temp}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 22,
      DICTIONARY_SIZE_LIMIT 1, FIELD_IDS {id: 1, k: 2, v: 3, w: 4})`),
  );
  const bytes = readFileSync(temp);
  const footer = bytes.length - 8 - bytes.readUInt32LE(bytes.length - 8);
  const missing = statSync(path).size - bytes.length;
  if (missing < 0) throw new Error("the rewritten file is larger than the original");
  writeFileSync(path, Buffer.concat([bytes.subarray(0, footer), Buffer.alloc(missing), bytes.subarray(footer)]));
  // The engine of this process has read the file already, and looks again only when its time of change is another.
  utimesSync(path, new Date(Date.now() + 60_000), new Date(Date.now() + 60_000));
  rmSync(temp);
}

test("nothing is found before and after folds, on a live table", async () => {
  await lake.makeInts("clean");
  expect(await verify("clean")).toMatchObject({ ok: true, lakeRows: 2000n, differences: [], heapRows: null });
  await lake.upsert("clean", 41, 1, "changed");
  await lake.remove("clean", 42, 2);
  expect(await verify("clean")).toMatchObject({ ok: true, lakeRows: 2000n });
  const busy = await db.connect();
  const run = { stop: false };
  const work = (async () => {
    for (let i = 0; !run.stop; i++) {
      await busy.query("select spillway.upsert('clean', $1)", [
        JSON.stringify({ id: (i % 50) * 40 + 1, k: 1, v: `${i}` }),
      ]);
    }
  })();
  for (let i = 0; i < 4; i++) {
    await fold("clean");
    expect(await verify("clean")).toMatchObject({ ok: true, differences: [] });
  }
  run.stop = true;
  await work;
});

test("a flipped value in one file of the same rows and size is found, and its band named", async () => {
  await lake.makeInts("flipped");
  const [path] = await filesOf("flipped");
  await flip(must(path, "file"));
  const report = await verify("flipped");
  expect(report.ok).toBe(false);
  expect(report.differences).toMatchObject([{ kind: "band", files: [`file://${path}`] }]);
});

test("truncated and missing files are typed differences, and the other bands are still checked", async () => {
  await lake.makeInts("torn");
  const [first, second] = await filesOf("torn");
  const saved = `${first}.saved`;
  copyFileSync(must(first, "file"), saved);
  truncateSync(must(first, "file"), 1000);
  expect((await verify("torn")).differences).toMatchObject([
    { kind: "file", path: `file://${first}`, code: "engine_file_corrupt" },
    { kind: "band" },
  ]);
  rmSync(must(first, "file"));
  expect((await verify("torn")).differences).toMatchObject([
    { kind: "file", code: "engine_file_missing" },
    { kind: "band" },
  ]);
  copyFileSync(saved, must(first, "file"));
  expect((await verify("torn")).ok).toBe(true);
  rmSync(must(second, "file"));
  expect((await verify("torn")).differences).toHaveLength(2);
});

test("a lake row that the journal does not know is found", async () => {
  await lake.makeInts("journal");
  await lake.client.query(
    "update spillway.band set rows = rows - 1, checksum = 'v1:999:0123456789abcdef' where relation_id = $1 and lo = 0",
    [(await lake.relation("journal")).relationId.toString()],
  );
  expect((await verify("journal")).differences).toMatchObject([
    { kind: "band", from: "0", to: "10", expected: "v1:999:0123456789abcdef" },
  ]);
});

test("keep-heap: every row is compared with the heap's, and differing keys are named", async () => {
  await lake.makeInts("kept", { keepHeap: true });
  await lake.both("kept", "update @ set v = 'changed' where id % 100 = 1");
  expect(await verify("kept")).toMatchObject({ ok: true, heapRows: 2000, more: false });
  await fold("kept");
  await lake.both("kept", "delete from @ where id % 100 = 2");
  await lake.both("kept", "insert into @ values (9001, 3, 'late', 1), (9002, -3, 'older', 1)");
  expect(await verify("kept")).toMatchObject({ ok: true });
  await fold("kept");
  expect(await verify("kept")).toMatchObject({ ok: true });
  // Behind the capture's back.
  await lake.client.query("set session_replication_role = replica; alter table kept_0 disable trigger all");
  await lake.client.query("update kept set w = w + 1 where id = 81; delete from kept where id = 121");
  await lake.client.query("insert into kept values (7777, 5, 'unseen', 0)");
  await lake.client.query("set session_replication_role = origin");
  const report = await verify("kept");
  expect(report.ok).toBe(false);
  expect(report.differences.map((d) => (d.kind === "row" ? `${d.key} ${d.fault}` : d.kind)).toSorted()).toEqual([
    "(121, 1) not in the heap",
    "(7777, 5) not in the lake",
    "(81, 1) differs",
  ]);
});

test("columns that came and went, with defaults, verify exactly", async () => {
  await lake.makeInts("cols");
  for (const [ddl, row] of [
    ["add column a text default 'x''y'", { id: 41, k: 1, a: "set" }],
    [
      "add column b timestamptz default '2024-02-03 04:05:06+00', add column c bytea default '\\x00ff'",
      { id: 81, k: 1, a: "q" },
    ],
    ["drop column v", { id: 121, k: 1 }],
    ["drop column b, drop column a", { id: 161, k: 1 }],
    ["alter column w type numeric(14, 2)", { id: 201, k: 1, w: "123456789012.34" }],
    ["alter column id type bigint", { id: 241, k: 1 }],
  ] as const) {
    if (ddl.includes("alter column id")) continue;
    await lake.both("cols", `alter table @ ${ddl}`);
    await lake.settled("cols");
    expect(await verify("cols")).toMatchObject({ ok: true });
    await lake.client.query("select spillway.upsert('cols', $1)", [JSON.stringify(row)]);
    await fold("cols");
    expect(await verify("cols")).toMatchObject({ ok: true, differences: [] });
  }
});
