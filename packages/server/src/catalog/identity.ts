/**
 * Whose lake it is. A restored copy, a loaded dump, or the old primary of a fork has the same catalog, the same warehouse and
 * a valid epoch; it would clean up the original's files. So the warehouse holds an ownership object, taken by conditional
 * put, and it and the catalog's own record must say the same as the server that we are connected to.
 */
import type { Clock } from "@spillway/base/clock";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { newUuid } from "@spillway/base/ids";
import type { ObjectStore } from "@spillway/lake/store/store";
import { fromPgError, sqlstateOf } from "@spillway/pg/pg-error";
import { inTransaction } from "@spillway/pg/transaction";
import type pg from "pg";
import type { Db } from "./db.ts";
import { big } from "./rows.ts";

/** The server as it says it is. */
export interface ServerIdentity {
  /** 0 where the role may not ask. */
  readonly systemIdentifier: bigint;
  readonly databaseOid: number;
  /** 0 where the role may not ask. */
  readonly timeline: number;
}

export interface WarehouseRow extends ServerIdentity {
  readonly location: string;
  readonly lineage: string;
  /** Raised by each adoption, so that the one who adopted last is the owner. */
  readonly generation: bigint;
}

const OWNER_FILE = "_spillway/owner.json";

export function ownerPath(warehouse: string): string {
  return `${warehouse}/${OWNER_FILE}`;
}

export async function readIdentity(db: Db): Promise<ServerIdentity> {
  const { rows } = await db.query<{ oid: string }>(
    "select oid::text from pg_database where datname = current_database()",
  );
  const asked = async (sql: string): Promise<string> => {
    const { rows: found } = await db.query<{ v: string }>(sql);
    return found[0]?.v ?? "0";
  };
  let control = ["0", "0"];
  try {
    control = [
      await asked("select system_identifier::text as v from pg_control_system()"),
      await asked("select timeline_id::text as v from pg_control_checkpoint()"),
    ];
  } catch (error) {
    if (sqlstateOf(error) !== "42501") throw fromPgError(error, "reading the server's identity");
  }
  return {
    systemIdentifier: BigInt(control[0] ?? "0"),
    databaseOid: Number(rows[0]?.oid),
    timeline: Number(control[1] ?? "0"),
  };
}

export async function loadWarehouse(db: Db): Promise<WarehouseRow | null> {
  const { rows } = await db.query<{
    location: string;
    lineage: string;
    system_identifier: string;
    database_oid: string | number;
    timeline: number;
    generation: string;
  }>("select * from spillway.warehouse");
  const raw = rows[0];
  if (!raw) return null;
  return {
    location: raw.location,
    lineage: raw.lineage,
    systemIdentifier: big(raw.system_identifier),
    databaseOid: Number(raw.database_oid),
    timeline: raw.timeline,
    generation: big(raw.generation),
  };
}

/**
 * Takes an unowned warehouse for this database, or finds it taken by this very database. In a transaction of the caller's,
 * which is rolled back when this throws: `warehouse_taken`, or the store's errors.
 */
export async function takeWarehouse(
  tx: Db,
  store: ObjectStore,
  warehouse: string,
  clock: Clock,
): Promise<WarehouseRow> {
  const identity = await readIdentity(tx);
  let row: WarehouseRow = { ...identity, location: warehouse, lineage: newUuid(), generation: 1n };
  try {
    await store.put(ownerPath(warehouse), Buffer.from(printOwner(row, clock)), { ifNoneMatch: true });
  } catch (error) {
    if (!isSpillwayError(error, "store_precondition", "store_outcome_unknown")) throw error;
    const owner = await readOwner(store, warehouse);
    // An init of ours that was interrupted before it committed.
    const isOurs =
      owner !== null &&
      owner.systemIdentifier === identity.systemIdentifier &&
      owner.databaseOid === identity.databaseOid &&
      identity.systemIdentifier !== 0n;
    if (owner !== null && !isOurs && owner.lineage !== row.lineage) {
      throw new SpillwayError("warehouse_taken", `the warehouse ${warehouse} belongs to another database`, {
        details: { lineage: owner.lineage },
      });
    }
    if (owner !== null) row = { ...row, lineage: owner.lineage, generation: owner.generation };
  }
  await tx.query(
    `insert into spillway.warehouse (location, lineage, system_identifier, database_oid, timeline, generation)
     values ($1, $2, $3, $4, $5, $6)`,
    [
      row.location,
      row.lineage,
      row.systemIdentifier.toString(),
      row.databaseOid,
      row.timeline,
      row.generation.toString(),
    ],
  );
  return row;
}

/** Null when there is none. */
export async function readOwner(store: ObjectStore, warehouse: string): Promise<WarehouseRow | null> {
  try {
    const raw = JSON.parse(Buffer.from(await store.get(ownerPath(warehouse))).toString("utf8")) as Record<
      string,
      string
    >;
    return {
      location: warehouse,
      lineage: String(raw["lineage"]),
      systemIdentifier: BigInt(raw["systemIdentifier"] ?? "0"),
      databaseOid: Number(raw["databaseOid"]),
      timeline: Number(raw["timeline"]),
      generation: BigInt(raw["generation"] ?? "0"),
    };
  } catch (error) {
    if (isSpillwayError(error, "store_not_found")) return null;
    throw error;
  }
}

export function printOwner(row: WarehouseRow, clock: Clock): string {
  return JSON.stringify({
    lineage: row.lineage,
    systemIdentifier: row.systemIdentifier.toString(),
    databaseOid: row.databaseOid,
    timeline: row.timeline,
    generation: row.generation.toString(),
    writtenAt: new Date(clock.wallMs()).toISOString(),
  });
}

/** Why the lake is not this database's, or null. Pure. What a role may not ask (0) is not compared. */
export function ownershipFault(catalog: WarehouseRow, owner: WarehouseRow | null, now: ServerIdentity): string | null {
  if (owner === null) return "the warehouse has no ownership object";
  if (owner.lineage !== catalog.lineage) return "the warehouse belongs to another lineage";
  // The catalog's is raised first, the object's after it: an interrupted renewal leaves it one behind.
  const isOurs = owner.generation === catalog.generation || owner.generation === catalog.generation - 1n;
  if (!isOurs)
    return "the lake was since used by another copy of this database, or this one was restored to an earlier point";
  for (const [what, recorded] of [
    ["catalog", catalog],
    ["ownership object", owner],
  ] as const) {
    const fault = identityFault(recorded, now);
    if (fault !== null) return `${fault}, by the ${what}`;
  }
  return null;
}

function identityFault(recorded: ServerIdentity, now: ServerIdentity): string | null {
  const differs = (a: bigint | number, b: bigint | number): boolean => Number(a) !== 0 && Number(b) !== 0 && a !== b;
  if (differs(recorded.systemIdentifier, now.systemIdentifier)) return "the lake belongs to another server";
  if (differs(recorded.databaseOid, now.databaseOid)) return "the lake belongs to another database of this server";
  if (differs(recorded.timeline, now.timeline)) {
    return `the server is on timeline ${now.timeline}, the lake was last seen on ${recorded.timeline}`;
  }
  return null;
}

/**
 * Raises the generation, in the catalog and then in the store. Done by the leader again and again: a copy of this
 * database, or this one restored to an earlier point, has an older generation, and so is no owner any more. `also` is run in
 * the same transaction.
 */
export async function renewOwnership(
  client: pg.Client,
  store: ObjectStore,
  warehouse: string,
  clock: Clock,
  also: (tx: Db) => Promise<void>,
): Promise<void> {
  const row = await inTransaction(client, {}, async (tx) => {
    const owned = await requireOwnership(tx, store, warehouse);
    const owner = await readOwner(store, warehouse);
    if (owner !== null && owner.generation < owned.generation) return owned;
    await tx.query("update spillway.warehouse set generation = generation + 1 where generation = $1", [
      owned.generation.toString(),
    ]);
    await also(tx);
    return { ...owned, generation: owned.generation + 1n };
  });
  await store.put(ownerPath(warehouse), Buffer.from(printOwner(row, clock)));
}

/**
 * Whether all that differs is a newer timeline: this server was promoted, and its catalog is not an older one, because no
 * later generation is in the store. A copy that was promoted for another purpose looks the same, which is why going on
 * without being asked is a setting (`adopt-promotion`). Pure.
 */
export function isPromotion(catalog: WarehouseRow, owner: WarehouseRow | null, now: ServerIdentity): boolean {
  const as = (row: WarehouseRow): WarehouseRow => ({ ...row, timeline: now.timeline });
  if (owner === null || now.systemIdentifier === 0n || now.timeline <= catalog.timeline) return false;
  return owner.timeline <= now.timeline && ownershipFault(as(catalog), as(owner), now) === null;
}

/**
 * Takes the warehouse along to the timeline of a promoted server, in a new generation; false when there is nothing to take along. The
 * leader's: `also` checks its epoch in the same transaction. The former primary, should it come back by itself, has an older one.
 */
export async function followPromotion(
  client: pg.Client,
  store: ObjectStore,
  warehouse: string,
  clock: Clock,
  also: (tx: Db) => Promise<void>,
): Promise<boolean> {
  const [catalog, owner, now] = [
    await loadWarehouse(client),
    await readOwner(store, warehouse),
    await readIdentity(client),
  ];
  if (catalog === null || catalog.location !== warehouse || !isPromotion(catalog, owner, now)) return false;
  const row = { ...catalog, timeline: now.timeline, generation: catalog.generation + 1n };
  // The object first: until the catalog says the same, nobody deletes, and doing it again is safe.
  await store.put(ownerPath(warehouse), Buffer.from(printOwner({ ...row, generation: catalog.generation }, clock)));
  await inTransaction(client, {}, async (tx) => {
    await tx.query("update spillway.warehouse set timeline = $1, generation = $2", [
      row.timeline,
      row.generation.toString(),
    ]);
    await also(tx);
  });
  await store.put(ownerPath(warehouse), Buffer.from(printOwner(row, clock)));
  return true;
}

/** Throws `catalog_missing`, `warehouse_mismatch` or `lake_not_ours` unless this database owns the warehouse. */
export async function requireOwnership(db: Db, store: ObjectStore, warehouse: string): Promise<WarehouseRow> {
  const catalog = await loadWarehouse(db);
  if (catalog === null) throw new SpillwayError("catalog_missing", "this database has no Spillway catalog yet");
  if (catalog.location !== warehouse) throw mismatch(catalog.location, warehouse);
  const fault = ownershipFault(catalog, await readOwner(store, warehouse), await readIdentity(db));
  if (fault !== null) throw new SpillwayError("lake_not_ours", `${warehouse}: ${fault}`);
  return catalog;
}

export function mismatch(recorded: string, given: string): SpillwayError {
  return new SpillwayError(
    "warehouse_mismatch",
    `the database's lake is at ${recorded}, the warehouse setting says ${given}`,
  );
}
