/** The REST catalog over real Postgres and a real store: what it answers, and which replace commits of others it takes. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import type { ColumnBatch } from "@spillway/base/columns";
import { newInt63, newUuid } from "@spillway/base/ids";
import { silentLogger } from "@spillway/base/log";
import { applyUpdates } from "@spillway/lake/commit";
import { requirementToJson, updateToJson } from "@spillway/lake/commit-json";
import { printJson } from "@spillway/lake/json";
import { writeDeletionVectors } from "@spillway/lake/deletes/deletes";
import { currentSchema, defaultSpec, parseMetadata, writeMetadata } from "@spillway/lake/metadata";
import type { DataFile, TableMetadata } from "@spillway/lake/model";
import { PositionSet } from "@spillway/lake/puffin/position-set";
import { planScan } from "@spillway/lake/scan/scan";
import { storeSource } from "@spillway/lake/snapshot/source";
import { stageSnapshot, type StageRequest } from "@spillway/lake/snapshot/stage";
import { localPathOf } from "@spillway/lake/store/store";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { init, loadRelationByName } from "../../catalog/catalog.ts";
import { kindOfIceberg, type LakeField, readDataFiles, writeDataFiles } from "../../engine/engine.ts";
import { Passes, register } from "../../movers/movers.ts";
import { startCatalogServer, type CatalogServer } from "../../roles/catalog.ts";
import { openRuntime, type Runtime } from "../../roles/runtime.ts";
import { createCatalogSource } from "../serve.ts";

const TOKEN = "test-token-123";
let db: TestDatabase;
let runtime: Runtime;
let home: string;
let server: CatalogServer;

beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "spillway-test-"));
  db = await createTestDatabase();
  runtime = await openRuntime({
    databaseUrl: db.url,
    warehouse: join(home, "lake"),
    s3Endpoint: null,
    s3Region: "us-east-1",
    s3PathStyle: true,
    cacheDir: join(home, "cache"),
    cacheBytes: 1 << 30,
    connectTimeoutMs: 5000,
    engineMemoryBytes: 256 << 20,
    lockTimeoutMs: 100,
    premake: 1,
    applicationName: "test",
    clock: systemClock,
    log: silentLogger,
  });
  const { store, warehouse } = runtime;
  await runtime.pool.withClient((client) => init({ client, store, warehouse, clock: systemClock, log: silentLogger }));
  const base = { ...runtime, engine: async () => runtime.engine, clock: systemClock, log: silentLogger };
  server = await startCatalogServer({
    source: createCatalogSource(base),
    listen: "127.0.0.1:0",
    token: TOKEN,
    tls: null,
    clock: systemClock,
    log: silentLogger,
  });
});
afterAll(async () => {
  await server.stop();
  await runtime.close();
  await db.drop();
  rmSync(home, { recursive: true, force: true });
});

async function ask(method: string, path: string, body?: string, token = TOKEN) {
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
  const response = await fetch(`${server.url}${path}`, { method, headers, ...(body === undefined ? {} : { body }) });
  return { status: response.status, text: await response.text() };
}

/** Two partitions of ten keys in the lake, one left in the heap. */
async function makeTable(name: string, formatVersion: 2 | 3 = 3): Promise<void> {
  const { client } = db;
  await client.query(
    `create table ${name} (id int, k int, v text, w numeric(10,2), at timestamptz, primary key (id, k)) partition by range (k)`,
  );
  for (const lo of [0, 10, 20]) {
    await client.query(`create table ${name}_${lo} partition of ${name} for values from (${lo}) to (${lo + 10})`);
  }
  await client.query(
    `insert into ${name} select i, i % 30, case when i % 7 = 0 then null else 'v' || i end, i / 4.0, now() from generate_series(1, 3000) i`,
  );
  await register(runtime.mover(null), { table: `public.${name}`, mode: "tiered", lag: "5", formatVersion });
  const relation = must(await loadRelationByName(client, "public", name), name);
  await new Passes().run(runtime.mover(null), { force: true, only: [relation.relationId] });
  await client.query("update spillway.lake_table set allow_foreign_replace = true where name = $1", [name]);
}

const tablePath = (name: string): string => `/v1/namespaces/public/tables/${name}`;

async function metadataOf(name: string): Promise<TableMetadata> {
  const { text } = await ask("GET", tablePath(name));
  const start = text.indexOf('"metadata":') + '"metadata":'.length;
  return parseMetadata(text.slice(start, text.lastIndexOf(',"config"')));
}

type Change = (batch: ColumnBatch) => ColumnBatch;

interface Rewrite {
  readonly change?: Change;
  /** For v3: keep the rows' ids in the files. */
  readonly lineage?: boolean;
  /** Leave the first row of the first file out, which `deleteFirstRow` has deleted. */
  readonly respectDeletes?: boolean;
  readonly file?: (file: DataFile) => DataFile;
  readonly request?: Partial<StageRequest>;
}

/** What an external engine does: reads all files, writes one new one, stages a replace. */
async function rewrite(name: string, options: Rewrite = {}): Promise<{ requirements: unknown[]; updates: unknown[] }> {
  const metadata = await metadataOf(name);
  const { tasks } = await planScan({ store: runtime.store, metadata });
  const lineage: LakeField[] = [
    { id: 2147483540, name: "_row_id", kind: "int64" },
    { id: 2147483539, name: "_last_updated_sequence_number", kind: "int64" },
  ];
  const plain = currentSchema(metadata).fields.map((f) => ({ id: f.id, name: f.name, ...kindOfIceberg(f.type) }));
  const fields = options.lineage ? [...plain, ...lineage] : plain;
  async function* rows(): AsyncIterable<ColumnBatch> {
    for (const { dataFile, sequenceNumber, deletes } of tasks) {
      const first = new PositionSet();
      if (options.respectDeletes && deletes.length > 0) first.add(0);
      const files = [{ path: localPathOf(dataFile.path) ?? "", rows: dataFile.recordCount, deletes: first }];
      const read = readDataFiles({ engine: runtime.engine, files, fields, withPosition: true });
      for await (const batch of read) {
        const position = dataOf(batch, batch.columns.length - 1) as BigInt64Array;
        const columns = batch.columns.slice(0, plain.length);
        if (options.lineage) {
          const ids = new BigInt64Array(batch.length).map((_, i) => (dataFile.firstRowId ?? 0n) + (position[i] ?? 0n));
          const numbers = new BigInt64Array(batch.length).fill(sequenceNumber);
          for (const [spec, data] of [
            [lineage[0], ids],
            [lineage[1], numbers],
          ] as const) {
            columns.push({ spec: { name: must(spec, "lineage").name, kind: "int64" }, validity: null, data });
          }
        }
        const result = { length: batch.length, columns };
        yield options.change ? options.change(result) : result;
      }
    }
  }
  const written = await writeDataFiles({
    engine: runtime.engine,
    batches: rows(),
    fields,
    spec: defaultSpec(metadata),
    store: runtime.store,
    dataLocation: `${metadata.location}/data`,
    stageDir: join(home, "stage"),
    onFile: async () => {},
  });
  const schemaIds = new Set(plain.map((f) => f.id));
  const known = <T>(map: ReadonlyMap<number, T> | undefined): Map<number, T> =>
    new Map([...(map ?? [])].filter(([id]) => schemaIds.has(id)));
  const files = written.map((file): DataFile => ({
    ...file,
    columnSizes: known(file.columnSizes),
    valueCounts: known(file.valueCounts),
    nullValueCounts: known(file.nullValueCounts),
    lowerBounds: known(file.lowerBounds),
    upperBounds: known(file.upperBounds),
  }));
  const staged = await stageSnapshot({
    metadata,
    store: runtime.store,
    operation: "replace",
    snapshotId: newInt63(),
    nowMs: Date.now(),
    addDataFiles: files.map((f) => options.file?.(f) ?? f),
    removeDataFiles: tasks.map((t) => t.dataFile),
    source: storeSource(runtime.store),
    ...options.request,
  });
  return { requirements: staged.requirements.map(requirementToJson), updates: staged.updates.map(updateToJson) };
}

function dataOf(batch: ColumnBatch, index: number): unknown {
  const column = must(batch.columns[index], "column");
  return "data" in column ? column.data : null;
}

const post = (name: string, body: unknown) => ask("POST", tablePath(name), printJson(body));

async function pointer(name: string): Promise<string> {
  const { rows } = await db.client.query("select metadata_location from spillway.lake_table where name = $1", [name]);
  return rows[0].metadata_location;
}

describe("the REST catalog's answers", () => {
  test("schemas are namespaces, tables are loaded with their current metadata, without a token nothing is", async () => {
    await makeTable("plain");
    expect((await ask("GET", "/v1/namespaces", undefined, "other")).status).toBe(401);
    expect(JSON.parse((await ask("GET", "/v1/namespaces")).text).namespaces).toEqual([["public"]]);
    expect((await ask("GET", "/v1/namespaces/public/tables")).text).toContain('"name":"plain"');
    expect((await ask("GET", "/v1/namespaces/none/tables")).status).toBe(404);
    expect((await ask("HEAD", tablePath("plain"))).status).toBe(204);
    const loaded = await ask("GET", tablePath("plain"));
    expect(loaded.text).toContain(await pointer("plain"));
    expect((await metadataOf("plain")).currentSnapshotId).toBeDefined();
    const config = (query: string) => ask("GET", `/v1/config${query}`);
    expect((await config("")).status).toBe(200);
    expect((await config(`?warehouse=${encodeURIComponent(join(home, "lake"))}`)).status).toBe(200);
    expect((await config("?warehouse=other")).status).toBe(400);
  });

  test("a body beyond the limit is refused", async () => {
    expect((await ask("POST", tablePath("plain"), "x".repeat(9 << 20))).status).toBe(413);
  });

  test("outside loopback it wants a token and TLS, and an address that is taken has its error", async () => {
    const source = createCatalogSource({
      ...runtime,
      engine: async () => runtime.engine,
      clock: systemClock,
      log: silentLogger,
    });
    const start = (listen: string, token: string | null) =>
      startCatalogServer({ source, listen, token, tls: null, clock: systemClock, log: silentLogger });
    await expect(start("0.0.0.0:0", null)).rejects.toMatchObject({ code: "catalog_exposed" });
    await expect(start("0.0.0.0:0", TOKEN)).rejects.toMatchObject({ code: "catalog_exposed" });
    await expect(start("nonsense", TOKEN)).rejects.toMatchObject({ code: "config_invalid" });
    await expect(start(server.url.slice("http://".length), TOKEN)).rejects.toMatchObject({
      code: "catalog_listen_failed",
    });
  });
});

describe("a replace by another engine", () => {
  test("is taken when every row is the same: format version 2", async () => {
    await makeTable("two", 2);
    const before = await pointer("two");
    const answer = await post("two", await rewrite("two"));
    expect(answer).toMatchObject({ status: 200 });
    expect(await pointer("two")).not.toBe(before);
    const { tasks } = await planScan({ store: runtime.store, metadata: await metadataOf("two") });
    expect(tasks.map((t) => t.dataFile.recordCount)).toEqual([2000n]);
    const { rows } = await db.client.query(
      `select phase, detail ->> 'snapshot' is not null as has from spillway.journal where kind = 'foreign_replace'`,
    );
    expect(rows).toEqual([{ phase: "committed", has: true }]);
    expect((await db.client.query("select from spillway.staged_file")).rowCount).toBe(0);
  });

  test("keeps the rows' ids in format version 3, or is refused", async () => {
    await makeTable("three");
    const without = await post("three", await rewrite("three"));
    expect(without).toMatchObject({ status: 403 });
    expect(without.text).toContain("row ids");
    expect(await post("three", await rewrite("three", { lineage: true }))).toMatchObject({ status: 200 });
  });

  test("is refused when a value, a count, a bound or the number of rows differs", async () => {
    await makeTable("wrong", 2);
    const before = await pointer("wrong");
    const change =
      (edit: (batch: ColumnBatch) => void): Change =>
      (batch) => {
        edit(batch);
        return batch;
      };
    const cases: [string, Rewrite][] = [
      ["differ", { change: change((b) => ((dataOf(b, 0) as Int32Array)[5] = 77)) }],
      ["2000 rows were replaced by", { change: (b) => ({ ...b, length: b.length - 1 }) }],
      ["declared bounds", { file: (f) => ({ ...f, upperBounds: new Map(f.lowerBounds) }) }],
      ["counts", { file: (f) => ({ ...f, nullValueCounts: new Map([[3, 1n]]) }) }],
      ["its manifest says", { file: (f) => ({ ...f, recordCount: 1999n }) }],
      ["size", { file: (f) => ({ ...f, fileSizeBytes: f.fileSizeBytes + 1n }) }],
      ["below the table", { file: (f) => ({ ...f, path: f.path.replace("/data/", "/../data/") }) }],
      ["is Spillway's", { request: { summaryProps: { "spillway.op": "1" } } }],
      ["retention", {}],
    ];
    for (const [reason, options] of cases) {
      const body = await rewrite("wrong", options);
      if (reason === "retention") (body.updates[1] as Record<string, unknown>)["max-snapshot-age-ms"] = 1;
      const answer = await post("wrong", body);
      expect([reason, answer.status, answer.text]).toEqual([reason, 403, expect.stringContaining(reason)]);
    }
    expect(await pointer("wrong")).toBe(before);
  });

  test("loses to a commit that came first, and to a table that does not allow it", async () => {
    await makeTable("late", 2);
    const body = await rewrite("late");
    expect(await post("late", body)).toMatchObject({ status: 200 });
    const again = await post("late", body);
    expect(again).toMatchObject({ status: 409 });
    expect(again.text).toContain("CommitFailedException");
    await db.client.query("update spillway.lake_table set allow_foreign_replace = false where name = 'late'");
    const forbidden = await post("late", await rewrite("late"));
    expect(forbidden).toMatchObject({ status: 403 });
    expect(forbidden.text).toContain("does not allow");
  });

  test("cannot bring deleted rows back", async () => {
    await makeTable("back");
    const removed = await deleteFirstRow("back");
    const without = await post("back", await rewrite("back", { lineage: true }));
    expect([without.status, without.text]).toEqual([403, expect.stringContaining("1999 rows were replaced by 2000")]);
    const request = { addDataFiles: [], removeDataFiles: [], removeDeleteFiles: [removed] };
    const bare = await post("back", await rewrite("back", { lineage: true, request }));
    expect([bare.status, bare.text]).toEqual([403, expect.stringContaining("are deleted")]);
    const honest = await rewrite("back", { lineage: true, respectDeletes: true });
    expect(await post("back", honest)).toMatchObject({ status: 200 });
  });
});

/** As a fold does it, past the catalog's protocol: the first row of the first file is deleted by a vector. */
async function deleteFirstRow(name: string): Promise<DataFile> {
  const { store } = runtime;
  const metadata = await metadataOf(name);
  const { tasks } = await planScan({ store, metadata });
  const dataFile = must(tasks[0], "file").dataFile;
  const positions = new PositionSet();
  positions.add(0);
  const [vector] = await writeDeletionVectors(store, `${metadata.location}/data`, [{ dataFile, positions }]);
  const staged = await stageSnapshot({
    metadata,
    store,
    operation: "overwrite",
    snapshotId: newInt63(),
    nowMs: Date.now(),
    addDeleteFiles: [must(vector, "vector")],
    source: storeSource(store),
  });
  const next = applyUpdates(metadata, staged.updates, Date.now());
  const location = await writeMetadata(store, next, { version: 90, uuid: newUuid() });
  await db.client.query("update spillway.lake_table set metadata_location = $1 where name = $2", [location, name]);
  return must(vector, "vector");
}
