/**
 * For tests: a source with a lake, a pump in this process, and the oracle: what each published snapshot holds, read from its files
 * without the code that wrote them, against what Postgres held after the transaction that the snapshot ends with.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import type { Clock } from "@spillway/base/clock";
import { type Logger, silentLogger } from "@spillway/base/log";
import { parseLsn } from "@spillway/base/lsn";
import { DeleteLoader } from "@spillway/lake/deletes/deletes";
import { readMetadata } from "@spillway/lake/metadata";
import type { TableMetadata } from "@spillway/lake/model";
import { planScan } from "@spillway/lake/scan/scan";
import { localPathOf } from "@spillway/lake/store/store";
import { textOf } from "@spillway/pg/columns/text-out";
import { quoteIdent as q } from "@spillway/pg/quote";
import type pg from "pg";
import { init, loadLakeTableByName, loadRelationByName } from "../../catalog/catalog.ts";
import { duckIdent, duckLiteral, readDataFiles } from "../../engine/engine.ts";
import type { MoverContext } from "../context.ts";
import { knownFields } from "../fold-fields.ts";
import type { PumpSettings } from "./pump.ts";

export const TEST_SETTINGS: PumpSettings = {
  flushIntervalMs: 50,
  maxBufferedRows: 100_000,
  indexBytes: 1 << 28,
  idleIntervalMs: 500,
};

export interface TestHome {
  readonly dir: string;
  readonly remove: () => void;
}

export function testHome(): TestHome {
  const dir = mkdtempSync(join(tmpdir(), "spillway-mirror-"));
  return { dir, remove: () => rmSync(dir, { recursive: true, force: true }) };
}

export async function initSource(ctx: MoverContext, clock: Clock, log: Logger = silentLogger): Promise<void> {
  await ctx.pool.withClient((c) => init({ client: c, store: ctx.store, warehouse: ctx.warehouse, clock, log }));
}

export interface PublishedSnapshot {
  readonly lsn: bigint;
  readonly snapshotId: bigint;
}

/** The table's metadata as the catalog has it now. */
export async function lakeMetadata(ctx: MoverContext, name: string, schema = "public"): Promise<TableMetadata> {
  const row = must(await ctx.pool.withClient((c) => loadLakeTableByName(c, schema, name)), name);
  return readMetadata(ctx.store, row.metadataLocation);
}

/** The snapshots, oldest first, with the LSN of each. */
export function publishedOf(metadata: TableMetadata): PublishedSnapshot[] {
  return metadata.snapshots
    .toSorted((a, b) => Number(a.sequenceNumber - b.sequenceNumber))
    .map((s) => ({ lsn: parseLsn(must(s.summary["spillway.lsn"], "LSN")), snapshotId: s.snapshotId }));
}

/** The rows of a snapshot as texts, sorted: what DuckDB reads of each file, less the deleted positions. */
export async function lakeRows(
  ctx: MoverContext,
  metadata: TableMetadata,
  snapshotId: bigint,
  columns: readonly string[],
): Promise<string[]> {
  const plan = await planScan({ store: ctx.store, metadata, snapshotId });
  const loader = new DeleteLoader(ctx.store);
  const out: string[] = [];
  for (const { dataFile, deletes } of plan.tasks) {
    const dead = (await loader.load(deletes)).get(dataFile.path);
    const list = columns.map((c) => `${duckIdent(c)}::VARCHAR`).join(", ");
    const path = must(localPathOf(dataFile.path), "local");
    const rows = await ctx.engine.use((s) =>
      s.rows(`SELECT file_row_number, ${list} FROM read_parquet(${duckLiteral(path)})`),
    );
    for (const [at, ...values] of rows) if (!dead?.has(Number(at))) out.push(JSON.stringify(values));
  }
  return out.toSorted();
}

/** The rows of a table in Postgres, in the same form. */
export async function heapRows(client: pg.ClientBase, table: string, columns: readonly string[]): Promise<string[]> {
  const list = columns.map((c) => `${q(c)}::text`).join(", ");
  const { rows } = await client.query<unknown[]>({ text: `select ${list} from ${q(table)}`, rowMode: "array" });
  return rows.map((row) => JSON.stringify(row)).toSorted();
}

/** The rows of the current snapshot under the current columns, as the engine reads them: for tables whose columns changed. */
export async function currentRows(ctx: MoverContext, client: pg.ClientBase, table: string): Promise<string[]> {
  const relation = must(await loadRelationByName(client, "public", table), table);
  const metadata = await lakeMetadata(ctx, table);
  const known = knownFields(relation, metadata).filter((f) => f.live);
  const order = relation.columns
    .filter((c) => !c.dropped)
    .map((c) =>
      must(
        known.find((f) => f.attnum === c.attnum),
        c.name,
      ),
    );
  const plan = await planScan({ store: ctx.store, metadata });
  const loader = new DeleteLoader(ctx.store);
  const out: string[] = [];
  for (const { dataFile, deletes } of plan.tasks) {
    const dead = (await loader.load(deletes)).get(dataFile.path) ?? null;
    const files = [{ path: must(localPathOf(dataFile.path), "local"), rows: dataFile.recordCount, deletes: dead }];
    for await (const batch of readDataFiles({ engine: ctx.engine, files, fields: order.map((f) => f.scan) })) {
      for (let i = 0; i < batch.length; i++) out.push(JSON.stringify(batch.columns.map((c) => textOf(c, i))));
    }
  }
  return out.toSorted();
}
