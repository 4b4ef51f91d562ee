/**
 * After Postgres was restored or cloned: whose the lake is, is a person's decision. `adopt` says that this database goes on with
 * the lake, and the one it was restored from is gone: the warehouse is taken over, if every file that the restored catalog
 * reads is still there. `fork` says that both live on: this one gets a lake of its own (restore-fork.ts).
 */
import { SpillwayError } from "@spillway/base/errors";
import { currentSnapshot, readMetadata } from "@spillway/lake/metadata";
import type { Snapshot, TableMetadata } from "@spillway/lake/model";
import { storeSource } from "@spillway/lake/snapshot/source";
import type { ObjectStore } from "@spillway/lake/store/store";
import { inTransaction } from "@spillway/pg/transaction";
import {
  type LakeTableRow,
  loadLakeTables,
  loadWarehouse,
  openOp,
  ownerPath,
  ownershipFault,
  printOwner,
  readIdentity,
  readOwner,
  type WarehouseRow,
} from "../catalog/catalog.ts";
import type { MoverContext } from "./context.ts";
import { giveUp } from "./fold.ts";
import { publish } from "./publish.ts";

export interface RestoreResult {
  readonly warehouse: string;
  readonly lineage: string;
  readonly generation: bigint;
  readonly tables: number;
  /** Old snapshots of which files are gone, or that a fork leaves with its original: AS OF cannot reach them any more. */
  readonly droppedSnapshots: number;
}

/** The catalog's record, and why it does not hold; throws `restore_not_needed` when it does. */
export async function requireFault(ctx: MoverContext): Promise<{ catalog: WarehouseRow; owner: WarehouseRow | null }> {
  const { catalog, owner, fault } = await ctx.pool.withClient(async (c) => {
    const row = await loadWarehouse(c);
    if (row === null) throw new SpillwayError("catalog_missing", "this database has no Spillway catalog yet");
    const found = await readOwner(ctx.store, row.location);
    const now = await readIdentity(c);
    // A copy that nobody has noticed yet has all of its original but that.
    const isCopy = found?.instance !== now.instance || row.instance !== now.instance;
    return { catalog: row, owner: found, fault: ownershipFault(row, found, now) ?? (isCopy ? "unclaimed" : null) };
  });
  if (fault === null)
    throw new SpillwayError("restore_not_needed", `the lake at ${catalog.location} is this database's own`);
  return { catalog, owner };
}

/** Throws `restore_not_needed`, `warehouse_mismatch`, `warehouse_taken`, `restore_incomplete`; then nothing was changed. */
export async function adoptLake(ctx: MoverContext): Promise<RestoreResult> {
  const { catalog, owner } = await requireFault(ctx);
  if (catalog.location !== ctx.warehouse) {
    throw new SpillwayError(
      "warehouse_mismatch",
      `the database's lake is at ${catalog.location}, not at ${ctx.warehouse}`,
    );
  }
  if (owner !== null && owner.lineage !== catalog.lineage) {
    throw new SpillwayError("warehouse_taken", `the warehouse ${catalog.location} belongs to another lineage by now`);
  }
  const tables = await ctx.pool.withClient((c) => loadLakeTables(c));
  const states = await requireFiles(ctx.store, tables);
  const generation = max(catalog.generation, owner?.generation ?? 0n) + 1n;
  const row = await ctx.pool.withClient(async (c) => ({ ...catalog, ...(await readIdentity(c)), generation }));
  // The object first: while the catalog says something else, nobody deletes, and adopting again is safe.
  await ctx.store.put(ownerPath(ctx.warehouse), Buffer.from(printOwner(row, ctx.clock)));
  await ctx.pool.withClient((c) => inTransaction(c, {}, (tx) => writeWarehouse(tx, row)));
  let droppedSnapshots = 0;
  for (const { table, gone } of states) droppedSnapshots += await dropSnapshots(ctx, table, gone);
  ctx.log.info("restore.adopted", { warehouse: ctx.warehouse, generation, dropped_snapshots: droppedSnapshots });
  return { warehouse: ctx.warehouse, lineage: row.lineage, generation, tables: tables.length, droppedSnapshots };
}

export async function writeWarehouse(
  tx: { query(sql: string, values: unknown[]): Promise<unknown> },
  row: WarehouseRow,
): Promise<void> {
  await tx.query(
    `update spillway.warehouse set location = $1, lineage = $2, system_identifier = $3, database_oid = $4, timeline = $5,
       generation = $6, instance = $7`,
    [
      row.location,
      row.lineage,
      row.systemIdentifier.toString(),
      row.databaseOid,
      row.timeline,
      row.generation.toString(),
      row.instance.toString(),
    ],
  );
}

function max(a: bigint, b: bigint): bigint {
  return a > b ? a : b;
}

interface TableState {
  readonly table: LakeTableRow;
  /** Older snapshots that cannot be read any more. */
  readonly gone: readonly bigint[];
}

const PARALLEL = 16;

/** Every file of every current snapshot must be there. Throws `restore_incomplete`, naming the tables. */
async function requireFiles(store: ObjectStore, tables: readonly LakeTableRow[]): Promise<TableState[]> {
  const faults: string[] = [];
  const states: TableState[] = [];
  for (const table of tables) {
    try {
      const metadata = await readMetadata(store, table.metadataLocation);
      const current = currentSnapshot(metadata);
      const missing = current ? await missingFiles(store, metadata, current) : [];
      if (missing.length > 0)
        faults.push(`${table.namespace}.${table.name} (${missing.length} files, as ${missing[0]})`);
      states.push({ table, gone: await goneSnapshots(store, metadata) });
    } catch (error) {
      if (!(error instanceof SpillwayError) || error.code !== "store_not_found") throw error;
      faults.push(`${table.namespace}.${table.name} (${error.message})`);
    }
  }
  if (faults.length > 0) {
    throw new SpillwayError("restore_incomplete", `lake files are gone of ${faults.join("; ")}`, {
      details: { faults },
    });
  }
  return states;
}

async function missingFiles(store: ObjectStore, metadata: TableMetadata, snapshot: Snapshot): Promise<string[]> {
  const source = storeSource(store);
  const paths = new Set<string>();
  for (const manifest of await source.manifests(snapshot)) {
    for (const { status, dataFile } of await source.entries(metadata, manifest)) {
      if (status !== "deleted") paths.add(dataFile.path);
    }
  }
  const missing: string[] = [];
  const queue = [...paths];
  const check = async (): Promise<void> => {
    for (let path = queue.pop(); path !== undefined; path = queue.pop()) {
      if ((await store.head(path)) === null) missing.push(path);
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, check));
  return missing;
}

/** Older snapshots without their manifest list, or with a manifest or file less. */
async function goneSnapshots(store: ObjectStore, metadata: TableMetadata): Promise<bigint[]> {
  const gone: bigint[] = [];
  for (const snapshot of metadata.snapshots) {
    if (snapshot.snapshotId === metadata.currentSnapshotId) continue;
    const missing = await missingFiles(store, metadata, snapshot).catch((error: unknown) => {
      if (error instanceof SpillwayError && error.code === "store_not_found") return [snapshot.manifestList];
      throw error;
    });
    if (missing.length > 0) gone.push(snapshot.snapshotId);
  }
  return gone;
}

async function dropSnapshots(ctx: MoverContext, table: LakeTableRow, gone: readonly bigint[]): Promise<number> {
  if (gone.length === 0) return 0;
  const opId = await ctx.pool.withClient((c) =>
    openOp(c, { kind: "restore", relationId: null, lakeId: table.lakeId, epoch: ctx.epoch }),
  );
  try {
    await publish(ctx, {
      opId,
      lakeId: table.lakeId,
      stage: (base) => {
        const dropped = new Set(gone);
        const refs = Object.entries(base.refs).filter(([, ref]) => dropped.has(ref.snapshotId));
        return Promise.resolve({
          updates: [
            ...refs.map(([refName]) => ({ action: "remove-snapshot-ref" as const, refName })),
            { action: "remove-snapshots" as const, snapshotIds: [...gone] },
          ],
          commit: { detail: { dropped_snapshots: gone.length } },
        });
      },
    });
    return gone.length;
  } catch (error) {
    await giveUp(ctx, opId, error);
    throw error;
  }
}
