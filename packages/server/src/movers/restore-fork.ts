/**
 * Forking: a clone gets a lake of its own. The current rows of every table are copied, file by file, into a new warehouse under a
 * new lineage, and the catalog moves there in one transaction. The original's files are read and never touched: not
 * even those that the cloned journal says are staged or doomed.
 */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { newInt63, newUuid } from "@spillway/base/ids";
import { applyUpdates } from "@spillway/lake/commit";
import { DeleteLoader, writeDeletionVectors, writePositionDeletes } from "@spillway/lake/deletes/deletes";
import { currentSnapshot, readMetadata, writeMetadata } from "@spillway/lake/metadata";
import type { DataFile, ManifestEntry, TableMetadata } from "@spillway/lake/model";
import { storeSource } from "@spillway/lake/snapshot/source";
import { stageSnapshot } from "@spillway/lake/snapshot/stage";
import { isWithin, type ObjectStore } from "@spillway/lake/store/store";
import { inTransaction } from "@spillway/pg/transaction";
import type pg from "pg";
import {
  type LakeTableRow,
  loadLakeTables,
  loadWarehouse,
  ownerPath,
  printOwner,
  readIdentity,
  readOwner,
  type WarehouseRow,
} from "../catalog/catalog.ts";
import type { MoverContext } from "./context.ts";
import { requireFault, type RestoreResult, writeWarehouse } from "./restore.ts";

export interface ForkOptions {
  /** The original's warehouse, to read from. `ctx.store` and `ctx.warehouse` are the new one's. */
  readonly original: ObjectStore;
  readonly onProgress?: (progress: { readonly table: string; readonly files: number; readonly of: number }) => void;
}

/** Throws `restore_not_needed`, `usage` for the same location, `warehouse_taken`; then the catalog is unchanged. */
export async function forkLake(ctx: MoverContext, options: ForkOptions): Promise<RestoreResult> {
  const known = await ctx.pool.withClient((c) => loadWarehouse(c));
  const isHere = known?.location === ctx.warehouse;
  const { catalog } = await requireFault(isHere ? ctx : { ...ctx, store: options.original });
  if (isWithin(catalog.location, ctx.warehouse) || isWithin(ctx.warehouse, catalog.location)) {
    throw new SpillwayError("usage", `a fork needs a warehouse of its own, apart from ${catalog.location}`);
  }
  const identity = await ctx.pool.withClient((c) => readIdentity(c));
  const row: WarehouseRow = { ...identity, location: ctx.warehouse, lineage: newUuid(), generation: 1n };
  await takeLocation(ctx, row);
  const tables = await ctx.pool.withClient((c) => loadLakeTables(c));
  const copies: TableCopy[] = [];
  for (const table of tables) copies.push(await copyTable(ctx, table, options));
  await ctx.pool.withClient((c) => inTransaction(c, {}, (tx) => moveCatalog(tx, row, copies)));
  ctx.log.info("restore.forked", { warehouse: ctx.warehouse, lineage: row.lineage, tables: tables.length });
  const droppedSnapshots = copies.reduce((sum, c) => sum + c.left, 0);
  return { warehouse: row.location, lineage: row.lineage, generation: 1n, tables: tables.length, droppedSnapshots };
}

/** A fork that was interrupted may go on in the same place: by the same server, with no catalog there yet. */
async function takeLocation(ctx: MoverContext, row: WarehouseRow): Promise<void> {
  const owner = await readOwner(ctx.store, ctx.warehouse);
  const isOurs =
    owner !== null && owner.systemIdentifier === row.systemIdentifier && owner.databaseOid === row.databaseOid;
  if (owner !== null && (!isOurs || owner.generation !== 1n)) {
    throw new SpillwayError("warehouse_taken", `the warehouse ${ctx.warehouse} belongs to another database`);
  }
  await ctx.store.put(ownerPath(ctx.warehouse), Buffer.from(printOwner(row, ctx.clock)));
}

interface TableCopy {
  readonly table: LakeTableRow;
  readonly metadata: TableMetadata;
  readonly metadataLocation: string;
  /** Older snapshots, which stay with the original. */
  readonly left: number;
}

async function copyTable(ctx: MoverContext, table: LakeTableRow, options: ForkOptions): Promise<TableCopy> {
  const old = await readMetadata(options.original, table.metadataLocation);
  const location = `${ctx.warehouse}/${old.location.split("/").slice(-2).join("/")}`;
  const empty: TableMetadata = {
    ...old,
    tableUuid: newUuid(),
    location,
    snapshots: [],
    snapshotLog: [],
    metadataLog: [],
    refs: {},
    currentSnapshotId: undefined,
    statistics: [],
    partitionStatistics: [],
  };
  const metadata = await withRows(ctx, old, empty, table, options);
  const version = table.metadataVersion + 1;
  const metadataLocation = await writeMetadata(ctx.store, metadata, { version, uuid: newUuid() });
  const left = Math.max(0, old.snapshots.length - 1);
  return { table: { ...table, metadataVersion: version }, metadata, metadataLocation, left };
}

async function withRows(
  ctx: MoverContext,
  old: TableMetadata,
  empty: TableMetadata,
  table: LakeTableRow,
  options: ForkOptions,
): Promise<TableMetadata> {
  const snapshot = currentSnapshot(old);
  if (!snapshot) return empty;
  const source = storeSource(options.original);
  const entries: ManifestEntry[] = [];
  for (const manifest of await source.manifests(snapshot)) {
    for (const entry of await source.entries(old, manifest)) if (entry.status !== "deleted") entries.push(entry);
  }
  const data = entries.filter((e) => e.dataFile.content === "data").map((e) => e.dataFile);
  const copied = new Map<string, DataFile>();
  for (const file of data) {
    const path = `${empty.location}/data/${newUuid()}.parquet`;
    await ctx.store.put(path, contentOf(options.original, file));
    copied.set(file.path, { ...file, path, firstRowId: undefined });
    options.onProgress?.({ table: `${table.namespace}.${table.name}`, files: copied.size, of: data.length });
  }
  const deletes = await new DeleteLoader(options.original).load(
    entries.filter((e) => e.dataFile.content !== "data").map((e) => e.dataFile),
    new Set(copied.keys()),
  );
  const list = [...deletes].map(([path, positions]) => ({ dataFile: must(copied.get(path), "data file"), positions }));
  const write = empty.formatVersion >= 3 ? writeDeletionVectors : writePositionDeletes;
  const staged = await stageSnapshot({
    metadata: empty,
    store: ctx.store,
    operation: list.length > 0 ? "overwrite" : "append",
    snapshotId: newInt63(),
    nowMs: ctx.clock.wallMs(),
    addDataFiles: [...copied.values()],
    addDeleteFiles: await write(ctx.store, `${empty.location}/data`, list),
    summaryProps: { "spillway.kind": "fork" },
  });
  return applyUpdates(empty, staged.updates, ctx.clock.wallMs());
}

const CHUNK = 8 << 20;

async function* contentOf(store: ObjectStore, file: DataFile): AsyncIterable<Uint8Array> {
  const size = Number(file.fileSizeBytes);
  for (let at = 0; at < size; at += CHUNK) yield store.getRange(file.path, at, Math.min(CHUNK, size - at));
}

/** All tables, the warehouse, and the records of files that are the original's: together or not at all. */
async function moveCatalog(tx: pg.Client, row: WarehouseRow, copies: readonly TableCopy[]): Promise<void> {
  for (const { table, metadata, metadataLocation } of copies) {
    const { rowCount } = await tx.query(
      `update spillway.lake_table set metadata_location = $2, metadata_version = $3, current_snapshot_id = $4,
         sequence_number = $5, table_uuid = $6, location = $7, committed_at = now()
       where lake_id = $1 and sequence_number = $8`,
      [
        table.lakeId.toString(),
        metadataLocation,
        table.metadataVersion,
        metadata.currentSnapshotId?.toString() ?? null,
        metadata.lastSequenceNumber.toString(),
        metadata.tableUuid,
        metadata.location,
        table.sequenceNumber.toString(),
      ],
    );
    if (rowCount !== 1) {
      throw new SpillwayError("commit_conflict", `${table.namespace}.${table.name} was changed while it was copied`);
    }
    await tx.query(
      `update spillway.seam s set s = $2, s_sequence = $3 from spillway.relation x
       where x.relation_id = s.relation_id and x.lake_id = $1`,
      [table.lakeId.toString(), metadata.currentSnapshotId?.toString() ?? null, metadata.lastSequenceNumber.toString()],
    );
  }
  await tx.query("delete from spillway.staged_file");
  await tx.query("delete from spillway.doomed_file");
  await tx.query("delete from spillway.pin");
  await tx.query(
    `update spillway.journal set phase = 'abandoned', ended_at = now(), detail = detail || '{"abandoned": "forked"}' where phase = 'open'`,
  );
  await writeWarehouse(tx, row);
}
